"""Metrics from counts.

Logits are reduced once to counts that may be added over batches, processes and runs; ratios are taken at the end.
`compute_metrics`, `compute_per_class` and `compute_reliability` broadcast over leading axes, written (...).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

NUM_BINS = 15  # of the confidence, equally wide
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "ece")  # of `compute_metrics`

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class MetricsError(ValueError):
    """Logits of the wrong shape, or not finite."""


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts and sums over n galaxies, from which the metrics follow; they may be added."""

    n: Integers  # (...)
    correct: Integers  # (...)
    nll_sum: Floats  # (...), of -ln p(truth)
    brier_sum: Floats  # (...), of sum over classes of (p - truth)^2, so 0 to 2 per galaxy
    confusion: Integers  # (..., K, K) for K classes, rows are the truth, columns the prediction
    bins: Floats  # (..., 15, 3): galaxies, correct ones, sum of confidences; bin b holds [b/15, (b+1)/15)

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def compute_counts(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], temperature: float = 1.0
) -> Counts:
    """Count the predictions from (n, K) logits, divided by the temperature, of galaxies with `labels` in 0..K-1."""
    if logits.ndim != 2 or len(logits) != len(labels):
        raise MetricsError(f"logits: got shape {logits.shape}; expected ({len(labels)}, classes)")
    num_classes = logits.shape[1]
    if len(labels) and labels.max() >= num_classes:
        raise MetricsError(f"logits: got {num_classes} classes; expected more than label {labels.max()}")
    if not np.isfinite(logits).all():
        num_bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise MetricsError(f"logits: got non-finite values for {num_bad} of {len(labels)} galaxies; expected none")
    log_p = scipy.special.log_softmax(logits.astype(np.float64) / temperature, axis=1)
    p, truth, predicted = np.exp(log_p), labels.astype(np.int64), logits.argmax(axis=1)
    is_correct, confidence = predicted == truth, p.max(axis=1)
    bin_indices = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    bin_weights = (np.ones(len(truth)), is_correct, confidence)
    pair_counts = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return Counts(
        n=np.asarray(len(truth)),
        correct=np.asarray(is_correct.sum()),
        nll_sum=np.asarray(-log_p[np.arange(len(truth)), truth].sum()),
        brier_sum=np.asarray(((p - np.eye(num_classes)[truth]) ** 2).sum()),
        confusion=pair_counts.reshape(num_classes, num_classes),
        bins=np.stack([np.bincount(bin_indices, weights, NUM_BINS) for weights in bin_weights], axis=1),
    )


def compute_metrics(counts: Counts) -> dict[str, Floats]:
    """Compute accuracy, balanced_accuracy, macro_f1, nll (nats), brier (0 to 2) and ece, each of shape (...).

    balanced_accuracy averages the recall over the classes that occur; macro_f1 averages over the classes that
    occur or are predicted, as scikit-learn does; ece is that of Guo et al. (2017). Without galaxies all are nan.
    """
    hits = np.diagonal(counts.confusion, axis1=-2, axis2=-1)
    truths, predictions = counts.confusion.sum(axis=-1), counts.confusion.sum(axis=-2)
    calibration_error = np.abs(counts.bins[..., 1] - counts.bins[..., 2]).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "accuracy": counts.correct / counts.n,
            "balanced_accuracy": _compute_mean_ratio(hits, truths),
            "macro_f1": _compute_mean_ratio(2 * hits, truths + predictions),
            "nll": counts.nll_sum / counts.n,
            "brier": counts.brier_sum / counts.n,
            "ece": calibration_error / counts.n,
        }


def _compute_mean_ratio(numerators: Integers, denominators: Integers) -> Floats:
    """Return the mean of numerators / denominators over the last axis, leaving out denominators of 0."""
    rates = np.where(denominators > 0, numerators / np.maximum(denominators, 1), 0.0)
    mean: Floats = rates.sum(axis=-1) / (denominators > 0).sum(axis=-1)
    return mean


def compute_per_class(counts: Counts) -> dict[str, Floats]:
    """Compute precision, recall, f1 and support (galaxies) of each class, each of shape (..., K).

    As scikit-learn does with zero_division=nan: precision is nan where the class was never predicted, recall where
    none of it occur, f1 where neither does.
    """
    hits = np.diagonal(counts.confusion, axis1=-2, axis2=-1).astype(np.float64)
    truths, predictions = (counts.confusion.sum(axis=axis).astype(np.float64) for axis in (-1, -2))
    with np.errstate(invalid="ignore"):
        rates = {"precision": hits / predictions, "recall": hits / truths, "f1": 2 * hits / (truths + predictions)}
    return rates | {"support": truths}


def compute_reliability(counts: Counts) -> dict[str, Floats]:
    """Compute the reliability diagram's galaxies, accuracy and mean confidence per bin of confidence, each (..., 15).

    Accuracy and confidence are nan where a bin is empty (Guo et al. 2017, arXiv:1706.04599, equations 1 and 2).
    """
    galaxies, correct, confidence_sum = np.moveaxis(counts.bins, -1, 0)
    with np.errstate(invalid="ignore"):
        return {"galaxies": galaxies, "accuracy": correct / galaxies, "confidence": confidence_sum / galaxies}


def consistency(predicted: NDArray[np.integer[Any]], clean: NDArray[np.integer[Any]]) -> Floats:
    """Return the fraction of galaxies, (...), whose predicted class, (..., n), is that of the clean image.

    Leading axes broadcast: (S, K, n) under K conditions and (S, 1, n) clean give (S, K).
    """
    fractions: Floats = (predicted == clean).mean(axis=-1)
    return fractions
