"""Plans the prediction of a survey and hands its tasks to Slurm or to this machine."""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from galaxyhpc.config.schema import RequestedResources, ResourcesConfig
from galaxyhpc.config.sweep import load_resources
from galaxyhpc.data.survey.unit import Unit
from galaxyhpc.data.survey.units import find_units
from galaxyhpc.evaluation import trained_model
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.launch import local_executor, slurm_executor
from galaxyhpc.launch.dispatch import LaunchError, is_queued
from galaxyhpc.prediction import part
from galaxyhpc.prediction.columns import check_same_classes
from galaxyhpc.prediction.pipeline import make_decoder
from galaxyhpc.prediction.survey import Attempts, SurveyDir, SurveyError, SurveySettings, is_survey
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.console import format_count, make_console
from galaxyhpc.runtime.lock import LAUNCH_LOCK, hold, is_busy
from galaxyhpc.storage.files import sanitize
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import find_runs, get_report_records, refuse_symlinks, resolve_path
from jobs.predict import LastPredictJob, PredictJob

MAX_LISTED = 5  # units that were set aside
DEFAULT_NUM_TASKS = 16  # on Slurm


def predict_survey(runs: Sequence[Path], inputs: Sequence[str], output: Path, options: argparse.Namespace) -> int:
    """Plan the units of a survey and predict those that are not done; return the exit status.

    Raises
    ------
    ValueError, OSError, NotTrainedError, BusyError
    """
    console, survey = make_console(), SurveyDir(resolve_path(output, "--output"))
    refuse_symlinks(survey.path)
    if survey.path.exists() and not is_survey(survey.path) and any(survey.path.glob("[!.]*")):
        raise SurveyError(f"{sanitize(str(output))}: got other files; expected a new directory, or one of a prediction")
    classifiers = [trained_model.load(path, torch.device("cpu")) for path in runs]
    check_same_classes(classifiers)
    settings = make_settings(classifiers, inputs, options.embeddings)
    resources = resolve_resources(load_resources(options.profile))
    units = find_units(settings.inputs, classifiers[0].config.data)
    survey.path.mkdir(parents=True, exist_ok=True)
    with hold(survey.path / LAUNCH_LOCK):
        if options.overwrite:
            remove_results(survey)
        pending = write_plan(survey, settings, units)
        galaxies, num_done = sum(unit.num_galaxies for unit in units), len(units) - len(pending)
        text = f"{survey.path}: {galaxies:,} galaxies in {format_count(len(units), 'unit')}, {num_done:,} done"
        console.print(text, soft_wrap=True)
        return dispatch(console, survey, pending, resources, options) if pending else 0


def make_settings(classifiers: Sequence[Classifier], inputs: Sequence[str], with_embeddings: bool) -> SurveySettings:
    """Return what decides the bytes of the parts.

    Raises
    ------
    DataError
        The runs do not see the same images.
    """
    decoder = make_decoder(classifiers)
    identity = {
        "weights": {classifier.run.run_id: classifier.weights for classifier in classifiers},
        "temperatures": {classifier.run.run_id: classifier.temperature for classifier in classifiers},
        "classes": list(decoder.config.class_names),
        "crop": decoder.config.crop,
        "fits": decoder.config.fits.model_dump(mode="json"),
        "columns": decoder.config.columns.model_dump(mode="json"),
        "allow_grey": decoder.allow_grey,
        "embeddings": with_embeddings,
    }
    paths = tuple(str(classifier.run.path) for classifier in classifiers)
    return SurveySettings(paths, tuple(str(resolve_path(text, "--input")) for text in inputs), identity)


def write_plan(survey: SurveyDir, settings: SurveySettings, units: Sequence[Unit]) -> list[Unit]:
    """Write the settings and the units, or compare them with those of an earlier call; return the units to predict.

    Parts that do not match are removed, and units that were set aside are tried again.

    Raises
    ------
    SurveyError
    """
    if is_survey(survey.path):
        _check_same_survey(survey, settings, units)
    pending = []
    for unit in units:
        path = survey.get_part(unit.number)
        if not part.is_done(path, part.make_metadata(unit, settings.identity)):
            path.unlink(missing_ok=True)
            pending.append(unit)
    for number in survey.list_set_aside():
        survey.write_attempts(number, Attempts())
    survey.write_units(units)
    survey.write_settings(settings)
    return pending


def _check_same_survey(survey: SurveyDir, settings: SurveySettings, units: Sequence[Unit]) -> None:
    """Refuse other settings, and other inputs than those whose parts are there; a file may have changed."""
    old, advice = survey.read_settings(), "expected another --output, or --overwrite"
    if old.identity != settings.identity:
        difference = part.describe_difference(old.identity, settings.identity)
        raise SurveyError(f"{survey.path}: begun with other settings: {difference}; {advice}")
    planned = {(unit.number, unit.source) for unit in survey.read_units()}
    if other := sorted(planned ^ {(unit.number, unit.source) for unit in units}):
        raise SurveyError(
            f"{survey.path}: begun with other inputs, such as unit {other[0][0]}, {other[0][1]}; {advice}"
        )


def remove_results(survey: SurveyDir) -> None:
    """Remove the parts and the plan of an earlier prediction.

    Raises
    ------
    LaunchError
        A job works on it.
    """
    tasks = find_runs(survey.path) if is_survey(survey.path) else []
    if len(find_idle_tasks(tasks)) < len(tasks):
        raise LaunchError(f"{survey.path}: jobs work on it; cancel them first: galaxyhpc cancel {survey.path}")
    for path in (survey.parts_dir, survey.claims_dir, survey.path / "attempts"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (survey.settings_file, survey.units_file, survey.report_file):
        path.unlink(missing_ok=True)


def resolve_resources(requested: RequestedResources) -> ResourcesConfig:
    """Return the resources of a task, `auto` replaced."""
    values = requested.model_dump()
    values["gpus_per_node"] = 1 if values["gpus_per_node"] == "auto" else values["gpus_per_node"]
    values["memory_gb"] = 8.0 * requested.tasks_per_node if values["memory_gb"] == "auto" else values["memory_gb"]
    values["time_minutes"] = 720 if values["time_minutes"] == "auto" else values["time_minutes"]
    return RequestedResources.model_validate(values).resolved


def dispatch(
    console: Console,
    survey: SurveyDir,
    pending: Sequence[Unit],
    resources: ResourcesConfig,
    options: argparse.Namespace,
) -> int:
    """Start the tasks."""
    executor = options.executor
    if executor == "auto":
        if slurm.is_down():
            raise LaunchError(
                "--executor auto: this machine's Slurm does not answer; try again, or run here with --executor local"
            )
        executor = "slurm" if slurm.is_up() else "local"
    if executor == "slurm":
        return _submit(console, survey, pending, resources, options.max_parallel)
    if executor == "debug":
        (task,) = survey.write_tasks(1)
        _write_cpus(survey, 1)
        PredictJob(str(task.path))()
    elif not _run_locally(console, survey, pending, resources, options.max_parallel):
        console.print("stopped; rerun the same command to resume")
        return 130
    return _report_result(console, survey, pending)


def _write_cpus(survey: SurveyDir, cpus_per_task: int) -> None:
    survey.write_settings(replace(survey.read_settings(), cpus_per_task=cpus_per_task))


def _run_locally(
    console: Console, survey: SurveyDir, pending: Sequence[Unit], resources: ResourcesConfig, max_parallel: int | None
) -> bool:
    """Run one task per GPU, or one on all cores, unless `max_parallel` says otherwise; False after Ctrl-C."""
    machine = local_executor.detect_machine(max_parallel)
    tasks = survey.write_tasks(min(len(pending), max_parallel or max(1, len(machine.gpu_ids))))
    changes = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": min(1, len(machine.gpu_ids))}
    changes["cpus_per_task"] = max(1, machine.num_cpus // len(tasks))
    _write_cpus(survey, changes["cpus_per_task"])
    per_task = dict.fromkeys(find_idle_tasks(tasks), resources.model_copy(update=changes))
    return local_executor.run_all(per_task, machine, console, survey.path.name, lambda task: PredictJob(str(task.path)))


def _report_result(console: Console, survey: SurveyDir, pending: Sequence[Unit]) -> int:
    """Tell what was predicted; return 1 if something was not."""
    aside, left = survey.list_set_aside(), {unit.number for unit in pending} - survey.list_done()
    sources = {unit.number: unit.source for unit in pending}
    for number, attempts in list(aside.items())[:MAX_LISTED]:
        console.print(f"set aside: unit {number}, {sources.get(number, '')}: {attempts.reason}", soft_wrap=True)
    text = f"{len(pending) - len(left):,} of {format_count(len(pending), 'unit')} predicted"
    text += f", {len(aside):,} set aside" if aside else ""
    text += f", {len(left - aside.keys()):,} left; rerun the same command to resume" if left - aside.keys() else ""
    console.print(f"{survey.parts_dir}: {text}", soft_wrap=True)
    return 1 if left else 0


def _submit(
    console: Console, survey: SurveyDir, pending: Sequence[Unit], resources: ResourcesConfig, max_parallel: int | None
) -> int:
    if not slurm.is_up():
        raise LaunchError("--executor slurm: no Slurm answers here (scontrol ping); expected local or debug")
    _write_cpus(survey, resources.cpus_per_task)
    num_tasks = math.ceil(len(pending) / resources.num_tasks)
    tasks = find_idle_tasks(survey.write_tasks(min(num_tasks, max_parallel or DEFAULT_NUM_TASKS)))
    if not tasks:
        console.print("all jobs are queued or at work", soft_wrap=True)
        return 0
    submission, last = slurm_executor.Submission(survey.path), get_report_records(survey.path)
    with slurm_executor.cancel_after_error(submission):
        arrays = slurm_executor.make_arrays({resources: tasks}, None, slurm.get_max_array_size())
        ids = submission.submit_stage("predict", PredictJob, arrays, [""] * len(arrays))
        parameters = slurm_executor.make_submitit_parameters(
            f"{survey.path.name}-report", slurm_executor.make_single_process(resources), None
        )
        after = slurm_executor.make_end_dependency(*ids)
        (job_id,) = submission.submit_array("report", [LastPredictJob(str(last.path))], parameters, after)
        last.record("submitted", job=job_id, executor="slurm")
    array_ids = ", ".join(slurm_executor.get_array_ids(submission.job_ids["predict"]))
    console.print(f"predict: {format_count(len(tasks), 'job')} submitted as {array_ids}; report: {job_id}")
    console.print(f"watch: galaxyhpc status {shlex.quote(str(survey.path))}", soft_wrap=True)
    return 0


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
