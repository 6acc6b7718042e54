"""Classifier of a trained run: its network, and what its predictions need to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from galaxyhpc.config.schema import DataConfig, RunConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.galaxies import read_field_arcsec
from galaxyhpc.data.split_file import SPLIT_FILE_NAME, read_split_header
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.evaluate import load_network
from galaxyhpc.storage.files import sanitize, sha256
from galaxyhpc.storage.run_dir import RunDir, RunDirError
from galaxyhpc.storage.sweep_dir import find_runs


@dataclass(frozen=True)
class Classifier:
    """A network with its best weights, in evaluation mode: (N, 3, S, S) in [0, 1] -> logits (N, K).

    K is the number of `config.data.class_names`.
    """

    run: RunDir
    config: RunConfig
    network: nn.Module
    weights: str  # SHA-256 of best.pt
    temperature: float | None  # None where these weights were not evaluated
    generated: bool  # trained on generated galaxies

    @property
    def image_size(self) -> int:
        """S, in px."""
        return self.config.data.image_size


def open_run(path: Path) -> RunDir:
    """Open the directory of one run.

    Raises
    ------
    RunDirError
    """
    if not (path / "config.json").is_file():
        raise RunDirError(f"{sanitize(str(path))}: got no config.json; expected one run: runs/SWEEP/RUN_ID")
    (run,) = find_runs(path)
    return run


def is_trained_on_grey(run: RunDir, config: RunConfig) -> bool:
    """Whether all images of a run's sweep are grey, so that others may be.

    Raises
    ------
    DataError
    """
    return config.data.source != "demo" and "grey" in read_split_header(run.sweep_dir / SPLIT_FILE_NAME)


def describe_field(config: DataConfig) -> str:
    """Say how much of the sky an image of the training shows; the source is read for it if it is there."""
    try:
        field_arcsec = config.field_arcsec or read_field_arcsec(config)
    except (DataError, OSError):
        field_arcsec = math.nan
    return "a field of unknown size" if math.isnan(field_arcsec) else f"{field_arcsec:.1f} arcsec of sky"


def load(path: Path, device: torch.device) -> Classifier:
    """Load a trained run.

    Raises
    ------
    RunDirError, NotTrainedError, DataError, OSError
    """
    run = open_run(path)
    config = run.load_config()
    network, weights = load_network(run, config, device), sha256(run.best_file)
    predictions = results.read_predictions(run)
    if predictions is not None and predictions.weights == weights:
        return Classifier(run, config, network, weights, predictions.temperature, predictions.generated)
    generated = config.data.source == "demo" or "generated" in read_split_header(run.sweep_dir / SPLIT_FILE_NAME)
    return Classifier(run, config, network, weights, None, generated)
