"""A finished run as something that classifies galaxies, with what has to be said along with its answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from galaxyhpc.config.schema import RunConfig
from galaxyhpc.data.split_file import SPLIT_FILE_NAME, read_split_header
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.evaluate import load_network
from galaxyhpc.storage.files import sanitize, sha256
from galaxyhpc.storage.run_dir import RunDir, RunDirError
from galaxyhpc.storage.sweep_dir import find_runs


@dataclass(frozen=True)
class Classifier:
    """A network with its best weights, in evaluation mode: (N, 3, S, S) in [0, 1] -> logits (N, 10)."""

    run: RunDir
    config: RunConfig
    network: nn.Module
    weights: str  # SHA-256 of best.pt
    temperature: float | None  # none where these weights were not evaluated
    generated: bool  # trained on generated galaxies

    @property
    def image_size(self) -> int:
        """S, in px."""
        return self.config.data.image_size


def load(path: Path, device: torch.device) -> Classifier:
    """Load a trained run.

    Raises
    ------
    rundir.NoRunError, evaluate.NotTrainedError, data.DataError, OSError
    """
    if not (path / "config.json").is_file():
        raise RunDirError(f"{sanitize(str(path))}: found no config.json; allowed is one run: runs/SWEEP/RUN_ID")
    (run,) = find_runs(path)
    config = run.load_config()
    network, weights = load_network(run, config, device), sha256(run.best_file)
    measured = results.read_predictions(run)
    if measured is not None and measured.weights == weights:
        return Classifier(run, config, network, weights, measured.temperature, measured.generated)
    generated = config.data.source == "demo" or "generated" in read_split_header(run.sweep_dir / SPLIT_FILE_NAME)
    return Classifier(run, config, network, weights, None, generated)
