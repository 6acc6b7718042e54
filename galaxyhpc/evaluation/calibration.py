"""Probabilities that mean what they say: temperature scaling (Guo et al. 2017, arXiv:1706.04599, section 4.2).

All logits of a network are divided by one number before the softmax, that with the smallest negative log-likelihood
of galaxies it was not trained on. The predicted class stays what it was. Above 1 the network was too sure of itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from galaxyhpc.evaluation.metrics import compute_counts

TEMPERATURE_BOUNDS = (0.01, 100.0)  # approached where every galaxy is classified rightly, or none better than by chance


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    """Return the temperature of (n, 10) logits of galaxies with `labels` in 0..9, within LIMITS.

    The likelihood is convex in 1 / temperature, so that there is one minimum.

    Raises
    ------
    metrics.MetricsError
    """
    found = minimize_scalar(
        lambda log: float(compute_counts(logits, labels, math.exp(log)).nll_sum),
        bounds=np.log(TEMPERATURE_BOUNDS),
        method="bounded",
    )
    return math.exp(found.x)


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """Turn (n, classes) logits into probabilities, (n, classes) with sums of 1."""
    scaled = logits.astype(np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = scaled / scaled.sum(axis=1, keepdims=True)
    return shares
