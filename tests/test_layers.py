"""The picture of the imports in DESIGN.md, held."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# from the foundation up: a module imports from lower levels, or sideways within its own
LEVELS = (
    ("statistics",),
    (
        "provenance",
        "randomness",
        "e2cnn_compat",
        "located",
        "metrics",
        "morphology",
        "table",
        "averaging",
        "tables",
        "processes",
        "memory",
    ),
    ("conditions",),
    ("figures", "latex"),
    ("page",),
    ("calibration", "group_names", "image_size"),
    ("config", "presets"),
    ("rundir", "groups", "basis_cache", "compiled", "settings", "split", "slurm", "progress"),
    (
        "sweep",
        "lifecycle",
        "galaxy10",
        "demo",
        "results",
        "attack_results",
        "checkpoint",
        "psf",
        "jpeg",
        "corruptions",
        "augment",
    ),
    (
        "data",
        "distributed",
        "models",
        "planned",
        "standing",
        "images",
        "contact_sheet",
        "figure_files",
        "explore_figures",
    ),
    (
        "alarms",
        "history",
        "status",
        "batches",
        "attack",
        "validation",
        "networks",
        "paths",
        "optimizer",
        "costs",
        "fsck",
        "facts",
    ),
    ("details", "run_pages", "captions", "report_tables", "report", "evidence", "summaries", "report_figures"),
    ("trainer", "evaluate", "aggregate", "classifier", "explore_pictures", "explore_page"),
    ("latent", "gradcam", "embedding", "subject", "inspect_figures", "inspect_page"),
    ("jobs",),
    ("cluster", "local", "dispatch", "verify_resume", "preflight", "dry_run", "export", "predict"),
    ("explore", "inspect"),
    ("launch", "cancel", "retry", "benchmark"),
)
MAY_IMPORT_E2CNN = {"groups", "models", "e2cnn_compat"}


def files() -> list[Path]:
    return [path for folder in ("galaxyhpc", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))]


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "jobs" if parts[0] == "jobs" else parts[1]


def imported(path: Path) -> set[str]:
    """Return the modules of the project, and e2cnn, that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "galaxyhpc":
            names = [f"galaxyhpc.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            first, *rest = name.split(".")
            if first == "galaxyhpc" and rest:
                found.add(rest[0])
            elif first in ("jobs", "e2cnn"):
                found.add(first)
    return found


def test_every_module_has_its_level() -> None:
    named = [name for level in LEVELS for name in level]
    assert sorted(named) == sorted({module(path) for path in files()} - {"__init__"})


def test_imports_point_one_way() -> None:
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files()
        for name in imported(path) - {"e2cnn"}
        if level[name] > level.get(module(path), 0)
    ]
    assert wrong == []


def test_e2cnn_stays_behind_three_modules() -> None:
    assert {module(path) for path in files() if "e2cnn" in imported(path)} <= MAY_IMPORT_E2CNN


def test_launch_and_jobs_load_torch_only_when_they_need_it() -> None:
    modules = "galaxyhpc.launch, galaxyhpc.status, jobs.train, jobs.evaluate, jobs.report"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
