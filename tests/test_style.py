"""ruff and mypy, with the settings of pyproject.toml and setup.cfg; and no text whose encoding the locale decides."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.tiers import slow

PROJECT = Path(__file__).parents[1]


@pytest.mark.parametrize("check", ["ruff check", "ruff format --check", slow("mypy")])
def test_the_project_is_clean(check: str) -> None:
    command = [sys.executable, "-m", *check.split()]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def find_calls_that_leave_the_encoding_to_the_locale(path: Path) -> Iterator[str]:
    for call in (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        keywords = {keyword.arg for keyword in call.keywords}
        texts = {argument.value for argument in call.args if isinstance(argument, ast.Constant)}
        opens_text = name in ("open", "fdopen") and not ast.unparse(call.func).startswith(("os.", "Image.", "fits."))
        is_file = opens_text or name == "read_text" or (name == "write_text" and isinstance(call.func, ast.Attribute))
        is_decided = "encoding" in keywords or texts & {"rb", "wb", "ab", "r+b", "utf-8", "utf-8-sig"}
        if (is_file and not is_decided) or ("text" in keywords and "errors" not in keywords):  # of a child process
            yield f"{path.relative_to(PROJECT)}:{call.lineno}: {ast.unparse(call)[:80]}"


def test_every_file_names_its_encoding_and_every_answer_of_a_command_can_be_decoded() -> None:
    paths = [path for folder in ("galaxyhpc", "jobs") for path in sorted((PROJECT / folder).rglob("*.py"))]
    own = "self.reader.read_text", "self.read_text"  # of YAML, no file
    calls = [call for path in paths for call in find_calls_that_leave_the_encoding_to_the_locale(path)]
    assert not [call for call in calls if not any(name in call for name in own)]
