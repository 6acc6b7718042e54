"""Provenance of a run: commit, uncommitted changes, versions, machine."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from galaxyhpc import __version__

PACKAGES = ("torch", "e2cnn", "numpy", "h5py", "pandas", "submitit")


def collect_provenance() -> dict[str, Any]:
    """Describe the running code and machine; commit and uncommitted are None where git does not tell."""
    changes = _run_git("diff", "HEAD")
    return {
        "commit": _run_git("rev-parse", "HEAD"),
        "uncommitted": hashlib.sha256(changes.encode()).hexdigest() if changes else None,  # of the difference
        "versions": {
            "galaxyhpc": __version__,
            **{name: metadata.version(name) for name in PACKAGES},
            "python": platform.python_version(),
        },
        "host": platform.node(),
        "machine": platform.platform(),
    }


def _run_git(*arguments: str) -> str | None:
    """Run git on the checkout of this file; None for an installed copy."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
