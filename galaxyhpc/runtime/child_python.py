"""Python processes that are started here: they import nothing of the user's directory, and end with their parent.

`python -m` and `python -c` import from the current directory first, where a user may keep a jobs.py or an inspect.py.
A killed parent cannot stop its children: a worker ends by itself (`die_with_parent`), and a job, which has
something to save, looks whether the process that started it still exists (`is_parent_gone`).
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import sys
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

import galaxyhpc

PARENT_VARIABLE = "GALAXYHPC_PARENT"  # PID:START_TICKS of the process that a job ends with
PR_SET_PDEATHSIG = 1  # of sys/prctl.h


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
    """End this process of `multiprocessing` when the one that asked for it ends, in whatever way."""
    if os.getppid() == parent_pid:
        with suppress(OSError, AttributeError):  # not Linux
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it has ended, or a fork server is the parent
        Thread(target=_exit_after, args=(parent_process(),), daemon=True).start()


def _exit_after(parent: BaseProcess | None) -> None:
    if parent is not None:
        parent.join()
    os._exit(1)


def read_start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since its host did; 0 where that is not known."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def is_alive(pid: int, start_ticks: int) -> bool:
    """Whether a process exists on this host; `start_ticks`, unless 0, tell it from another one with its pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user
        return True
    return 0 in (start_ticks, ticks := read_start_ticks(pid)) or ticks == start_ticks
