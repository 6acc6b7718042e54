"""One job at a time on a run: a lock that names its holder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from galaxyhpc.runtime.rank import Place
from galaxyhpc.storage.run_dir import RunDir


class BusyError(RuntimeError):
    """Another process works on this run."""


@contextmanager
def alone(run: RunDir, place: Place) -> Iterator[None]:
    """Hold the run: never two writers. The lock goes with the process, however that ends."""
    lock = FileLock(run.path / f".lock-{place.rank}")
    patience = _patience()
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not patience:
                raise
            print(f"{_busy(run)}; waiting up to {patience} s", flush=True)
            lock.acquire(timeout=patience)
    except Timeout:
        raise BusyError(f"{_busy(run)}; nothing was changed") from None
    try:
        yield
    finally:
        lock.release()


def _patience() -> int:
    """Return for how many seconds a run that somebody holds is waited for.

    What a scheduler starts may follow upon a process that is still dying; the node of a requeued job may be cut off
    from Slurm and still at work. A person is told at once.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return 0
    return 60 if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" else 600


def _busy(run: RunDir) -> str:
    begun = [event for event in run.events() if event.get("event") in ("started", "evaluating")]
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
