"""Shared by the tests of hostile input: a valid sweep to corrupt, a workspace, and the output of a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

SUPPRESSED_HEALTH_CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
FUZZ_SETTINGS = settings(deadline=None, suppress_health_check=SUPPRESSED_HEALTH_CHECKS, derandomize=True)

VALID_SWEEP: dict[str, Any] = {
    "name": "good",
    "base": {
        "data": {"source": "demo", "image_size": 33, "demo": {"galaxies": 300, "size": 32}},
        "model": {"scale": 0.1},
        "train": {"epochs": 1, "batch_size": 50},
        "evaluate": {"conditions": ["clean"]},
        "resources": {"partition": "main", "setup": ["true"], "memory_gb": 2.0},
    },
    "blocks": [{"points": [{"model.architecture": "cnn"}]}],
    "exclude": [],
    "seeds": [0],
    "resources": [{"when": {"model.architecture": "cnn"}, "set": {"time_minutes": 30}}],
}


def snapshot_tree(path: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time of every file and link below a directory."""
    stats = {str(p): p.lstat() for p in path.rglob("*") if not p.is_dir() or p.is_symlink()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def get_exit_status(call: Callable[[], Any]) -> int:
    """Return the exit status; an exception other than SystemExit fails the test."""
    try:
        return int(call() or 0)
    except SystemExit as error:
        return int(error.code or 0)


CommandResult = tuple[int, list[str]]


def capture_command(call: Callable[[], Any], capfd: pytest.CaptureFixture[str]) -> CommandResult:
    """Return the exit status and the lines on stderr; no output holds a traceback or an escape sequence."""
    capfd.readouterr()
    status = get_exit_status(call)
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err and "\x1b" not in out + err, out + err
    assert status in (0, 1, 2) and (status == 0 or out + err), (status, out, err)
    return status, err.splitlines()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a directory, and return its parent, where nothing may be written."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path
