"""Select the unfinished runs of a sweep and hand them to Slurm or to this machine."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from galaxyhpc.config.schema import DataConfig, ResourcesConfig, RunConfig, flatten
from galaxyhpc.launch import local_executor, slurm_executor
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.console import format_count
from galaxyhpc.runtime.lock import is_busy
from galaxyhpc.status.run_status import NO_RECORD, query_status
from galaxyhpc.storage.events import RunState
from galaxyhpc.storage.run_dir import RunDir, read_state
from galaxyhpc.storage.sweep_dir import find_runs

MAX_LISTED_FAILURES = 3  # of jobs that usually ended for the same reason


class LaunchError(ValueError):
    """A sweep that cannot be launched now."""


def find_unfinished_runs(directory: Path, configs: Sequence[RunConfig]) -> dict[RunDir, ResourcesConfig]:
    """Return the runs that are neither evaluated nor active, in the order of `configs`, with their resources."""
    from galaxyhpc.evaluation.evaluate import is_evaluated

    queued = slurm.get_queue() if slurm.is_up() else {}
    if queued is None:  # jobs may be waiting: no answer is not an empty queue
        raise LaunchError("squeue does not answer; nothing was submitted; try again later")
    pending_runs = {}
    for config in configs:
        run = RunDir(directory / config.run_id)
        if not (is_evaluated(run, config) or is_busy(run, queued) or is_queued(run, queued)):
            pending_runs[run] = run.with_retry_changes(config.resources.resolved)
    return pending_runs


def is_queued(run: RunDir, queued_jobs: dict[str, slurm.QueuedJob]) -> bool:
    """Whether a job of this run waits or runs in Slurm's queue.

    A launch that is killed between sbatch and the record of the job id leaves only the token of the array.
    """
    events = [event for event in run.read_events() if "token" in event or "job" in event]
    jobs = {event["job"] for event in events if event["event"] in ("submitted", "evaluation submitted")}
    tokens = {event["token"] for event in events if event["event"] == "submitting"}
    tokens -= {event.get("token") for event in events if event["event"] != "submitting"}
    return not jobs.isdisjoint(queued_jobs) or any(job.comment in tokens for job in queued_jobs.values())


def check_no_orphaned_runs(directory: Path, configs: Sequence[RunConfig]) -> None:
    """Refuse a sweep whose settings changed after some runs had started: their results would silently drop out.

    Raises
    ------
    LaunchError
        With the settings that differ.
    """
    if not (directory / "plan.csv").exists():
        return
    planned_ids = {config.run_id for config in configs}
    started_runs = [
        run for run in find_runs(directory) if run.run_id not in planned_ids and run.checkpoint_dir.exists()
    ]
    if started_runs:
        lines = [f"{run.run_id}: {_describe_difference(run, configs)}" for run in started_runs[:5]]
        more = [f"... and {len(started_runs) - 5} more"] if len(started_runs) > 5 else []
        raise LaunchError(
            f"{directory}: {len(started_runs)} started runs are no longer in this sweep; nothing was changed\n  "
            + "\n  ".join(lines + more)
            + "\nGive the changed sweep another name (--set name=...), or move the directories of these runs away."
        )


def _describe_difference(run: RunDir, configs: Sequence[RunConfig]) -> str:
    """List the settings in which a run differs from the most similar planned one."""
    try:
        old = flatten(run.load_config().get_identity())
    except (OSError, ValueError):
        return "its config.json cannot be read"
    differences: list[list[str]] = []
    for new in (flatten(config.get_identity()) for config in configs):
        keys = [key for key in old | new if old.get(key) != new.get(key)]
        differences.append([f"{key} {old.get(key, 'none')} -> {new.get(key, 'none')}" for key in keys])
    smallest = min(differences, key=len)
    return ", ".join(smallest)


def add_executor_options(parser: argparse._ActionsContainer) -> None:
    """Add --executor and --max-parallel to a parser, or to a group of its options."""
    executor_help = "auto: Slurm if it is available, else local; debug: one job after another in this process"
    parser.add_argument("--executor", choices=("auto", "slurm", "local", "debug"), default="auto", help=executor_help)
    parallel_help = "run at most N jobs of a stage at a time"
    parser.add_argument("--max-parallel", type=_parse_positive_int, metavar="N", help=parallel_help)


def _parse_positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected an integer >= 1")
    return int(text)


def choose_executor(name: str) -> str:
    """Return `slurm`, `local` or `debug` for the value of --executor.

    Raises
    ------
    LaunchError
    """
    if name == "auto":
        if slurm.is_down():
            raise LaunchError(
                "--executor auto: this machine's Slurm does not answer; try again, or run here with --executor local"
            )
        name = "slurm" if slurm.is_up() else "local"
    if name == "slurm":
        if not slurm.is_up():
            raise LaunchError("--executor slurm: no Slurm answers here (scontrol ping); expected local or debug")
        if variable := slurm.find_other_cluster():
            advice = "expected it unset: cancel and status ask one cluster, that of slurm.conf (SLURM_CONF)"
            raise LaunchError(f"got {variable} in the environment; {advice}")
    return name


def prepare_galaxies(settings: Iterable[DataConfig], directory: Path, executor: str) -> None:
    """Convert and divide the galaxies of the runs that will be dispatched, with a progress bar, where it is due here.

    On Slurm the first job does, and the login node stays idle, except where duplicates are to be refused: they are
    known when the images are converted, and a launch with some of them is not to submit anything.

    Raises
    ------
    DataError
    """
    from galaxyhpc.data.dataset import open_dataset

    for data in dict.fromkeys(settings):
        if executor != "slurm" or data.conflicting_duplicates == "refuse":
            open_dataset(data, directory)


def dispatch(
    console: Console,
    directory: Path,
    pending_runs: dict[RunDir, ResourcesConfig],
    executor: str,
    max_parallel: int | None,
    canary: bool = False,
) -> int:
    """Train and evaluate runs of a sweep in the given order, then write the report; return the exit status.

    `executor` is that of `choose_executor`; the galaxies are prepared.

    Raises
    ------
    LaunchError, slurm_executor.SubmissionError
    """
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
    if pending_runs:
        if ignored := slurm.list_ignored_variables():
            console.print(f"ignored: {', '.join(ignored)}; the sweep's resources decide", soft_wrap=True)
        _record_silent_failures(console, list(pending_runs))
        trained = {run: resources for run, resources in pending_runs.items() if run.best_file.exists()}
        untrained = {run: resources for run, resources in pending_runs.items() if run not in trained}
        ids = slurm_executor.submit(
            directory,
            slurm_executor.group_by_resources(untrained),
            slurm_executor.group_by_resources(trained),
            max_parallel,
            next(iter(untrained), None) if canary else None,
        )
        for stage, jobs in ids.items():
            if jobs:
                arrays = ", ".join(slurm_executor.get_array_ids(jobs))
                console.print(f"{stage}: {format_count(len(jobs), 'job')} submitted as {arrays}")
    elif all(read_state(run).name == RunState.EVALUATED for run in find_runs(directory)):
        _write_report(directory)
        return 0
    console.print(f"watch: galaxyhpc status {shlex.quote(str(directory))}", soft_wrap=True)
    return 0


def _record_silent_failures(console: Console, runs: Sequence[RunDir]) -> None:
    """Record and print why jobs ended that recorded nothing themselves: new jobs hide it, and may end in the same way.

    Slurm forgets its jobs after minutes.
    """
    failed = [status for status in query_status(runs)[0] if status.note == NO_RECORD]
    for status in failed:
        if read_state(status.run).name != RunState.FAILED:
            status.run.record("failed", why=status.reason, cause=NO_RECORD)
    for status in failed[:MAX_LISTED_FAILURES]:
        console.print(f"{status.run.run_id}: submitted again; {status.reason}", soft_wrap=True)
    if len(failed) > MAX_LISTED_FAILURES:
        console.print(f"and {len(failed) - MAX_LISTED_FAILURES} more runs; status --why shows each")


def _dispatch_locally(
    console: Console,
    directory: Path,
    pending_runs: dict[RunDir, ResourcesConfig],
    executor: str,
    max_parallel: int | None,
) -> int:
    finished = True
    if executor == "debug":
        _run_in_process(list(pending_runs))
    else:
        machine = local_executor.detect_machine(max_parallel)
        finished = local_executor.run_all(pending_runs, machine, console, directory.name)
    _write_report(directory)
    if not finished:
        console.print("stopped; rerun the same command to resume")
        return 130
    failed = [run for run in pending_runs if read_state(run).name != RunState.EVALUATED]
    for status in query_status(failed)[0]:  # which tells a killed process from a running one
        text = ": ".join(filter(None, (status.run.run_id, status.state, status.reason)))
        console.print(f"{text}; log: {status.run.log_dir}", soft_wrap=True)
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
