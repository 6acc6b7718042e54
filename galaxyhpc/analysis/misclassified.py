"""Galaxies that a run misclassifies, those that are wrong under most conditions first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galaxyhpc.evaluation.results import CLEAN, Predictions

MAX_MISCLASSIFIED = 12


@dataclass(frozen=True)
class Misclassification:
    """A test galaxy that a run misclassifies when clean."""

    row: int  # in the data file
    truth: int  # label of the class
    predicted: int  # label of the class
    error_fraction: float  # of all conditions under which the prediction is wrong


def find_misclassified(
    predictions: Predictions, max_galaxies: int = MAX_MISCLASSIFIED
) -> tuple[Misclassification, ...]:
    """Return the clean galaxies that a run misclassifies, those wrong under most conditions first."""
    clean = predictions.predicted.get(CLEAN)
    if clean is None:
        return ()
    is_wrong = np.array([classes != predictions.labels for classes in predictions.predicted.values()])
    error_fraction = is_wrong.mean(axis=0, dtype=np.float64)
    misclassified = np.flatnonzero(clean != predictions.labels)
    order = np.lexsort((predictions.rows[misclassified], -error_fraction[misclassified]))
    worst = misclassified[order][:max_galaxies]
    columns = (predictions.rows, predictions.labels, clean, np.round(error_fraction, 4))
    return tuple(
        Misclassification(*values) for values in zip(*(column[worst].tolist() for column in columns), strict=True)
    )
