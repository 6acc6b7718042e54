"""Retry runs by failure type: `galaxyhpc retry runs/SWEEP --failed`, or `... runs/SWEEP RUN ...`.

Out of memory: half the micro-batch, the same global batch. Lost with its node: the node is excluded. Where a retry
would fail again (a traceback, a full disk, no progress) --failed skips the run and says why; naming a run forces its
retry. Runs that wait, run or are evaluated are never submitted.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from galaxyhpc.launch.dispatch import LaunchError, dispatch, find_unfinished_runs
from galaxyhpc.launch.slurm_executor import SubmissionError
from galaxyhpc.prediction.survey import refuse_survey
from galaxyhpc.runtime.console import make_console
from galaxyhpc.runtime.job import print_error
from galaxyhpc.runtime.lock import LAUNCH_LOCK, BusyError, hold, is_busy
from galaxyhpc.status.run_status import RunStatus, get_number, query_status
from galaxyhpc.storage.events import RunState
from galaxyhpc.storage.run_dir import RunDir, RunDirError
from galaxyhpc.storage.sweep_dir import RunSelectionError, find_runs, find_sweep_dir, select_runs

MIN_MICRO_BATCH = 3  # images: batch statistics need two, and the last micro-batch may be smaller
NOT_RETRIED_STATES = (
    RunState.WAITING,
    RunState.STARTING,
    RunState.RUNNING,
    RunState.EVALUATING,
    RunState.EVALUATED,
)
NOT_NODE_FAILURES = ("TIMEOUT", "DEADLINE", "PREEMPTED", "CANCELLED")
MAX_LISTED_RUNS = 20
MAX_REASON_CHARS = 200


@dataclass(frozen=True)
class Decision:
    """Whether a run is retried, and with which changes."""

    message: str
    should_retry: bool = True
    changes: dict[str, Any] = field(default_factory=dict)  # fields of the event `retried`


def decide(status: RunStatus, is_forced: bool, final_state: str) -> Decision:
    """Decide by failure type; `final_state` is Slurm's last state of the run's job, '' where it is unknown."""
    # a lost run is known not to be locked
    if status.state in NOT_RETRIED_STATES or (status.state != RunState.LOST and is_busy(status.run)):
        return _skip(status.state)
    try:
        status.run.load_config()
    except (OSError, ValueError):
        return _skip("its config.json cannot be read: launch the sweep again to restore it")
    cause = "memory" if status.state == RunState.LOST and final_state == "OUT_OF_MEMORY" else status.note
    if status.state in (RunState.LOST, RunState.FAILED) and cause == "memory":
        return _halve_micro_batch(status, is_forced)
    if status.state == RunState.LOST or cause == "connection":
        return _exclude_node(status, final_state)
    reason = " ".join(status.reason.split())[:MAX_REASON_CHARS]
    if status.state == RunState.FAILED and not is_forced:
        return _skip(f"{cause or 'error'}: {reason}; fix that, then name the run to force a retry")
    return Decision(f"retried unchanged: {status.state} {reason}".rstrip())


def _skip(reason: str) -> Decision:
    return Decision(f"skipped: {reason}", should_retry=False)


def _retry_if_forced(reason: str, is_forced: bool) -> Decision:
    """Retry without a change against the failure, only where the run was named."""
    return Decision(f"retried unchanged: {reason}") if is_forced else _skip(reason)


def _halve_micro_batch(status: RunStatus, is_forced: bool) -> Decision:
    """Halve the micro-batch of a training; an evaluation has none."""
    if status.records.is_trained:
        reason = "its evaluation ran out of memory: reduce evaluate.batch_size and launch the sweep again"
        return _retry_if_forced(reason, is_forced)
    config = status.run.load_config()
    resources = config.resources
    world_size = int(get_number(status.records.get_last_event("started"), "world") or resources.num_tasks)
    local_batch = math.ceil(config.train.batch_size / world_size)
    micro_batch = min(resources.micro_batch or local_batch, local_batch)
    if micro_batch // 2 < MIN_MICRO_BATCH:
        reason = f"out of memory at a micro-batch of {micro_batch}, which cannot be halved further: ask for more memory"
        return _retry_if_forced(reason, is_forced)
    change = f"micro-batch {micro_batch} -> {micro_batch // 2}, the same global batch of {config.train.batch_size}"
    return Decision(f"retried, out of memory: {change}", changes={"micro_batch": micro_batch // 2})


def _exclude_node(status: RunStatus, final_state: str) -> Decision:
    """Exclude the node that a run was lost with, where it is known."""
    message = f"retried: {status.reason}"
    started = status.records.get_last_event("assigned", "started", "evaluating")
    node, job_id = str(started.get("nodes", "")), str(started.get("job", "")).rpartition(".")[0]
    submitted_jobs = {str(event.get("job")) for event in status.records.submissions}
    if not node or final_state in NOT_NODE_FAILURES or job_id not in submitted_jobs:
        return Decision(message)
    if set(node) & set("[],"):
        return Decision(f"{message}; no node excluded: which of {node} failed is unknown")
    return Decision(f"{message}; excluding {node}", changes={"exclude": [node]})


def retry(
    console: Console, sweep_dir: Path, runs: Sequence[RunDir], is_forced: bool, options: argparse.Namespace
) -> int:
    """Decide for each run, record the retries, and submit them; return the exit status.

    Raises
    ------
    LaunchError, SubmissionError
    """
    statuses, snapshot = query_status(runs)
    if snapshot is not None and snapshot.jobs is None:
        raise LaunchError("Slurm does not answer, so its queue is unknown; nothing was changed; try again")
    decisions = _decide_all(statuses, is_forced)
    lines = [f"{run.run_id}: {decision.message}" for run, decision in decisions.items()]
    configs = [run.load_config() for run, decision in decisions.items() if decision.should_retry]
    unfinished = find_unfinished_runs(sweep_dir, configs) if configs else {}
    omitted_note = [f"and {len(lines) - MAX_LISTED_RUNS} more runs"] if len(lines) > MAX_LISTED_RUNS else []
    console.print("\n".join([*lines[:MAX_LISTED_RUNS], *omitted_note]), soft_wrap=True)
    if not unfinished:
        console.print("nothing to retry; nothing was submitted")
        return 0
    for run in unfinished:
        run.record("retried", why=decisions[run].message, **decisions[run].changes)
    pending_runs = {run: run.load_config().resources.resolved for run in unfinished}
    return dispatch(console, sweep_dir, pending_runs, options.executor, options.max_parallel)


def _decide_all(statuses: Sequence[RunStatus], is_forced: bool) -> dict[RunDir, Decision]:
    """Decide for all runs where they were named, else for the failed and the lost."""
    candidates = [status for status in statuses if is_forced or status.state in (RunState.FAILED, RunState.LOST)]
    return {status.run: decide(status, is_forced, status.final_state) for status in candidates}


def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="galaxyhpc retry", description=__doc__)
    parser.add_argument("path", type=Path, help="runs/SWEEP, or runs/SWEEP/RUN_ID")
    parser.add_argument("patterns", nargs="*", metavar="RUN", help="run ids, or parts of one: force a retry")
    parser.add_argument("--failed", action="store_true", help="retry every failed or lost run that a retry can help")
    parser.add_argument("--executor", choices=("auto", "slurm", "local"), default="auto")
    parser.add_argument("--max-parallel", type=int, metavar="N", help="maximum number of concurrent jobs of a stage")
    options = parser.parse_args(arguments)
    if options.failed == bool(options.patterns) and not (options.path / "config.json").is_file():
        parser.error(f"got {'both' if options.failed else 'neither'}; expected --failed or run ids")
    if options.max_parallel is not None and options.max_parallel < 1:
        parser.error(f"--max-parallel: got {options.max_parallel}; expected an integer >= 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Retry the runs on the command line; return 2 where that is not possible."""
    options = _parse_options(arguments)
    try:
        runs = find_runs(options.path)
        selected = select_runs(runs, options.patterns) if options.patterns else runs
        sweep_dir = find_sweep_dir(options.path)
        refuse_survey(sweep_dir)
        with hold(sweep_dir / LAUNCH_LOCK):
            return retry(make_console(), sweep_dir, selected, not options.failed, options)
    except KeyboardInterrupt:
        print("stopped; launch the sweep again to resume", file=sys.stderr)
        return 130
    except BusyError as error:
        print(f"another launch of this sweep is running; nothing was changed; {error}", file=sys.stderr)
    except (RunDirError, RunSelectionError, LaunchError, SubmissionError) as error:
        print_error(error)
    except (OSError, ValueError) as error:
        print(f"{options.path}: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
