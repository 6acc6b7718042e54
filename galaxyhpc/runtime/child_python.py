"""Python processes that are started here: they import nothing of the user's directory, and end with their parent.

`python -m` and `python -c` import from the current directory first, where a user may keep a jobs.py or an inspect.py.
A killed parent cannot stop its children: a worker ends at once (`die_with_parent`), and a job, which has something to
save, looks whether the process that started it still exists (`is_parent_gone`).
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from pathlib import Path

import galaxyhpc

PARENT_VARIABLE = "GALAXYHPC_PARENT"  # PID:START_TICKS of the process that a job ends with
POLL_SECONDS = 1.0


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


def name_parent() -> dict[str, str]:
    """Return the environment variable by which jobs recognise this process as their parent."""
    return {PARENT_VARIABLE: f"{os.getpid()}:{read_start_ticks(os.getpid())}"}


def is_parent_gone() -> bool:
    """Whether a process that was named as the parent of this job has ended; False where none was named."""
    pid, _, ticks = os.environ.get(PARENT_VARIABLE, "").partition(":")
    return pid.isdecimal() and ticks.isdecimal() and not is_alive(int(pid), int(ticks))


def die_with_parent(parent_pid: int) -> None:
    """Let a thread end this process soon after the one that started it, which may have been killed.

    The kernel's own signal (PR_SET_PDEATHSIG) would come from the fork server, where there is one.
    """
    start_ticks = read_start_ticks(parent_pid)

    def watch() -> None:
        while is_alive(parent_pid, start_ticks):
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since its host did; 0 where that is not known."""
    return _read_state(pid)[1]


def _read_state(pid: int) -> tuple[str, int]:
    """Return the state of a process, Z if it has ended, and when it started; '' and 0 where that is not known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    except (OSError, ValueError, IndexError):
        return "", 0


def is_alive(pid: int, start_ticks: int) -> bool:
    """Whether a process exists on this host; `start_ticks`, unless 0, tell it from another one with its pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user
        return True
    state, ticks = _read_state(pid)
    return state != "Z" and (0 in (start_ticks, ticks) or ticks == start_ticks)
