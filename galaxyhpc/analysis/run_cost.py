"""How long a run takes and what it needs: a rough prior from multiply-adds, refitted from the records of earlier runs.

The prior's constants are those of one CPU core (measured: 10 to 14 G multiply-adds/s on an AMD EPYC in float32) and of
one GPU of a data centre (NOT measured: a tenth to a fifth of an A100's or H100's peak). They may be wrong by several
times; after a few epochs on the same kind of device the recorded ones take their place.
"""

from __future__ import annotations

import csv
import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from galaxyhpc.config.conditions import pairs
from galaxyhpc.config.schema import RunConfig
from galaxyhpc.models.profile import Network, images_per_pass, training_bytes
from galaxyhpc.storage.run_dir import NoRunError, RunDir
from galaxyhpc.storage.sweep_dir import runs_of

CORE_SPEED = 1.2e10  # multiply-adds per second
GPU_SPEED = {"float32": 1e13, "bfloat16": 2e13}
CORE_SECONDS, GPU_SECONDS = 1e-3, 20e-3  # fixed: per image on a core, per pass on a GPU
THREADS = 0.8  # n threads do the work of n to this power
BACKWARD = 3  # a training image costs as much as so many forward passes
START_SECONDS = 300.0  # of a job: imports, images, first pass
EVALUATION_SECONDS = 1e-4  # per image and condition on a GPU, besides the network
CORRUPTION_SECONDS = 1.2e-7  # per pixel, image and condition on a core: the mean of all, measured at 33 to 65 px
MINUTES = (30, 60, 120, 240, 480, 720, 1440, 2880)
GPUS = (1, 2, 4, 8)
LONGEST = 24 * 3600.0  # on one GPU, before more are asked for
FEW_RUNS, FEW_NETWORKS = 5, 3  # with fewer no straight line is drawn
GPU_HOST_BYTES = 6e9  # main memory of a process that drives a GPU
MEMORY_MARGIN = 1.25


@dataclass(frozen=True)
class Record:
    """What a run took, beside what the prior expects of it; s per training image and process."""

    device: str  # cpu, or the name of a GPU
    expected: float
    seconds: float


@dataclass(frozen=True)
class Fit:
    """Seconds = fixed + slope x the prior's; of how many runs, 0 for the prior itself."""

    fixed: float = 0.0
    slope: float = 1.0
    runs: int = 0
    device: str = ""

    @property
    def margin(self) -> float:
        """Factor between the predicted time and the one asked for."""
        return 1.5 if self.runs else 2.0

    @property
    def source(self) -> str:
        """Where predictions come from, in words."""
        return f"refitted from {self.runs} runs on {self.device}" if self.runs else "prior, rough: no records yet"


@dataclass(frozen=True)
class Costs:
    """The models of both kinds of device, and the number of galaxies that a sweep's runs share."""

    cpu: Fit
    gpu: Fit
    galaxies: int

    def of(self, config: RunConfig) -> Fit:
        """Return the model of the device that a run asks for."""
        return self.gpu if _on_gpu(config) else self.cpu


@dataclass(frozen=True)
class Prediction:
    """What a run is expected to take, in s; training that does not stop early."""

    training: float
    evaluation: float


def _on_gpu(config: RunConfig) -> bool:
    return config.resources.gpus_per_node != 0


def expected(multiply_adds: int, config: RunConfig, on_gpu: bool) -> float:
    """Return the prior's s per training image and process, with its share of validation."""
    validated = config.data.validation_fraction / training_fraction(config)
    passes = BACKWARD + validated
    if on_gpu:
        fixed = GPU_SECONDS * (1 / images_per_pass(config) + validated / config.evaluate.batch_size)
        return fixed + passes * multiply_adds / GPU_SPEED[config.train.precision]
    speed = CORE_SPEED * float(config.resources.cpus_per_task**THREADS)
    return CORE_SECONDS + passes * multiply_adds / speed


def training_fraction(config: RunConfig) -> float:
    """Return which part of all galaxies is trained on."""
    data = config.data
    return data.label_fraction * (1 - data.validation_fraction - data.test_fraction)


def read_records(runs: Path) -> list[Record]:
    """Read what all runs of all sweeps in this directory took; one record per run, of its median epoch."""
    found = []
    for plan in sorted(runs.glob("*/plan.csv")):
        try:
            with plan.open(newline="", encoding="utf-8") as file:
                adds = {row.get("run_id"): row.get("multiply_adds") or "" for row in csv.DictReader(file)}
            planned = runs_of(plan.parent)
        except (OSError, ValueError, csv.Error):  # somebody else's
            continue
        found += [_record(run, int(adds[run.run_id])) for run in planned if adds.get(run.run_id, "").isdecimal()]
    return [record for record in found if record is not None]


def _record(run: RunDir, multiply_adds: int) -> Record | None:
    epochs = [event for event in run.events() if event["event"] == "epoch" and _is_timed(event)]
    if not epochs:
        return None
    try:
        config = run.load_config()
    except (OSError, NoRunError):
        return None
    device = str(epochs[-1].get("device", "cpu"))
    seconds = median(event["seconds"] * event.get("world", 1) / event["images"] for event in epochs)
    return Record(device, expected(multiply_adds, config, device != "cpu"), seconds)


def _is_timed(event: dict[str, Any]) -> bool:
    numbers = (event.get("seconds"), event.get("images"), event.get("world", 1))
    return all(isinstance(number, int | float) and 0 < number < math.inf for number in numbers)


def make_costs(records: Sequence[Record], galaxies: int) -> Costs:
    """Fit both models; of several kinds of GPU the one with the most runs counts."""
    gpus = Counter(record.device for record in records if record.device != "cpu")
    gpu = gpus.most_common(1)[0][0] if gpus else ""
    cpu_fit, gpu_fit = (fit([r for r in records if r.device == name]) for name in ("cpu", gpu))
    return Costs(cpu_fit, gpu_fit, galaxies)


def fit(records: Sequence[Record]) -> Fit:
    """Fit a line through the medians of each network, its slope the median of all pairs'; neither part is negative.

    With few runs, or few networks, the prior is only scaled.
    """
    if not records:
        return Fit()
    ratio = median(record.seconds / record.expected for record in records)
    scaled = Fit(0.0, ratio, len(records), records[0].device)
    of: dict[float, list[float]] = {}
    for record in records:
        of.setdefault(record.expected, []).append(record.seconds)
    points = [(x, median(ys)) for x, ys in sorted(of.items())]
    if len(records) < FEW_RUNS or len(points) < FEW_NETWORKS:
        return scaled
    slope = median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2))
    fixed = median(y - slope * x for x, y in points)
    return Fit(fixed, slope, len(records), records[0].device) if min(slope, fixed) >= 0 else scaled


def predict(config: RunConfig, network: Network, costs: Costs, tasks: int | None = None) -> Prediction:
    """Predict a run's time with these costs, on another number of processes where `tasks` says so."""
    data, model = config.data, costs.of(config)
    per_image = model.fixed + model.slope * expected(network.multiply_adds, config, _on_gpu(config))
    images = costs.galaxies * training_fraction(config) * config.train.epochs
    passes = BACKWARD + data.validation_fraction / training_fraction(config)
    measured = len(pairs(config.evaluate.conditions))
    answers = costs.galaxies * data.test_fraction * measured
    training = images * per_image / (tasks or config.resources.tasks)
    corrupted = EVALUATION_SECONDS if _on_gpu(config) else CORRUPTION_SECONDS * data.image_size**2
    return Prediction(training, answers * (per_image / passes + corrupted))


def resolved(
    configs: Sequence[RunConfig], networks: dict[str, Network], costs: Costs, directory: Path
) -> list[RunConfig]:
    """Put numbers in the place of `auto`: few classes of time, memory and GPUs. What is a number stays.

    A run that was begun keeps its GPUs: batch statistics and sums depend on them.
    """
    return [_resolved(config, networks[config.run_id], costs, directory / config.run_id) for config in configs]


def _resolved(config: RunConfig, network: Network, costs: Costs, path: Path) -> RunConfig:
    asked = config.resources
    if "auto" not in (asked.gpus_per_node, asked.memory_gb, asked.time_minutes):
        return config
    numbers: dict[str, Any] = asked.model_dump()
    if asked.gpus_per_node == "auto":
        gpus = _begun(RunDir(path)) or _gpus(config, network, costs)
        numbers |= {"gpus_per_node": gpus, "tasks_per_node": gpus}
    if asked.time_minutes == "auto":
        tasks = numbers["nodes"] * numbers["tasks_per_node"]
        numbers["time_minutes"] = minutes(predict(config, network, costs, tasks).training, costs.of(config).margin)
    if asked.memory_gb == "auto":
        numbers["memory_gb"] = _memory(config, network, costs.galaxies, numbers["tasks_per_node"])
    resources = type(asked).model_validate(numbers).plain
    return config.model_copy(update={"resources": resources})


def minutes(seconds: float, margin: float) -> int:
    """Return the class of time limits that a training fits in; the longest saves itself and is requeued."""
    wanted = (margin * seconds + START_SECONDS) / 60
    return next((limit for limit in MINUTES if limit >= wanted), MINUTES[-1])


def _begun(run: RunDir) -> int:
    """Return the GPUs of a run that has checkpoints, 0 for others."""
    try:
        gpus = run.load_config().resources.gpus_per_node if run.checkpoints.exists() else 0
    except (OSError, NoRunError):
        return 0
    return 0 if gpus == "auto" else gpus


def _gpus(config: RunConfig, network: Network, costs: Costs) -> int:
    """Return the fewest GPUs on which a run takes a day, of those that leave its batch statistics as on one."""
    allowed = [gpus for gpus in GPUS if gpus == 1 or _keeps_statistics(config, gpus)]
    quick = [gpus for gpus in allowed if predict(config, network, costs, gpus).training <= LONGEST]
    return quick[0] if quick else allowed[-1]


def _keeps_statistics(config: RunConfig, gpus: int) -> bool:
    """Whether every pass sees as many images as on one GPU, or statistics are those of all processes."""
    batch, micro = config.train.batch_size, config.resources.micro_batch
    if config.train.sync_batchnorm:
        return micro is None and batch >= 2 * gpus
    return micro is not None and batch % (gpus * micro) == 0


def _memory(config: RunConfig, network: Network, galaxies: int, tasks: int) -> float:
    """Return main memory for a node, GB, a power of two: the processes and the images that they share."""
    images = 3 * galaxies * config.data.image_size**2
    process = GPU_HOST_BYTES + 20 * network.parameters if _on_gpu(config) else training_bytes(network, config)
    return float(2 ** max(1, math.ceil(math.log2(MEMORY_MARGIN * (tasks * process + images) / 2**30))))


def makespan(seconds: list[float], slots: int | None) -> float:
    """Return how long jobs take that start one after another, the longest first, in the first slot that is free."""
    free = [0.0] * min(len(seconds), slots or len(seconds))
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + each)
    return max(free, default=0.0)
