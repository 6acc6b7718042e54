"""How long a run takes and what it needs: a rough prior from multiply-adds, refitted from the records of earlier runs.

The prior's constants are those of one CPU core (measured: 10 to 14 G multiply-adds/s on an AMD EPYC in float32) and of
one GPU of a data centre (NOT measured: a tenth to a fifth of an A100's or H100's peak). They may be wrong by several
times; after a few epochs on the same kind of device the recorded ones take their place.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from galaxyhpc.config.conditions import list_severity_pairs
from galaxyhpc.config.schema import RunConfig
from galaxyhpc.models.profile import NetworkProfile, estimate_training_bytes, get_micro_batch_size
from galaxyhpc.storage.run_dir import RunDir, RunDirError
from galaxyhpc.storage.sweep_dir import find_runs, read_plan

CORE_MACS_PER_SECOND = 1.2e10  # multiply-adds per second
GPU_MACS_PER_SECOND = {"float32": 1e13, "bfloat16": 2e13}
CORE_SECONDS_PER_IMAGE, GPU_SECONDS_PER_PASS = 1e-3, 20e-3  # fixed: per image on a core, per pass on a GPU
THREAD_SCALING_EXPONENT = 0.8  # n threads do the work of n to this power
FORWARD_PASSES_PER_TRAINING_IMAGE = 3  # a training image costs as much as so many forward passes
STARTUP_SECONDS = 300.0  # of a job: imports, images, first pass
GPU_CORRUPTION_SECONDS_PER_IMAGE = 1e-4  # per image and condition on a GPU, besides the network
CORE_CORRUPTION_SECONDS_PER_PIXEL = (
    1.2e-7  # per pixel, image and condition on a core: the mean of all, measured at 33 to 65 px
)
TIME_LIMITS_MINUTES = (30, 60, 120, 240, 480, 720, 1440, 2880)
GPU_COUNTS = (1, 2, 4, 8)
TARGET_TRAINING_SECONDS = 24 * 3600.0  # on one GPU, before more are asked for
MIN_RUNS_FOR_LINE, MIN_NETWORKS_FOR_LINE = 5, 3  # with fewer no straight line is drawn
GPU_PROCESS_HOST_BYTES = 6e9  # main memory of a process that drives a GPU
MEMORY_SAFETY_FACTOR = 1.25


@dataclass(frozen=True)
class TimingRecord:
    """What a run took, beside what the prior expects of it; s per training image and process."""

    device: str  # cpu, or the name of a GPU
    prior_seconds: float
    measured_seconds: float


@dataclass(frozen=True)
class CostModel:
    """Seconds = fixed + slope x the prior's; of how many runs, 0 for the prior itself."""

    fixed_seconds: float = 0.0
    slope: float = 1.0
    num_runs: int = 0
    device: str = ""

    @property
    def safety_factor(self) -> float:
        """Factor between the predicted time and the one asked for."""
        return 1.5 if self.num_runs else 2.0

    @property
    def source(self) -> str:
        """Where predictions come from, in words."""
        return (
            f"refitted from {self.num_runs} runs on {self.device}" if self.num_runs else "prior, rough: no records yet"
        )


@dataclass(frozen=True)
class CostModels:
    """The models of both kinds of device, and the number of galaxies that a sweep's runs share."""

    cpu: CostModel
    gpu: CostModel
    num_galaxies: int

    def get_model(self, config: RunConfig) -> CostModel:
        """Return the model of the device that a run asks for."""
        return self.gpu if _uses_gpu(config) else self.cpu


@dataclass(frozen=True)
class RunTimeEstimate:
    """What a run is expected to take, in s; training that does not stop early."""

    training_seconds: float
    evaluation_seconds: float


def _uses_gpu(config: RunConfig) -> bool:
    return config.resources.gpus_per_node != 0


def estimate_prior_seconds(multiply_adds: int, config: RunConfig, uses_gpu: bool) -> float:
    """Return the prior's s per training image and process, with its share of validation."""
    validated = config.data.validation_fraction / get_training_fraction(config)
    passes = FORWARD_PASSES_PER_TRAINING_IMAGE + validated
    if uses_gpu:
        fixed = GPU_SECONDS_PER_PASS * (1 / get_micro_batch_size(config) + validated / config.evaluate.batch_size)
        return fixed + passes * multiply_adds / GPU_MACS_PER_SECOND[config.train.precision]
    speed = CORE_MACS_PER_SECOND * float(config.resources.cpus_per_task**THREAD_SCALING_EXPONENT)
    return CORE_SECONDS_PER_IMAGE + passes * multiply_adds / speed


def get_training_fraction(config: RunConfig) -> float:
    """Return which part of all galaxies is trained on."""
    data = config.data
    return data.label_fraction * (1 - data.validation_fraction - data.test_fraction)


def read_timing_records(runs_dir: Path) -> list[TimingRecord]:
    """Read what all runs of all sweeps in this directory took; one record per run, of its median epoch."""
    found = []
    for plan in sorted(runs_dir.glob("*/plan.csv")):
        try:
            adds = {row["run_id"]: row.get("multiply_adds", "") for row in read_plan(plan.parent)}
            planned = find_runs(plan.parent)
        except (OSError, RunDirError):  # somebody else's
            continue
        found += [
            _read_timing_record(run, int(adds[run.run_id])) for run in planned if adds.get(run.run_id, "").isdecimal()
        ]
    return [record for record in found if record is not None]


def _read_timing_record(run: RunDir, multiply_adds: int) -> TimingRecord | None:
    epochs = [event for event in run.read_events() if event["event"] == "epoch" and _has_timing(event)]
    if not epochs:
        return None
    try:
        config = run.load_config()
    except (OSError, RunDirError):
        return None
    device = str(epochs[-1].get("device", "cpu"))
    seconds = median(event["seconds"] * event.get("world", 1) / event["images"] for event in epochs)
    return TimingRecord(device, estimate_prior_seconds(multiply_adds, config, device != "cpu"), seconds)


def _has_timing(event: dict[str, Any]) -> bool:
    numbers = (event.get("seconds"), event.get("images"), event.get("world", 1))
    return all(isinstance(number, int | float) and 0 < number < math.inf for number in numbers)


def fit_cost_models(records: Sequence[TimingRecord], num_galaxies: int) -> CostModels:
    """Fit both models; of several kinds of GPU the one with the most runs counts."""
    gpus = Counter(record.device for record in records if record.device != "cpu")
    gpu = gpus.most_common(1)[0][0] if gpus else ""
    cpu_fit, gpu_fit = (fit_cost_model([r for r in records if r.device == name]) for name in ("cpu", gpu))
    return CostModels(cpu_fit, gpu_fit, num_galaxies)


def fit_cost_model(records: Sequence[TimingRecord]) -> CostModel:
    """Fit a line through the medians of each network, its slope the median of all pairs'; neither part is negative.

    With few runs, or few networks, the prior is only scaled.
    """
    if not records:
        return CostModel()
    ratio = median(record.measured_seconds / record.prior_seconds for record in records)
    scaled = CostModel(0.0, ratio, len(records), records[0].device)
    of: dict[float, list[float]] = {}
    for record in records:
        of.setdefault(record.prior_seconds, []).append(record.measured_seconds)
    points = [(x, median(ys)) for x, ys in sorted(of.items())]
    if len(records) < MIN_RUNS_FOR_LINE or len(points) < MIN_NETWORKS_FOR_LINE:
        return scaled
    slope = median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2))
    fixed = median(y - slope * x for x, y in points)
    return CostModel(fixed, slope, len(records), records[0].device) if min(slope, fixed) >= 0 else scaled


def estimate_run_time(
    config: RunConfig, network: NetworkProfile, cost_models: CostModels, num_tasks: int | None = None
) -> RunTimeEstimate:
    """Predict a run's time with these costs, on another number of processes where `tasks` says so."""
    data, model = config.data, cost_models.get_model(config)
    per_image = model.fixed_seconds + model.slope * estimate_prior_seconds(
        network.multiply_adds, config, _uses_gpu(config)
    )
    images = cost_models.num_galaxies * get_training_fraction(config) * config.train.epochs
    passes = FORWARD_PASSES_PER_TRAINING_IMAGE + data.validation_fraction / get_training_fraction(config)
    measured = len(list_severity_pairs(config.evaluate.conditions))
    answers = cost_models.num_galaxies * data.test_fraction * measured
    training = images * per_image / (num_tasks or config.resources.num_tasks)
    corrupted = (
        GPU_CORRUPTION_SECONDS_PER_IMAGE
        if _uses_gpu(config)
        else CORE_CORRUPTION_SECONDS_PER_PIXEL * data.image_size**2
    )
    return RunTimeEstimate(training, answers * (per_image / passes + corrupted))


def resolve_resources(
    configs: Sequence[RunConfig], networks: dict[str, NetworkProfile], cost_models: CostModels, directory: Path
) -> list[RunConfig]:
    """Put numbers in the place of `auto`: few classes of time, memory and GPUs. What is a number stays.

    A run that was begun keeps its GPUs: batch statistics and sums depend on them.
    """
    return [
        _resolve_run_resources(config, networks[config.run_id], cost_models, directory / config.run_id)
        for config in configs
    ]


def _resolve_run_resources(
    config: RunConfig, network: NetworkProfile, cost_models: CostModels, path: Path
) -> RunConfig:
    asked = config.resources
    if "auto" not in (asked.gpus_per_node, asked.memory_gb, asked.time_minutes):
        return config
    numbers: dict[str, Any] = asked.model_dump()
    if asked.gpus_per_node == "auto":
        gpus = _get_checkpoint_gpus(RunDir(path)) or _choose_num_gpus(config, network, cost_models)
        numbers |= {"gpus_per_node": gpus, "tasks_per_node": gpus}
    if asked.time_minutes == "auto":
        tasks = numbers["nodes"] * numbers["tasks_per_node"]
        numbers["time_minutes"] = choose_time_limit_minutes(
            estimate_run_time(config, network, cost_models, tasks).training_seconds,
            cost_models.get_model(config).safety_factor,
        )
    if asked.memory_gb == "auto":
        numbers["memory_gb"] = _estimate_memory_gb(config, network, cost_models.num_galaxies, numbers["tasks_per_node"])
    resources = type(asked).model_validate(numbers).resolved
    return config.model_copy(update={"resources": resources})


def choose_time_limit_minutes(seconds: float, safety_factor: float) -> int:
    """Return the class of time limits that a training fits in; the longest saves itself and is requeued."""
    wanted = (safety_factor * seconds + STARTUP_SECONDS) / 60
    return next((limit for limit in TIME_LIMITS_MINUTES if limit >= wanted), TIME_LIMITS_MINUTES[-1])


def _get_checkpoint_gpus(run: RunDir) -> int:
    """Return the GPUs of a run that has checkpoints, 0 for others."""
    try:
        gpus = run.load_config().resources.gpus_per_node if run.checkpoint_dir.exists() else 0
    except (OSError, RunDirError):
        return 0
    return 0 if gpus == "auto" else gpus


def _choose_num_gpus(config: RunConfig, network: NetworkProfile, cost_models: CostModels) -> int:
    """Return the fewest GPUs on which a run takes a day, of those that leave its batch statistics as on one."""
    allowed = [gpus for gpus in GPU_COUNTS if gpus == 1 or _preserves_batch_statistics(config, gpus)]
    quick = [
        gpus
        for gpus in allowed
        if estimate_run_time(config, network, cost_models, gpus).training_seconds <= TARGET_TRAINING_SECONDS
    ]
    return quick[0] if quick else allowed[-1]


def _preserves_batch_statistics(config: RunConfig, num_gpus: int) -> bool:
    """Whether every pass sees as many images as on one GPU, or statistics are those of all processes."""
    batch, micro = config.train.batch_size, config.resources.micro_batch
    if config.train.sync_batchnorm:
        return micro is None and batch >= 2 * num_gpus
    return micro is not None and batch % (num_gpus * micro) == 0


def _estimate_memory_gb(config: RunConfig, network: NetworkProfile, num_galaxies: int, num_tasks: int) -> float:
    """Return main memory for a node, GB, a power of two: the processes and the images that they share."""
    images = 3 * num_galaxies * config.data.image_size**2
    process = (
        GPU_PROCESS_HOST_BYTES + 20 * network.parameters
        if _uses_gpu(config)
        else estimate_training_bytes(network, config)
    )
    return float(2 ** max(1, math.ceil(math.log2(MEMORY_SAFETY_FACTOR * (num_tasks * process + images) / 2**30))))


def compute_makespan(job_seconds: list[float], num_slots: int | None) -> float:
    """Return how long jobs take that start one after another, the longest first, in the first slot that is free."""
    free = [0.0] * min(len(job_seconds), num_slots or len(job_seconds))
    for each in sorted(job_seconds, reverse=True):
        heapq.heapreplace(free, free[0] + each)
    return max(free, default=0.0)
