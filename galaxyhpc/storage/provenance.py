"""Provenance of a run: commit, uncommitted changes, versions, machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from galaxyhpc import __version__

PACKAGES = ("torch", "e2cnn", "numpy", "h5py", "pandas", "submitit")


def collect_provenance() -> dict[str, Any]:
    """Describe the running code and machine; what git or an installation does not tell is None."""
    is_checkout = _run_git("ls-files", "--error-unmatch", __file__) is not None  # not a copy inside another repository
    changes = _run_git("diff-index", "--patch", "--binary", "HEAD") if is_checkout else None
    return {
        "commit": _run_git("rev-parse", "HEAD") if is_checkout else None,
        "uncommitted": hashlib.sha256(changes.encode()).hexdigest() if changes else None,  # of the difference
        "versions": {
            "galaxyhpc": __version__,
            **{name: _find_version(name) for name in PACKAGES},
            "python": platform.python_version(),
        },
        "host": platform.node(),
        "machine": platform.platform(),
    }


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None  # not every command needs every package


def _run_git(*arguments: str) -> str | None:
    """Run git on the repository around this file, whatever repository the user's GIT_DIR names; None if it fails."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    try:
        answer = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
