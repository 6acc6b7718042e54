"""Show what a launch would do: every run and resource class with its cost, sbatch files, the expected end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from galaxyhpc.analysis.run_cost import RunTimeEstimate, compute_makespan, estimate_run_time
from galaxyhpc.config.schema import ResourcesConfig, RunConfig, flatten
from galaxyhpc.launch import slurm_executor
from galaxyhpc.launch.dispatch import find_unfinished_runs
from galaxyhpc.launch.preflight import CheckedSweep, describe_resources, make_symmetry_table
from galaxyhpc.models.profile import estimate_training_bytes
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.console import ConsoleTable, format_count
from galaxyhpc.storage.run_dir import RunDir, read_state


@dataclass(frozen=True)
class ResourceClass:
    """Runs that request the same resources, with their predicted times."""

    resources: ResourcesConfig
    runs: list[RunDir]
    predictions: list[RunTimeEstimate]

    @property
    def unit(self) -> str:
        return "GPU" if self.resources.gpus_per_node else "CPU"

    @property
    def device_hours(self) -> float:
        """GPU-hours of training and evaluation, or CPU-hours if there are no GPUs."""
        gpus, cpus = self.resources.nodes * self.resources.gpus_per_node, self.resources.cpus_per_task
        training, evaluating = (gpus, 1) if gpus else (self.resources.num_tasks * cpus, cpus)
        seconds = [training * run.training_seconds + evaluating * run.evaluation_seconds for run in self.predictions]
        return sum(seconds) / 3600


def show_plan(console: Console, directory: Path, sweep: CheckedSweep, max_parallel: int | None) -> None:
    """Print every run, the resource classes of the unfinished ones, and the sbatch file of each training array."""
    console.print(make_runs_table(directory, sweep))
    console.print(make_symmetry_table(sweep))
    pending_runs = find_unfinished_runs(directory, sweep.by_cost_descending)
    classes = make_resource_classes(pending_runs, sweep)
    if classes:
        console.print(make_classes_table(classes))
        for line in _format_notes(classes, sweep, max_parallel):
            console.print(line, soft_wrap=True)
    untrained = {run: resources for run, resources in pending_runs.items() if not run.best_file.exists()}
    groups = slurm_executor.group_by_resources(untrained)
    for number, part in enumerate(slurm_executor.make_arrays(groups, max_parallel, slurm.get_max_array_size()), 1):
        head = f"array {number}: {format_count(len(part.runs), 'run')}, {describe_resources(part.resources)}"
        text = slurm_executor.make_sbatch_script(directory, part.resources, len(part.runs), part.max_parallel)
        print(f"\n{head}\n\n{text}")  # not wrapped, as rich would
    for line in _list_postponed_checks(sweep.configs):
        print(line)
    print("nothing was submitted")


def _list_postponed_checks(configs: Sequence[RunConfig]) -> Iterable[str]:
    """Yield what a launch checks, and a dry run does not, for it takes long and writes the converted images."""
    from galaxyhpc.data.galaxies import open_converted

    data = configs[0].data  # all runs share source and split
    if data.conflicting_duplicates == "refuse" and open_converted(data) is None:
        yield f"not checked: duplicates by the pixels of {data.source}; a launch converts them, and may refuse some"


def make_runs_table(directory: Path, sweep: CheckedSweep) -> ConsoleTable:
    rows = []
    differences = _format_differences(sweep.configs)
    for config in sweep.configs:
        network = sweep.networks[config.run_id]
        size = (f"{network.parameters:,}", f"{_format_number(network.multiply_adds / 1e6)} M")
        memory = f"{estimate_training_bytes(network, config) / 1e9:.1f} GB"
        hours = _format_duration(_predict_run(config, sweep).training_seconds)
        state = read_state(RunDir(directory / config.run_id)).name
        image = f"{config.data.image_size} px"
        differs = differences[config.run_id]
        rows.append((config.run_id, config.model.width, image, *size, memory, hours, state, differs))
    title = f"{directory.name}: {format_count(len(sweep.configs), 'run')} in {directory}"
    heads = (*("run", "width", "image", "parameters", "multiply-adds", "memory", "predicted", "state"), "differs in")
    return ConsoleTable(title, heads, rows, texts=("width", "state", "differs in"), optional=("differs in",))


def _format_differences(configs: Sequence[RunConfig]) -> dict[str, str]:
    """Return for each run the settings that are not the same in all runs; resources have a table of their own."""
    settings = {config.run_id: flatten(config.model_dump(exclude={"resources"})) for config in configs}
    names = list(dict.fromkeys(name for values in settings.values() for name in values))
    differing = [name for name in names if len({values.get(name) for values in settings.values()}) > 1]
    return {
        run_id: ", ".join(f"{name}={values[name]}" for name in differing if name in values)
        for run_id, values in settings.items()
    }


def _predict_run(config: RunConfig, sweep: CheckedSweep) -> RunTimeEstimate:
    return estimate_run_time(config, sweep.networks[config.run_id], sweep.costs)


def make_resource_classes(pending_runs: dict[RunDir, ResourcesConfig], sweep: CheckedSweep) -> list[ResourceClass]:
    """Group unfinished runs by resources, the most expensive class first; a trained run only needs its evaluation."""
    configs_by_id = {config.run_id: config for config in sweep.configs}
    classes = []
    for resources, runs in slurm_executor.group_by_resources(pending_runs).items():
        predictions = [_get_remaining(run, _predict_run(configs_by_id[run.run_id], sweep)) for run in runs]
        classes.append(ResourceClass(resources, runs, predictions))
    return sorted(classes, key=lambda resource_class: -resource_class.device_hours)


def _get_remaining(run: RunDir, prediction: RunTimeEstimate) -> RunTimeEstimate:
    return RunTimeEstimate(
        0.0 if run.best_file.exists() else prediction.training_seconds, prediction.evaluation_seconds
    )


def make_classes_table(classes: list[ResourceClass]) -> ConsoleTable:
    rows: list[tuple[str, ...]] = []
    for group in classes:
        resources, longest = group.resources, max(run.training_seconds for run in group.predictions)
        rows.append(
            (
                str(len(group.runs)),
                _format_time_limit(resources.time_minutes),
                "default" if resources.memory_gb is None else f"{resources.memory_gb:g} GB",
                str(resources.nodes * resources.gpus_per_node),
                str(resources.num_tasks),
                str(resources.cpus_per_task),
                _format_duration(longest),
                f"{_format_number(group.device_hours)} {group.unit}-h",
            )
        )
    totals = {unit: sum(group.device_hours for group in classes if group.unit == unit) for unit in ("GPU", "CPU")}
    num_runs = str(sum(len(group.runs) for group in classes))
    hours_text = ", ".join(f"{_format_number(hours)} {unit}-h" for unit, hours in totals.items() if hours)
    heads = ("runs", "time limit", "memory", "GPUs", "tasks", "CPUs per\ntask", "longest\nrun", "hours")
    return ConsoleTable("resource classes", heads, rows, totals=(num_runs, *[""] * 6, hours_text))


def _format_time_limit(minutes: int) -> str:
    return f"{minutes // 60}:{minutes % 60:02d}:00"


def _format_duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{_format_number(seconds / 3600)} h"


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else "< 0.001"


def _format_notes(classes: list[ResourceClass], sweep: CheckedSweep, max_parallel: int | None) -> Iterable[str]:
    """Yield the source of the predictions, and the expected end with its assumptions."""
    fits = {sweep.costs.gpu if group.unit == "GPU" else sweep.costs.cpu for group in classes}
    sources = " and ".join(sorted(fit.source for fit in fits))
    yield f"predicted times: {sources}; they assume no early stopping; the hours include the evaluation"
    yield "memory: of one training process, on its GPU or CPU (table of runs); requested per node (resource classes)"
    starts = [sweep.start_times[group.resources] for group in classes if group.resources in sweep.start_times]
    predictions = [prediction for group in classes for prediction in group.predictions]
    seconds = [prediction.training_seconds + prediction.evaluation_seconds for prediction in predictions]
    end = max(starts, default=time.time()) + compute_makespan(seconds, max_parallel)
    end_text = time.strftime("%A %Y-%m-%d %H:%M", time.localtime(end))
    concurrency = (
        "all runs at once"
        if max_parallel is None
        else f"{format_count(max_parallel, 'run')} at a time, the longest first"
    )
    start_text = "the start that sbatch --test-only expects" if starts else "now"
    yield f"expected end: {end_text}, assuming {concurrency}, starting {start_text}"
