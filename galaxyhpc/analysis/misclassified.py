"""Galaxies that a network gets wrong, the most confident first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galaxyhpc.evaluation.results import CLEAN, Predictions

MAX_MISCLASSIFIED = 12


@dataclass(frozen=True)
class Misclassification:
    """A test galaxy that a run misclassifies as it is: classes 0 to 9, and under what fraction of all conditions."""

    row: int  # in the data file
    truth: int
    predicted: int
    error_fraction: float


def find_misclassified(
    predictions: Predictions, max_galaxies: int = MAX_MISCLASSIFIED
) -> tuple[Misclassification, ...]:
    """Return the clean galaxies a run gets wrong, those first that it gets wrong under most conditions."""
    clean = predictions.predicted.get(CLEAN)
    if clean is None:
        return ()
    misses = np.array([classes != predictions.labels for classes in predictions.predicted.values()])
    wrong = misses.mean(axis=0, dtype=np.float64)
    missed = np.flatnonzero(clean != predictions.labels)
    worst = missed[np.lexsort((predictions.rows[missed], -wrong[missed]))][:max_galaxies]
    columns = (predictions.rows, predictions.labels, clean, np.round(wrong, 4))
    return tuple(
        Misclassification(*values) for values in zip(*(column[worst].tolist() for column in columns), strict=True)
    )
