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
from galaxyhpc.runtime.lock import exclusive_lock
from galaxyhpc.runtime.rank import RankInfo, get_rank_info
from galaxyhpc.storage.files import sanitize
from galaxyhpc.storage.run_dir import RunDir

MAX_STARTS_WITHOUT_PROGRESS = 3  # of one job without progress: a further one would make none either
REQUEUE_RETRY_SECONDS = (2, 10)  # s; a controller that is busy or changes hands is asked again
MAX_TRACEBACK_CHARS = 4000  # characters of a traceback that are kept
EXIT_INCOMPLETE = 75  # exit status: not finished, start again to go on (EX_TEMPFAIL of sysexits.h)


@dataclass
class StopSignal:
    """What the signals so far ask for. A handler only notes it; the processes agree at a step boundary."""

    should_requeue: bool = False  # USR2: preemption or the time limit is near
    should_exit: bool = False  # TERM or INT: somebody wants the job gone
    job_id: str = ""  # Slurm's id, where there is a time limit
    end_time: float | None = None  # of the job's time, in seconds since 1970

    @property
    def is_requested(self) -> bool:
        return self.should_requeue or self.should_exit

    def is_time_limit_near(self, seconds: float) -> bool:
        """Whether the job's time ends so soon. The limit may have been changed: near the end Slurm is asked again."""
        if self.end_time is not None and self.end_time - time.time() < seconds:
            self.end_time = slurm.get_end_time(self.job_id) or self.end_time
            self.should_requeue = self.should_requeue or self.end_time - time.time() < seconds
        return self.should_requeue

    def handle_signal(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if signum == signal.SIGUSR2:
            self.should_requeue = True
        else:
            self.should_exit = True


@contextmanager
def catch_stop_signals() -> Iterator[StopSignal]:
    """Note USR2, TERM and INT instead of dying of them; the previous handlers come back at the end."""
    stop = StopSignal()
    caught = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, stop.handle_signal) for number in caught]
    try:
        yield stop
    finally:
        for number, handler in zip(caught, previous, strict=True):
            signal.signal(number, handler)


class NoProgressError(RuntimeError):
    """A job that starts again and again without getting anywhere."""


def check_crash_loop(run: RunDir, rank_info: RankInfo) -> None:
    """Note this start of a Slurm job; raise where the same job was started `STARTS` times and got nowhere.

    A job submitted anew has a budget of its own.

    Raises
    ------
    NoProgressError
    """
    if rank_info.rank != 0 or "SUBMITIT_FOLDER" not in os.environ or not _get_slurm_environment():
        return
    job, progress = rank_info.job_attempt.rpartition(".")[0], run.progress
    mine = [e for e in run.read_events() if e["event"] == "assigned" and str(e.get("job")).rpartition(".")[0] == job]
    run.record("assigned", job=rank_info.job_attempt, nodes=rank_info.node_names, progress=progress)
    if len(mine) >= MAX_STARTS_WITHOUT_PROGRESS and all(
        event.get("progress") == progress for event in mine[-MAX_STARTS_WITHOUT_PROGRESS:]
    ):
        raise NoProgressError(
            f"job {job} was started {MAX_STARTS_WITHOUT_PROGRESS} times and stopped each time with no more than {progress}; "
            "it needs more time, more memory or another node"
        )


def run_job(path: str, target: Callable[[RunDir, StopSignal], bool]) -> str:
    """Do a job's work on a run directory; see the module's docstring.

    Raises
    ------
    BusyError
    Exception
        Whatever the work raises, after it was recorded in the run's events.
    """
    run, place = RunDir(Path(path)), get_rank_info()
    _remove_stale_results()
    with catch_stop_signals() as stop, exclusive_lock(run, place):
        try:
            check_crash_loop(run, place)
            _read_time_limit(stop, place)
            done = target(run, stop)
        except Exception as error:
            _record_failure(run, place, error)
            raise
        gc.collect()  # cycles in DDP hold the process group and its threads, which are not to outlive the interpreter
        if not done and place.rank == 0:
            run.record("stopped", why="asked to make room" if stop.should_requeue else "asked to leave")
    if not done:
        if _should_requeue_after_term(place) if stop.should_exit else stop.should_requeue:
            requeue(place)
        # at any other status than 0 srun kills rank 0, which may still be asking for the requeue
        raise SystemExit(0 if place.rank and "SUBMITIT_EXECUTOR" in os.environ else EXIT_INCOMPLETE)
    return "done"


def _get_slurm_environment() -> submitit.JobEnvironment | None:
    """Return the job's environment where it is one of Slurm's that may be requeued."""
    return submitit.JobEnvironment() if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else None


def _remove_stale_results() -> None:
    """Remove what an earlier start of this job left: a stale error would be read as this one's result.

    submitit refuses to write a result beside the leftover of a killed write, and a job that did its work would fail.
    """
    if "SUBMITIT_FOLDER" in os.environ:
        result = submitit.JobEnvironment().paths.result_pickle
        result.unlink(missing_ok=True)
        result.with_suffix(result.suffix + ".save_tmp").unlink(missing_ok=True)


def _read_time_limit(stop: StopSignal, rank_info: RankInfo) -> None:
    """Learn from Slurm when the job's time ends; one process asks, for all stop together."""
    job = _get_slurm_environment()
    if job is not None and rank_info.rank == 0:
        stop.job_id, stop.end_time = job.job_id, slurm.get_end_time(job.job_id)


def _record_failure(run: RunDir, rank_info: RankInfo, error: Exception) -> None:
    trace = "".join(traceback.format_exception(error))[-MAX_TRACEBACK_CHARS:]
    why = f"{type(error).__name__}: {error}"
    try:
        run.record("failed", why=why, rank=rank_info.rank, cause=_classify_error(error), trace=trace)
    except OSError as refused:  # a full disk takes no record either
        print(f"{run.events_file}: not recorded ({refused}): failed, {why}", flush=True)


def print_error(error: Exception) -> None:
    """Print an error on stderr: ours and the system's say all in one line, others need their traceback."""
    if type(error).__module__.startswith("galaxyhpc.") or isinstance(error, OSError):
        print(" ".join(sanitize(str(error)).split()), file=sys.stderr)
    else:
        traceback.print_exception(error)


def _classify_error(error: Exception) -> str:
    """Sort an error by what would help against it."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "OutOfMemoryError" in text or "can't allocate memory" in text:
        return "memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk"
    if re.search("Connection (closed|reset|refused)|DistBackendError|ncclRemoteError", text):
        return "connection"  # another process of the job failed first; its own record says why
    return "no progress" if isinstance(error, NoProgressError) else "error"


def _should_requeue_after_term(rank_info: RankInfo) -> bool:
    """Whether a job that got TERM is to go on: Slurm did not mean it, or its time ran out before USR2 was heard.

    One that was cancelled must not be asked about: its requeue would succeed. A preempted one Slurm requeues itself.
    """
    job = _get_slurm_environment()
    if rank_info.rank != 0 or job is None:
        return False
    state, reason = slurm.get_job_state(job.job_id)
    return state == "RUNNING" or reason == "TimeLimit"


def requeue(rank_info: RankInfo) -> None:
    """Have the scheduler start this job again; by hand there is none, and nothing happens."""
    if rank_info.rank != 0 or "SUBMITIT_EXECUTOR" not in os.environ:
        return
    job = submitit.JobEnvironment()
    if job.cluster != "slurm":
        job._requeue(0)
        return
    # the requeue's own TERM must not kill the scontrol that asks for it, and a preempted job is requeued already
    command = ["scontrol", "requeue", job.job_id]
    for pause in (*REQUEUE_RETRY_SECONDS, None):
        answer = subprocess.run(command, timeout=60, preexec_fn=_ignore_sigterm, capture_output=True, text=True)
        if answer.returncode == 0 or "pending execution" in answer.stderr:
            return
        if pause is None:
            raise RuntimeError(f"{' '.join(command)}: {answer.stderr.strip()}")
        time.sleep(pause)


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
