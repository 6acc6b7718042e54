"""Calibrated probabilities by temperature scaling (Guo et al. 2017, arXiv:1706.04599, section 4.2).

All logits of a network are divided by one temperature before the softmax: the one that minimizes the negative
log-likelihood of galaxies it was not trained on. The predicted classes stay. Above 1, the network was overconfident.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from galaxyhpc.evaluation.metrics import compute_counts

TEMPERATURE_BOUNDS = (0.01, 100.0)  # reached if every galaxy is classified correctly, or if none is above chance level


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    """Fit the temperature of (n, K) logits of galaxies with `labels` in 0..K-1, within TEMPERATURE_BOUNDS.

    The negative log-likelihood is convex in 1 / temperature and has one minimum.

    Raises
    ------
    MetricsError
    """
    minimum = scipy.optimize.minimize_scalar(
        lambda log: float(compute_counts(logits, labels, math.exp(log)).nll_sum),
        bounds=np.log(TEMPERATURE_BOUNDS),
        method="bounded",
    )
    return math.exp(minimum.x)


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the probabilities, (n, classes) with sums of 1, of (n, classes) logits divided by the temperature."""
    probabilities: NDArray[np.float64] = scipy.special.softmax(logits.astype(np.float64) / temperature, axis=1)
    return probabilities
