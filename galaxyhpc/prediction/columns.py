"""Columns (stand-in)."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from galaxyhpc.evaluation.calibration import softmax
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.prediction.pipeline import PredictedBatch


def make_table(batch: PredictedBatch, runs: Sequence[Classifier]) -> pa.Table:
    probabilities = softmax(batch.logits[0], runs[0].temperature or 1.0)
    columns = {"row": batch.rows, "id": batch.ids, "ra": batch.ra, "dec": batch.dec}
    for label, name in enumerate(runs[0].config.data.class_names):
        columns[f"p_{name.replace(' ', '_')}"] = probabilities[:, label].astype("float32")
    return pa.table(columns | {"error": batch.errors})
