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
from galaxyhpc.analysis.run_cost import Costs, Prediction, Record, training_fraction
from galaxyhpc.config.conditions import pairs
from galaxyhpc.config.schema import DataConfig, ModelConfig, ResourcesConfig, RunConfig, TrainConfig
from galaxyhpc.data.simulate import PUBLISHED
from galaxyhpc.models import profile
from galaxyhpc.models.profile import Network

REAL = sum(PUBLISHED)  # galaxies

Found = dict[str, Any]


class BenchmarkFileError(ValueError):
    """A file that no benchmark wrote, or that lacks what is asked of it."""


@dataclass(frozen=True)
class Rates:
    """What one network takes on one device, s."""

    training: float  # an image: forward, backward, and its augmentation
    inference: float  # an image
    optimizer: float  # a step


@dataclass(frozen=True)
class Measured:
    """A benchmark's file."""

    device: str  # cpu or cuda
    name: str
    threads: int
    rates: dict[tuple[ModelConfig, int, str], Rates]  # by settings, image size, precision
    records: list[Record]


def read(path: Path) -> Measured:
    """Read what a benchmark wrote.

    Raises
    ------
    BenchmarkFileError, OSError
    """
    try:
        found = json.loads(path.read_text())
        return of(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        allowed = "allowed: what galaxyhpc.benchmark --out wrote"
        raise BenchmarkFileError(f"{path}: found {type(error).__name__}: {str(error)[:100]}; {allowed}") from None


def of(found: Found) -> Measured:
    """Take what is needed out of a benchmark's answers."""
    machine = found["machine"]
    data = found.get("data", {}).get("ours", {})
    augmented = data["median_seconds"] / found["data"]["batch"] if data else 0.0
    rates, records = {}, []
    for one in found["networks"].values():
        ours = one["ways"].get("ours", {})
        if "training" not in ours:
            continue
        model, batch = ModelConfig.model_validate_json(json.dumps(one["model"])), one["batch"]
        training = ours["training"]["median_seconds"] / batch
        inference = ours["inference"]["median_seconds"] / batch if "inference" in ours else training / run_cost.BACKWARD
        each = Rates(training + augmented, inference, ours.get("optimizer_seconds", 0.0))
        rates[model, one["size"], one["precision"]] = each
        records.append(_record(model, one, each, machine))
    if not rates:
        raise ValueError("no network's training in the way `ours`")
    return Measured(machine["device"], machine["name"], machine["threads"], rates, records)


def _record(model: ModelConfig, one: Found, rates: Rates, machine: Found) -> Record:
    """Return what `costs` would have recorded of a run of this network."""
    config = RunConfig(
        model=model,
        data=DataConfig(image_size=one["size"]),
        train=TrainConfig(batch_size=one["batch"], precision=one["precision"]),
        resources=_resources(machine["device"], machine["threads"]),
    )
    validated = config.data.validation_fraction / training_fraction(config)
    seconds = rates.training + rates.optimizer / one["batch"] + validated * rates.inference
    on_gpu = machine["device"] == "cuda"
    adds = _network(model, one["size"]).multiply_adds
    return Record(machine["name"] if on_gpu else "cpu", run_cost.expected(adds, config, on_gpu), seconds)


def _resources(device: str, threads: int) -> ResourcesConfig:
    return ResourcesConfig(cpus_per_task=threads, gpus_per_node=1 if device == "cuda" else 0)


@cache
def _network(model: ModelConfig, size: int) -> Network:
    return profile.measure(model, size)


@dataclass(frozen=True)
class Predicted:
    """What one run is expected to take."""

    config: RunConfig
    own: bool  # from the network's own seconds
    of: Prediction

    @property
    def seconds(self) -> float:
        return self.of.training + self.of.evaluation

    @property
    def epoch(self) -> float:
        """Return the s of one epoch with its validation."""
        return self.of.training / self.config.train.epochs


def predict(configs: Sequence[RunConfig], measured: Measured) -> list[Predicted]:
    """Predict every run of a sweep on the device of a benchmark."""
    return [_predicted(config, measured) for config in configs]


def galaxies(config: RunConfig) -> int:
    """Return how many galaxies a run divides: those of the published file, or generated ones."""
    return config.data.demo.galaxies if config.data.source == "demo" else REAL


def _predicted(config: RunConfig, measured: Measured) -> Predicted:
    micro, resources = config.resources.micro_batch, _resources(measured.device, measured.threads)
    config = config.model_copy(update={"resources": resources.model_copy(update={"micro_batch": micro})})
    rates = measured.rates.get((config.model, config.data.image_size, config.train.precision))
    if rates is not None:
        return Predicted(config, True, _of_its_own(config, rates, measured.device == "cuda"))
    fit = run_cost.fit(measured.records)
    both = Costs(fit, fit, galaxies(config))
    return Predicted(config, False, run_cost.predict(config, _network(config.model, config.data.image_size), both))


def _of_its_own(config: RunConfig, rates: Rates, on_gpu: bool) -> Prediction:
    data, count = config.data, galaxies(config)
    images = int(count * training_fraction(config))
    batch = min(config.train.batch_size, images)
    steps = images // batch
    epoch = steps * (batch * rates.training + rates.optimizer) + count * data.validation_fraction * rates.inference
    answers = count * data.test_fraction * len(pairs(config.evaluate.conditions))
    corrupted = run_cost.EVALUATION_SECONDS if on_gpu else run_cost.CORRUPTION_SECONDS * data.image_size**2
    return Prediction(config.train.epochs * epoch, answers * (rates.inference + corrupted))
