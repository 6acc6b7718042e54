"""Forecast of a sweep's hours from a benchmark on one device.

A measured network, of the same settings, image size and precision, takes its own seconds per image, those of the median
round; any other is predicted by `run_cost` from a fit to all measured ones. One run at a time on one device, without
early stopping.
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

NUM_PUBLISHED_GALAXIES = sum(PUBLISHED_CLASS_COUNTS)

JsonDict = dict[str, Any]


class BenchmarkFileError(ValueError):
    """A file that no benchmark wrote, or that lacks what a forecast needs."""


@dataclass(frozen=True)
class NetworkTimes:
    """The times of one network on one device."""

    training_seconds: float  # per image: forward, backward and augmentation
    inference_seconds: float  # per image
    optimizer_seconds: float  # per step


@dataclass(frozen=True)
class BenchmarkResults:
    """The contents of a benchmark's file."""

    device: str  # cpu or cuda
    device_name: str
    num_threads: int
    network_times: dict[tuple[ModelConfig, int, str], NetworkTimes]  # by settings, image size, precision
    records: list[TimingRecord]


def read_benchmark(path: Path) -> BenchmarkResults:
    """Read the file of a benchmark.

    Raises
    ------
    BenchmarkFileError, OSError
    """
    try:
        return parse_benchmark(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"got {type(error).__name__}: {str(error)[:100]}"
        raise BenchmarkFileError(f"{path}: {got}; expected one that `galaxyhpc benchmark` wrote") from None


def parse_benchmark(results: JsonDict) -> BenchmarkResults:
    """Extract the times of all networks whose training was measured."""
    machine = results["machine"]
    data = results.get("data", {}).get("ours", {})
    augmentation = data["median_seconds"] / results["data"]["batch"] if data else 0.0
    network_times, records = {}, []
    for network in results["networks"].values():
        ours = network["implementations"].get("ours", {})
        if "training" not in ours:
            continue
        model, batch_size = ModelConfig.model_validate_json(json.dumps(network["model"])), network["batch"]
        training = ours["training"]["median_seconds"] / batch_size
        inference = (
            ours["inference"]["median_seconds"] / batch_size
            if "inference" in ours
            else training / run_cost.FORWARD_PASSES_PER_TRAINING_IMAGE
        )
        times = NetworkTimes(training + augmentation, inference, ours.get("optimizer_seconds", 0.0))
        network_times[model, network["size"], network["precision"]] = times
        records.append(_make_record(model, network, times, machine))
    if not network_times:
        raise ValueError("no training of a network by the implementation `ours`")
    return BenchmarkResults(machine["device"], machine["name"], machine["threads"], network_times, records)


def _make_record(model: ModelConfig, network: JsonDict, times: NetworkTimes, machine: JsonDict) -> TimingRecord:
    """Return the record that `run_cost` would make of a run of this network."""
    config = RunConfig(
        model=model,
        data=DataConfig(image_size=network["size"]),
        train=TrainConfig(batch_size=network["batch"], precision=network["precision"]),
        resources=_make_resources(machine["device"], machine["threads"]),
    )
    validation_ratio = config.data.validation_fraction / get_training_fraction(config)
    seconds = (
        times.training_seconds + times.optimizer_seconds / network["batch"] + validation_ratio * times.inference_seconds
    )
    uses_gpu = machine["device"] == "cuda"
    num_multiply_adds = _get_network_profile(model, network["size"], len(config.data.class_names)).multiply_adds
    return TimingRecord(
        machine["name"] if uses_gpu else "cpu",
        run_cost.estimate_prior_seconds(num_multiply_adds, config, uses_gpu),
        seconds,
    )


def _make_resources(device: str, num_threads: int) -> ResourcesConfig:
    return ResourcesConfig(cpus_per_task=num_threads, gpus_per_node=1 if device == "cuda" else 0)


@cache
def _get_network_profile(model: ModelConfig, image_size: int, num_classes: int) -> NetworkProfile:
    return profile.profile_network(model, image_size, num_classes)


@dataclass(frozen=True)
class RunForecast:
    """The predicted time of one run."""

    config: RunConfig
    is_measured: bool  # from the network's own times, not from a fit
    prediction: RunTimeEstimate

    @property
    def total_seconds(self) -> float:
        return self.prediction.training_seconds + self.prediction.evaluation_seconds

    @property
    def epoch_seconds(self) -> float:
        """Return the seconds of one epoch with its validation."""
        return self.prediction.training_seconds / self.config.train.epochs


def forecast_runs(configs: Sequence[RunConfig], benchmark: BenchmarkResults) -> list[RunForecast]:
    """Predict every run of a sweep on the device of a benchmark."""
    return [_forecast_run(config, benchmark) for config in configs]


def count_galaxies(config: RunConfig) -> int:
    """Return the number of galaxies of a run's dataset: of the published file, or generated."""
    return config.data.demo.galaxies if config.data.source == "demo" else NUM_PUBLISHED_GALAXIES


def _forecast_run(config: RunConfig, benchmark: BenchmarkResults) -> RunForecast:
    micro, resources = config.resources.micro_batch, _make_resources(benchmark.device, benchmark.num_threads)
    config = config.model_copy(update={"resources": resources.model_copy(update={"micro_batch": micro})})
    times = benchmark.network_times.get((config.model, config.data.image_size, config.train.precision))
    if times is not None:
        return RunForecast(config, True, _predict_from_times(config, times, benchmark.device == "cuda"))
    fit = run_cost.fit_cost_model(benchmark.records)
    models = CostModels(fit, fit, count_galaxies(config))
    network = _get_network_profile(config.model, config.data.image_size, len(config.data.class_names))
    return RunForecast(config, False, run_cost.estimate_run_time(config, network, models))


def _predict_from_times(config: RunConfig, times: NetworkTimes, uses_gpu: bool) -> RunTimeEstimate:
    data, count = config.data, count_galaxies(config)
    num_images = int(count * get_training_fraction(config))
    batch_size = min(config.train.batch_size, num_images)
    num_steps = num_images // batch_size
    epoch_seconds = (
        num_steps * (batch_size * times.training_seconds + times.optimizer_seconds)
        + count * data.validation_fraction * times.inference_seconds
    )
    num_predictions = count * data.test_fraction * len(list_severity_pairs(config.evaluate.conditions))
    corruption_seconds = (
        run_cost.GPU_CORRUPTION_SECONDS_PER_IMAGE
        if uses_gpu
        else run_cost.CORE_CORRUPTION_SECONDS_PER_PIXEL * data.image_size**2
    )
    return RunTimeEstimate(
        config.train.epochs * epoch_seconds, num_predictions * (times.inference_seconds + corruption_seconds)
    )
