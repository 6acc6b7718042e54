"""One job at a time on a run: a lock that names its holder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from galaxyhpc.runtime.rank import RankInfo
from galaxyhpc.storage.run_dir import RunDir


class BusyError(RuntimeError):
    """Another process works on this run."""


@contextmanager
def exclusive_lock(run: RunDir, rank_info: RankInfo) -> Iterator[None]:
    """Hold the run: never two writers. The lock goes with the process, however that ends."""
    lock = FileLock(run.path / f".lock-{rank_info.rank}")
    patience = _lock_timeout()
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not patience:
                raise
            print(f"{_format_busy(run)}; waiting up to {patience} s", flush=True)
            lock.acquire(timeout=patience)
    except Timeout:
        raise BusyError(f"{_format_busy(run)}; nothing was changed") from None
    try:
        yield
    finally:
        lock.release()


def _lock_timeout() -> int:
    """Return for how many seconds a run that somebody holds is waited for.

    What a scheduler starts may follow upon a process that is still dying; the node of a requeued job may be cut off
    from Slurm and still at work. A person is told at once.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return 0
    return 60 if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" else 600


def _format_busy(run: RunDir) -> str:
    begun = [event for event in run.read_events() if event.get("event") in ("started", "evaluating")]
    last = begun[-1] if begun else {}
    who = ", ".join(f"{name} {last[name]}" for name in ("job", "host", "pid") if name in last)
    return f"{run.path}: another process works on this run ({who or 'it has only begun'})"


def is_busy(run: RunDir) -> bool:
    """Whether a process works on this run at this moment; asking changes nothing."""
    try:
        with (run.path / ".lock-0").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # beside others who only ask
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
