"""Try again by cause: `python -m galaxyhpc.retry runs/SWEEP --failed`, or `... runs/SWEEP POINT ...`.

Out of memory: half the micro-batch at the same global batch. Lost with its node: anywhere but there. Where trying
again would fail again (a traceback, a full disk, no progress) --failed leaves the run alone and says why; a run that
is named is tried whatever the cause. What waits, runs or is done is never submitted.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from galaxyhpc.config.schema import ResourcesConfig
from galaxyhpc.launch.dispatch import LaunchError, dispatch, find_unfinished_runs
from galaxyhpc.launch.slurm_executor import SubmissionError
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.console import make_console
from galaxyhpc.runtime.lock import is_busy
from galaxyhpc.status.run_status import RunStatus, get_number, query_status
from galaxyhpc.storage.run_dir import RunDir, RunDirError
from galaxyhpc.storage.sweep_dir import RunSelectionError, find_runs, find_sweep_dir, select_runs

MIN_MICRO_BATCH = 3  # images of a micro-batch: batch statistics need two, and the last part may be smaller
NOT_RETRIED_STATUSES = ("waiting", "starting", "running", "evaluating", "evaluated")
NOT_NODE_FAILURES = ("TIMEOUT", "DEADLINE", "PREEMPTED", "CANCELLED")
MAX_LISTED_RUNS = 20


@dataclass(frozen=True)
class Decision:
    """What becomes of a run."""

    message: str
    should_retry: bool = True
    changes: dict[str, Any] = field(default_factory=dict)  # fields of the event `retried`


def decide(status: RunStatus, is_forced: bool, final_state: str) -> Decision:
    """Decide by cause; `ending` is the state in which Slurm saw its last job leave, '' where it does not say."""
    if status.state in NOT_RETRIED_STATUSES or is_busy(status.run):
        return Decision(f"left alone: {status.state}", should_retry=False)
    try:
        status.run.load_config()
    except (OSError, ValueError):
        return Decision(
            "left alone: its config.json cannot be read: launch the sweep, which writes it", should_retry=False
        )
    cause = "memory" if status.state == "lost" and final_state == "OUT_OF_MEMORY" else status.note
    if status.state in ("lost", "failed") and cause == "memory":
        return _halve_micro_batch(status, is_forced)
    if status.state == "lost" or cause == "connection":
        return _exclude_node(status, final_state)
    if status.state == "failed" and not is_forced:
        reason = " ".join(status.reason.split())[:200]
        return Decision(
            f"left alone: {cause or 'error'}: {reason}; once that is mended, name it to retry it", should_retry=False
        )
    return Decision(f"retried as it is: {status.state} {' '.join(status.reason.split())[:200]}".rstrip())


def _halve_micro_batch(status: RunStatus, is_forced: bool) -> Decision:
    """Halve the micro-batch of a training; an evaluation has none."""
    if status.records.is_trained:
        text = "its evaluation ran out of memory: give evaluate.batch_size a smaller value and launch the sweep again"
        return (
            Decision(f"retried as it is, though {text}")
            if is_forced
            else Decision(f"left alone: {text}", should_retry=False)
        )
    config = status.run.load_config()
    resources = status.run.with_retry_changes(config.resources.resolved)
    processes = int(get_number(status.records.get_last_event("started"), "world") or resources.num_tasks)
    share = math.ceil(config.train.batch_size / processes)
    now = min(resources.micro_batch or share, share)
    if now // 2 < MIN_MICRO_BATCH:
        text = f"out of memory at a micro-batch of {now}, which cannot be halved further: ask for more memory"
        return (
            Decision(f"retried as it is: {text}") if is_forced else Decision(f"left alone: {text}", should_retry=False)
        )
    half = f"micro-batch {now} -> {now // 2}, the same global batch of {config.train.batch_size}"
    return Decision(f"retried after it ran out of memory: {half}", changes={"micro_batch": now // 2})


def _exclude_node(status: RunStatus, final_state: str) -> Decision:
    """Stay away from the node that a run was lost with, where it is known which."""
    said = f"retried: {status.reason}" + (f" ({final_state})" if final_state else "")
    started = status.records.get_last_event("assigned", "started", "evaluating")
    node, of_slurm = str(started.get("nodes", "")), str(started.get("job", "")).rpartition(".")[0]
    if (
        not node
        or final_state in NOT_NODE_FAILURES
        or of_slurm not in {str(e.get("job")) for e in status.records.submissions}
    ):
        return Decision(said)
    if set(node) & set("[],"):
        return Decision(f"{said}; which of {node} failed is not known, and none is excluded")
    return Decision(f"{said}; not again on {node}", changes={"exclude": [node]})


def retry(
    console: Console, sweep_dir: Path, runs: Sequence[RunDir], is_forced: bool, options: argparse.Namespace
) -> int:
    """Decide for each run, record it, and submit what is to be tried again.

    Raises
    ------
    LaunchError, SubmissionError
    """
    standings, answer = query_status(runs)
    if answer is not None and answer.jobs is None:
        raise LaunchError("Slurm does not answer, and what waits there is not known; nothing was changed; try again")
    considered = [one for one in standings if is_forced or one.state in ("failed", "lost")]
    jobs = [one.records.job_id for one in considered if one.state == "lost" and one.records.job_id]
    endings = slurm.final_states(jobs) if jobs else {}
    decisions = {one.run: decide(one, is_forced, endings.get(one.records.job_id, "")) for one in considered}
    again = [run.load_config() for run, decision in decisions.items() if decision.should_retry]
    wanted = find_unfinished_runs(sweep_dir, again) if again else {}
    lines = [f"{run.run_id}: {decision.message}" for run, decision in decisions.items()]
    more = [f"and {len(lines) - MAX_LISTED_RUNS} more runs"] if len(lines) > MAX_LISTED_RUNS else []
    console.print("\n".join([*lines[:MAX_LISTED_RUNS], *more]), soft_wrap=True)
    if not wanted:
        console.print("nothing to retry, and nothing was submitted")
        return 0
    for run in wanted:
        run.record("retried", why=decisions[run].message, **decisions[run].changes)
    to_do: dict[RunDir, ResourcesConfig] = {
        run: run.with_retry_changes(run.load_config().resources.resolved) for run in wanted
    }
    return dispatch(console, sweep_dir, to_do, options.executor, options.max_parallel)


def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="galaxyhpc retry", description=__doc__)
    parser.add_argument("path", type=Path, help="runs/SWEEP, or runs/SWEEP/RUN_ID")
    parser.add_argument("points", nargs="*", metavar="POINT", help="run ids, or parts of one: tried whatever the cause")
    parser.add_argument("--failed", action="store_true", help="every run that failed or was lost, where it can help")
    parser.add_argument("--executor", choices=("auto", "slurm", "local"), default="auto")
    parser.add_argument("--max-parallel", type=int, metavar="N", help="most jobs of a stage at the same time")
    options = parser.parse_args(arguments)
    if options.failed == bool(options.points) and not (options.path / "config.json").is_file():
        parser.error("found both or neither of --failed and POINT; allowed is one of them")
    if options.max_parallel is not None and options.max_parallel < 1:
        parser.error(f"--max-parallel: found {options.max_parallel}; allowed 1, 2, 3, ...")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Retry what the command line names; 2 where that is not possible."""
    options = _parse_options(arguments)
    try:
        runs = find_runs(options.path)
        some = select_runs(runs, options.points) if options.points else runs
        sweep = find_sweep_dir(options.path)
        with FileLock(sweep / ".launch.lock", timeout=0):
            return retry(make_console(), sweep, some, not options.failed, options)
    except KeyboardInterrupt:
        print("stopped; launching the sweep goes on where it was", file=sys.stderr)
        return 130
    except Timeout:
        print(f"{options.path}: a launch of this sweep is at work; nothing was changed", file=sys.stderr)
    except (RunDirError, RunSelectionError, LaunchError, SubmissionError) as error:
        print(error, file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"{options.path}: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
