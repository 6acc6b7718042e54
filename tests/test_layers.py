"""The layout of the code: which folder may import which, what loads without torch, and how large a folder may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "galaxyhpc"

# lowest first: a folder imports from those before it; folders of one row do not import each other
FOLDERS = (
    ("config",),
    ("storage",),
    ("runtime",),
    ("steerable",),
    ("data",),
    ("models",),
    ("training", "evaluation"),
    ("analysis",),
    ("report",),
    ("prediction",),
    ("jobs",),
    ("status",),
    ("launch",),
)
LIBRARY = {folder for row in FOLDERS for folder in row}
PARTS_FOR_COMMANDS = {"launch", "status"}  # folders of commands whose parts other commands use
STEERABLE_IMPORTS = {
    "galaxyhpc.config.group_names",
    "galaxyhpc.storage.files",
    "galaxyhpc.runtime.native",
    "galaxyhpc.runtime.child_python",
}
IMPORTS_E2CNN = {"steerable", "benchmark"}
MOST_FILES = 12
LIGHT = ("launch", "status", "cancel", "retry", "doctor")


def sources() -> list[Path]:
    return [path for folder in (PACKAGE, ROOT / "jobs") for path in sorted(folder.rglob("*.py"))]


def folder_of(module: str) -> str:
    """Return the folder of the project that a module lies in; a command that is a single module stands for itself."""
    parts = module.split(".")
    return parts[0] if parts[0] != "galaxyhpc" or len(parts) == 1 else parts[1]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of the project, and of e2cnn, that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            both = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if is_module(name) else node.module for name in both]
        yield from (name for name in names if name.split(".")[0] in ("galaxyhpc", "jobs", "e2cnn"))


def is_module(name: str) -> bool:
    place = ROOT / name.replace(".", "/")
    return place.with_suffix(".py").is_file() or place.is_dir()


def test_imports_point_one_way() -> None:
    row_of = {folder: number for number, row in enumerate(FOLDERS) for folder in row}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources()
        for name in imported(path)
        if (into := folder_of(name)) in row_of
        and (own := folder_of(module_of(path))) in row_of
        and into != own
        and row_of[into] >= row_of[own]
    ]
    assert wrong == []


def test_nobody_imports_a_command() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources()
        for name in imported(path)
        if name.startswith("galaxyhpc.")
        and (into := folder_of(name)) not in LIBRARY - PARTS_FOR_COMMANDS
        and into != folder_of(module_of(path))
        and (into not in PARTS_FOR_COMMANDS or folder_of(module_of(path)) in LIBRARY - PARTS_FOR_COMMANDS)
    ]
    assert wrong == []


def test_a_command_is_run_and_not_imported() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources()
        for name in imported(path)
        if name.endswith(".__main__")
    ]
    assert wrong == []


def test_the_steerable_layers_are_a_library_of_their_own() -> None:
    names = {name for path in (PACKAGE / "steerable").rglob("*.py") for name in imported(path)}
    others = {name for name in names if not name.startswith(("galaxyhpc.steerable", "e2cnn"))}
    assert others <= STEERABLE_IMPORTS


def test_e2cnn_stays_behind_the_steerable_layers() -> None:
    inside = {folder_of(module_of(path)) for path in sources() if any(n.startswith("e2cnn") for n in imported(path))}
    assert inside <= IMPORTS_E2CNN


@pytest.mark.parametrize("folder", [path.parent for path in sorted(PACKAGE.rglob("__init__.py"))], ids=lambda p: p.name)
def test_a_folder_is_small_and_says_what_lives_there(folder: Path) -> None:
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    assert len(files) <= (MOST_FILES if folder != PACKAGE else 2 * MOST_FILES)
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    assert len(docstring.splitlines()) >= (3 if folder != PACKAGE else 1)


def test_submitting_and_asking_load_no_torch() -> None:
    modules = [f"galaxyhpc.{name}.__main__" if (PACKAGE / name).is_dir() else f"galaxyhpc.{name}" for name in LIGHT]
    names = ", ".join([*modules, "jobs.train", "jobs.evaluate", "jobs.predict", "jobs.report"])
    code = f"import sys, {names}; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
