"""Hands the prediction of a survey to Slurm or to this machine."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from galaxyhpc.analysis.run_cost import choose_time_limit_minutes
from galaxyhpc.config.schema import RequestedResources, ResourcesConfig
from galaxyhpc.config.sweep import load_resources
from galaxyhpc.data.survey.named_columns import check_first_galaxies, make_column_check, name_columns
from galaxyhpc.data.survey.unit import Unit
from galaxyhpc.data.survey.units import find_units
from galaxyhpc.evaluation import trained_model
from galaxyhpc.launch import local_executor, slurm_executor
from galaxyhpc.launch.dispatch import LaunchError, choose_executor, is_queued
from galaxyhpc.launch.slurm_check import ask_slurm
from galaxyhpc.predict.forecast import choose_unit_size, find_speed, make_forecast, show_forecast
from galaxyhpc.predict.plan import find_pending, make_settings, remove_results, write_plan
from galaxyhpc.prediction import part
from galaxyhpc.prediction.columns import check_same_classes
from galaxyhpc.prediction.job import write_summaries
from galaxyhpc.prediction.survey import SurveyDir, SurveyError, is_survey
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.console import format_count, make_console
from galaxyhpc.runtime.lock import hold_directory, is_busy
from galaxyhpc.storage.files import sanitize
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import find_runs, get_report_records, resolve_path, resolve_sweep_dir
from jobs.predict import LastPredictJob, PredictJob

MAX_LISTED = 5  # units that were set aside
GB_PER_WORKER, GB_PER_GPU = 0.75, 6.0  # main memory: of a process that decodes; of one that drives a GPU, besides
SAFETY_FACTOR = 2.0  # of the time limit; a task that needs more is requeued


def predict_survey(runs: Sequence[Path], inputs: Sequence[str], output: Path, options: argparse.Namespace) -> int:
    """Plan the units of a survey and predict those that are not done; return the exit status.

    Raises
    ------
    ValueError, OSError, NotTrainedError, BusyError
    """
    console, survey = make_console(), SurveyDir(resolve_sweep_dir(output.parent, output.name, "--output"))
    check_directory(survey)
    requested, executor = load_resources(options.profile), choose_executor(options.executor)
    classifiers = [trained_model.load(path, torch.device("cpu")) for path in runs]
    check_same_classes(classifiers)
    inputs = [str(resolve_path(text, "--input")) for text in inputs]
    config = name_columns(classifiers[0].config.data, options.columns)
    resources, num_tasks = resolve_resources(requested, executor, options.max_parallel)
    begun = survey if is_survey(survey.path) and not options.overwrite else None
    speed = find_speed(begun, classifiers, resources)
    has_limit = executor == "slurm" and requested.time_minutes != "auto"
    size = choose_unit_size(begun, speed, resources.time_minutes if has_limit else None)
    settings = make_settings(classifiers, inputs, config.columns, options.embeddings, size)
    units = find_units(settings.inputs, config, size, make_column_check(options.columns, config))
    if warning := check_first_galaxies(units, options.columns, config, bool(settings.identity["allow_grey"])):
        console.print(f"warning: {warning}", soft_wrap=True)
    with nullcontext() if options.dry_run else open_directory(survey, options.overwrite):
        missing, stale = find_pending(survey, settings, units)
        pending = sorted([*missing, *stale])
        print_plan(console, survey, units, len(pending))
        forecast = make_forecast(survey, pending, classifiers, resources, speed, options.embeddings)
        num_tasks = min(num_tasks, len(pending)) or forecast.choose_num_tasks(options.max_parallel)
        if requested.time_minutes == "auto":
            minutes = choose_time_limit_minutes(forecast.get_seconds(num_tasks), SAFETY_FACTOR)
            resources = resources.model_copy(update={"time_minutes": minutes})
        start = None
        if executor == "slurm" and pending:
            replace(forecast, resources=resources).check_time_limit(str(options.profile or "--profile"))
            start = check_slurm(survey, resources, num_tasks)
        if options.dry_run:
            show_forecast(console, pending, forecast, num_tasks, start, survey.path)
            return 0
        settings = replace(settings, cpus_per_task=resources.cpus_per_task, has_hats=options.hats)
        write_plan(survey, settings, units, stale)
        if not settings.identity["typicality"]:
            console.print("the column typicality is empty: the galaxies of the training are not there", soft_wrap=True)
        if executor == "slurm" and pending:
            return submit(console, survey, resources, num_tasks)
        if pending and not run_here(console, survey, resources, num_tasks, executor):
            console.print("stopped; rerun the same command to resume")
            return 130
        write_summaries(survey)
        return print_result(console, survey, units)


@contextmanager
def open_directory(survey: SurveyDir, may_overwrite: bool) -> Iterator[None]:
    """Make the directory and hold its lock; remove earlier results on demand.

    Raises
    ------
    LaunchError, BusyError
    """
    with hold_directory(survey.path):
        if may_overwrite:
            check_idle(survey)
            remove_results(survey)
        yield


def check_directory(survey: SurveyDir) -> None:
    """Refuse a file, and a directory with other files than those of a prediction.

    Raises
    ------
    SurveyError
    """
    is_file = survey.path.exists() and not survey.path.is_dir()
    if is_file or (not is_survey(survey.path) and any(survey.path.glob("[!.]*"))):
        got = "a file" if is_file else "other files"
        expected = "expected a new directory, or one of a prediction"
        raise SurveyError(f"{sanitize(str(survey.path))}: got {got}; {expected}")


def check_idle(survey: SurveyDir) -> None:
    """Refuse to remove what jobs work on.

    Raises
    ------
    LaunchError
    """
    tasks = find_runs(survey.path) if is_survey(survey.path) else []
    if len(find_idle_tasks(tasks)) < len(tasks):
        raise LaunchError(f"{survey.path}: jobs work on it; cancel them first: galaxyhpc cancel {survey.path}")


def resolve_resources(
    requested: RequestedResources, executor: str, max_parallel: int | None
) -> tuple[ResourcesConfig, int]:
    """Return the resources of a task, `auto` replaced, and the number of tasks; 0: as the forecast says.

    On this machine there is a task for each GPU, or one on all cores, unless `max_parallel` says otherwise.
    """
    if executor == "debug":
        return ResourcesConfig(), 1
    if executor == "local":
        machine = local_executor.detect_machine(max_parallel)
        num_tasks = max_parallel or max(1, len(machine.gpu_ids))
        num_cpus = max(1, machine.num_cpus // num_tasks)
        return ResourcesConfig(cpus_per_task=num_cpus, gpus_per_node=min(1, len(machine.gpu_ids))), num_tasks
    values = requested.model_dump()
    values["gpus_per_node"] = 1 if requested.gpus_per_node == "auto" else requested.gpus_per_node
    values["time_minutes"] = 60 if requested.time_minutes == "auto" else requested.time_minutes
    if requested.memory_gb == "auto":
        per_process = GB_PER_WORKER * (1 + requested.cpus_per_task) + GB_PER_GPU * bool(values["gpus_per_node"])
        values["memory_gb"] = float(round(per_process * requested.tasks_per_node + 0.5))
    return RequestedResources.model_validate(values).resolved, 0


def print_plan(console: Console, survey: SurveyDir, units: Sequence[Unit], num_pending: int) -> None:
    """Print what there is and what is done."""
    galaxies, num_done = sum(unit.num_galaxies for unit in units), len(units) - num_pending
    text = f"{survey.path}: {galaxies:,} galaxies in {format_count(len(units), 'unit')}, {num_done:,} done"
    console.print(text, soft_wrap=True)


def check_slurm(survey: SurveyDir, resources: ResourcesConfig, num_tasks: int) -> float | None:
    """Return when Slurm would start the tasks, in seconds since 1970; None where it does not say.

    Raises
    ------
    LaunchError
        It refuses them.
    """
    answer = ask_slurm(slurm_executor.make_sbatch_script(survey.path, resources, num_tasks, None), resources)
    if answer.refusal and not answer.can_wait:
        raise LaunchError(f"sbatch: got {answer.refusal}; {answer.advice}")
    return answer.start


def submit(console: Console, survey: SurveyDir, resources: ResourcesConfig, num_tasks: int) -> int:
    """Submit the tasks that no job waits for, and the one that ends the prediction after them.

    Raises
    ------
    LaunchError, SubmissionError
    """
    tasks, last = choose_tasks(survey, num_tasks), get_report_records(survey.path)
    if tasks:
        submission = slurm_executor.Submission(survey.path)
        with slurm_executor.cancel_after_error(submission):
            arrays = slurm_executor.make_arrays({resources: tasks}, None, slurm.get_max_array_size())
            ids = submission.submit_stage("predict", PredictJob, arrays, [""] * len(arrays))
            single = slurm_executor.make_single_process(resources)
            parameters = slurm_executor.make_submitit_parameters(f"{survey.path.name}-report", single, None)
            waiting = [event["job"] for event in last.read_events() if event.get("job") in (slurm.get_queue() or {})]
            after = slurm_executor.make_end_dependency(*ids, waiting)
            (job_id,) = submission.submit_array("report", [LastPredictJob(str(last.path))], parameters, after)
            last.record("submitted", job=job_id, executor="slurm")
        array_ids = ", ".join(slurm_executor.get_array_ids(submission.job_ids["predict"]))
        console.print(f"predict: {format_count(len(tasks), 'job')} submitted as {array_ids}; report: {job_id}")
    else:
        console.print("all jobs are queued or at work")
    console.print(f"watch: galaxyhpc status {shlex.quote(str(survey.path))}", soft_wrap=True)
    return 0


def choose_tasks(survey: SurveyDir, num_tasks: int) -> list[RunDir]:
    """Return the tasks to start, so that `num_tasks` are at work; those that are stay in the plan.

    Raises
    ------
    LaunchError
    """
    known = find_runs(survey.path) if (survey.path / "plan.csv").is_file() else []
    idle = find_idle_tasks(known)
    active = [index for index, task in enumerate(known) if task not in idle]
    survey.remove_leftovers()
    tasks = survey.write_tasks(max(num_tasks, *(index + 1 for index in active), 0))
    free = [task for index, task in enumerate(tasks) if index not in active]
    return free[: max(0, num_tasks - len(active))]


def find_idle_tasks(tasks: Sequence[RunDir]) -> list[RunDir]:
    """Return the tasks that no process works on and no job waits for.

    Raises
    ------
    LaunchError
    """
    queued = slurm.get_queue() if slurm.is_up() else {}
    if queued is None:
        raise LaunchError("squeue does not answer; nothing was submitted; try again later")
    return [task for task in tasks if not (is_busy(task, queued) or is_queued(task, queued))]


def run_here(console: Console, survey: SurveyDir, resources: ResourcesConfig, num_tasks: int, executor: str) -> bool:
    """Run the tasks on this machine; False if Ctrl-C stopped them."""
    tasks = choose_tasks(survey, num_tasks)
    if executor == "debug":
        for task in tasks:
            PredictJob(str(task.path))()
        return True
    machine = local_executor.detect_machine(num_tasks)
    per_task, title = dict.fromkeys(tasks, resources), survey.path.name
    return local_executor.run_all(per_task, machine, console, title, lambda task: PredictJob(str(task.path)))


def print_result(console: Console, survey: SurveyDir, units: Sequence[Unit]) -> int:
    """Print what was predicted and what was not; return 1 if something was not."""
    aside, left = survey.list_set_aside(), {unit.number for unit in units} - survey.list_done()
    sources = {unit.number: unit.source for unit in units}
    for number, attempts in list(aside.items())[:MAX_LISTED]:
        console.print(f"set aside: unit {number}, {sources.get(number, '')}: {attempts.reason}", soft_wrap=True)
    text = f"{len(units) - len(left):,} of {format_count(len(units), 'unit')} predicted"
    text += f", {len(aside):,} set aside" if aside else ""
    num_errors = sum(part.count_errors(survey.get_part(number)) for number in survey.list_done())
    text += f", {format_count(num_errors, 'galaxy', 'galaxies')} without a class (column error)" if num_errors else ""
    text += f", {len(left - aside.keys()):,} left; rerun the same command to resume" if left - aside.keys() else ""
    console.print(f"{survey.parts_dir}: {text}; report: {survey.report_file}", soft_wrap=True)
    return 1 if left else 0
