"""A sweep's hours from what was measured on one device.

A network that was measured, with its settings, its image size and its precision, takes its own seconds per image, those
of the median turn; any other is predicted by `costs` from a fit through all that were. One run on one device at a time,
without an early stop.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from galaxyhpc.analysis import run_cost
from galaxyhpc.analysis.run_cost import CostModels, RunTimeEstimate, TimingRecord, get_training_fraction
from galaxyhpc.config.conditions import list_severity_pairs
from galaxyhpc.config.schema import DataConfig, ModelConfig, ResourcesConfig, RunConfig, TrainConfig
from galaxyhpc.data.simulate import PUBLISHED_CLASS_COUNTS
from galaxyhpc.models import profile
from galaxyhpc.models.profile import NetworkProfile

NUM_PUBLISHED_GALAXIES = sum(PUBLISHED_CLASS_COUNTS)  # galaxies

JsonDict = dict[str, Any]


class BenchmarkFileError(ValueError):
    """A file that no benchmark wrote, or that lacks what is asked of it."""


@dataclass(frozen=True)
class NetworkTimes:
    """What one network takes on one device, s."""

    training_seconds: float  # an image: forward, backward, and its augmentation
    inference_seconds: float  # an image
    optimizer_seconds: float  # a step


@dataclass(frozen=True)
class BenchmarkResults:
    """A benchmark's file."""

    device: str  # cpu or cuda
    device_name: str
    num_threads: int
    network_times: dict[tuple[ModelConfig, int, str], NetworkTimes]  # by settings, image size, precision
    records: list[TimingRecord]


def read_benchmark(path: Path) -> BenchmarkResults:
    """Read what a benchmark wrote.

    Raises
    ------
    BenchmarkFileError, OSError
    """
    try:
        found = json.loads(path.read_text())
        return parse_benchmark(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        allowed = "allowed: what galaxyhpc.benchmark --out wrote"
        raise BenchmarkFileError(f"{path}: found {type(error).__name__}: {str(error)[:100]}; {allowed}") from None


def parse_benchmark(results: JsonDict) -> BenchmarkResults:
    """Take what is needed out of a benchmark's answers."""
    machine = results["machine"]
    data = results.get("data", {}).get("ours", {})
    augmented = data["median_seconds"] / results["data"]["batch"] if data else 0.0
    rates, records = {}, []
    for one in results["networks"].values():
        ours = one["ways"].get("ours", {})
        if "training" not in ours:
            continue
        model, batch = ModelConfig.model_validate_json(json.dumps(one["model"])), one["batch"]
        training = ours["training"]["median_seconds"] / batch
        inference = (
            ours["inference"]["median_seconds"] / batch
            if "inference" in ours
            else training / run_cost.FORWARD_PASSES_PER_TRAINING_IMAGE
        )
        each = NetworkTimes(training + augmented, inference, ours.get("optimizer_seconds", 0.0))
        rates[model, one["size"], one["precision"]] = each
        records.append(_make_record(model, one, each, machine))
    if not rates:
        raise ValueError("no network's training in the way `ours`")
    return BenchmarkResults(machine["device"], machine["name"], machine["threads"], rates, records)


def _make_record(model: ModelConfig, network: JsonDict, times: NetworkTimes, machine: JsonDict) -> TimingRecord:
    """Return what `costs` would have recorded of a run of this network."""
    config = RunConfig(
        model=model,
        data=DataConfig(image_size=network["size"]),
        train=TrainConfig(batch_size=network["batch"], precision=network["precision"]),
        resources=_make_resources(machine["device"], machine["threads"]),
    )
    validated = config.data.validation_fraction / get_training_fraction(config)
    seconds = times.training_seconds + times.optimizer_seconds / network["batch"] + validated * times.inference_seconds
    on_gpu = machine["device"] == "cuda"
    adds = _get_network_profile(model, network["size"]).multiply_adds
    return TimingRecord(
        machine["name"] if on_gpu else "cpu", run_cost.estimate_prior_seconds(adds, config, on_gpu), seconds
    )


def _make_resources(device: str, num_threads: int) -> ResourcesConfig:
    return ResourcesConfig(cpus_per_task=num_threads, gpus_per_node=1 if device == "cuda" else 0)


@cache
def _get_network_profile(model: ModelConfig, image_size: int) -> NetworkProfile:
    return profile.profile_network(model, image_size)


@dataclass(frozen=True)
class RunForecast:
    """What one run is expected to take."""

    config: RunConfig
    is_measured: bool  # from the network's own seconds
    prediction: RunTimeEstimate

    @property
    def total_seconds(self) -> float:
        return self.prediction.training_seconds + self.prediction.evaluation_seconds

    @property
    def epoch_seconds(self) -> float:
        """Return the s of one epoch with its validation."""
        return self.prediction.training_seconds / self.config.train.epochs


def forecast_runs(configs: Sequence[RunConfig], benchmark: BenchmarkResults) -> list[RunForecast]:
    """Predict every run of a sweep on the device of a benchmark."""
    return [_forecast_run(config, benchmark) for config in configs]


def count_galaxies(config: RunConfig) -> int:
    """Return how many galaxies a run divides: those of the published file, or generated ones."""
    return config.data.demo.galaxies if config.data.source == "demo" else NUM_PUBLISHED_GALAXIES


def _forecast_run(config: RunConfig, benchmark: BenchmarkResults) -> RunForecast:
    micro, resources = config.resources.micro_batch, _make_resources(benchmark.device, benchmark.num_threads)
    config = config.model_copy(update={"resources": resources.model_copy(update={"micro_batch": micro})})
    rates = benchmark.network_times.get((config.model, config.data.image_size, config.train.precision))
    if rates is not None:
        return RunForecast(config, True, _predict_from_times(config, rates, benchmark.device == "cuda"))
    fit = run_cost.fit_cost_model(benchmark.records)
    both = CostModels(fit, fit, count_galaxies(config))
    return RunForecast(
        config,
        False,
        run_cost.estimate_run_time(config, _get_network_profile(config.model, config.data.image_size), both),
    )


def _predict_from_times(config: RunConfig, times: NetworkTimes, on_gpu: bool) -> RunTimeEstimate:
    data, count = config.data, count_galaxies(config)
    images = int(count * get_training_fraction(config))
    batch = min(config.train.batch_size, images)
    steps = images // batch
    epoch = (
        steps * (batch * times.training_seconds + times.optimizer_seconds)
        + count * data.validation_fraction * times.inference_seconds
    )
    answers = count * data.test_fraction * len(list_severity_pairs(config.evaluate.conditions))
    corrupted = (
        run_cost.GPU_CORRUPTION_SECONDS_PER_IMAGE
        if on_gpu
        else run_cost.CORE_CORRUPTION_SECONDS_PER_PIXEL * data.image_size**2
    )
    return RunTimeEstimate(config.train.epochs * epoch, answers * (times.inference_seconds + corrupted))
