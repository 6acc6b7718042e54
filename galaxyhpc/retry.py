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
from galaxyhpc.launch.dispatch import LaunchError, dispatch, missing
from galaxyhpc.launch.slurm_executor import SubmissionError
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.console import make_console
from galaxyhpc.runtime.lock import is_busy
from galaxyhpc.status.run_status import Standing, look, number
from galaxyhpc.storage.run_dir import NoRunError, RunDir
from galaxyhpc.storage.sweep_dir import PointError, of_points, runs_of, sweep_of

LEAST = 3  # images of a micro-batch: batch statistics need two, and the last part may be smaller
UNDER_WAY = ("waiting", "starting", "running", "evaluating", "evaluated")
NOT_THE_NODE = ("TIMEOUT", "DEADLINE", "PREEMPTED", "CANCELLED")
LISTED = 20


@dataclass(frozen=True)
class Decision:
    """What becomes of a run."""

    said: str
    again: bool = True
    changes: dict[str, Any] = field(default_factory=dict)  # fields of the event `retried`


def decide(one: Standing, named: bool, ending: str) -> Decision:
    """Decide by cause; `ending` is the state in which Slurm saw its last job leave, '' where it does not say."""
    if one.name in UNDER_WAY or is_busy(one.run):
        return Decision(f"left alone: {one.name}", again=False)
    try:
        one.run.load_config()
    except (OSError, ValueError):
        return Decision("left alone: its config.json cannot be read: launch the sweep, which writes it", again=False)
    cause = "memory" if one.name == "lost" and ending == "OUT_OF_MEMORY" else one.note
    if one.name in ("lost", "failed") and cause == "memory":
        return _after_memory(one, named)
    if one.name == "lost" or cause == "connection":
        return _elsewhere(one, ending)
    if one.name == "failed" and not named:
        reason = " ".join(one.why.split())[:200]
        return Decision(
            f"left alone: {cause or 'error'}: {reason}; once that is mended, name it to retry it", again=False
        )
    return Decision(f"retried as it is: {one.name} {' '.join(one.why.split())[:200]}".rstrip())


def _after_memory(one: Standing, named: bool) -> Decision:
    """Halve the micro-batch of a training; an evaluation has none."""
    if one.records.trained:
        text = "its evaluation ran out of memory: give evaluate.batch_size a smaller value and launch the sweep again"
        return Decision(f"retried as it is, though {text}") if named else Decision(f"left alone: {text}", again=False)
    config = one.run.load_config()
    resources = one.run.with_retry_changes(config.resources.plain)
    processes = int(number(one.records.last("started"), "world") or resources.tasks)
    share = math.ceil(config.train.batch_size / processes)
    now = min(resources.micro_batch or share, share)
    if now // 2 < LEAST:
        text = f"out of memory at a micro-batch of {now}, which cannot be halved further: ask for more memory"
        return Decision(f"retried as it is: {text}") if named else Decision(f"left alone: {text}", again=False)
    half = f"micro-batch {now} -> {now // 2}, the same global batch of {config.train.batch_size}"
    return Decision(f"retried after it ran out of memory: {half}", changes={"micro_batch": now // 2})


def _elsewhere(one: Standing, ending: str) -> Decision:
    """Stay away from the node that a run was lost with, where it is known which."""
    said = f"retried: {one.why}" + (f" ({ending})" if ending else "")
    started = one.records.last("assigned", "started", "evaluating")
    node, of_slurm = str(started.get("nodes", "")), str(started.get("job", "")).rpartition(".")[0]
    if not node or ending in NOT_THE_NODE or of_slurm not in {str(e.get("job")) for e in one.records.submissions}:
        return Decision(said)
    if set(node) & set("[],"):
        return Decision(f"{said}; which of {node} failed is not known, and none is excluded")
    return Decision(f"{said}; not again on {node}", changes={"exclude": [node]})


def retry(console: Console, sweep: Path, runs: Sequence[RunDir], named: bool, options: argparse.Namespace) -> int:
    """Decide for each run, record it, and submit what is to be tried again.

    Raises
    ------
    LaunchError, SubmissionError
    """
    standings, answer = look(runs)
    if answer is not None and answer.jobs is None:
        raise LaunchError("Slurm does not answer, and what waits there is not known; nothing was changed; try again")
    considered = [one for one in standings if named or one.name in ("failed", "lost")]
    jobs = [one.records.job for one in considered if one.name == "lost" and one.records.job]
    endings = slurm.endings(jobs) if jobs else {}
    decisions = {one.run: decide(one, named, endings.get(one.records.job, "")) for one in considered}
    again = [run.load_config() for run, decision in decisions.items() if decision.again]
    wanted = missing(sweep, again) if again else {}
    lines = [f"{run.run_id}: {decision.said}" for run, decision in decisions.items()]
    more = [f"and {len(lines) - LISTED} more runs"] if len(lines) > LISTED else []
    console.print("\n".join([*lines[:LISTED], *more]), soft_wrap=True)
    if not wanted:
        console.print("nothing to retry, and nothing was submitted")
        return 0
    for run in wanted:
        run.record("retried", why=decisions[run].said, **decisions[run].changes)
    to_do: dict[RunDir, ResourcesConfig] = {run: run.with_retry_changes(run.load_config().resources.plain) for run in wanted}
    return dispatch(console, sweep, to_do, options.executor, options.max_parallel)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m galaxyhpc.retry", description=__doc__)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Retry what the command line names; 2 where that is not possible."""
    options = _options(arguments)
    try:
        runs = runs_of(options.path)
        some = of_points(runs, options.points) if options.points else runs
        sweep = sweep_of(options.path)
        with FileLock(sweep / ".launch.lock", timeout=0):
            return retry(make_console(), sweep, some, not options.failed, options)
    except KeyboardInterrupt:
        print("stopped; launching the sweep goes on where it was", file=sys.stderr)
        return 130
    except Timeout:
        print(f"{options.path}: a launch of this sweep is at work; nothing was changed", file=sys.stderr)
    except (NoRunError, PointError, LaunchError, SubmissionError) as error:
        print(error, file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"{options.path}: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
