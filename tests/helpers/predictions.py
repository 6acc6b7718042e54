"""Predictions without networks: classifiers of which only settings matter, and batches of random logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from galaxyhpc.config.schema import DataConfig, ModelConfig, RunConfig
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.prediction.pipeline import PredictedBatch
from galaxyhpc.storage.run_dir import RunDir

CLASSES = ("E", "S0 or Sa", "Irr/Pec")


def make_classifier(
    name: str = "first",
    temperature: float | None = 2.0,
    classes: tuple[str, ...] = CLASSES,
    generated: bool = False,
) -> Classifier:
    """Return a classifier without a network."""
    config = RunConfig(data=DataConfig(classes=classes), model=ModelConfig(group="C4"))
    return Classifier(RunDir(Path("sweep") / name), config, nn.Identity(), name, temperature, generated)


def make_batch(count: int = 8, num_runs: int = 1, seed: int = 0, source: str = "sky.h5") -> PredictedBatch:
    """Return random predictions: the last galaxy has no image, the one before is blank, the first no position."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (num_runs, count, len(CLASSES))).astype(np.float32)
    logits[:, -1] = np.nan
    ra, dec = rng.uniform(0, 360, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    ra[0] = dec[0] = np.nan
    return PredictedBatch(
        rows=np.arange(count),
        ids=["", *(f"{source}-{row}" for row in range(1, count))],
        ra=ra,
        dec=dec,
        sources=[source] * count,
        logits=logits,
        features=rng.normal(0, 1, (count, 5)).astype(np.float16),
        num_filled=np.arange(count) % 3,
        flaws=["no blue", *[""] * (count - 3), "blank", ""],
        upsampled=np.arange(count) % 2 == 0,
        saturated=np.arange(count) % 4 == 0,
        errors=[*[""] * (count - 1), "x.png: got 3 bytes; expected an image"],
    )
