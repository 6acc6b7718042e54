"""Predictions without networks: classifiers of which only settings matter, and batches of random logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from torch import nn

from galaxyhpc.config.schema import DataConfig, ModelConfig, RunConfig
from galaxyhpc.data.survey.unit import Unit
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.prediction.columns import make_table
from galaxyhpc.prediction.pipeline import PredictedBatch
from galaxyhpc.prediction.survey import SurveyDir, SurveySettings
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


def make_part(
    number: int, classifiers: Sequence[Classifier], count: int = 8, with_embeddings: bool = False
) -> pa.Table:
    """Return the table of a unit of random predictions."""
    batch = make_batch(count, len(classifiers), seed=number, source=f"sky{number}.h5")
    return make_table(batch, classifiers, with_embeddings=with_embeddings)


def write_prediction(
    path: Path, parts: Sequence[pa.Table], classifiers: Sequence[Classifier], num_missing: int = 0
) -> SurveyDir:
    """Write the directory of a prediction: these parts, and units without one."""
    survey = SurveyDir(path)
    counts = [*map(len, parts), *[8] * num_missing]
    survey.path.mkdir(parents=True, exist_ok=True)
    survey.write_units(
        [Unit(number, f"/sky{number}.h5", "hdf5", 0, count, count, 1000, 0) for number, count in enumerate(counts)]
    )
    identity = {
        "weights": {classifier.run.run_id: classifier.weights for classifier in classifiers},
        "temperatures": {classifier.run.run_id: classifier.temperature for classifier in classifiers},
        "classes": list(classifiers[0].config.data.class_names),
    }
    runs = tuple(str(classifier.run.path) for classifier in classifiers)
    survey.write_settings(SurveySettings(runs, ("/sky*.h5",), identity, 20_000))
    survey.parts_dir.mkdir()
    for number, table in enumerate(parts):
        parquet.write_table(table, survey.get_part(number))
    return survey
