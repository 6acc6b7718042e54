"""Every point of a sweep checked before anything is submitted or written; all problems are told at once.

Networks that seeds and settings share are built once; Slurm is asked once for each class of resources.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from galaxyhpc.analysis.run_cost import Costs, make_costs, read_records, resolved
from galaxyhpc.config.conditions import pairs
from galaxyhpc.config.schema import DataConfig, ModelConfig, ResourcesConfig, RunConfig
from galaxyhpc.launch import slurm_executor, smoke_test
from galaxyhpc.launch.smoke_test import ANGLES, Symmetry, narrow
from galaxyhpc.models import profile
from galaxyhpc.models.profile import Network
from galaxyhpc.runtime import slurm
from galaxyhpc.storage.run_dir import RunDir

SHARED = {"source", "demo", "validation_fraction", "test_fraction", "split_seed", "link_arcsec"}
SHARED |= {"conflicting_duplicates"}
KEPT, LOGS = 3, 2e6  # checkpoints: two, and one that is being written; bytes of a run's logs and records
NOT_ASKED = {"setup", "micro_batch", "convolution", "checkpoint_minutes"}  # of Slurm
REFUSED = "change resources, in the sweep, by --profile or --set resources...; sinfo shows what there is"
ROOM = "free some room, choose another place with --runs or data.cache, or launch fewer runs"


@dataclass(frozen=True)
class Problem:
    """Why a sweep cannot be carried out."""

    where: str
    found: str
    allowed: str = ""  # or what to do

    def __str__(self) -> str:
        return f"{self.where}: {self.found}" + (f"; {self.allowed}" if self.allowed else "")


class PreflightError(ValueError):
    """Points of a sweep that could not be carried out; one problem a line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Checked:
    """A sweep that can be launched: its runs with numbers for all resources, and what is known of them."""

    configs: list[RunConfig]
    networks: dict[str, Network]  # by run_id
    symmetries: dict[ModelConfig, Symmetry]  # by the narrow twin's settings
    costs: Costs
    starts: dict[ResourcesConfig, float] = field(default_factory=dict)  # by class, s since 1970, as Slurm expects

    @property
    def heavy_first(self) -> list[RunConfig]:
        """The runs in the order in which they are started."""
        return sorted(self.configs, key=lambda config: -self.networks[config.run_id].multiply_adds)


def check(configs: Sequence[RunConfig], directory: Path, executor: str = "local") -> Checked:
    """Check the runs of the sweep in `directory`.

    Raises
    ------
    PreflightError
    """
    problems = _split_problems(configs)
    counts = {data: _galaxies(data, problems) for data in _distinct(configs)}
    galaxies = max(counts.values(), default=0)
    found = (_other_galaxies(data, directory) for data, count in counts.items() if count)
    problems += dict.fromkeys(problem for problem in found if problem)
    measured, symmetries = _networks(configs, problems)
    costs = make_costs(read_records(directory.parent), galaxies)
    configs = resolved(configs, measured, costs, directory)
    problems += _disk_problems(bytes_needed(configs, measured, galaxies, directory))
    starts = _starts(configs, directory, problems) if executor in ("slurm", "auto") and slurm.is_up() else {}
    if problems:
        raise PreflightError(problems)
    return Checked(configs, measured, symmetries, costs, starts)


def show(error: PreflightError, console: Console) -> None:
    """Print all problems as one table; nothing is wrapped in a log, where somebody may search it."""
    if not console.is_terminal:
        console.width = 10_000
    title = f"problems: {len(error.problems)}; nothing was submitted or written"
    table = Table(title=title, title_justify="left")
    for head in ("where", "found", "allowed, or what to do"):
        table.add_column(head, overflow="fold")
    for problem in error.problems:
        table.add_row(problem.where, problem.found, problem.allowed)
    console.print(table)


def symmetries(checked: Checked) -> Table:
    """Return the table of what every network keeps when images are moved."""
    title = "what a narrow, untrained network of the kind does when an image of 33 px is moved: change in %"
    table = Table(title=title, title_justify="left")
    table.add_column("network")
    heads = ("exact turns, mirror images", *(f"{angle:g}°" for angle in ANGLES))
    for head in heads:
        table.add_column(head, justify="right")
    for model in dict.fromkeys(narrow(config.model) for config in checked.configs):
        found = checked.symmetries[model]
        exact = "claims none" if found.exact is None else f"{100 * found.exact:.1g}"
        name = f"{model.groups} {model.name}".strip() + (", flattening head" if model.head == "flatten" else "")
        name += f", base width {model.base_width}" if model.base_width else ""
        table.add_row(name, exact, *(f"{100 * found.curve[angle]:.0f}" for angle in ANGLES))
    return table


def _distinct(configs: Sequence[RunConfig]) -> list[DataConfig]:
    return list(dict.fromkeys(config.data for config in configs))


def _split_problems(configs: Sequence[RunConfig]) -> list[Problem]:
    """All runs of a sweep share one split of the same galaxies, or their results could not be compared."""
    divided = [data.model_dump(include=SHARED) for data in _distinct(configs)]
    found = {name: sorted({str(data[name]) for data in divided}) for name in sorted(SHARED)}
    return [
        Problem(f"data.{name}", f"found {', '.join(values)} in one sweep", "allowed is one value: make a sweep of each")
        for name, values in found.items()
        if len(values) > 1
    ]


def _galaxies(data: DataConfig, problems: list[Problem]) -> int:
    """Return how many galaxies there are, noting what is wrong with their file."""
    from galaxyhpc.data.galaxy10 import DataError, read_columns

    if data.source == "demo":
        return data.demo.galaxies
    try:
        return len(read_columns(Path(data.source)).labels)
    except DataError as error:
        found, _, allowed = str(error).removeprefix(f"{data.source}: ").partition("; ")
        if (problem := Problem(data.source, found, allowed)) not in problems:
            problems.append(problem)
    return 0


def _other_galaxies(data: DataConfig, directory: Path) -> Problem | None:
    """Say where the sweep was begun with other galaxies, or with another division of them."""
    from galaxyhpc.data.dataset import SPLIT_SETTINGS, converted, split_head

    path = directory / "split.csv"
    if not path.exists():
        return None
    head, settings = split_head(path), data.model_dump(mode="json", include=set(SPLIT_SETTINGS))
    to_do = "restore what it was made from, or launch under another name (--set name=...)"
    if head.get("settings") != json.dumps(settings):
        found = f"made with {head.get('settings', 'unknown settings')}, now {json.dumps(settings)}"
        return Problem(str(path), found, to_do)
    galaxies, was = converted(data), head.get("fingerprint", "unknown")
    if galaxies is None:
        what = "labels or positions of " if _columns_differ(path, data) else ""
    else:
        what = f"fingerprint {galaxies.fingerprint[:12]} of " if galaxies.fingerprint != was else ""
    found = f"made from galaxies {was[:12]} ({head.get('source', 'unknown')}), now other {what}{data.source}"
    return Problem(str(path), found, to_do) if what else None


def _columns_differ(path: Path, data: DataConfig) -> bool:
    """Compare a split with a file that is not converted yet: its labels and positions, of demo galaxies the number."""
    import numpy as np
    import pandas as pd

    from galaxyhpc.data.galaxy10 import read_columns

    table = pd.read_csv(path, comment="#")
    if data.source == "demo":
        return len(table) != data.demo.galaxies
    columns = read_columns(Path(data.source))
    now = np.stack([columns.labels, columns.ra, columns.dec])
    was = table[["label", "ra", "dec"]].to_numpy().T
    return was.shape != now.shape or not np.allclose(was, now, rtol=0, atol=1e-9)


def _networks(
    configs: Sequence[RunConfig], problems: list[Problem]
) -> tuple[dict[str, Network], dict[ModelConfig, Symmetry]]:
    """Measure every distinct network and take a step with every distinct twin, noting what is wrong."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the twins are too small for more
    try:
        found: dict[tuple[ModelConfig, int], Network] = {}
        symmetries: dict[ModelConfig, Symmetry] = {}
        twins: set[object] = set()
        for config in {(run.model, run.data.image_size, _of_a_step(run)): run for run in configs}.values():
            model, size = config.model, config.data.image_size
            twin, said = (smoke_test.narrow(model), _of_a_step(config)), ""
            try:
                if (model, size) not in found:
                    found[model, size] = Network(0, 0)
                    found[model, size] = profile.measure(model, size)
                if twin not in twins:
                    symmetries[twin[0]], said = smoke_test.try_twin(model, config.train)
                twins.add(twin)
            except (ValueError, RuntimeError, MemoryError) as error:
                said = f"cannot be built: {error}"
            if said:
                name = f"{model.groups} {model.name} at {size} px".strip()
                problems.append(Problem(name, *said.split("; ", 1)))
    finally:
        torch.set_num_threads(before)
    return {run.run_id: found[run.model, run.data.image_size] for run in configs}, symmetries


def _of_a_step(config: RunConfig) -> tuple[object, ...]:
    """Return the settings that a first step depends on."""
    train = config.train
    return train.precision, train.optimizer, train.label_smoothing > 0


def bytes_needed(
    configs: Sequence[RunConfig], measured: dict[str, Network], galaxies: int, directory: Path
) -> dict[Path, float]:
    """Return the bytes that the runs still to be done will write below each of two directories.

    Per run: 3 checkpoints of 16 bytes per parameter (weights, Adam's two moments, best weights; 12 for sgd), 4 for
    best.pt, 41 for each galaxy and condition measured, and logs; less what is there already. The converted images of
    each size, and the demo's own file, where they are missing.
    """
    runs = sum(_run_bytes(config, measured[config.run_id], galaxies, directory) for config in configs)
    images = sum(_cache_bytes(data, galaxies) for data in _distinct(configs))
    return {directory: runs, Path(configs[0].data.cache): images}


def _run_bytes(config: RunConfig, network: Network, galaxies: int, directory: Path) -> float:
    run = RunDir(directory / config.run_id)
    states = (16 if config.train.optimizer == "adamw" else 12) + (4 if config.train.ema_decay else 0)
    if run.results_file.exists():
        return 0.0
    measured = len(pairs(config.evaluate.conditions))
    wanted = LOGS + 41 * measured * config.data.test_fraction * galaxies
    if not run.best_file.exists():
        wanted += (KEPT * states + 4) * network.parameters
    there = sum(path.stat().st_size for path in run.checkpoints.rglob("*.pt")) if run.checkpoints.exists() else 0
    return max(0.0, wanted - there)


def _cache_bytes(data: DataConfig, galaxies: int) -> float:
    from galaxyhpc.data.dataset import converted

    if converted(data) is not None:
        return 0.0
    own = 3 * galaxies * data.demo.size**2 if data.source == "demo" else 0
    return float(3 * galaxies * data.image_size**2 + own)


def _disk_problems(needed: dict[Path, float]) -> list[Problem]:
    """Compare with what is free on each file system."""
    wanted: dict[int, list[Path]] = {}
    for place in needed:
        wanted.setdefault(os.stat(_existing(place)).st_dev, []).append(place)
    problems = []
    for places in wanted.values():
        total, free = sum(needed[place] for place in places), shutil.disk_usage(_existing(places[0])).free
        if total > free:
            found = f"{total / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
            problems.append(Problem(" and ".join(map(str, places)), found, ROOM))
    return problems


def _existing(path: Path) -> Path:
    """Return the nearest directory above that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _starts(configs: Sequence[RunConfig], directory: Path, problems: list[Problem]) -> dict[ResourcesConfig, float]:
    """Ask Slurm about each class of resources, noting in its own words why it refuses one."""
    untrained = [(RunDir(directory / config.run_id), config) for config in configs]
    wanted = {run: run.with_retry_changes(config.resources.plain) for run, config in untrained if not run.best_file.exists()}
    starts, most = {}, slurm.most_elements() if wanted else 1
    for resources, runs in slurm_executor.by_resources(wanted).items():
        start, refusal = slurm.would_start(slurm_executor.sbatch_text(directory, resources, min(len(runs), most), None))
        if refusal:
            problems.append(Problem(f"sbatch for {len(runs)} runs, {words(resources)}", refusal, REFUSED))
        elif start is not None:
            starts[resources] = start
    return starts


def words(resources: ResourcesConfig) -> str:
    """Say what is asked for, defaults left out."""
    asked = resources.model_dump(exclude_defaults=True, exclude=NOT_ASKED)
    return ", ".join(f"{name} {value}" for name, value in asked.items()) or "defaults"
