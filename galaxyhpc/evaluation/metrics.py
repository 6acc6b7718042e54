"""Counts in, metrics out.

Logits are reduced once to counts that may be added over batches, processes and runs; rates are divided out at
the very end. `metrics`, `per_class` and `reliability` broadcast over leading axes, written (...): a sweep is one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_CLASSES = 10
NUM_BINS = 15  # of the confidence, equally wide
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "ece")  # of `metrics`

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class MetricsError(ValueError):
    """Logits that cannot be counted."""


@dataclass(frozen=True, eq=False)
class Counts:
    """What the metrics need to know of n galaxies; sums may be added."""

    n: Integers  # (...)
    correct: Integers  # (...)
    nll_sum: Floats  # (...), of -ln p(truth)
    brier_sum: Floats  # (...), of sum over classes of (p - truth)^2, so 0 to 2 per galaxy
    confusion: Integers  # (..., 10, 10), rows are the truth, columns the prediction
    bins: Floats  # (..., 15, 3): galaxies, correct ones, sum of confidences; bin b holds [b/15, (b+1)/15)

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def compute_counts(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], temperature: float = 1.0
) -> Counts:
    """Count what (n, 10) logits, divided by the temperature, say about n galaxies with `labels` in 0..9."""
    if logits.shape != (len(labels), NUM_CLASSES):
        raise MetricsError(
            f"logits have the shape {logits.shape}; {len(labels)} labels need ({len(labels)}, {NUM_CLASSES})"
        )
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise MetricsError(f"the logits of {bad} of {len(labels)} galaxies are not finite")
    shifted = logits.astype(np.float64) / temperature
    shifted -= shifted.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p, truth, predicted = np.exp(log_p), labels.astype(np.int64), logits.argmax(axis=1)
    hit, confidence = predicted == truth, p.max(axis=1)
    of_bin = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    return Counts(
        n=np.asarray(len(truth)),
        correct=np.asarray(hit.sum()),
        nll_sum=np.asarray(-log_p[np.arange(len(truth)), truth].sum()),
        brier_sum=np.asarray(((p - np.eye(NUM_CLASSES)[truth]) ** 2).sum()),
        confusion=np.bincount(truth * NUM_CLASSES + predicted, minlength=NUM_CLASSES**2).reshape(
            NUM_CLASSES, NUM_CLASSES
        ),
        bins=np.stack([np.bincount(of_bin, w, NUM_BINS) for w in (np.ones(len(truth)), hit, confidence)], axis=1),
    )


def compute_metrics(counts: Counts) -> dict[str, Floats]:
    """Divide: accuracy, balanced_accuracy, macro_f1, nll (nats), brier (0 to 2) and ece, each of shape (...).

    balanced_accuracy averages the recall over the classes that occur; macro_f1 averages over the classes that
    occur or are predicted, as scikit-learn does; ece is that of Guo et al. (2017). No galaxies give nan.
    """
    hits = np.diagonal(counts.confusion, axis1=-2, axis2=-1)
    truths, predictions = counts.confusion.sum(axis=-1), counts.confusion.sum(axis=-2)
    gap = np.abs(counts.bins[..., 1] - counts.bins[..., 2]).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "accuracy": counts.correct / counts.n,
            "balanced_accuracy": _compute_mean_ratio(hits, truths),
            "macro_f1": _compute_mean_ratio(2 * hits, truths + predictions),
            "nll": counts.nll_sum / counts.n,
            "brier": counts.brier_sum / counts.n,
            "ece": gap / counts.n,
        }


def _compute_mean_ratio(numerators: Integers, denominators: Integers) -> Floats:
    """Mean of parts / wholes over the last axis, leaving out empty wholes."""
    rates = np.where(denominators > 0, numerators / np.maximum(denominators, 1), 0.0)
    mean: Floats = rates.sum(axis=-1) / (denominators > 0).sum(axis=-1)
    return mean


def compute_per_class(counts: Counts) -> dict[str, Floats]:
    """Divide class by class: precision, recall, f1 and support, the class's galaxies, each of shape (..., 10).

    As scikit-learn does with zero_division=nan: precision is nan where the class was never predicted, recall where
    none of it occur, f1 where neither does.
    """
    hits = np.diagonal(counts.confusion, axis1=-2, axis2=-1).astype(np.float64)
    truths, predictions = (counts.confusion.sum(axis=axis).astype(np.float64) for axis in (-1, -2))
    with np.errstate(invalid="ignore"):
        rates = {"precision": hits / predictions, "recall": hits / truths, "f1": 2 * hits / (truths + predictions)}
    return rates | {"support": truths}


def compute_reliability(counts: Counts) -> dict[str, Floats]:
    """What a reliability diagram shows of the 15 bins of the confidence: galaxies, accuracy, confidence: (..., 15).

    Accuracy and mean confidence are nan where a bin is empty (Guo et al. 2017, arXiv:1706.04599, equations 1 and 2).
    """
    galaxies, right, confidences = np.moveaxis(counts.bins, -1, 0)
    with np.errstate(invalid="ignore"):
        return {"galaxies": galaxies, "accuracy": right / galaxies, "confidence": confidences / galaxies}


def consistency(predicted: NDArray[np.integer[Any]], clean: NDArray[np.integer[Any]]) -> Floats:
    """Fraction of galaxies, (...), whose predicted class, (..., n), is the one predicted for them clean, right or not.

    Leading axes broadcast: (S, K, n) under K conditions beside (S, 1, n) clean give (S, K).
    """
    same: Floats = (predicted == clean).mean(axis=-1)
    return same
