"""Run a job: lock its run, turn signals into flags, record failures, requeue.

The target is a function (run, stop) -> done. When a signal or the job's time limit asks it to stop, it saves and
returns False; the job is then requeued (USR2, the time limit, or TERM while Slurm still wants it to run) or ends
(other TERM and INT: cancelled).
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import submitit

from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.child_python import PARENT_VARIABLE, is_parent_gone
from galaxyhpc.runtime.lock import exclusive_lock
from galaxyhpc.runtime.process import prepare_process
from galaxyhpc.runtime.rank import RankInfo, get_rank_info
from galaxyhpc.storage.files import sanitize
from galaxyhpc.storage.run_dir import RunDir

MAX_STARTS_WITHOUT_PROGRESS = 3  # of one job
REQUEUE_RETRY_SECONDS = (2, 10)  # pauses before asking a busy or restarting Slurm controller again
PARENT_POLL_SECONDS = 1.0
MAX_TRACEBACK_CHARS = 4000  # recorded in events.jsonl
EXIT_INCOMPLETE = 75  # exit status: not finished, start again to resume (EX_TEMPFAIL of sysexits.h)


@dataclass
class StopSignal:
    """Flags of the signals received so far. A handler only sets a flag; the processes agree at a step boundary."""

    should_requeue: bool = False  # USR2 or the time limit: preempted
    should_exit: bool = False  # TERM or INT: cancelled
    reason: str = "cancelled"  # of should_exit
    job_id: str = ""  # Slurm's; empty without a time limit
    end_time: float | None = None  # of the time limit, seconds since 1970

    @property
    def is_requested(self) -> bool:
        return self.should_requeue or self.should_exit

    def is_time_limit_near(self, seconds: float) -> bool:
        """Whether the time limit ends in less than this; near it Slurm is asked again: it may have changed."""
        if self.end_time is not None and self.end_time - time.time() < seconds:
            self.end_time = slurm.get_end_time(self.job_id) or self.end_time
            self.should_requeue = self.should_requeue or self.end_time - time.time() < seconds
        return self.should_requeue

    def handle_signal(self, signum: int, frame: FrameType | None) -> None:
        """Set the flag of a signal."""
        if signum == signal.SIGUSR2:
            self.should_requeue = True
        else:
            self.should_exit = True


@contextmanager
def catch_stop_signals() -> Iterator[StopSignal]:
    """Turn USR2, TERM and INT into flags; restore the previous handlers at the end."""
    stop = StopSignal()
    signals = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    previous_handlers = [signal.signal(number, stop.handle_signal) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, previous_handlers, strict=True):
            signal.signal(number, handler)


@contextmanager
def watch_parent(stop: StopSignal) -> Iterator[None]:
    """Ask the target to stop when the process that started this job is gone: nobody waits for it any more."""
    has_ended = threading.Event()

    def watch() -> None:
        while not has_ended.wait(PARENT_POLL_SECONDS):
            if is_parent_gone():
                stop.reason, stop.should_exit = "the process that started it was killed", True
                return

    if PARENT_VARIABLE in os.environ:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        has_ended.set()


class NoProgressError(RuntimeError):
    """A job that starts again and again without progress."""


def get_training_progress(run: RunDir) -> str:
    """Return the progress of a training or an evaluation in words."""
    return run.progress


def check_crash_loop(
    run: RunDir, rank_info: RankInfo, get_progress: Callable[[RunDir], str] = get_training_progress
) -> None:
    """Record this start of a Slurm job, and refuse one that made no progress in `MAX_STARTS_WITHOUT_PROGRESS` starts.

    A newly submitted job counts from zero.

    Raises
    ------
    NoProgressError
    """
    if rank_info.rank != 0 or "SUBMITIT_FOLDER" not in os.environ or not _get_slurm_environment():
        return
    job, progress = rank_info.job_attempt.rpartition(".")[0], get_progress(run)
    assigned = [event for event in run.read_events() if event["event"] == "assigned"]
    starts = [event for event in assigned if str(event.get("job")).rpartition(".")[0] == job]
    run.record("assigned", job=rank_info.job_attempt, nodes=rank_info.node_names, progress=progress)
    recent = starts[-MAX_STARTS_WITHOUT_PROGRESS:]
    if len(recent) == MAX_STARTS_WITHOUT_PROGRESS and all(event.get("progress") == progress for event in recent):
        raise NoProgressError(
            f"job {job} was started {len(recent)} times and stopped each time with no more than {progress}; "
            "it needs more time, more memory or another node"
        )


def run_job(
    path: str,
    target: Callable[[RunDir, StopSignal], bool],
    get_progress: Callable[[RunDir], str] = get_training_progress,
) -> str:
    """Run a job's target on a run directory; see the module's docstring.

    A job that starts again and again while `get_progress` returns the same is refused.

    Raises
    ------
    BusyError
        Another process works on the run.
    Exception
        Any exception of the target, after it was recorded in the run's events.
    SystemExit
        The target was asked to stop before it was done.
    """
    prepare_process()
    run, rank_info = RunDir(Path(path)), get_rank_info()
    _remove_stale_results()
    with catch_stop_signals() as stop, watch_parent(stop), exclusive_lock(run, rank_info):
        try:
            check_crash_loop(run, rank_info, get_progress)
            if rank_info.rank == 0:  # all processes of a training stop together
                read_time_limit(stop)
            is_done = target(run, stop)
        except Exception as error:
            record_failure(run, rank_info, error)
            raise
        reason = "preempted or at its time limit" if stop.should_requeue else stop.reason
        if not is_done and rank_info.rank == 0:
            run.record("stopped", why=reason)
    if not is_done:
        if _should_requeue_after_term(rank_info) if stop.should_exit else stop.should_requeue:
            _try_requeue(run, rank_info, reason)
        # any other exit status than 0 makes srun kill rank 0, which may still be requesting the requeue
        raise SystemExit(0 if rank_info.rank and "SUBMITIT_EXECUTOR" in os.environ else EXIT_INCOMPLETE)
    return "done"


def _get_slurm_environment() -> submitit.JobEnvironment | None:
    """Return the environment of a Slurm job; None outside of Slurm."""
    return submitit.JobEnvironment() if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else None


def _remove_stale_results() -> None:
    """Remove the result files of an earlier start of this job: a stale error would be read as this start's result.

    submitit also refuses to write a result beside the leftover of a killed write.
    """
    if "SUBMITIT_FOLDER" in os.environ:
        result = submitit.JobEnvironment().paths.result_pickle
        result.unlink(missing_ok=True)
        result.with_suffix(result.suffix + ".save_tmp").unlink(missing_ok=True)


def read_time_limit(stop: StopSignal) -> None:
    """Ask Slurm for the end of the time limit."""
    job = _get_slurm_environment()
    if job is not None:
        stop.job_id, stop.end_time = job.job_id, slurm.get_end_time(job.job_id)


def record_failure(run: RunDir, rank_info: RankInfo, error: Exception) -> None:
    """Record an error with its cause and the end of its traceback."""
    trace = "".join(traceback.format_exception(error))[-MAX_TRACEBACK_CHARS:]
    message = f"{type(error).__name__}: {error}"
    try:
        run.record("failed", why=message, rank=rank_info.rank, cause=classify_error(error), trace=trace)
    except OSError as record_error:  # such as a full disk
        print(f"{run.events_file}: not recorded ({record_error}): failed, {message}", flush=True)


def print_error(error: Exception) -> None:
    """Print an error on stderr: one line for our errors and the system's, a traceback for others."""
    is_ours = type(error).__module__.split(".")[0] in ("galaxyhpc", "__main__")  # a command's own, run by its verb
    if is_ours or isinstance(error, OSError):
        print(" ".join(sanitize(str(error)).split()), file=sys.stderr)
    else:
        traceback.print_exception(error)


def classify_error(error: Exception) -> str:
    """Return the failure type: memory, disk, connection, no progress or error; `retry` decides by it."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "OutOfMemoryError" in text or "can't allocate memory" in text:
        return "memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk"
    if re.search("Connection (closed|reset|refused)|DistBackendError|ncclRemoteError", text):
        return "connection"  # another process of the job failed first and recorded why
    return "no progress" if isinstance(error, NoProgressError) else "error"


def _should_requeue_after_term(rank_info: RankInfo) -> bool:
    """Whether to requeue a job that got TERM: Slurm still runs it, or its time limit ended before USR2 arrived.

    A cancelled job must not be requeued, though Slurm would do it; a preempted one is requeued by Slurm itself.
    """
    job = _get_slurm_environment()
    if rank_info.rank != 0 or job is None:
        return False
    state, reason = slurm.get_job_state(job.job_id)
    return state == "RUNNING" or reason == "TimeLimit"


def requeue(rank_info: RankInfo) -> None:
    """Ask the scheduler to start this job again; do nothing in a process that was started by hand."""
    if rank_info.rank != 0 or "SUBMITIT_EXECUTOR" not in os.environ:
        return
    job = submitit.JobEnvironment()
    if job.cluster != "slurm":
        job._requeue(0)
        return
    # the TERM of the requeue must not kill scontrol itself; a preempted job may be requeued already
    command = ("scontrol", "requeue", job.job_id)
    for pause in (*REQUEUE_RETRY_SECONDS, None):
        answer = slurm.run(*command, preexec_fn=_ignore_sigterm)
        if answer.returncode == 0 or "pending execution" in answer.stderr:
            return
        if pause is None:
            raise RuntimeError(f"{' '.join(command)}: {answer.stderr.strip()}")
        time.sleep(pause)


def _try_requeue(run: RunDir, rank_info: RankInfo, reason: str) -> None:
    """Requeue this job; record why that is not possible, as in a container without Slurm's commands."""
    try:
        requeue(rank_info)
    except FileNotFoundError as error:
        cause = f"{error.filename} is not found in the job: add it to PATH in resources.setup"
        run.record("stopped", why=f"{reason}, and not requeued: {cause}")
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        run.record("stopped", why=f"{reason}, and not requeued: {error}")


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
