"""Checks every run of a sweep before anything is submitted or written, and reports all problems at once.

A network that several runs share is built once; Slurm is queried once per resource class.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

from rich.console import Console

from galaxyhpc.analysis.run_cost import CostModels, fit_cost_models, read_timing_records, resolve_resources
from galaxyhpc.config.conditions import list_severity_pairs
from galaxyhpc.config.schema import DataConfig, ModelConfig, ResourcesConfig, RunConfig, flatten
from galaxyhpc.launch import slurm_executor, smoke_test
from galaxyhpc.launch.galaxy_checks import (
    check_common_split,
    check_galaxies_unchanged,
    check_pixel_scale,
    check_training_galaxies,
    divide_galaxies,
    get_distinct_data,
)
from galaxyhpc.launch.problem import Problem
from galaxyhpc.launch.slurm_check import ask_slurm
from galaxyhpc.launch.smoke_test import ANGLES_DEG, TINY_IMAGE_SIZE_PX, SymmetryErrors, tiny_config
from galaxyhpc.models import profile
from galaxyhpc.models.profile import NetworkProfile
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.console import ConsoleTable, format_count
from galaxyhpc.storage.run_dir import RunDir

MAX_CHECKPOINTS = 3  # two, and one that is being written
LOG_BYTES = 2e6  # of the logs and records of a run
NON_SLURM_SETTINGS = {"setup", "micro_batch", "convolution", "checkpoint_minutes"}
DISK_SPACE_ADVICE = "free disk space, choose another directory with --runs or data.cache, or launch fewer runs"


class PreflightError(ValueError):
    """Reports all problems of a sweep, one per line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class CheckedSweep:
    """A sweep that can be launched: its runs with all resources resolved, and their predicted costs."""

    configs: list[RunConfig]
    networks: dict[str, NetworkProfile]  # by run_id
    symmetry_errors: dict[ModelConfig, SymmetryErrors]  # by the settings of the tiny network
    costs: CostModels
    start_times: dict[ResourcesConfig, float] = field(default_factory=dict)  # expected by Slurm, in s since 1970
    warnings: list[Problem] = field(default_factory=list)  # GPUs without a process, jobs that wait

    @property
    def by_cost_descending(self) -> list[RunConfig]:
        """The runs in the order of submission, the most expensive first."""
        return sorted(self.configs, key=lambda config: -self.networks[config.run_id].multiply_adds)


def check_sweep(configs: Sequence[RunConfig], directory: Path, executor: str = "local") -> CheckedSweep:
    """Check the runs of the sweep in `directory`.

    Raises
    ------
    PreflightError
    """
    problems = check_common_split(configs)
    tables = divide_galaxies(configs, problems)
    num_galaxies = max(map(len, tables.values()), default=0)
    changes = (check_galaxies_unchanged(data, directory) for data in tables)
    problems += dict.fromkeys(problem for problem in changes if problem)
    networks, symmetry_errors = _check_networks(configs, problems)
    costs = fit_cost_models(read_timing_records(directory.parent), num_galaxies)
    configs = resolve_resources(configs, networks, costs, directory)
    problems += [*check_pixel_scale(configs), *check_training_galaxies(configs, tables)]
    num_bytes = estimate_bytes(configs, networks, num_galaxies, directory)
    problems += _check_writable(num_bytes) + _check_disk_space(num_bytes)
    starts: dict[ResourcesConfig, float] = {}
    warnings = _find_idle_gpus(configs)
    if executor in ("slurm", "auto") and slurm.is_up():
        starts = _get_start_times(configs, directory, problems, warnings)
    if problems:
        raise PreflightError(problems)
    return CheckedSweep(configs, networks, symmetry_errors, costs, starts, warnings)


def print_problems(error: PreflightError, console: Console) -> None:
    """Print all problems as one table."""
    title = f"problems: {len(error.problems)}; nothing was submitted or written"
    heads = ("where", "problem", "expected, or what to do")
    rows = [(problem.location, problem.message, problem.advice) for problem in error.problems]
    console.print(ConsoleTable(title, heads, rows, texts=heads))


def print_warnings(sweep: CheckedSweep, console: Console) -> None:
    """Print what may not be meant, one line each."""
    for warning in sweep.warnings:
        console.print(f"warning: {warning}", soft_wrap=True)


def _find_idle_gpus(configs: Sequence[RunConfig]) -> list[Problem]:
    """Return resources with more GPUs than processes, of which each uses one."""
    pairs = {(config.resources.resolved.gpus_per_node, config.resources.tasks_per_node) for config in configs}
    return [
        Problem(
            "resources", f"got {gpus} GPUs and {tasks} tasks per node", f"set tasks_per_node: {gpus} to use them all"
        )
        for gpus, tasks in sorted(pairs)
        if gpus > tasks
    ]


def make_symmetry_table(sweep: CheckedSweep) -> ConsoleTable:
    """Return the table of every network's symmetry errors."""
    size = f"{TINY_IMAGE_SIZE_PX} px"
    title = f"change of a tiny, untrained network's output when an image of {size} is rotated or reflected, in %"
    heads = ("network", "90° rotations,\nreflections", *(f"{angle:g}°" for angle in ANGLES_DEG))
    rows = []
    for model in dict.fromkeys(tiny_config(config.model) for config in sweep.configs):
        errors = sweep.symmetry_errors[model]
        exact = "not invariant" if errors.exact_error is None else f"{100 * errors.exact_error:.1g}"
        name = f"{model.group_label} {model.name}".strip() + (", flattening head" if model.head == "flatten" else "")
        name += f", base width {model.base_width}" if model.base_width else ""
        rows.append((name, exact, *(f"{100 * errors.error_by_angle[angle]:.0f}" for angle in ANGLES_DEG)))
    return ConsoleTable(title, heads, rows)


def _check_networks(
    configs: Sequence[RunConfig], problems: list[Problem]
) -> tuple[dict[str, NetworkProfile], dict[ModelConfig, SymmetryErrors]]:
    """Profile every distinct network and check its tiny version; add a problem for each that fails."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tiny networks are too small for more
    try:
        profiles: dict[tuple[ModelConfig, int], NetworkProfile] = {}
        symmetry_errors: dict[ModelConfig, SymmetryErrors] = {}
        checked_keys: set[object] = set()
        for config in {(run.model, run.data.image_size, _get_step_settings(run)): run for run in configs}.values():
            model, size, num_classes = config.model, config.data.image_size, len(config.data.class_names)
            check_key, message = (smoke_test.tiny_config(model), _get_step_settings(config)), ""
            try:
                if (model, size) not in profiles:
                    profiles[model, size] = NetworkProfile(0, 0)
                    profiles[model, size] = profile.profile_network(model, size, num_classes)
                if check_key not in checked_keys:
                    symmetry_errors[check_key[0]], message = smoke_test.check_tiny_model(
                        model, config.train, num_classes
                    )
                checked_keys.add(check_key)
            except (ValueError, RuntimeError, MemoryError) as error:
                message = f"cannot be built: {error}"
            if message:
                name = f"{model.group_label} {model.name} at {size} px".strip()
                problems.append(Problem(name, *message.split("; ", 1)))
    finally:
        torch.set_num_threads(num_threads)
    return {run.run_id: profiles[run.model, run.data.image_size] for run in configs}, symmetry_errors


def _get_step_settings(config: RunConfig) -> tuple[object, ...]:
    """Return the settings that the first training step depends on."""
    train = config.train
    return train.precision, train.optimizer, train.label_smoothing > 0


def estimate_bytes(
    configs: Sequence[RunConfig], networks: dict[str, NetworkProfile], num_galaxies: int, directory: Path
) -> dict[Path, float]:
    """Return the bytes that the unfinished runs will write below the sweep directory and the data cache.

    Per run: 3 checkpoints of 16 bytes per parameter (weights, Adam's two moments, best weights; 12 for sgd), 4 for
    best.pt, per test galaxy and condition 4 for each class (its logit) and 1 or 2 (the prediction), and logs, minus the
    existing checkpoints. In the cache: the images converted to each size and the demo file, if they are missing.
    """
    runs = sum(_estimate_run_bytes(config, networks[config.run_id], num_galaxies, directory) for config in configs)
    images = sum(_estimate_cache_bytes(data, num_galaxies) for data in get_distinct_data(configs))
    return {directory: runs, Path(configs[0].data.cache): images}


def _estimate_run_bytes(config: RunConfig, network: NetworkProfile, num_galaxies: int, directory: Path) -> float:
    from galaxyhpc.evaluation.results import get_label_dtype

    run = RunDir(directory / config.run_id)
    state_bytes = (16 if config.train.optimizer == "adamw" else 12) + (4 if config.train.ema_decay else 0)
    if run.results_file.exists():
        return 0.0
    num_classes, num_conditions = len(config.data.class_names), len(list_severity_pairs(config.evaluate.conditions))
    galaxy_bytes = 4 * num_classes + get_label_dtype(num_classes)().itemsize
    total = LOG_BYTES + galaxy_bytes * num_conditions * config.data.test_fraction * num_galaxies
    if not run.best_file.exists():
        total += (MAX_CHECKPOINTS * state_bytes + 4) * network.parameters
    files = run.checkpoint_dir.rglob("*.pt") if run.checkpoint_dir.exists() else ()
    return max(0.0, total - sum(path.stat().st_size for path in files))


def _estimate_cache_bytes(data: DataConfig, num_galaxies: int) -> float:
    from galaxyhpc.data.galaxies import open_converted

    if open_converted(data) is not None:
        return 0.0
    demo_bytes = 3 * num_galaxies * data.demo.size**2 if data.source == "demo" else 0
    return float(3 * num_galaxies * data.image_size**2 + demo_bytes)


def _check_writable(bytes_by_directory: dict[Path, float]) -> list[Problem]:
    """Check that files can be made in the directories that jobs write to."""
    problems = []
    for directory in (directory for directory, size in bytes_by_directory.items() if size):
        try:
            with TemporaryFile(dir=_find_existing_parent(directory)):
                pass
        except OSError as error:
            advice = "expected a directory to write in: change its permissions, --runs or data.cache"
            problems.append(Problem(str(directory), f"got {error.strerror}", advice))
    return problems


def _check_disk_space(bytes_by_directory: dict[Path, float]) -> list[Problem]:
    """Compare the bytes with the free space of each file system."""
    directories_by_device: dict[int, list[Path]] = {}
    for directory in bytes_by_directory:
        directories_by_device.setdefault(os.stat(_find_existing_parent(directory)).st_dev, []).append(directory)
    problems = []
    for directories in directories_by_device.values():
        total = sum(bytes_by_directory[directory] for directory in directories)
        free = shutil.disk_usage(_find_existing_parent(directories[0])).free
        if total > free:
            message = f"{total / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
            problems.append(Problem(" and ".join(map(str, directories)), message, DISK_SPACE_ADVICE))
    return problems


def _find_existing_parent(path: Path) -> Path:
    """Return the nearest directory above that exists."""
    return next(directory for directory in (path, *path.parents) if directory.exists())


def _get_start_times(
    configs: Sequence[RunConfig], directory: Path, problems: list[Problem], warnings: list[Problem]
) -> dict[ResourcesConfig, float]:
    """Ask Slurm for the expected start of each resource class; add a problem in its own words if it refuses one.

    A class that sbatch would queue all the same is a warning.
    """
    runs = {RunDir(directory / config.run_id): config for config in configs}
    untrained = {
        run: run.with_retry_changes(config.resources.resolved)
        for run, config in runs.items()
        if not run.best_file.exists()
    }
    starts, max_size = {}, slurm.get_max_array_size() if untrained else 1
    for resources, members in slurm_executor.group_by_resources(untrained).items():
        script = slurm_executor.make_sbatch_script(directory, resources, min(len(members), max_size), None)
        answer = ask_slurm(script, resources)
        if answer.refusal:
            location = f"sbatch for {format_count(len(members), 'run')}, {describe_resources(resources)}"
            (warnings if answer.can_wait else problems).append(Problem(location, answer.refusal, answer.advice))
        elif answer.start is not None:
            starts[resources] = answer.start
    return starts


def describe_resources(resources: ResourcesConfig) -> str:
    """Format the requested resources, without those left at their defaults."""
    settings = resources.model_dump(exclude_defaults=True, exclude=NON_SLURM_SETTINGS)
    return ", ".join(f"{name} {value}" for name, value in flatten(settings).items()) or "defaults"
