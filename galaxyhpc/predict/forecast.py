"""Cost of a survey's prediction before it is begun: device hours, expected end and disk space.

The speed is that of the units which are done, if there are any. Otherwise it is estimated: the networks by the cost
model of `analysis.run_cost`, refitted to the trainings beside the run, and decoding by the measured speed of a core.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from rich.console import Console

from galaxyhpc.analysis import run_cost
from galaxyhpc.config.schema import ResourcesConfig
from galaxyhpc.data.survey.unit import Unit
from galaxyhpc.data.survey.units import GALAXIES_PER_UNIT
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.launch.dispatch import LaunchError
from galaxyhpc.models.activations import compute_activations
from galaxyhpc.models.profile import profile_network
from galaxyhpc.prediction.survey import SurveyDir
from galaxyhpc.runtime.console import ConsoleTable, format_count, format_duration

DECODE_SECONDS = 1 / 380  # of a core per galaxy: PNG of 256 px, the slowest of the usual formats
STARTUP_SECONDS = 30.0  # of a task: imports, networks, workers
STOP_SECONDS = 90.0  # before a time limit, when Slurm asks a task to stop
MIN_UNITS_PER_TASK = 4  # before its time limit: the speed is an estimate
MAX_TASKS = 64
TASK_SECONDS = 3600.0  # that a task takes about, if the number is not given
SURVEY = 10**8  # galaxies, for comparison
KNOWN_BYTES, FLOAT_BYTES = 40, 4  # per row: id, position, source, flags; of a column of float32. Measured, compressed


class Speed(NamedTuple):
    """How long a process takes."""

    seconds: float  # per galaxy
    source: str  # of this number


@dataclass(frozen=True)
class Forecast:
    """Speed and size of a prediction."""

    speed: Speed
    bytes_per_galaxy: float
    num_galaxies: int  # to predict
    resources: ResourcesConfig  # of a task
    num_units: int
    largest_unit: int  # galaxies

    @property
    def device(self) -> str:
        return "GPU" if self.resources.gpus_per_node else "CPU"

    def get_device_hours(self, num_galaxies: int) -> float:
        """Return GPU-hours, or CPU-hours where there are no GPUs."""
        resources = self.resources
        num_gpus = resources.nodes * resources.gpus_per_node
        per_process = num_gpus / resources.num_tasks if num_gpus else resources.cpus_per_task
        return num_galaxies * self.speed.seconds * per_process / 3600

    def choose_num_tasks(self, max_parallel: int | None) -> int:
        """Return how many tasks share the units: `max_parallel`, or as many as take an hour each, within limits."""
        wanted_tasks = max_parallel or round(self.get_seconds(1) / TASK_SECONDS)
        most = -(-self.num_units // self.resources.num_tasks)  # a unit for each process
        return max(1, min(wanted_tasks, most, max_parallel or MAX_TASKS))

    def get_seconds(self, num_tasks: int) -> float:
        """Return the time that these tasks need: not less than one for its largest unit."""
        per_process = self.num_galaxies / (num_tasks * self.resources.num_tasks)
        return STARTUP_SECONDS + max(per_process, self.largest_unit) * self.speed.seconds

    def check_time_limit(self, place: str) -> None:
        """Refuse a limit, set in `place`, that ends a task before its largest unit is done, time after time.

        Raises
        ------
        LaunchError
        """
        seconds = self.largest_unit * self.speed.seconds
        needed = math.ceil((STARTUP_SECONDS + STOP_SECONDS + seconds) / 60)
        if self.resources.time_minutes < needed:
            unit = f"{format_duration(seconds)} for a unit of {self.largest_unit:,} galaxies ({self.speed.source})"
            expected = f"expected {needed} or more: two to start and stop, and {unit}"
            raise LaunchError(f"{place}: time_minutes: got {self.resources.time_minutes}; {expected}")


def make_forecast(
    survey: SurveyDir,
    units: Sequence[Unit],
    classifiers: Sequence[Classifier],
    resources: ResourcesConfig,
    speed: Speed,
    with_embeddings: bool,
) -> Forecast:
    """Return the forecast of these units."""
    width = count_features(classifiers[0]) if with_embeddings else 0
    num_floats = len(classifiers[0].config.data.class_names) + 4
    size = _measure_bytes(survey) or KNOWN_BYTES + FLOAT_BYTES * num_floats + 2.0 * width
    counts = [unit.num_galaxies for unit in units]
    return Forecast(speed, size, sum(counts), resources, len(counts), max(counts, default=0))


def choose_unit_size(begun: SurveyDir | None, speed: Speed, time_minutes: int | None) -> int:
    """Return the number of galaxies in a unit: as in what was begun, or such that a time limit is enough for several.

    Raises
    ------
    SurveyError
    """
    if begun is not None:
        return begun.read_settings().galaxies_per_unit
    if time_minutes is None:
        return GALAXIES_PER_UNIT
    seconds = 60 * time_minutes - STARTUP_SECONDS - STOP_SECONDS
    size = int(seconds / MIN_UNITS_PER_TASK / speed.seconds)
    return min(size, GALAXIES_PER_UNIT) if size > 0 else GALAXIES_PER_UNIT


def count_features(classifier: Classifier) -> int:
    """Return the number of pooled features of a network."""
    image = torch.zeros(1, 3, classifier.image_size, classifier.image_size)
    with torch.inference_mode():
        return int(compute_activations(classifier.network, image).pooled.shape[1])


def find_speed(begun: SurveyDir | None, classifiers: Sequence[Classifier], resources: ResourcesConfig) -> Speed:
    """Return the speed of the units that are done, or else the expected one."""
    return (begun and _measure_speed(begun)) or _estimate_speed(classifiers, resources)


def _measure_speed(survey: SurveyDir) -> Speed | None:
    events = [event for task in survey.list_tasks() for event in task.read_events() if event["event"] == "unit"]
    num_galaxies = sum(event["galaxies"] for event in events)
    if not num_galaxies:
        return None
    seconds = sum(event["seconds"] for event in events) / num_galaxies
    return Speed(seconds, f"measured on {format_count(len(events), 'unit')} that are done")


def _measure_bytes(survey: SurveyDir) -> float:
    """Return the bytes per galaxy of the parts; 0 without any."""
    sizes = {number: survey.get_part(number).stat().st_size for number in survey.list_done()}
    if not sizes:
        return 0.0
    num_galaxies = {unit.number: unit.num_galaxies for unit in survey.read_units()}
    return sum(sizes.values()) / max(sum(num_galaxies.get(number, 0) for number in sizes), 1)


def _estimate_speed(classifiers: Sequence[Classifier], resources: ResourcesConfig) -> Speed:
    """Return the speed by the cost model; on a GPU, decoding runs beside the networks."""
    uses_gpu = resources.gpus_per_node > 0
    runs_dir = classifiers[0].run.sweep_dir.parent
    costs = run_cost.fit_cost_models(run_cost.read_timing_records(runs_dir), num_galaxies=0)
    model = costs.gpu if uses_gpu else costs.cpu
    forward = model.slope * sum(_estimate_forward(classifier, uses_gpu) for classifier in classifiers)
    if uses_gpu:
        seconds = max(forward, DECODE_SECONDS / resources.cpus_per_task)
    else:
        seconds = (forward + DECODE_SECONDS) / resources.cpus_per_task
    return Speed(seconds, f"networks: {model.source}; decoding: 256 px PNG")


def _estimate_forward(classifier: Classifier, uses_gpu: bool) -> float:
    """Return the seconds of a GPU, or of a core, per galaxy."""
    config = classifier.config
    network = profile_network(config.model.without_pretrained, config.data.image_size, len(config.data.class_names))
    if uses_gpu:
        return run_cost.estimate_forward_seconds(network.multiply_adds, config, uses_gpu)
    return run_cost.CORE_SECONDS_PER_IMAGE + network.multiply_adds / run_cost.CORE_MACS_PER_SECOND


def show_forecast(
    console: Console, units: Sequence[Unit], forecast: Forecast, num_tasks: int, start: float | None, path: Path
) -> None:
    """Print the inputs, and the cost of what is to be done and of 10^8 galaxies."""
    console.print(make_inputs_table(units))
    for line in _format_lines(forecast, num_tasks, start):
        console.print(line, soft_wrap=True)
    free = shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free
    console.print(f"disk: {free / 1e9:,.3g} GB are free in {path.parent}", soft_wrap=True)


def make_inputs_table(units: Sequence[Unit]) -> ConsoleTable:
    """Return a table of the units by kind of file."""
    table = pd.DataFrame(units, columns=Unit._fields)
    rows = []
    for kind, group in table.groupby("kind"):
        files = group.drop_duplicates("source")
        size = f"{files['size'].sum() / 1e9:.3g} GB"
        rows.append((str(kind), f"{len(files):,}", f"{len(group):,}", f"{group['num_galaxies'].sum():,}", size))
    return ConsoleTable("to predict", ("input", "files", "units", "galaxies", "size"), rows)


def _format_lines(forecast: Forecast, num_tasks: int, start: float | None) -> Iterator[str]:
    resources, unit = forecast.resources, f"{forecast.device}-hours"
    yield f"speed: {1 / forecast.speed.seconds:,.0f} galaxies/s per process ({forecast.speed.source})"
    for count, name in ((forecast.num_galaxies, f"{forecast.num_galaxies:,} galaxies"), (SURVEY, "10^8 galaxies")):
        hours, size = forecast.get_device_hours(count), count * forecast.bytes_per_galaxy / 1e9
        yield f"{name}: {hours:,.3g} {unit}, {size:,.3g} GB in parts"
    seconds = forecast.get_seconds(num_tasks)
    end = time.strftime("%A %Y-%m-%d %H:%M", time.localtime((start or time.time()) + seconds))
    begin = "the start that sbatch --test-only expects" if start else "a start at once"
    jobs = format_count(num_tasks, "job")
    jobs += f" of {resources.num_tasks} processes" if resources.num_tasks > 1 else ""
    yield f"expected end: {end}, {format_duration(seconds)} after {begin}; {jobs}"
