"""Every point of a sweep checked before anything is submitted or written; all problems are told at once.

Networks that seeds and settings share are built once; Slurm is asked once for each class of resources.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from galaxyhpc.analysis.run_cost import CostModels, fit_cost_models, read_timing_records, resolve_resources
from galaxyhpc.config.conditions import list_severity_pairs
from galaxyhpc.config.schema import DataConfig, ModelConfig, ResourcesConfig, RunConfig
from galaxyhpc.launch import slurm_executor, smoke_test
from galaxyhpc.launch.smoke_test import ANGLES_DEG, SymmetryErrors, tiny_config
from galaxyhpc.models import profile
from galaxyhpc.models.profile import NetworkProfile
from galaxyhpc.runtime import slurm
from galaxyhpc.storage.run_dir import RunDir

COMMON_DATA_SETTINGS = {"source", "demo", "validation_fraction", "test_fraction", "split_seed", "link_arcsec"}
COMMON_DATA_SETTINGS |= {"conflicting_duplicates"}
MAX_CHECKPOINTS, LOG_BYTES = (
    3,
    2e6,
)  # checkpoints: two, and one that is being written; bytes of a run's logs and records
NON_SLURM_SETTINGS = {"setup", "micro_batch", "convolution", "checkpoint_minutes"}  # of Slurm
REFUSED_ADVICE = "change resources, in the sweep, by --profile or --set resources...; sinfo shows what there is"
DISK_SPACE_ADVICE = "free some room, choose another place with --runs or data.cache, or launch fewer runs"


@dataclass(frozen=True)
class Problem:
    """Why a sweep cannot be carried out."""

    location: str
    message: str
    advice: str = ""  # or what to do

    def __str__(self) -> str:
        return f"{self.location}: {self.message}" + (f"; {self.advice}" if self.advice else "")


class PreflightError(ValueError):
    """Points of a sweep that could not be carried out; one problem a line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class CheckedSweep:
    """A sweep that can be launched: its runs with numbers for all resources, and what is known of them."""

    configs: list[RunConfig]
    networks: dict[str, NetworkProfile]  # by run_id
    symmetry_errors: dict[ModelConfig, SymmetryErrors]  # by the narrow twin's settings
    costs: CostModels
    start_times: dict[ResourcesConfig, float] = field(default_factory=dict)  # by class, s since 1970, as Slurm expects

    @property
    def by_cost_descending(self) -> list[RunConfig]:
        """The runs in the order in which they are started."""
        return sorted(self.configs, key=lambda config: -self.networks[config.run_id].multiply_adds)


def check_sweep(configs: Sequence[RunConfig], directory: Path, executor: str = "local") -> CheckedSweep:
    """Check the runs of the sweep in `directory`.

    Raises
    ------
    PreflightError
    """
    problems = _check_split(configs)
    counts = {data: _count_galaxies(data, problems) for data in _get_distinct_data(configs)}
    galaxies = max(counts.values(), default=0)
    found = (_check_galaxies_unchanged(data, directory) for data, count in counts.items() if count)
    problems += dict.fromkeys(problem for problem in found if problem)
    measured, symmetries = _check_networks(configs, problems)
    costs = fit_cost_models(read_timing_records(directory.parent), galaxies)
    configs = resolve_resources(configs, measured, costs, directory)
    problems += _check_disk_space(estimate_bytes(configs, measured, galaxies, directory))
    starts = _get_start_times(configs, directory, problems) if executor in ("slurm", "auto") and slurm.is_up() else {}
    if problems:
        raise PreflightError(problems)
    return CheckedSweep(configs, measured, symmetries, costs, starts)


def print_problems(error: PreflightError, console: Console) -> None:
    """Print all problems as one table; nothing is wrapped in a log, where somebody may search it."""
    if not console.is_terminal:
        console.width = 10_000
    title = f"problems: {len(error.problems)}; nothing was submitted or written"
    table = Table(title=title, title_justify="left")
    for head in ("where", "found", "allowed, or what to do"):
        table.add_column(head, overflow="fold")
    for problem in error.problems:
        table.add_row(problem.location, problem.message, problem.advice)
    console.print(table)


def make_symmetry_table(sweep: CheckedSweep) -> Table:
    """Return the table of what every network keeps when images are moved."""
    title = "what a narrow, untrained network of the kind does when an image of 33 px is moved: change in %"
    table = Table(title=title, title_justify="left")
    table.add_column("network")
    heads = ("exact turns, mirror images", *(f"{angle:g}°" for angle in ANGLES_DEG))
    for head in heads:
        table.add_column(head, justify="right")
    for model in dict.fromkeys(tiny_config(config.model) for config in sweep.configs):
        found = sweep.symmetry_errors[model]
        exact = "claims none" if found.exact_error is None else f"{100 * found.exact_error:.1g}"
        name = f"{model.group_label} {model.name}".strip() + (", flattening head" if model.head == "flatten" else "")
        name += f", base width {model.base_width}" if model.base_width else ""
        table.add_row(name, exact, *(f"{100 * found.error_by_angle[angle]:.0f}" for angle in ANGLES_DEG))
    return table


def _get_distinct_data(configs: Sequence[RunConfig]) -> list[DataConfig]:
    return list(dict.fromkeys(config.data for config in configs))


def _check_split(configs: Sequence[RunConfig]) -> list[Problem]:
    """All runs of a sweep share one split of the same galaxies, or their results could not be compared."""
    divided = [data.model_dump(include=COMMON_DATA_SETTINGS) for data in _get_distinct_data(configs)]
    found = {name: sorted({str(data[name]) for data in divided}) for name in sorted(COMMON_DATA_SETTINGS)}
    return [
        Problem(f"data.{name}", f"found {', '.join(values)} in one sweep", "allowed is one value: make a sweep of each")
        for name, values in found.items()
        if len(values) > 1
    ]


def _count_galaxies(data: DataConfig, problems: list[Problem]) -> int:
    """Return how many galaxies there are, noting what is wrong with their file."""
    from galaxyhpc.data import DataError
    from galaxyhpc.data.galaxy10 import read_metadata

    if data.source == "demo":
        return data.demo.galaxies
    try:
        return len(read_metadata(Path(data.source)).labels)
    except DataError as error:
        found, _, allowed = str(error).removeprefix(f"{data.source}: ").partition("; ")
        if (problem := Problem(data.source, found, allowed)) not in problems:
            problems.append(problem)
    return 0


def _check_galaxies_unchanged(data: DataConfig, directory: Path) -> Problem | None:
    """Say where the sweep was begun with other galaxies, or with another division of them."""
    from galaxyhpc.data.dataset import format_split_settings, open_converted
    from galaxyhpc.data.split_file import SPLIT_FILE_NAME, read_split_header

    path = directory / SPLIT_FILE_NAME
    if not path.exists():
        return None
    head, settings = read_split_header(path), format_split_settings(data)
    to_do = "restore what it was made from, or launch under another name (--set name=...)"
    if head.get("settings") != settings:
        found = f"made with {head.get('settings', 'unknown settings')}, now {settings}"
        return Problem(str(path), found, to_do)
    galaxies, was = open_converted(data), head.get("fingerprint", "unknown")
    if galaxies is None:
        what = "labels or positions of " if _has_different_columns(path, data) else ""
    else:
        what = f"fingerprint {galaxies.fingerprint[:12]} of " if galaxies.fingerprint != was else ""
    found = f"made from galaxies {was[:12]} ({head.get('source', 'unknown')}), now other {what}{data.source}"
    return Problem(str(path), found, to_do) if what else None


def _has_different_columns(path: Path, data: DataConfig) -> bool:
    """Compare a split with a file that is not converted yet: its labels and positions, of demo galaxies the number."""
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
    now = np.stack([columns.labels, columns.ra, columns.dec])
    was = table[["label", "ra", "dec"]].to_numpy().T
    return was.shape != now.shape or not np.allclose(was, now, rtol=0, atol=1e-9)


def _check_networks(
    configs: Sequence[RunConfig], problems: list[Problem]
) -> tuple[dict[str, NetworkProfile], dict[ModelConfig, SymmetryErrors]]:
    """Measure every distinct network and take a step with every distinct twin, noting what is wrong."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the twins are too small for more
    try:
        found: dict[tuple[ModelConfig, int], NetworkProfile] = {}
        symmetries: dict[ModelConfig, SymmetryErrors] = {}
        twins: set[object] = set()
        for config in {(run.model, run.data.image_size, _get_step_settings(run)): run for run in configs}.values():
            model, size = config.model, config.data.image_size
            twin, said = (smoke_test.tiny_config(model), _get_step_settings(config)), ""
            try:
                if (model, size) not in found:
                    found[model, size] = NetworkProfile(0, 0)
                    found[model, size] = profile.profile_network(model, size)
                if twin not in twins:
                    symmetries[twin[0]], said = smoke_test.check_tiny_model(model, config.train)
                twins.add(twin)
            except (ValueError, RuntimeError, MemoryError) as error:
                said = f"cannot be built: {error}"
            if said:
                name = f"{model.group_label} {model.name} at {size} px".strip()
                problems.append(Problem(name, *said.split("; ", 1)))
    finally:
        torch.set_num_threads(before)
    return {run.run_id: found[run.model, run.data.image_size] for run in configs}, symmetries


def _get_step_settings(config: RunConfig) -> tuple[object, ...]:
    """Return the settings that a first step depends on."""
    train = config.train
    return train.precision, train.optimizer, train.label_smoothing > 0


def estimate_bytes(
    configs: Sequence[RunConfig], networks: dict[str, NetworkProfile], num_galaxies: int, directory: Path
) -> dict[Path, float]:
    """Return the bytes that the runs still to be done will write below each of two directories.

    Per run: 3 checkpoints of 16 bytes per parameter (weights, Adam's two moments, best weights; 12 for sgd), 4 for
    best.pt, 41 for each galaxy and condition measured, and logs; less what is there already. The converted images of
    each size, and the demo's own file, where they are missing.
    """
    runs = sum(_estimate_run_bytes(config, networks[config.run_id], num_galaxies, directory) for config in configs)
    images = sum(_estimate_cache_bytes(data, num_galaxies) for data in _get_distinct_data(configs))
    return {directory: runs, Path(configs[0].data.cache): images}


def _estimate_run_bytes(config: RunConfig, network: NetworkProfile, num_galaxies: int, directory: Path) -> float:
    run = RunDir(directory / config.run_id)
    states = (16 if config.train.optimizer == "adamw" else 12) + (4 if config.train.ema_decay else 0)
    if run.results_file.exists():
        return 0.0
    measured = len(list_severity_pairs(config.evaluate.conditions))
    wanted = LOG_BYTES + 41 * measured * config.data.test_fraction * num_galaxies
    if not run.best_file.exists():
        wanted += (MAX_CHECKPOINTS * states + 4) * network.parameters
    there = sum(path.stat().st_size for path in run.checkpoint_dir.rglob("*.pt")) if run.checkpoint_dir.exists() else 0
    return max(0.0, wanted - there)


def _estimate_cache_bytes(data: DataConfig, num_galaxies: int) -> float:
    from galaxyhpc.data.dataset import open_converted

    if open_converted(data) is not None:
        return 0.0
    own = 3 * num_galaxies * data.demo.size**2 if data.source == "demo" else 0
    return float(3 * num_galaxies * data.image_size**2 + own)


def _check_disk_space(bytes_by_directory: dict[Path, float]) -> list[Problem]:
    """Compare with what is free on each file system."""
    wanted: dict[int, list[Path]] = {}
    for place in bytes_by_directory:
        wanted.setdefault(os.stat(_find_existing_parent(place)).st_dev, []).append(place)
    problems = []
    for places in wanted.values():
        total, free = (
            sum(bytes_by_directory[place] for place in places),
            shutil.disk_usage(_find_existing_parent(places[0])).free,
        )
        if total > free:
            found = f"{total / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
            problems.append(Problem(" and ".join(map(str, places)), found, DISK_SPACE_ADVICE))
    return problems


def _find_existing_parent(path: Path) -> Path:
    """Return the nearest directory above that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _get_start_times(
    configs: Sequence[RunConfig], directory: Path, problems: list[Problem]
) -> dict[ResourcesConfig, float]:
    """Ask Slurm about each class of resources, noting in its own words why it refuses one."""
    untrained = [(RunDir(directory / config.run_id), config) for config in configs]
    wanted = {
        run: run.with_retry_changes(config.resources.resolved)
        for run, config in untrained
        if not run.best_file.exists()
    }
    starts, most = {}, slurm.get_max_array_size() if wanted else 1
    for resources, runs in slurm_executor.group_by_resources(wanted).items():
        start, refusal = slurm.test_submit(
            slurm_executor.make_sbatch_script(directory, resources, min(len(runs), most), None)
        )
        if refusal:
            problems.append(
                Problem(f"sbatch for {len(runs)} runs, {describe_resources(resources)}", refusal, REFUSED_ADVICE)
            )
        elif start is not None:
            starts[resources] = start
    return starts


def describe_resources(resources: ResourcesConfig) -> str:
    """Say what is asked for, defaults left out."""
    asked = resources.model_dump(exclude_defaults=True, exclude=NON_SLURM_SETTINGS)
    return ", ".join(f"{name} {value}" for name, value in asked.items()) or "defaults"
