"""What of a sweep is still to be done, and its way to Slurm or to this machine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from galaxyhpc import cluster, local, slurm
from galaxyhpc.config import ResourcesConfig, RunConfig
from galaxyhpc.preflight import Network
from galaxyhpc.rundir import RunDir, runs_of, state


class LaunchError(ValueError):
    """A sweep that cannot be launched as things are."""


def missing(directory: Path, configs: Sequence[RunConfig]) -> dict[RunDir, ResourcesConfig]:
    """Return the runs that are neither done nor under way, with what they need."""
    from galaxyhpc.evaluate import done
    from galaxyhpc.lifecycle import is_busy

    queued = slurm.queue() if slurm.is_up() else {}
    if queued is None:  # no evidence that jobs wait is not evidence that none does
        raise LaunchError("squeue does not answer; nothing was submitted; try again")
    found = {}
    for config in configs:
        run = RunDir(directory / config.run_id)
        if not (done(run, config) or is_busy(run) or _waits(run, queued)):
            found[run] = config.resources.plain
    return found


def _waits(run: RunDir, queued: dict[str, slurm.Queued]) -> bool:
    """Whether a job of this run waits or runs in Slurm's queue."""
    jobs = {event["job"] for event in run.events() if event["event"] in ("submitted", "evaluation submitted")}
    return not jobs.isdisjoint(queued)


def dispatch(
    console: Console,
    directory: Path,
    configs: Sequence[RunConfig],
    networks: dict[str, Network],
    executor: str,
    parallel: int | None,
) -> int:
    if executor == "auto":
        if slurm.is_away():
            raise LaunchError("this machine's Slurm does not answer; try again, or run here with --executor local")
        executor = "slurm" if slurm.is_up() else "local"
    to_do = missing(directory, configs)
    busy = len(configs) - len(to_do)
    console.print(f"{directory}: {len(configs)} runs, {busy} done or under way", soft_wrap=True)
    if executor == "slurm":
        return _on_slurm(console, directory, to_do, parallel)
    return _here(console, directory, configs, to_do, networks, executor, parallel)


def _on_slurm(console: Console, directory: Path, to_do: dict[RunDir, ResourcesConfig], parallel: int | None) -> int:
    if not slurm.is_up():
        raise LaunchError("--executor slurm: no Slurm answers here (scontrol ping); allowed here: local, debug")
    if to_do:
        trained = {run: asked for run, asked in to_do.items() if run.best_file.exists()}
        fresh = {run: asked for run, asked in to_do.items() if run not in trained}
        ids = cluster.submit(directory, cluster.by_resources(fresh), cluster.by_resources(trained), parallel)
        for stage, jobs in ids.items():
            arrays = sorted({job.split("_")[0] for job in jobs}, key=int)
            if jobs:
                console.print(f"{stage}: {len(jobs)} jobs submitted as {', '.join(arrays)}")
    elif all(state(run).name == "evaluated" for run in runs_of(directory)):
        from galaxyhpc.aggregate import aggregate, show

        show(aggregate(directory))
        return 0
    console.print(f"watch: python -m galaxyhpc.status {shlex.quote(str(directory))}", soft_wrap=True)
    return 0


def _here(
    console: Console,
    directory: Path,
    configs: Sequence[RunConfig],
    to_do: dict[RunDir, ResourcesConfig],
    networks: dict[str, Network],
    executor: str,
    parallel: int | None,
) -> int:
    from galaxyhpc.aggregate import AggregateError, aggregate, show
    from galaxyhpc.data import DataError, load_split, prepare

    try:
        for data in {config.data for config in configs if RunDir(directory / config.run_id) in to_do}:
            load_split(data, prepare(data), directory)  # once, with a progress bar, before the processes start
    except DataError as error:
        raise LaunchError(str(error)) from error
    heavy_first = sorted(to_do, key=lambda run: -networks[run.run_id].multiply_adds)
    finished = True
    if executor == "debug":
        _in_this_process(heavy_first)
    else:
        machine = local.this_machine(parallel)
        finished = local.carry_out({run: to_do[run] for run in heavy_first}, machine, console, directory.name)
    try:
        show(aggregate(directory))
    except AggregateError as error:
        raise LaunchError(str(error)) from error
    if not finished:
        console.print("stopped; the same command goes on where it was")
        return 130
    failed = [run for run in to_do if state(run).name != "evaluated"]
    for run in failed:
        text = f"{run.run_id}: {state(run).name} {state(run).why}; log: {run.log}"
        console.print(text, soft_wrap=True)
    return 1 if failed else 0


def _in_this_process(runs: Sequence[RunDir]) -> None:
    from jobs.evaluate import EvaluateJob
    from jobs.train import TrainJob

    for run in runs:
        if not run.best_file.exists():
            TrainJob(str(run.path))()
        EvaluateJob(str(run.path))()
