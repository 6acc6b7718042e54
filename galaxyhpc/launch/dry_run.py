"""What a launch would do: every point with its cost, the classes of resources with theirs, the expected end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from galaxyhpc.analysis.run_cost import Prediction, makespan, predict
from galaxyhpc.config.schema import ResourcesConfig, RunConfig
from galaxyhpc.launch import slurm_executor
from galaxyhpc.launch.dispatch import missing
from galaxyhpc.launch.preflight import Checked, symmetries, words
from galaxyhpc.models.profile import training_bytes
from galaxyhpc.runtime import slurm
from galaxyhpc.storage.run_dir import RunDir, state


@dataclass(frozen=True)
class Class:
    """Runs that ask for the same resources, and what they are expected to take."""

    resources: ResourcesConfig
    runs: list[RunDir]
    predictions: list[Prediction]

    @property
    def unit(self) -> str:
        return "GPU" if self.resources.gpus_per_node else "CPU"

    @property
    def hours(self) -> float:
        """GPU-hours, or CPU-hours where there are no GPUs, of training and evaluation."""
        asked = self.resources
        gpus = asked.nodes * asked.gpus_per_node
        training, evaluating = (gpus, 1) if gpus else (asked.tasks * asked.cpus_per_task, asked.cpus_per_task)
        return sum(training * each.training + evaluating * each.evaluation for each in self.predictions) / 3600


def show_plan(console: Console, directory: Path, checked: Checked, parallel: int | None) -> None:
    """Print every point, the resource classes of those still to be trained, and the sbatch file of each array."""
    console.print(_points(directory, checked))
    console.print(symmetries(checked))
    todo = missing(directory, checked.heavy_first)
    classes = classes_of(todo, checked)
    if classes:
        console.print(_classes(classes))
        for line in _notes(classes, checked, parallel):
            console.print(line, soft_wrap=True)
    fresh = slurm_executor.by_resources({run: asked for run, asked in todo.items() if not run.best_file.exists()})
    for number, part in enumerate(slurm_executor.arrays(fresh, parallel, slurm.most_elements()), 1):
        head = f"array {number}: {len(part.runs)} runs, {words(part.resources)}"
        text = slurm_executor.sbatch_text(directory, part.resources, len(part.runs), part.share)
        print(f"\n{head}\n\n{text}")  # as it is: nothing wrapped
    print("nothing was submitted")


def _points(directory: Path, checked: Checked) -> Table:
    table = Table(title=f"{directory.name}: {len(checked.configs)} runs in {directory}", title_justify="left")
    for column in ("run", "width", "image", "parameters", "multiply-adds", "memory", "predicted", "state"):
        table.add_column(column, justify="left" if column in ("run", "width", "state") else "right")
    for config in checked.configs:
        network = checked.networks[config.run_id]
        size = (f"{network.parameters:,}", f"{network.multiply_adds / 1e6:,.0f} M")
        needs = f"{training_bytes(network, config) / 1e9:.1f} GB"
        hours = _long(_prediction(config, checked).training)
        found = state(RunDir(directory / config.run_id)).name
        table.add_row(config.run_id, config.model.width, f"{config.data.image_size} px", *size, needs, hours, found)
    return table


def _prediction(config: RunConfig, checked: Checked) -> Prediction:
    return predict(config, checked.networks[config.run_id], checked.costs)


def classes_of(todo: dict[RunDir, ResourcesConfig], checked: Checked) -> list[Class]:
    """Divide the runs still to be done into classes, the biggest first; a trained one is only evaluated."""
    by_id = {config.run_id: config for config in checked.configs}
    found = []
    for resources, runs in slurm_executor.by_resources(todo).items():
        each = [_left(run, _prediction(by_id[run.run_id], checked)) for run in runs]
        found.append(Class(resources, runs, each))
    return sorted(found, key=lambda one: -one.hours)


def _left(run: RunDir, whole: Prediction) -> Prediction:
    return Prediction(0.0 if run.best_file.exists() else whole.training, whole.evaluation)


def _classes(classes: list[Class]) -> Table:
    table = Table(title="resource classes", title_justify="left", show_footer=True)
    for column in ("runs", "time limit", "memory", "GPUs", "tasks", "CPUs a task", "longest run", "hours"):
        table.add_column(column, justify="right")
    for one in classes:
        asked, longest = one.resources, max(each.training for each in one.predictions)
        memory = "default" if asked.memory_gb is None else f"{asked.memory_gb:g} GB"
        table.add_row(
            *(str(len(one.runs)), _limit(asked.time_minutes), memory, str(asked.nodes * asked.gpus_per_node)),
            *(str(asked.tasks), str(asked.cpus_per_task), _long(longest), f"{_number(one.hours)} {one.unit}-h"),
        )
    totals = {unit: sum(one.hours for one in classes if one.unit == unit) for unit in ("GPU", "CPU")}
    table.columns[0].footer = str(sum(len(one.runs) for one in classes))
    table.columns[-1].footer = ", ".join(f"{_number(hours)} {unit}-h" for unit, hours in totals.items() if hours)
    return table


def _limit(minutes: int) -> str:
    return f"{minutes // 60}:{minutes % 60:02d}:00"


def _long(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{_number(seconds / 3600)} h"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _notes(classes: list[Class], checked: Checked, parallel: int | None) -> Iterable[str]:
    """Say where the predictions come from, and when all will be done under which assumption."""
    fits = {checked.costs.gpu if one.unit == "GPU" else checked.costs.cpu for one in classes}
    sources = " and ".join(sorted(fit.source for fit in fits))
    yield f"predicted: {sources}; training without an early stop, hours with evaluation"
    yield "memory: in the table of runs, of one process where it computes; in that of classes, main memory of a node"
    starts = [checked.starts[one.resources] for one in classes if one.resources in checked.starts]
    begin = max(starts, default=time.time())
    seconds = [each.training + each.evaluation for one in classes for each in one.predictions]
    end = begin + makespan(seconds, parallel)
    when = time.strftime("%A %Y-%m-%d %H:%M", time.localtime(end))
    how = "all runs at once" if parallel is None else f"{parallel} runs at a time, the longest first"
    since = "the start that sbatch --test-only expects" if starts else "a start now"
    yield f"expected end: {when}, if from {since} {how} find their place"
