"""Cancel runs: `galaxyhpc cancel runs/SWEEP [RUN ...]`, the whole sweep or single runs.

Waiting jobs leave Slurm's queue; running jobs, and processes on this machine, get SIGTERM, save and exit. Launching
the sweep again resumes them.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from galaxyhpc.runtime.job import print_error
from galaxyhpc.runtime.lock import is_busy
from galaxyhpc.status.run_status import QueueSnapshot, RunStatus, query_status
from galaxyhpc.storage.events import RunState
from galaxyhpc.storage.run_dir import RunDir, RunDirError, read_state
from galaxyhpc.storage.sweep_dir import RunSelectionError, find_runs, find_sweep_dir, select_runs

MAX_LISTED_RUNS = 20  # others are counted
# the job ended by itself in the meantime
HARMLESS_SCANCEL_ERRORS = ("Invalid job id specified", "already completed", "already completing")


class CancelError(ValueError):
    """Runs that cannot be cancelled at the moment; nothing was changed."""


def cancel(runs: Sequence[RunDir], sweep_dir: Path | None) -> list[str]:
    """Cancel the jobs and local processes of these runs, and return a line about each.

    `sweep_dir` is the sweep's directory where all of it is meant: the job of its report is cancelled too.

    Raises
    ------
    CancelError
    """
    statuses, snapshot = query_status(runs)
    if snapshot is not None and snapshot.jobs is None:
        raise CancelError("Slurm does not answer, so its queue is unknown; nothing was changed; try again")
    jobs_by_run = {status.run: sorted(status.records.get_queued_jobs(snapshot)) for status in statuses}
    cancel_jobs(
        {job for jobs in jobs_by_run.values() for job in jobs},
        _find_other_jobs(sweep_dir, statuses, snapshot) if sweep_dir else set(),
    )
    lines, skipped_counts = [], Counter[str]()
    for status in statuses:
        jobs = ", ".join(jobs_by_run[status.run])
        action = f"cancelled: {jobs}" if jobs else _terminate_local_process(status)
        if action and read_state(status.run).name != RunState.EVALUATED:
            status.run.record("cancelled", why="cancelled")
        lines += [f"{status.run.run_id}: {action}"] if action else []
        skipped_counts[status.state] += not action
        if not action and not sweep_dir:
            lines.append(f"{status.run.run_id}: nothing to cancel: {status.state}{_explain_unreachable(status)}")
    return _summarize(lines, skipped_counts, sweep_dir)


def _summarize(lines: list[str], skipped_counts: Counter[str], sweep_dir: Path | None) -> list[str]:
    if len(lines) > MAX_LISTED_RUNS:
        lines = [*lines[:MAX_LISTED_RUNS], f"and {len(lines) - MAX_LISTED_RUNS} more runs"]
    if sweep_dir and +skipped_counts:
        counts = ", ".join(f"{count} {state}" for state, count in (+skipped_counts).items())
        lines.append(f"not queued and not running on this machine, unchanged: {counts}")
    if sweep_dir and _is_launch_running(sweep_dir):
        lines.append("a launch of this sweep is running and may start more runs: stop it with Ctrl-C")
    return lines


def _explain_unreachable(status: RunStatus) -> str:
    """Explain why a run that seems to be under way cannot be cancelled."""
    if status.state == RunState.WAITING:
        return " in an array that an interrupted launch submitted: cancel the whole sweep"
    started = status.records.get_last_event("started", "evaluating")
    if is_busy(status.run):
        return f", by a process that cannot be signalled from here (host {started.get('host', 'unknown')})"
    return ""


def _find_other_jobs(sweep_dir: Path, statuses: Sequence[RunStatus], snapshot: QueueSnapshot | None) -> set[str]:
    """Return the jobs of a sweep that no run recorded: its report, and arrays of an interrupted launch."""
    if snapshot is None or snapshot.jobs is None:
        return set()
    events = (event for status in statuses for event in status.records.events)
    tokens = {str(event["token"]) for event in events if event["event"] == "submitting" and "token" in event}
    return {
        job
        for job, queued in snapshot.jobs.items()
        if queued.comment in tokens or (sweep_dir / "log" / f"{job.partition('_')[0]}_submission.sh").exists()
    }


def cancel_jobs(jobs: set[str], other_jobs: set[str]) -> None:
    """Cancel jobs with one call of scancel: single array tasks, or whole arrays where `other_jobs` has any.

    Never with --signal: Slurm 22.05 repeats a signal to an array task as long as others of its array wait.

    Raises
    ------
    CancelError
    """
    job_ids = {job.partition("_")[0] for job in jobs | other_jobs} if other_jobs else jobs
    if not job_ids:
        return
    try:
        answer = subprocess.run(
            ["scancel", *sorted(job_ids)], capture_output=True, text=True, errors="replace", timeout=120
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CancelError(f"scancel: {error}; nothing was recorded; check with status") from error
    errors = [line for line in answer.stderr.splitlines() if not any(text in line for text in HARMLESS_SCANCEL_ERRORS)]
    if answer.returncode and errors:
        raise CancelError(f"{errors[0]}; nothing was recorded; check with status")


def _terminate_local_process(status: RunStatus) -> str:
    """Send SIGTERM to the process on this machine that works on a run; return '' where there is none."""
    started = status.records.get_last_event("started", "evaluating")
    pid = started.get("pid")
    if started.get("host") != socket.gethostname() or type(pid) is not int or pid <= 1:
        return ""
    if not (is_busy(status.run) and _holds_lock(pid, status.run)):
        return ""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGTERM)
        return f"sent SIGTERM to process {pid}, which saves and exits"
    return ""


def _holds_lock(pid: int, run: RunDir) -> bool:
    """Whether this process holds the lock of the run: its number may belong to another program by now."""
    lock = str((run.path / ".lock-0").resolve())
    with suppress(OSError):
        return any(os.path.realpath(opened) == lock for opened in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _is_launch_running(sweep_dir: Path) -> bool:
    try:
        with (sweep_dir / ".launch.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def main(arguments: list[str] | None = None) -> int:
    """Cancel the runs on the command line; return 2 where that is not possible and nothing was changed."""
    parser = argparse.ArgumentParser(prog="galaxyhpc cancel", description=__doc__)
    parser.add_argument("path", type=Path, help="runs/SWEEP, or runs/SWEEP/RUN_ID")
    parser.add_argument("patterns", nargs="*", metavar="RUN", help="run ids, or parts of one (default: all runs)")
    options = parser.parse_args(arguments)
    try:
        runs = find_runs(options.path)
        selected = select_runs(runs, options.patterns) if options.patterns else runs
        is_whole_sweep = not options.patterns and (options.path / "plan.csv").is_file()
        print("\n".join(cancel(selected, find_sweep_dir(options.path) if is_whole_sweep else None)))
    except (RunDirError, RunSelectionError, CancelError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
