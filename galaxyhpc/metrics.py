"""Counts in, metrics and intervals out.

Logits are reduced once to counts that may be added over batches, processes and runs; rates are divided out at
the very end. `metrics` and `wilson_interval` broadcast over leading axes, written (...): a sweep is one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

CLASSES = 10
BINS = 15  # of the confidence, equally wide

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


def count(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> Counts:
    """Count what (n, 10) logits say about n galaxies with `labels` in 0..9."""
    if logits.shape != (len(labels), CLASSES):
        raise MetricsError(
            f"logits have the shape {logits.shape}; {len(labels)} labels need ({len(labels)}, {CLASSES})"
        )
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise MetricsError(f"the logits of {bad} of {len(labels)} galaxies are not finite")
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p, truth, predicted = np.exp(log_p), labels.astype(np.int64), logits.argmax(axis=1)
    hit, confidence = predicted == truth, p.max(axis=1)
    of_bin = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    return Counts(
        n=np.asarray(len(truth)),
        correct=np.asarray(hit.sum()),
        nll_sum=np.asarray(-log_p[np.arange(len(truth)), truth].sum()),
        brier_sum=np.asarray(((p - np.eye(CLASSES)[truth]) ** 2).sum()),
        confusion=np.bincount(truth * CLASSES + predicted, minlength=CLASSES**2).reshape(CLASSES, CLASSES),
        bins=np.stack([np.bincount(of_bin, w, BINS) for w in (np.ones(len(truth)), hit, confidence)], axis=1),
    )


def metrics(counts: Counts) -> dict[str, Floats]:
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
            "balanced_accuracy": _mean_where(hits, truths),
            "macro_f1": _mean_where(2 * hits, truths + predictions),
            "nll": counts.nll_sum / counts.n,
            "brier": counts.brier_sum / counts.n,
            "ece": gap / counts.n,
        }


def _mean_where(parts: Integers, wholes: Integers) -> Floats:
    """Mean of parts / wholes over the last axis, leaving out empty wholes."""
    rates = np.where(wholes > 0, parts / np.maximum(wholes, 1), 0.0)
    mean: Floats = rates.sum(axis=-1) / (wholes > 0).sum(axis=-1)
    return mean


def wilson_interval(correct: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Wilson's score interval of a proportion: for ONE network on n independent galaxies (Wilson 1927)."""
    total, z = np.asarray(n, dtype=np.float64), NormalDist().inv_cdf(0.5 + level / 2)
    rate = np.asarray(correct, dtype=np.float64) / total
    centre = (rate + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * np.sqrt(rate * (1 - rate) / total + z**2 / (4 * total**2))
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def bootstrap_interval(
    correct: NDArray[Any],
    groups: NDArray[np.integer[Any]],
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Floats, Floats]:
    """Percentile interval of the accuracy of a network: the mean over its seeds, on galaxies like these.

    Test galaxies are drawn again with replacement, whole sky groups at a time because overlapping frames are
    not independent; each draw also draws the training seeds again, so that the interval holds the chance of
    the test set and of the training. Conditions share each draw, as do networks tested on the same galaxies.

    Its limits: S seeds show only (S-1)/S of the variance between trainings, and one seed none of it, so below
    about five seeds the interval is too narrow for "another training"; where seeds err on different galaxies
    it is too wide (that chance enters twice); it has no width where every galaxy is right, or wrong.

    Parameters
    ----------
    correct : (S, K, n) array of 0 and 1, or of fractions where several conditions are averaged
    groups : (n,) sky group of each galaxy

    Returns
    -------
    low, high : (K,) arrays
    """
    labels, of_galaxy, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order, starts = np.argsort(of_galaxy, kind="stable"), np.cumsum(sizes) - sizes
    per_group = np.add.reduceat(correct[..., order], starts, axis=-1, dtype=np.float32)
    times = _draws(len(labels), draws, seed)
    accuracy = per_group @ times.T / (times @ sizes.astype(np.float32))  # (S, K, draws)
    seeds = _draws(len(correct), draws, seed + 1) / len(correct)
    low, high = np.quantile(np.einsum("skb,bs->kb", accuracy, seeds), [0.5 - level / 2, 0.5 + level / 2], axis=-1)
    return low, high


@lru_cache(maxsize=8)
def _draws(things: int, draws: int, seed: int) -> NDArray[np.float32]:
    """(draws, things): how often each thing is drawn in `things` draws with replacement."""
    chosen = np.random.default_rng([seed, things]).integers(things, size=(draws, things))
    chosen += np.arange(draws)[:, None] * things
    return np.bincount(chosen.ravel(), minlength=draws * things).reshape(draws, things).astype(np.float32)
