"""The lock of a run: one job at a time, and an error that names the holder."""

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
    """Hold the lock of a run; the system releases it when the process ends, in whatever way.

    Raises
    ------
    BusyError
    """
    lock = FileLock(run.path / f".lock-{rank_info.rank}")
    timeout = _lock_timeout()
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not timeout:
                raise
            print(f"{_format_busy(run)}; waiting up to {timeout} s", flush=True)
            lock.acquire(timeout=timeout)
    except Timeout:
        raise BusyError(f"{_format_busy(run)}; nothing was changed") from None
    try:
        yield
    finally:
        lock.release()


def _lock_timeout() -> int:
    """Return how many seconds to wait for a run that is locked; none where a person started the process.

    A scheduler's job may follow a process that is still exiting, and the node of a requeued job may be cut off from
    Slurm and still running.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return 0
    return 60 if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" else 600


def _format_busy(run: RunDir) -> str:
    starts = [event for event in run.read_events() if event["event"] in ("started", "evaluating")]
    last = starts[-1] if starts else {}
    holder = ", ".join(f"{name} {last[name]}" for name in ("job", "host", "pid") if name in last)
    return f"{run.path}: another process works on this run ({holder or 'it has just started'})"


def is_busy(run: RunDir) -> bool:
    """Whether a process works on this run at this moment; changes nothing."""
    try:
        with (run.path / ".lock-0").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared with others that only ask
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
