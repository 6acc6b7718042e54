"""Checks every run of a sweep before anything is submitted or written, and reports all problems at once.

A network that several runs share is built once; Slurm is queried once per resource class.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from galaxyhpc.analysis.run_cost import CostModels, fit_cost_models, read_timing_records, resolve_resources
from galaxyhpc.config.conditions import list_severity_pairs
from galaxyhpc.config.schema import DataConfig, ModelConfig, ResourcesConfig, RunConfig
from galaxyhpc.launch import slurm_executor, smoke_test
from galaxyhpc.launch.smoke_test import ANGLES_DEG, TINY_IMAGE_SIZE_PX, SymmetryErrors, tiny_config
from galaxyhpc.models import profile
from galaxyhpc.models.profile import NetworkProfile
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.console import ConsoleTable
from galaxyhpc.storage.run_dir import RunDir

COMMON_DATA_SETTINGS = {"source", "demo", "validation_fraction", "test_fraction", "split_seed", "link_arcsec"}
COMMON_DATA_SETTINGS |= {"conflicting_duplicates"}
MAX_CHECKPOINTS = 3  # two, and one that is being written
LOG_BYTES = 2e6  # of the logs and records of a run
NON_SLURM_SETTINGS = {"setup", "micro_batch", "convolution", "checkpoint_minutes"}
REFUSED_ADVICE = "change resources in the sweep, by --profile or by --set resources...; sinfo shows what is available"
DISK_SPACE_ADVICE = "free disk space, choose another directory with --runs or data.cache, or launch fewer runs"


@dataclass(frozen=True)
class Problem:
    """A reason why a sweep cannot be launched."""

    location: str
    message: str
    advice: str = ""  # the expected value, or what to do

    def __str__(self) -> str:
        return f"{self.location}: {self.message}" + (f"; {self.advice}" if self.advice else "")


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
    problems = _check_split(configs)
    counts = {data: _count_galaxies(data, problems) for data in _get_distinct_data(configs)}
    num_galaxies = max(counts.values(), default=0)
    changes = (_check_galaxies_unchanged(data, directory) for data, count in counts.items() if count)
    problems += dict.fromkeys(problem for problem in changes if problem)
    networks, symmetry_errors = _check_networks(configs, problems)
    costs = fit_cost_models(read_timing_records(directory.parent), num_galaxies)
    configs = resolve_resources(configs, networks, costs, directory)
    problems += _check_disk_space(estimate_bytes(configs, networks, num_galaxies, directory))
    starts = _get_start_times(configs, directory, problems) if executor in ("slurm", "auto") and slurm.is_up() else {}
    if problems:
        raise PreflightError(problems)
    return CheckedSweep(configs, networks, symmetry_errors, costs, starts)


def print_problems(error: PreflightError, console: Console) -> None:
    """Print all problems as one table."""
    title = f"problems: {len(error.problems)}; nothing was submitted or written"
    heads = ("where", "problem", "expected, or what to do")
    rows = [(problem.location, problem.message, problem.advice) for problem in error.problems]
    console.print(ConsoleTable(title, heads, rows, texts=heads))


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


def _get_distinct_data(configs: Sequence[RunConfig]) -> list[DataConfig]:
    return list(dict.fromkeys(config.data for config in configs))


def _check_split(configs: Sequence[RunConfig]) -> list[Problem]:
    """Check that all runs share one split of the same galaxies: otherwise their results cannot be compared."""
    settings = [data.model_dump(include=COMMON_DATA_SETTINGS) for data in _get_distinct_data(configs)]
    values_by_name = {name: sorted({str(data[name]) for data in settings}) for name in sorted(COMMON_DATA_SETTINGS)}
    return [
        Problem(f"data.{name}", f"got {', '.join(values)}", "expected one value per sweep: launch a sweep for each")
        for name, values in values_by_name.items()
        if len(values) > 1
    ]


def _count_galaxies(data: DataConfig, problems: list[Problem]) -> int:
    """Return the number of galaxies; add a problem if their file cannot be read."""
    from galaxyhpc.data import DataError
    from galaxyhpc.data.galaxy10 import read_metadata

    if data.source == "demo":
        return data.demo.galaxies
    try:
        return len(read_metadata(Path(data.source)).labels)
    except DataError as error:
        message, _, advice = str(error).removeprefix(f"{data.source}: ").partition("; ")
        if (problem := Problem(f"data.source: {data.source}", message, advice)) not in problems:
            problems.append(problem)
    return 0


def _check_galaxies_unchanged(data: DataConfig, directory: Path) -> Problem | None:
    """Return a problem if the sweep was started with other galaxies, or another split of them."""
    from galaxyhpc.data.dataset import format_split_settings, open_converted
    from galaxyhpc.data.split_file import SPLIT_FILE_NAME, read_split_header

    path = directory / SPLIT_FILE_NAME
    if not path.exists():
        return None
    header, settings = read_split_header(path), format_split_settings(data)
    advice = "restore the old data, or launch under another name (--set name=...)"
    if header.get("settings") != settings:
        message = f"made with {header.get('settings', 'unknown settings')}, now {settings}"
        return Problem(str(path), message, advice)
    galaxies, old = open_converted(data), header.get("fingerprint", "unknown")
    if galaxies is None:
        change = "labels or positions of" if _has_different_columns(path, data) else ""
    else:
        change = f"fingerprint {galaxies.fingerprint[:12]} of" if galaxies.fingerprint != old else ""
    message = f"made from galaxies {old[:12]} ({header.get('source', 'unknown')}), now other {change} {data.source}"
    return Problem(str(path), message, advice) if change else None


def _has_different_columns(path: Path, data: DataConfig) -> bool:
    """Compare labels and positions of a split with a file that is not converted yet; for demo galaxies, the number."""
    import numpy as np

    from galaxyhpc.data import DataError
    from galaxyhpc.data.galaxy10 import read_metadata
    from galaxyhpc.data.split_file import read_split_table

    try:
        table = read_split_table(path)
    except DataError:  # damaged
        return True
    if data.source == "demo":
        return len(table) != data.demo.galaxies
    columns = read_metadata(Path(data.source))
    new = np.stack([columns.labels, columns.ra, columns.dec])
    old = table[["label", "ra", "dec"]].to_numpy().T
    return old.shape != new.shape or not np.allclose(old, new, rtol=0, atol=1e-9)


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
            model, size = config.model, config.data.image_size
            check_key, message = (smoke_test.tiny_config(model), _get_step_settings(config)), ""
            try:
                if (model, size) not in profiles:
                    profiles[model, size] = NetworkProfile(0, 0)
                    profiles[model, size] = profile.profile_network(model, size)
                if check_key not in checked_keys:
                    symmetry_errors[check_key[0]], message = smoke_test.check_tiny_model(model, config.train)
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
    best.pt, 41 per test galaxy and condition, and logs, minus the existing checkpoints. In the cache: the images
    converted to each size and the demo file, if they are missing.
    """
    runs = sum(_estimate_run_bytes(config, networks[config.run_id], num_galaxies, directory) for config in configs)
    images = sum(_estimate_cache_bytes(data, num_galaxies) for data in _get_distinct_data(configs))
    return {directory: runs, Path(configs[0].data.cache): images}


def _estimate_run_bytes(config: RunConfig, network: NetworkProfile, num_galaxies: int, directory: Path) -> float:
    run = RunDir(directory / config.run_id)
    state_bytes = (16 if config.train.optimizer == "adamw" else 12) + (4 if config.train.ema_decay else 0)
    if run.results_file.exists():
        return 0.0
    num_conditions = len(list_severity_pairs(config.evaluate.conditions))
    total = LOG_BYTES + 41 * num_conditions * config.data.test_fraction * num_galaxies
    if not run.best_file.exists():
        total += (MAX_CHECKPOINTS * state_bytes + 4) * network.parameters
    files = run.checkpoint_dir.rglob("*.pt") if run.checkpoint_dir.exists() else ()
    return max(0.0, total - sum(path.stat().st_size for path in files))


def _estimate_cache_bytes(data: DataConfig, num_galaxies: int) -> float:
    from galaxyhpc.data.dataset import open_converted

    if open_converted(data) is not None:
        return 0.0
    demo_bytes = 3 * num_galaxies * data.demo.size**2 if data.source == "demo" else 0
    return float(3 * num_galaxies * data.image_size**2 + demo_bytes)


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
    configs: Sequence[RunConfig], directory: Path, problems: list[Problem]
) -> dict[ResourcesConfig, float]:
    """Ask Slurm for the expected start of each resource class; add a problem in its own words if it refuses one."""
    runs = {RunDir(directory / config.run_id): config for config in configs}
    untrained = {
        run: run.with_retry_changes(config.resources.resolved)
        for run, config in runs.items()
        if not run.best_file.exists()
    }
    starts, max_size = {}, slurm.get_max_array_size() if untrained else 1
    for resources, members in slurm_executor.group_by_resources(untrained).items():
        script = slurm_executor.make_sbatch_script(directory, resources, min(len(members), max_size), None)
        start, refusal = slurm.test_submit(script)
        if refusal:
            location = f"sbatch for {len(members)} runs, {describe_resources(resources)}"
            problems.append(Problem(location, refusal, REFUSED_ADVICE))
        elif start is not None:
            starts[resources] = start
    return starts


def describe_resources(resources: ResourcesConfig) -> str:
    """Format the requested resources, without those left at their defaults."""
    settings = resources.model_dump(exclude_defaults=True, exclude=NON_SLURM_SETTINGS)
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "defaults"
