"""What surrounds the work of every job: its place, signals that are only noted, failures recorded, the requeue.

The work is a function (run, stop) -> done. When a signal asked it to stop it saves, returns False, and the job is
requeued (USR2: preemption or the time limit is near) or left (TERM, INT: somebody wants it gone).
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import submitit
from filelock import FileLock, Timeout

from galaxyhpc.rundir import RunDir

PATIENCE_SECONDS = 60  # the previous start of a requeued job may still be dying
STOPPED = 75  # exit status: not finished, start again to go on (EX_TEMPFAIL of sysexits.h)


@dataclass(frozen=True)
class Place:
    """Where this process stands in its job, before any communication."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    nodes: int = 1
    job: str = "by hand"  # differs between jobs and between the starts of a requeued job


def find_place() -> Place:
    """Read this process's place from submitit's environment (Slurm or local), else from torchrun's, else alone."""
    try:
        job = submitit.JobEnvironment()
    except RuntimeError:
        job = None
    if job is not None:
        start = os.environ.get("SLURM_RESTART_COUNT", "0")
        return Place(job.global_rank, job.num_tasks, job.local_rank, job.num_nodes, f"{job.job_id}.{start}")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        rank, world, local, nodes = (
            int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_WORLD_SIZE")
        )
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return Place(rank, world, local, nodes, f"{os.environ['TORCHELASTIC_RUN_ID']}.{start}")
    return Place(job=f"by hand, process {os.getpid()}")


@dataclass
class Stop:
    """What the signals so far ask for. A handler only notes it; the processes agree at a step boundary."""

    requeue: bool = False  # USR2: preemption or the time limit is near
    leave: bool = False  # TERM or INT: somebody wants the job gone

    @property
    def wanted(self) -> bool:
        return self.requeue or self.leave

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if number == signal.SIGUSR2:
            self.requeue = True
        else:
            self.leave = True


@contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """Note USR2, TERM and INT instead of dying of them; the previous handlers come back at the end."""
    stop = Stop()
    caught = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, stop.note) for number in caught]
    try:
        yield stop
    finally:
        for number, handler in zip(caught, previous, strict=True):
            signal.signal(number, handler)


class BusyError(RuntimeError):
    """Another process works on this run."""


@contextmanager
def alone(run: RunDir, place: Place) -> Iterator[None]:
    """Hold the run: never two writers. The lock goes with the process, however that ends."""
    lock = FileLock(run.path / f".lock-{place.rank}", timeout=PATIENCE_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(f"{run.path}: another process works on this run; nothing was changed") from None
    try:
        yield
    finally:
        lock.release()


def is_busy(run: RunDir) -> bool:
    """Whether a process works on this run at this moment."""
    if not (run.path / ".lock-0").exists():
        return False
    try:
        with FileLock(run.path / ".lock-0", timeout=0):
            return False
    except Timeout:
        return True


def carry_out(path: str, work: Callable[[RunDir, Stop], bool]) -> str:
    """Do a job's work on a run directory; see the module's docstring.

    Raises
    ------
    BusyError
    Exception
        Whatever the work raises, after it was recorded in the run's events.
    """
    run, place = RunDir(Path(path)), find_place()
    with stopping_on_signals() as stop, alone(run, place):
        try:
            done = work(run, stop)
        except Exception as error:
            run.record("failed", why=f"{type(error).__name__}: {error}", rank=place.rank)
            raise
        gc.collect()  # cycles in DDP hold the process group and its threads, which are not to outlive the interpreter
        if not done and place.rank == 0:
            run.record("stopped", why="asked to make room" if stop.requeue else "asked to leave")
    if not done:
        if stop.requeue and not stop.leave:
            requeue(place)
        raise SystemExit(STOPPED)
    return "done"


def requeue(place: Place) -> None:
    """Have the scheduler start this job again; by hand there is none, and nothing happens."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    if place.rank != 0:
        raise SystemExit(0)  # at any other status srun kills rank 0, which may still be asking for the requeue
    job = submitit.JobEnvironment()
    if job.cluster != "slurm":
        job._requeue(0)
        return
    # the requeue's own TERM must not kill the scontrol that asks for it, and a preempted job is requeued already
    command = ["scontrol", "requeue", job.job_id]
    answer = subprocess.run(command, timeout=60, preexec_fn=_ignore_term, capture_output=True, text=True)
    if answer.returncode and "pending execution" not in answer.stderr:
        raise RuntimeError(f"{' '.join(command)}: {answer.stderr.strip()}")


def _ignore_term() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
