"""Take runs back: `python -m galaxyhpc.cancel runs/SWEEP [POINT ...]`, the whole sweep or single points.

Jobs that wait in Slurm's queue leave it, running ones are told to save and leave, and so are this machine's own
processes. Launching the sweep again goes on where they were.
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

from galaxyhpc.runtime.lock import is_busy
from galaxyhpc.status.run_status import QueueSnapshot, RunStatus, query_status
from galaxyhpc.storage.run_dir import RunDir, RunDirError, read_state
from galaxyhpc.storage.sweep_dir import RunSelectionError, find_runs, find_sweep_dir, select_runs

MAX_LISTED_RUNS = 20  # runs that get a line of their own
HARMLESS_SCANCEL_ERRORS = (
    "Invalid job id specified",
    "already completed",
    "already completing",
)  # it ended by itself meanwhile


class CancelError(ValueError):
    """Nothing could be cancelled as things are; nothing was changed."""


def cancel(runs: Sequence[RunDir], sweep_dir: Path | None) -> list[str]:
    """Cancel what these runs have in Slurm's queue or as a process here, and say what was done.

    `whole` is the sweep's directory where all of it is meant: its report's job goes too.

    Raises
    ------
    CancelError
    """
    standings, answer = query_status(runs)
    if answer is not None and answer.jobs is None:
        raise CancelError("Slurm does not answer, and what waits there is not known; nothing was changed; try again")
    jobs = {one.run: sorted(one.records.get_queued_jobs(answer)) for one in standings}
    cancel_jobs(
        {job for some in jobs.values() for job in some},
        _find_other_jobs(sweep_dir, standings, answer) if sweep_dir else set(),
    )
    lines, nothing = [], Counter[str]()
    for one in standings:
        done = ", ".join(jobs[one.run]) and f"withdrawn: {', '.join(jobs[one.run])}"
        done = done or _terminate_local_process(one)
        if done and read_state(one.run).name != "evaluated":
            one.run.record("cancelled", why="cancelled")
        lines += [f"{one.run.run_id}: {done}"] if done else []
        nothing[one.state] += not done
        if not done and not sweep_dir:
            lines.append(f"{one.run.run_id}: nothing to cancel: {one.state}{_explain_unreachable(one)}")
    return _summarize(lines, nothing, sweep_dir)


def _summarize(lines: list[str], skipped_counts: Counter[str], sweep_dir: Path | None) -> list[str]:
    if len(lines) > MAX_LISTED_RUNS:
        lines = [*lines[:MAX_LISTED_RUNS], f"and {len(lines) - MAX_LISTED_RUNS} more runs alike"]
    if sweep_dir and +skipped_counts:
        left = ", ".join(f"{count} {name}" for name, count in (+skipped_counts).items())
        lines.append(f"neither in a queue nor running here, and left as they are: {left}")
    if sweep_dir and _is_launch_running(sweep_dir):
        lines.append("a launch of this sweep is at work, and what it starts next is not cancelled: stop it with Ctrl-C")
    return lines


def _explain_unreachable(status: RunStatus) -> str:
    """Say why a run that seems to be under way cannot be reached."""
    if status.state == "waiting":
        return " in an array that an interrupted launch submitted: cancel the whole sweep"
    started = status.records.get_last_event("started", "evaluating")
    if is_busy(status.run):
        return f", by a process that cannot be told from here (host {started.get('host', 'unknown')})"
    return ""


def _find_other_jobs(sweep_dir: Path, statuses: Sequence[RunStatus], snapshot: QueueSnapshot | None) -> set[str]:
    """Return the jobs of a sweep that no run has noted: its report, and what an interrupted launch submitted."""
    if snapshot is None or snapshot.jobs is None:
        return set()
    tokens = {
        str(e["token"]) for one in statuses for e in one.records.events if e["event"] == "submitting" and "token" in e
    }
    return {
        job
        for job, queued in snapshot.jobs.items()
        if queued.comment in tokens or (sweep_dir / "log" / f"{job.partition('_')[0]}_submission.sh").exists()
    }


def cancel_jobs(jobs: set[str], other_jobs: set[str]) -> None:
    """Cancel jobs with one call of scancel: elements one by one, whole arrays where all of the sweep is meant.

    Never with --signal: Slurm 22.05 repeats a signal to an element as long as others of its array wait.

    Raises
    ------
    CancelError
    """
    named = {job.partition("_")[0] for job in jobs | other_jobs} if other_jobs else jobs
    if not named:
        return
    try:
        answer = subprocess.run(["scancel", *sorted(named)], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CancelError(f"scancel: {error}; nothing was recorded; status says what is left") from error
    wrong = [line for line in answer.stderr.splitlines() if not any(text in line for text in HARMLESS_SCANCEL_ERRORS)]
    if answer.returncode and wrong:
        raise CancelError(f"{wrong[0]}; nothing was recorded; status says what is left")


def _terminate_local_process(status: RunStatus) -> str:
    """Tell this machine's own process of a run to save and leave; '' where there is none."""
    started = status.records.get_last_event("started", "evaluating")
    process = started.get("pid")
    if started.get("host") != socket.gethostname() or type(process) is not int or process <= 1:
        return ""
    if not (is_busy(status.run) and _holds_lock(process, status.run)):
        return ""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGTERM)
        return f"process {process} is told to save and leave"
    return ""


def _holds_lock(pid: int, run: RunDir) -> bool:
    """Whether this very process holds the run: its number may be another program's by now."""
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
    """Cancel what the command line names; 2 where that is not possible, and nothing was changed then."""
    parser = argparse.ArgumentParser(prog="galaxyhpc cancel", description=__doc__)
    parser.add_argument("path", type=Path, help="runs/SWEEP, or runs/SWEEP/RUN_ID")
    parser.add_argument("points", nargs="*", metavar="POINT", help="run ids, or parts of one (default: all runs)")
    options = parser.parse_args(arguments)
    try:
        runs = find_runs(options.path)
        some = select_runs(runs, options.points) if options.points else runs
        whole = find_sweep_dir(options.path) if not options.points and (options.path / "plan.csv").is_file() else None
        print("\n".join(cancel(some, whole)))
    except (RunDirError, RunSelectionError, CancelError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
