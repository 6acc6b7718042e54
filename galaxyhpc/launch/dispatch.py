"""What of a sweep is still to be done, and its way to Slurm or to this machine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from galaxyhpc.config.schema import ResourcesConfig, RunConfig, flatten
from galaxyhpc.launch import local_executor, slurm_executor
from galaxyhpc.runtime import slurm
from galaxyhpc.storage.run_dir import RunDir, read_state
from galaxyhpc.storage.sweep_dir import find_runs


class LaunchError(ValueError):
    """A sweep that cannot be launched as things are."""


def find_unfinished_runs(directory: Path, configs: Sequence[RunConfig]) -> dict[RunDir, ResourcesConfig]:
    """Return the runs that are neither done nor under way, in the order of `configs`, with what they need."""
    from galaxyhpc.evaluation.evaluate import is_evaluated
    from galaxyhpc.runtime.lock import is_busy

    queued = slurm.get_queue() if slurm.is_up() else {}
    if queued is None:  # no evidence that jobs wait is not evidence that none does
        raise LaunchError("squeue does not answer; nothing was submitted; try again")
    found = {}
    for config in configs:
        run = RunDir(directory / config.run_id)
        if not (is_evaluated(run, config) or is_busy(run) or _is_queued(run, queued)):
            found[run] = run.with_retry_changes(config.resources.resolved)
    return found


def _is_queued(run: RunDir, queued_jobs: dict[str, slurm.QueuedJob]) -> bool:
    """Whether a job of this run waits or runs in Slurm's queue.

    A launch that was killed after sbatch and before it could note the job's id left the token of the array.
    """
    events = [event for event in run.read_events() if "token" in event or "job" in event]
    jobs = {event["job"] for event in events if event["event"] in ("submitted", "evaluation submitted")}
    tokens = {event["token"] for event in events if event["event"] == "submitting"}
    tokens -= {event.get("token") for event in events if event["event"] != "submitting"}
    return not jobs.isdisjoint(queued_jobs) or any(job.comment in tokens for job in queued_jobs.values())


def check_no_orphaned_runs(directory: Path, configs: Sequence[RunConfig]) -> None:
    """Refuse a sweep whose settings changed after runs of it were begun: their results would drop out unseen.

    Raises
    ------
    LaunchError
        Naming the settings that differ.
    """
    if not (directory / "plan.csv").exists():
        return
    planned = {config.run_id for config in configs}
    begun = [run for run in find_runs(directory) if run.run_id not in planned and run.checkpoint_dir.exists()]
    if begun:
        lines = [f"{run.run_id}: {_describe_difference(run, configs)}" for run in begun[:5]]
        more = [f"... and {len(begun) - 5} more"] if len(begun) > 5 else []
        raise LaunchError(
            f"{directory}: runs that were begun are not in this sweep any more; nothing was changed\n  "
            + "\n  ".join(lines + more)
            + "\nGive the changed sweep a name of its own (--set name=...), or move those directories away."
        )


def _describe_difference(run: RunDir, configs: Sequence[RunConfig]) -> str:
    """Name the settings in which a run differs from the planned one that is most like it."""
    try:
        was = flatten(run.load_config().get_identity())
    except (OSError, ValueError):
        return "its config.json cannot be read"
    found: list[list[str]] = []
    for now in (flatten(config.get_identity()) for config in configs):
        keys = [key for key in was | now if was.get(key) != now.get(key)]
        found.append([f"{key} {was.get(key, 'none')} -> {now.get(key, 'none')}" for key in keys])
    nearest = min(found, key=len)
    return ", ".join(nearest)


def dispatch(
    console: Console,
    directory: Path,
    pending_runs: dict[RunDir, ResourcesConfig],
    executor: str,
    max_parallel: int | None,
    canary: bool = False,
) -> int:
    """Train and evaluate these runs of a sweep, in their order, and report; return the exit status.

    Raises
    ------
    LaunchError, cluster.SubmissionError
    """
    if executor == "auto":
        if slurm.is_down():
            raise LaunchError("this machine's Slurm does not answer; try again, or run here with --executor local")
        executor = "slurm" if slurm.is_up() else "local"
    if executor == "slurm":
        return _dispatch_to_slurm(console, directory, pending_runs, max_parallel, canary)
    return _dispatch_locally(console, directory, pending_runs, executor, max_parallel)


def _dispatch_to_slurm(
    console: Console,
    directory: Path,
    pending_runs: dict[RunDir, ResourcesConfig],
    max_parallel: int | None,
    canary: bool,
) -> int:
    if not slurm.is_up():
        raise LaunchError("--executor slurm: no Slurm answers here (scontrol ping); allowed here: local, debug")
    if pending_runs:
        trained = {run: asked for run, asked in pending_runs.items() if run.best_file.exists()}
        fresh = {run: asked for run, asked in pending_runs.items() if run not in trained}
        first = next(iter(fresh), None) if canary else None
        ids = slurm_executor.submit(
            directory,
            slurm_executor.group_by_resources(fresh),
            slurm_executor.group_by_resources(trained),
            max_parallel,
            first,
        )
        for stage, jobs in ids.items():
            if jobs:
                console.print(f"{stage}: {len(jobs)} jobs submitted as {', '.join(slurm_executor.get_array_ids(jobs))}")
    elif all(read_state(run).name == "evaluated" for run in find_runs(directory)):
        _write_report(directory)
        return 0
    console.print(f"watch: python -m galaxyhpc.status {shlex.quote(str(directory))}", soft_wrap=True)
    return 0


def _dispatch_locally(
    console: Console,
    directory: Path,
    pending_runs: dict[RunDir, ResourcesConfig],
    executor: str,
    max_parallel: int | None,
) -> int:
    from galaxyhpc.data.dataset import DataError, open_dataset

    try:
        for data in {run.load_config().data for run in pending_runs}:
            open_dataset(data, directory)  # once, with a progress bar, before the processes start
    except DataError as error:
        raise LaunchError(str(error)) from error
    finished = True
    if executor == "debug":
        _run_in_process(list(pending_runs))
    else:
        machine = local_executor.detect_machine(max_parallel)
        finished = local_executor.run_all(pending_runs, machine, console, directory.name)
    _write_report(directory)
    if not finished:
        console.print("stopped; the same command goes on where it was")
        return 130
    failed = [run for run in pending_runs if read_state(run).name != "evaluated"]
    for run in failed:
        text = f"{run.run_id}: {read_state(run).name} {read_state(run).reason}; log: {run.log_dir}"
        console.print(text, soft_wrap=True)
    return 1 if failed else 0


def _write_report(directory: Path) -> None:
    from galaxyhpc.report.build import AggregateError, aggregate, print_report

    try:
        print_report(aggregate(directory))
    except AggregateError as error:
        raise LaunchError(str(error)) from error


def _run_in_process(runs: Sequence[RunDir]) -> None:
    from jobs.evaluate import EvaluateJob
    from jobs.train import TrainJob

    for run in runs:
        if not run.best_file.exists():
            TrainJob(str(run.path))()
        EvaluateJob(str(run.path))()
