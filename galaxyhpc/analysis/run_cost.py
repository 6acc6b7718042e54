"""Estimate the time and resources of a run: a rough prior from multiply-adds, refitted to the records of earlier runs.

The prior's constants are those of one CPU core (measured: 10 to 14 G multiply-adds/s on an AMD EPYC in float32) and of
one data-centre GPU (half as fast as an H100 with the study's networks at 255 px, from C1 to D16, in bfloat16 and in
evaluation: tests/benchmarks/gpu/h100-2026-11-28.json; training in float32 and TF32 is not measured). They may be wrong
by several times; after a few epochs on the same kind of device, recorded times replace them.
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
GPU_MACS_PER_SECOND = {"float32": 1.5e13, "tf32": 5e13, "bfloat16": 1.5e14}  # validation and evaluation: float32
CORE_SECONDS_PER_IMAGE, GPU_SECONDS_PER_PASS = 1e-3, 8e-3  # fixed overhead
THREAD_SCALING_EXPONENT = 0.8  # n threads are as fast as n**exponent cores
FORWARD_PASSES_PER_TRAINING_IMAGE = 3  # cost of training on an image
STARTUP_SECONDS = 300.0  # of a job: imports, images, first pass
GPU_CORRUPTION_SECONDS_PER_IMAGE = 1e-4  # per image and condition on a GPU, besides the network
# per pixel, image and condition on a core: mean over conditions, measured at 33 to 65 px
CORE_CORRUPTION_SECONDS_PER_PIXEL = 1.2e-7
TIME_LIMITS_MINUTES = (30, 60, 120, 240, 480, 720, 1440, 2880)
GPU_COUNTS = (1, 2, 4, 8)
TARGET_TRAINING_SECONDS = 24 * 3600.0  # longer trainings request more GPUs
MIN_RUNS_FOR_LINE, MIN_NETWORKS_FOR_LINE = 5, 3  # with fewer, no line is fitted
GPU_PROCESS_HOST_BYTES = 6e9  # main memory of a process that drives a GPU
MEMORY_SAFETY_FACTOR = 1.25


@dataclass(frozen=True)
class TimingRecord:
    """The measured time of a run and its prior estimate, in s per training image and process."""

    device: str  # cpu, or the name of a GPU
    prior_seconds: float
    measured_seconds: float


@dataclass(frozen=True)
class CostModel:
    """Seconds = fixed_seconds + slope x prior seconds, fitted to num_runs runs; 0 for the prior itself."""

    fixed_seconds: float = 0.0
    slope: float = 1.0
    num_runs: int = 0
    device: str = ""

    @property
    def safety_factor(self) -> float:
        """Ratio of the requested to the estimated time."""
        return 1.5 if self.num_runs else 2.0

    @property
    def source(self) -> str:
        """Description of the data behind the estimates."""
        return (
            f"refitted from {self.num_runs} runs on {self.device}"
            if self.num_runs
            else "a rough built-in estimate, because no run is recorded yet"
        )


@dataclass(frozen=True)
class CostModels:
    """The cost models of CPU and GPU, and the number of galaxies in the data file."""

    cpu: CostModel
    gpu: CostModel
    num_galaxies: int

    def get_model(self, config: RunConfig) -> CostModel:
        """Return the model of the device that a run requests."""
        return self.gpu if _uses_gpu(config) else self.cpu


@dataclass(frozen=True)
class RunTimeEstimate:
    """The estimated time of a run, in s, if training does not stop early."""

    training_seconds: float
    evaluation_seconds: float


def _uses_gpu(config: RunConfig) -> bool:
    return config.resources.gpus_per_node != 0


def estimate_prior_seconds(multiply_adds: int, config: RunConfig, uses_gpu: bool) -> float:
    """Return the prior's s per training image and process, including validation."""
    validated_per_trained = config.data.validation_fraction / get_training_fraction(config)
    validation = validated_per_trained * estimate_forward_seconds(multiply_adds, config, uses_gpu)
    if uses_gpu:
        computation = FORWARD_PASSES_PER_TRAINING_IMAGE * multiply_adds / GPU_MACS_PER_SECOND[config.train.precision]
        return GPU_SECONDS_PER_PASS / get_micro_batch_size(config) + computation + validation
    computation = FORWARD_PASSES_PER_TRAINING_IMAGE * multiply_adds / _estimate_cpu_speed(config)
    return CORE_SECONDS_PER_IMAGE + computation + validation


def estimate_forward_seconds(multiply_adds: int, config: RunConfig, uses_gpu: bool) -> float:
    """Return the prior's s per image of a validation or an evaluation, in float32."""
    if uses_gpu:
        return GPU_SECONDS_PER_PASS / config.evaluate.batch_size + multiply_adds / GPU_MACS_PER_SECOND["float32"]
    return multiply_adds / _estimate_cpu_speed(config)


def _estimate_cpu_speed(config: RunConfig) -> float:
    return CORE_MACS_PER_SECOND * float(config.resources.cpus_per_task**THREAD_SCALING_EXPONENT)


def get_training_fraction(config: RunConfig) -> float:
    """Return the fraction of all galaxies that is used for training."""
    data = config.data
    return data.label_fraction * (1 - data.validation_fraction - data.test_fraction)


def read_timing_records(runs_dir: Path) -> list[TimingRecord]:
    """Read the times of all runs of all sweeps in a directory: one record per run, of its median epoch."""
    records = []
    for plan in sorted(runs_dir.glob("*/plan.csv")):
        try:
            multiply_adds = {row["run_id"]: row.get("multiply_adds", "") for row in read_plan(plan.parent)}
            planned = find_runs(plan.parent)
        except (OSError, RunDirError):  # not a sweep's plan
            continue
        records += [
            _read_timing_record(run, int(multiply_adds[run.run_id]))
            for run in planned
            if multiply_adds.get(run.run_id, "").isdecimal()
        ]
    return [record for record in records if record is not None]


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
    values = (event.get("seconds"), event.get("images"), event.get("world", 1))
    return all(isinstance(value, int | float) and 0 < value < math.inf for value in values)


def fit_cost_models(records: Sequence[TimingRecord], num_galaxies: int) -> CostModels:
    """Fit the CPU and GPU models; of several kinds of GPU, the one with the most runs is used."""
    gpus = Counter(record.device for record in records if record.device != "cpu")
    gpu = gpus.most_common(1)[0][0] if gpus else ""
    cpu_fit, gpu_fit = (fit_cost_model([r for r in records if r.device == name]) for name in ("cpu", gpu))
    return CostModels(cpu_fit, gpu_fit, num_galaxies)


def fit_cost_model(records: Sequence[TimingRecord]) -> CostModel:
    """Fit a line to the median times of networks (Theil-Sen); neither slope nor intercept is negative.

    With few runs, or few networks, the prior is only scaled.
    """
    if not records:
        return CostModel()
    ratio = median(record.measured_seconds / record.prior_seconds for record in records)
    scaled = CostModel(0.0, ratio, len(records), records[0].device)
    by_network: dict[float, list[float]] = {}
    for record in records:
        by_network.setdefault(record.prior_seconds, []).append(record.measured_seconds)
    points = [(x, median(ys)) for x, ys in sorted(by_network.items())]
    if len(records) < MIN_RUNS_FOR_LINE or len(points) < MIN_NETWORKS_FOR_LINE:
        return scaled
    slope = median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2))
    fixed = median(y - slope * x for x, y in points)
    return CostModel(fixed, slope, len(records), records[0].device) if min(slope, fixed) >= 0 else scaled


def estimate_run_time(
    config: RunConfig, network: NetworkProfile, cost_models: CostModels, num_tasks: int | None = None
) -> RunTimeEstimate:
    """Estimate a run's time, on `num_tasks` processes instead of its own number if given."""
    data, model = config.data, cost_models.get_model(config)
    per_image = model.fixed_seconds + model.slope * estimate_prior_seconds(
        network.multiply_adds, config, _uses_gpu(config)
    )
    num_trained = cost_models.num_galaxies * get_training_fraction(config) * config.train.epochs
    forward = model.slope * estimate_forward_seconds(network.multiply_adds, config, _uses_gpu(config))
    num_pairs = len(list_severity_pairs(config.evaluate.conditions))
    num_evaluated = cost_models.num_galaxies * data.test_fraction * num_pairs
    training = num_trained * per_image / (num_tasks or config.resources.num_tasks)
    corruption = CORE_CORRUPTION_SECONDS_PER_PIXEL * data.image_size**2
    if _uses_gpu(config):
        corruption = GPU_CORRUPTION_SECONDS_PER_IMAGE
    return RunTimeEstimate(training, num_evaluated * (forward + corruption))


def resolve_resources(
    configs: Sequence[RunConfig], networks: dict[str, NetworkProfile], cost_models: CostModels, directory: Path
) -> list[RunConfig]:
    """Replace `auto` in the resources of runs: few classes of time, memory and GPUs. Numbers are kept.

    A run with checkpoints keeps its number of GPUs, because batch statistics and sums depend on it.
    """
    return [
        _resolve_run_resources(config, networks[config.run_id], cost_models, directory / config.run_id)
        for config in configs
    ]


def _resolve_run_resources(
    config: RunConfig, network: NetworkProfile, cost_models: CostModels, path: Path
) -> RunConfig:
    requested = config.resources
    if "auto" not in (requested.gpus_per_node, requested.memory_gb, requested.time_minutes):
        return config
    values: dict[str, Any] = requested.model_dump()
    if requested.gpus_per_node == "auto":
        num_gpus = _get_checkpoint_gpus(RunDir(path)) or _choose_num_gpus(config, network, cost_models)
        values |= {"gpus_per_node": num_gpus, "tasks_per_node": num_gpus}
    if requested.time_minutes == "auto":
        num_tasks = values["nodes"] * values["tasks_per_node"]
        seconds = estimate_run_time(config, network, cost_models, num_tasks).training_seconds
        safety_factor = cost_models.get_model(config).safety_factor
        values["time_minutes"] = choose_time_limit_minutes(seconds, safety_factor)
    if requested.memory_gb == "auto":
        values["memory_gb"] = _estimate_memory_gb(config, network, cost_models.num_galaxies, values["tasks_per_node"])
    resources = type(requested).model_validate(values).resolved
    return config.model_copy(update={"resources": resources})


def choose_time_limit_minutes(seconds: float, safety_factor: float) -> int:
    """Return the shortest time limit that a training fits in; at the longest, runs save and are requeued."""
    minutes = (safety_factor * seconds + STARTUP_SECONDS) / 60
    return next((limit for limit in TIME_LIMITS_MINUTES if limit >= minutes), TIME_LIMITS_MINUTES[-1])


def _get_checkpoint_gpus(run: RunDir) -> int:
    """Return the number of GPUs per node of a run with checkpoints; 0 for other runs."""
    try:
        gpus = run.load_config().resources.gpus_per_node if run.checkpoint_dir.exists() else 0
    except (OSError, RunDirError):
        return 0
    return 0 if gpus == "auto" else gpus


def _choose_num_gpus(config: RunConfig, network: NetworkProfile, cost_models: CostModels) -> int:
    """Return the fewest GPUs on which training takes at most a day, with batch statistics as on one GPU."""
    allowed = [n for n in GPU_COUNTS if n == 1 or _preserves_batch_statistics(config, n)]
    for num_gpus in allowed:
        if estimate_run_time(config, network, cost_models, num_gpus).training_seconds <= TARGET_TRAINING_SECONDS:
            return num_gpus
    return allowed[-1]


def _preserves_batch_statistics(config: RunConfig, num_gpus: int) -> bool:
    """Return whether each pass has as many images as on one GPU, or statistics are synchronised."""
    batch, micro = config.train.batch_size, config.resources.micro_batch
    if config.train.sync_batchnorm:
        return micro is None and batch >= 2 * num_gpus
    return micro is not None and batch % (num_gpus * micro) == 0


def _estimate_memory_gb(config: RunConfig, network: NetworkProfile, num_galaxies: int, num_tasks: int) -> float:
    """Return the main memory of a node in GB, a power of two: its processes and the images that they share."""
    image_bytes = 3 * num_galaxies * config.data.image_size**2
    process_bytes = float(estimate_training_bytes(network, config))
    if _uses_gpu(config):
        process_bytes = GPU_PROCESS_HOST_BYTES + 20 * network.parameters
    total_gb = MEMORY_SAFETY_FACTOR * (num_tasks * process_bytes + image_bytes) / 2**30
    return float(2 ** max(1, math.ceil(math.log2(total_gb))))


def compute_makespan(job_seconds: list[float], num_slots: int | None) -> float:
    """Return the total time of jobs that start, the longest first, in the first free slot."""
    slot_ends = [0.0] * min(len(job_seconds), num_slots or len(job_seconds))
    for seconds in sorted(job_seconds, reverse=True):
        heapq.heapreplace(slot_ends, slot_ends[0] + seconds)
    return max(slot_ends, default=0.0)
