"""What of a sweep is still to be done, and its way to Slurm or to this machine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from galaxyhpc.config.schema import ResourcesConfig, RunConfig, flat
from galaxyhpc.launch import local_executor, slurm_executor
from galaxyhpc.runtime import slurm
from galaxyhpc.storage.run_dir import RunDir, state
from galaxyhpc.storage.sweep_dir import runs_of


class LaunchError(ValueError):
    """A sweep that cannot be launched as things are."""


def missing(directory: Path, configs: Sequence[RunConfig]) -> dict[RunDir, ResourcesConfig]:
    """Return the runs that are neither done nor under way, in the order of `configs`, with what they need."""
    from galaxyhpc.evaluation.evaluate import done
    from galaxyhpc.runtime.lock import is_busy

    queued = slurm.queue() if slurm.is_up() else {}
    if queued is None:  # no evidence that jobs wait is not evidence that none does
        raise LaunchError("squeue does not answer; nothing was submitted; try again")
    found = {}
    for config in configs:
        run = RunDir(directory / config.run_id)
        if not (done(run, config) or is_busy(run) or _waits(run, queued)):
            found[run] = run.with_retry_changes(config.resources.plain)
    return found


def _waits(run: RunDir, queued: dict[str, slurm.Queued]) -> bool:
    """Whether a job of this run waits or runs in Slurm's queue.

    A launch that was killed after sbatch and before it could note the job's id left the token of the array.
    """
    events = [event for event in run.events() if "token" in event or "job" in event]
    jobs = {event["job"] for event in events if event["event"] in ("submitted", "evaluation submitted")}
    tokens = {event["token"] for event in events if event["event"] == "submitting"}
    tokens -= {event.get("token") for event in events if event["event"] != "submitting"}
    return not jobs.isdisjoint(queued) or any(job.comment in tokens for job in queued.values())


def refuse_orphans(directory: Path, configs: Sequence[RunConfig]) -> None:
    """Refuse a sweep whose settings changed after runs of it were begun: their results would drop out unseen.

    Raises
    ------
    LaunchError
        Naming the settings that differ.
    """
    if not (directory / "plan.csv").exists():
        return
    planned = {config.run_id for config in configs}
    begun = [run for run in runs_of(directory) if run.run_id not in planned and run.checkpoints.exists()]
    if begun:
        lines = [f"{run.run_id}: {_difference(run, configs)}" for run in begun[:5]]
        more = [f"... and {len(begun) - 5} more"] if len(begun) > 5 else []
        raise LaunchError(
            f"{directory}: runs that were begun are not in this sweep any more; nothing was changed\n  "
            + "\n  ".join(lines + more)
            + "\nGive the changed sweep a name of its own (--set name=...), or move those directories away."
        )


def _difference(run: RunDir, configs: Sequence[RunConfig]) -> str:
    """Name the settings in which a run differs from the planned one that is most like it."""
    try:
        was = flat(run.load_config().identity())
    except (OSError, ValueError):
        return "its config.json cannot be read"
    found: list[list[str]] = []
    for now in (flat(config.identity()) for config in configs):
        keys = [key for key in was | now if was.get(key) != now.get(key)]
        found.append([f"{key} {was.get(key, 'none')} -> {now.get(key, 'none')}" for key in keys])
    nearest = min(found, key=len)
    return ", ".join(nearest)


def dispatch(
    console: Console,
    directory: Path,
    to_do: dict[RunDir, ResourcesConfig],
    executor: str,
    parallel: int | None,
    canary: bool = False,
) -> int:
    """Train and evaluate these runs of a sweep, in their order, and report; return the exit status.

    Raises
    ------
    LaunchError, cluster.SubmissionError
    """
    if executor == "auto":
        if slurm.is_away():
            raise LaunchError("this machine's Slurm does not answer; try again, or run here with --executor local")
        executor = "slurm" if slurm.is_up() else "local"
    if executor == "slurm":
        return _on_slurm(console, directory, to_do, parallel, canary)
    return _here(console, directory, to_do, executor, parallel)


def _on_slurm(
    console: Console, directory: Path, to_do: dict[RunDir, ResourcesConfig], parallel: int | None, canary: bool
) -> int:
    if not slurm.is_up():
        raise LaunchError("--executor slurm: no Slurm answers here (scontrol ping); allowed here: local, debug")
    if to_do:
        trained = {run: asked for run, asked in to_do.items() if run.best_file.exists()}
        fresh = {run: asked for run, asked in to_do.items() if run not in trained}
        first = next(iter(fresh), None) if canary else None
        ids = slurm_executor.submit(
            directory, slurm_executor.by_resources(fresh), slurm_executor.by_resources(trained), parallel, first
        )
        for stage, jobs in ids.items():
            if jobs:
                console.print(f"{stage}: {len(jobs)} jobs submitted as {', '.join(slurm_executor.array_ids(jobs))}")
    elif all(state(run).name == "evaluated" for run in runs_of(directory)):
        _report(directory)
        return 0
    console.print(f"watch: python -m galaxyhpc.status {shlex.quote(str(directory))}", soft_wrap=True)
    return 0


def _here(
    console: Console, directory: Path, to_do: dict[RunDir, ResourcesConfig], executor: str, parallel: int | None
) -> int:
    from galaxyhpc.data.dataset import DataError, load_split, prepare

    try:
        for data in {run.load_config().data for run in to_do}:
            load_split(data, prepare(data), directory)  # once, with a progress bar, before the processes start
    except DataError as error:
        raise LaunchError(str(error)) from error
    finished = True
    if executor == "debug":
        _in_this_process(list(to_do))
    else:
        machine = local_executor.this_machine(parallel)
        finished = local_executor.carry_out(to_do, machine, console, directory.name)
    _report(directory)
    if not finished:
        console.print("stopped; the same command goes on where it was")
        return 130
    failed = [run for run in to_do if state(run).name != "evaluated"]
    for run in failed:
        text = f"{run.run_id}: {state(run).name} {state(run).why}; log: {run.log}"
        console.print(text, soft_wrap=True)
    return 1 if failed else 0


def _report(directory: Path) -> None:
    from galaxyhpc.report.build import AggregateError, aggregate, show

    try:
        show(aggregate(directory))
    except AggregateError as error:
        raise LaunchError(str(error)) from error


def _in_this_process(runs: Sequence[RunDir]) -> None:
    from jobs.evaluate import EvaluateJob
    from jobs.train import TrainJob

    for run in runs:
        if not run.best_file.exists():
            TrainJob(str(run.path))()
        EvaluateJob(str(run.path))()
