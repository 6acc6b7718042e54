"""What a launch would do: every point with its cost, the classes of resources with theirs, the expected end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from galaxyhpc.analysis.run_cost import RunTimeEstimate, compute_makespan, estimate_run_time
from galaxyhpc.config.schema import ResourcesConfig, RunConfig
from galaxyhpc.launch import slurm_executor
from galaxyhpc.launch.dispatch import find_unfinished_runs
from galaxyhpc.launch.preflight import CheckedSweep, describe_resources, make_symmetry_table
from galaxyhpc.models.profile import estimate_training_bytes
from galaxyhpc.runtime import slurm
from galaxyhpc.storage.run_dir import RunDir, read_state


@dataclass(frozen=True)
class ResourceClass:
    """Runs that ask for the same resources, and what they are expected to take."""

    resources: ResourcesConfig
    runs: list[RunDir]
    predictions: list[RunTimeEstimate]

    @property
    def unit(self) -> str:
        return "GPU" if self.resources.gpus_per_node else "CPU"

    @property
    def device_hours(self) -> float:
        """GPU-hours, or CPU-hours where there are no GPUs, of training and evaluation."""
        asked = self.resources
        gpus = asked.nodes * asked.gpus_per_node
        training, evaluating = (gpus, 1) if gpus else (asked.num_tasks * asked.cpus_per_task, asked.cpus_per_task)
        return (
            sum(training * each.training_seconds + evaluating * each.evaluation_seconds for each in self.predictions)
            / 3600
        )


def show_plan(console: Console, directory: Path, sweep: CheckedSweep, max_parallel: int | None) -> None:
    """Print every point, the resource classes of those still to be trained, and the sbatch file of each array."""
    console.print(_make_runs_table(directory, sweep))
    console.print(make_symmetry_table(sweep))
    todo = find_unfinished_runs(directory, sweep.by_cost_descending)
    classes = make_resource_classes(todo, sweep)
    if classes:
        console.print(_make_classes_table(classes))
        for line in _format_notes(classes, sweep, max_parallel):
            console.print(line, soft_wrap=True)
    fresh = slurm_executor.group_by_resources({run: asked for run, asked in todo.items() if not run.best_file.exists()})
    for number, part in enumerate(slurm_executor.make_arrays(fresh, max_parallel, slurm.get_max_array_size()), 1):
        head = f"array {number}: {len(part.runs)} runs, {describe_resources(part.resources)}"
        text = slurm_executor.make_sbatch_script(directory, part.resources, len(part.runs), part.max_parallel)
        print(f"\n{head}\n\n{text}")  # as it is: nothing wrapped
    print("nothing was submitted")


def _make_runs_table(directory: Path, sweep: CheckedSweep) -> Table:
    table = Table(title=f"{directory.name}: {len(sweep.configs)} runs in {directory}", title_justify="left")
    for column in ("run", "width", "image", "parameters", "multiply-adds", "memory", "predicted", "state"):
        table.add_column(column, justify="left" if column in ("run", "width", "state") else "right")
    for config in sweep.configs:
        network = sweep.networks[config.run_id]
        size = (f"{network.parameters:,}", f"{network.multiply_adds / 1e6:,.0f} M")
        needs = f"{estimate_training_bytes(network, config) / 1e9:.1f} GB"
        hours = _format_duration(_predict_run(config, sweep).training_seconds)
        found = read_state(RunDir(directory / config.run_id)).name
        table.add_row(config.run_id, config.model.width, f"{config.data.image_size} px", *size, needs, hours, found)
    return table


def _predict_run(config: RunConfig, sweep: CheckedSweep) -> RunTimeEstimate:
    return estimate_run_time(config, sweep.networks[config.run_id], sweep.costs)


def make_resource_classes(pending_runs: dict[RunDir, ResourcesConfig], sweep: CheckedSweep) -> list[ResourceClass]:
    """Divide the runs still to be done into classes, the biggest first; a trained one is only evaluated."""
    by_id = {config.run_id: config for config in sweep.configs}
    found = []
    for resources, runs in slurm_executor.group_by_resources(pending_runs).items():
        each = [_get_remaining(run, _predict_run(by_id[run.run_id], sweep)) for run in runs]
        found.append(ResourceClass(resources, runs, each))
    return sorted(found, key=lambda one: -one.device_hours)


def _get_remaining(run: RunDir, prediction: RunTimeEstimate) -> RunTimeEstimate:
    return RunTimeEstimate(
        0.0 if run.best_file.exists() else prediction.training_seconds, prediction.evaluation_seconds
    )


def _make_classes_table(classes: list[ResourceClass]) -> Table:
    table = Table(title="resource classes", title_justify="left", show_footer=True)
    for column in ("runs", "time limit", "memory", "GPUs", "tasks", "CPUs a task", "longest run", "hours"):
        table.add_column(column, justify="right")
    for one in classes:
        asked, longest = one.resources, max(each.training_seconds for each in one.predictions)
        memory = "default" if asked.memory_gb is None else f"{asked.memory_gb:g} GB"
        table.add_row(
            *(
                str(len(one.runs)),
                _format_time_limit(asked.time_minutes),
                memory,
                str(asked.nodes * asked.gpus_per_node),
            ),
            *(
                str(asked.num_tasks),
                str(asked.cpus_per_task),
                _format_duration(longest),
                f"{_format_number(one.device_hours)} {one.unit}-h",
            ),
        )
    totals = {unit: sum(one.device_hours for one in classes if one.unit == unit) for unit in ("GPU", "CPU")}
    table.columns[0].footer = str(sum(len(one.runs) for one in classes))
    table.columns[-1].footer = ", ".join(f"{_format_number(hours)} {unit}-h" for unit, hours in totals.items() if hours)
    return table


def _format_time_limit(minutes: int) -> str:
    return f"{minutes // 60}:{minutes % 60:02d}:00"


def _format_duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{_format_number(seconds / 3600)} h"


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _format_notes(classes: list[ResourceClass], sweep: CheckedSweep, max_parallel: int | None) -> Iterable[str]:
    """Say where the predictions come from, and when all will be done under which assumption."""
    fits = {sweep.costs.gpu if one.unit == "GPU" else sweep.costs.cpu for one in classes}
    sources = " and ".join(sorted(fit.source for fit in fits))
    yield f"predicted: {sources}; training without an early stop, hours with evaluation"
    yield "memory: in the table of runs, of one process where it computes; in that of classes, main memory of a node"
    starts = [sweep.start_times[one.resources] for one in classes if one.resources in sweep.start_times]
    begin = max(starts, default=time.time())
    seconds = [each.training_seconds + each.evaluation_seconds for one in classes for each in one.predictions]
    end = begin + compute_makespan(seconds, max_parallel)
    when = time.strftime("%A %Y-%m-%d %H:%M", time.localtime(end))
    how = "all runs at once" if max_parallel is None else f"{max_parallel} runs at a time, the longest first"
    since = "the start that sbatch --test-only expects" if starts else "a start now"
    yield f"expected end: {when}, if from {since} {how} find their place"
