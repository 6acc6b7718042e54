"""What surrounds the work of every job: its place, signals that are only noted, failures recorded, the requeue.

The work is a function (run, stop) -> done. When a signal, or the near end of the job's time, asked it to stop it
saves, returns False, and the job is requeued (USR2, the time limit; TERM while Slurm has no wish to end the job) or
left (TERM and INT otherwise: somebody wants it gone).
"""

from __future__ import annotations

import errno
import gc
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import submitit

from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.lock import alone
from galaxyhpc.runtime.rank import Place, find_place
from galaxyhpc.storage.files import readable
from galaxyhpc.storage.run_dir import RunDir

STARTS = 3  # of one job without progress: a further one would make none either
REQUEUE_PAUSES = (2, 10)  # s; a controller that is busy or changes hands is asked again
TRACE = 4000  # characters of a traceback that are kept
STOPPED = 75  # exit status: not finished, start again to go on (EX_TEMPFAIL of sysexits.h)


@dataclass
class Stop:
    """What the signals so far ask for. A handler only notes it; the processes agree at a step boundary."""

    requeue: bool = False  # USR2: preemption or the time limit is near
    leave: bool = False  # TERM or INT: somebody wants the job gone
    job: str = ""  # Slurm's id, where there is a time limit
    end: float | None = None  # of the job's time, in seconds since 1970

    @property
    def wanted(self) -> bool:
        return self.requeue or self.leave

    def ends_within(self, seconds: float) -> bool:
        """Whether the job's time ends so soon. The limit may have been changed: near the end Slurm is asked again."""
        if self.end is not None and self.end - time.time() < seconds:
            self.end = slurm.end_of(self.job) or self.end
            self.requeue = self.requeue or self.end - time.time() < seconds
        return self.requeue

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


class NoProgressError(RuntimeError):
    """A job that starts again and again without getting anywhere."""


def refuse_crash_loop(run: RunDir, place: Place) -> None:
    """Note this start of a Slurm job; raise where the same job was started `STARTS` times and got nowhere.

    A job submitted anew has a budget of its own.

    Raises
    ------
    NoProgressError
    """
    if place.rank != 0 or "SUBMITIT_FOLDER" not in os.environ or not _on_slurm():
        return
    job, progress = place.job.rpartition(".")[0], run.progress
    mine = [e for e in run.events() if e["event"] == "assigned" and str(e.get("job")).rpartition(".")[0] == job]
    run.record("assigned", job=place.job, nodes=place.node_names, progress=progress)
    if len(mine) >= STARTS and all(event.get("progress") == progress for event in mine[-STARTS:]):
        raise NoProgressError(
            f"job {job} was started {STARTS} times and stopped each time with no more than {progress}; "
            "it needs more time, more memory or another node"
        )


def carry_out(path: str, work: Callable[[RunDir, Stop], bool]) -> str:
    """Do a job's work on a run directory; see the module's docstring.

    Raises
    ------
    BusyError
    Exception
        Whatever the work raises, after it was recorded in the run's events.
    """
    run, place = RunDir(Path(path)), find_place()
    _forget_earlier_results()
    with stopping_on_signals() as stop, alone(run, place):
        try:
            refuse_crash_loop(run, place)
            _watch_the_clock(stop, place)
            done = work(run, stop)
        except Exception as error:
            _record_failure(run, place, error)
            raise
        gc.collect()  # cycles in DDP hold the process group and its threads, which are not to outlive the interpreter
        if not done and place.rank == 0:
            run.record("stopped", why="asked to make room" if stop.requeue else "asked to leave")
    if not done:
        if _slurm_keeps_it(place) if stop.leave else stop.requeue:
            requeue(place)
        # at any other status than 0 srun kills rank 0, which may still be asking for the requeue
        raise SystemExit(0 if place.rank and "SUBMITIT_EXECUTOR" in os.environ else STOPPED)
    return "done"


def _on_slurm() -> submitit.JobEnvironment | None:
    """Return the job's environment where it is one of Slurm's that may be requeued."""
    return submitit.JobEnvironment() if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else None


def _forget_earlier_results() -> None:
    """Remove what an earlier start of this job left: a stale error would be read as this one's result.

    submitit refuses to write a result beside the leftover of a killed write, and a job that did its work would fail.
    """
    if "SUBMITIT_FOLDER" in os.environ:
        result = submitit.JobEnvironment().paths.result_pickle
        result.unlink(missing_ok=True)
        result.with_suffix(result.suffix + ".save_tmp").unlink(missing_ok=True)


def _watch_the_clock(stop: Stop, place: Place) -> None:
    """Learn from Slurm when the job's time ends; one process asks, for all stop together."""
    job = _on_slurm()
    if job is not None and place.rank == 0:
        stop.job, stop.end = job.job_id, slurm.end_of(job.job_id)


def _record_failure(run: RunDir, place: Place, error: Exception) -> None:
    trace = "".join(traceback.format_exception(error))[-TRACE:]
    why = f"{type(error).__name__}: {error}"
    try:
        run.record("failed", why=why, rank=place.rank, cause=_cause(error), trace=trace)
    except OSError as refused:  # a full disk takes no record either
        print(f"{run.events_file}: not recorded ({refused}): failed, {why}", flush=True)


def tell(error: Exception) -> None:
    """Print an error on stderr: ours and the system's say all in one line, others need their traceback."""
    if type(error).__module__.startswith("galaxyhpc.") or isinstance(error, OSError):
        print(" ".join(readable(str(error)).split()), file=sys.stderr)
    else:
        traceback.print_exception(error)


def _cause(error: Exception) -> str:
    """Sort an error by what would help against it."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "OutOfMemoryError" in text or "can't allocate memory" in text:
        return "memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk"
    if re.search("Connection (closed|reset|refused)|DistBackendError|ncclRemoteError", text):
        return "connection"  # another process of the job failed first; its own record says why
    return "no progress" if isinstance(error, NoProgressError) else "error"


def _slurm_keeps_it(place: Place) -> bool:
    """Whether a job that got TERM is to go on: Slurm did not mean it, or its time ran out before USR2 was heard.

    One that was cancelled must not be asked about: its requeue would succeed. A preempted one Slurm requeues itself.
    """
    job = _on_slurm()
    if place.rank != 0 or job is None:
        return False
    state, reason = slurm.state_of(job.job_id)
    return state == "RUNNING" or reason == "TimeLimit"


def requeue(place: Place) -> None:
    """Have the scheduler start this job again; by hand there is none, and nothing happens."""
    if place.rank != 0 or "SUBMITIT_EXECUTOR" not in os.environ:
        return
    job = submitit.JobEnvironment()
    if job.cluster != "slurm":
        job._requeue(0)
        return
    # the requeue's own TERM must not kill the scontrol that asks for it, and a preempted job is requeued already
    command = ["scontrol", "requeue", job.job_id]
    for pause in (*REQUEUE_PAUSES, None):
        answer = subprocess.run(command, timeout=60, preexec_fn=_ignore_term, capture_output=True, text=True)
        if answer.returncode == 0 or "pending execution" in answer.stderr:
            return
        if pause is None:
            raise RuntimeError(f"{' '.join(command)}: {answer.stderr.strip()}")
        time.sleep(pause)


def _ignore_term() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
