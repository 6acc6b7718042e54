"""Plans the prediction of a survey and hands its tasks to Slurm or to this machine."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from galaxyhpc.config.schema import DataConfig, RequestedResources, ResourcesConfig
from galaxyhpc.config.sweep import load_resources
from galaxyhpc.data.survey.units import Unit, find_units
from galaxyhpc.evaluation import results, trained_model
from galaxyhpc.evaluation.evaluate import NotTrainedError
from galaxyhpc.launch import local_executor, slurm_executor
from galaxyhpc.launch.dispatch import LaunchError, is_queued
from galaxyhpc.prediction import part
from galaxyhpc.prediction.survey import SurveyDir, SurveyError, SurveySettings, is_survey
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.console import format_count, make_console
from galaxyhpc.runtime.lock import LAUNCH_LOCK, hold, is_busy
from galaxyhpc.storage.events import RunState
from galaxyhpc.storage.files import sanitize, sha256
from galaxyhpc.storage.run_dir import RunDir, read_state
from galaxyhpc.storage.sweep_dir import resolve_path
from jobs.predict import PredictJob

DEFAULT_NUM_TASKS = 16  # on Slurm


def predict_survey(runs: Sequence[Path], inputs: Sequence[str], output: Path, options: argparse.Namespace) -> int:
    """Plan the units of a survey and predict those that are not done; return the exit status.

    Raises
    ------
    ValueError, OSError, NotTrainedError, BusyError
    """
    console, survey = make_console(), SurveyDir(resolve_path(output, "--output"))
    if survey.path.exists() and any(survey.path.iterdir()) and not is_survey(survey.path):
        raise SurveyError(f"{sanitize(str(output))}: got other files; expected a new directory, or one of a prediction")
    settings, config = make_settings(runs, inputs, options.embeddings)
    resources = resolve_resources(load_resources(options.profile))
    survey.path.mkdir(parents=True, exist_ok=True)
    with hold(survey.path / LAUNCH_LOCK):
        units = find_units(settings.inputs, config)
        pending = plan(survey, settings, units)
        galaxies = sum(unit.num_galaxies for unit in units)
        console.print(
            f"{survey.path}: {galaxies:,} galaxies in {format_count(len(units), 'unit')}, "
            f"{len(units) - len(pending):,} done",
            soft_wrap=True,
        )
        if not pending:
            return 0
        return dispatch(console, survey, pending, resources, options)


def make_settings(runs: Sequence[Path], inputs: Sequence[str], embeddings: bool) -> tuple[SurveySettings, DataConfig]:
    """Return the settings of a prediction and those by which the images are read, of the first run.

    Raises
    ------
    ValueError, OSError, NotTrainedError
    """
    opened = [trained_model.open_run(path) for path in runs]
    configs = [run.load_config() for run in opened]
    weights: dict[str, Any] = {}
    temperatures: dict[str, Any] = {}
    for run in opened:
        if not run.best_file.exists():
            raise NotTrainedError(f"{run.path}: training is not finished: no best.pt")
        weights[run.run_id] = sha256(run.best_file)
        predictions = results.read_predictions(run)
        is_current = predictions is not None and predictions.weights == weights[run.run_id]
        temperatures[run.run_id] = predictions.temperature if predictions is not None and is_current else None
    identity = {
        "weights": weights,
        "temperatures": temperatures,
        "classes": list(configs[0].data.class_names),
        "crop": configs[0].data.crop,
        "fits": configs[0].data.fits.model_dump(mode="json"),
        "allow_grey": trained_model.is_trained_on_grey(opened[0], configs[0]),
        "embeddings": embeddings,
    }
    absolute = tuple(str(resolve_path(text, "--input")) for text in inputs)
    return SurveySettings(tuple(str(run.path) for run in opened), absolute, identity), configs[0].data


def plan(survey: SurveyDir, settings: SurveySettings, units: Sequence[Unit]) -> list[Unit]:
    """Write the settings and the plan, or compare them with those of an earlier call; return the units to predict.

    Raises
    ------
    SurveyError
    """
    if survey.settings_file.exists():
        old = survey.read_settings()
        if old.identity != settings.identity:
            difference = part.describe_difference(old.identity, settings.identity)
            raise SurveyError(
                f"{survey.path}: begun with other settings: {difference}; expected another --output, or --overwrite"
            )
    survey.write_units(units)
    survey.write_settings(settings)
    return [
        unit
        for unit in units
        if not part.is_done(survey.get_part(unit.number), part.make_metadata(unit, settings.identity))
    ]


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
        PredictJob(str(task.path))()
        return 0
    machine = local_executor.detect_machine(options.max_parallel)
    tasks = survey.write_tasks(min(len(pending), options.max_parallel or max(1, len(machine.gpu_ids))))
    is_finished = local_executor.run_all(
        dict.fromkeys(tasks, resources), machine, console, survey.path.name, lambda task: PredictJob(str(task.path))
    )
    if not is_finished:
        console.print("stopped; rerun the same command to resume")
        return 130
    return 0 if all(read_state(task).name == RunState.PREDICTED for task in tasks) else 1


def _submit(
    console: Console,
    survey: SurveyDir,
    pending: Sequence[Unit],
    resources: ResourcesConfig,
    max_parallel: int | None,
) -> int:
    if not slurm.is_up():
        raise LaunchError("--executor slurm: no Slurm answers here (scontrol ping); expected local or debug")
    tasks = find_idle_tasks(survey.write_tasks(min(len(pending), max_parallel or DEFAULT_NUM_TASKS)))
    submission = slurm_executor.Submission(survey.path)
    with slurm_executor.cancel_after_error(submission):
        arrays = slurm_executor.make_arrays({resources: tasks}, None, slurm.get_max_array_size()) if tasks else []
        submission.submit_stage("predict", PredictJob, arrays, [""] * len(arrays))
    ids = ", ".join(slurm_executor.get_array_ids(submission.job_ids["predict"]))
    console.print(f"predict: {format_count(len(tasks), 'job')} submitted as {ids}")
    console.print(f"watch: galaxyhpc status {shlex.quote(str(survey.path))}", soft_wrap=True)
    return 0


def find_idle_tasks(tasks: Sequence[RunDir]) -> list[RunDir]:
    """Return the tasks that no process works on and no job waits for."""
    queued = slurm.get_queue() if slurm.is_up() else {}
    if queued is None:
        raise LaunchError("squeue does not answer; nothing was submitted; try again later")
    return [task for task in tasks if not (is_busy(task, queued) or is_queued(task, queued))]
