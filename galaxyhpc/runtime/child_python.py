"""Environment of the Python processes that are started here: they import this package, and nothing of the user's.

`python -m` and `python -c` import from the current directory first, where a user may keep a jobs.py or an inspect.py.
"""

from __future__ import annotations

import os
import shlex
import sys

import galaxyhpc


def get_import_root() -> str:
    """Return the directory that PYTHONPATH has to name for a child process; '' if the package is found without.

    A job on a cluster that passes no environment on has no PYTHONPATH of its own.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(galaxyhpc.__file__)))
    installed = {*sys.path[1:]} - {*os.environ.get("PYTHONPATH", "").split(os.pathsep)}  # the first is this process's
    return "" if root in installed else root


def make_child_environment() -> dict[str, str]:
    """Return environment variables to set for a child process."""
    root, safe = get_import_root(), {"PYTHONSAFEPATH": "1"}
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return safe | {"PYTHONPATH": path} if root else safe


def format_assignments() -> str:
    """Return the same variables as assignments for a shell, which keep its own PYTHONPATH: `export ...`, `env ...`."""
    root = get_import_root()
    path = f' PYTHONPATH={shlex.quote(root)}"${{PYTHONPATH:+:$PYTHONPATH}}"' if root else ""
    return f"PYTHONSAFEPATH=1{path}"
