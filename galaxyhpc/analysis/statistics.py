"""Statistics of accuracies and their differences: intervals, tests, corruption errors, Pareto fronts.

Arrays in, arrays out. All networks of one split share their bootstrap samples: one seed gives every network the same
galaxies in the same sample, so the samples of two networks may be subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betaincinv

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

NUM_BOOTSTRAP_SAMPLES = 1000


def bootstrap_accuracies(
    correct: NDArray[Any],
    groups: NDArray[np.integer[Any]],
    num_samples: int = NUM_BOOTSTRAP_SAMPLES,
    seed: int = 0,
    training_seeds: Sequence[int] | None = None,
) -> Floats:
    """Resample test galaxies and training seeds with replacement, and return the mean accuracy of each sample.

    Whole sky groups are drawn, because overlapping frames are not independent. Calls with the same `groups` and `seed`
    draw the same galaxies, and with the same `training_seeds` the same of those: such samples are paired and may be
    subtracted. Networks with other `training_seeds` share the galaxies alone.

    `percentile_interval` of the samples therefore includes the variance of both test set and training. Its limits:
    S seeds show only (S-1)/S of the variance between trainings, and one seed none of it, so below about five seeds
    the interval is too narrow for another training; where seeds err on different galaxies it is too wide (that
    variance enters twice); it has no width where every galaxy is right, or every one wrong.

    Parameters
    ----------
    correct : (S, K, n) array of 0 and 1, or of fractions where several conditions are averaged; K are conditions, or
        networks that have the same S training seeds
    groups : (n,) sky group of each galaxy
    training_seeds : the S training seeds; 0 to S - 1 by default

    Returns
    -------
    (K, num_samples) array in [0, 1]. If `correct` is 0 and 1, only the last division rounds: equal networks differ by
    exactly 0.
    """
    labels, group_index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order, starts = np.argsort(group_index, kind="stable"), np.cumsum(sizes) - sizes
    per_galaxy = correct.reshape(-1, correct.shape[-1]).T[order]
    per_group = np.add.reduceat(per_galaxy, starts, dtype=np.float32)  # along contiguous memory: twice as fast
    group_counts = _draw_counts(len(labels), num_samples, (seed, len(labels)))
    seed_counts = _draw_counts(len(correct), num_samples, (seed + 1, *(training_seeds or range(len(correct)))))
    hits = per_group.T @ group_counts.T  # one product takes half the time of S
    num_correct = np.einsum("skb,bs->kb", hits.reshape(*correct.shape[:2], num_samples), seed_counts, dtype=np.float64)
    accuracy: Floats = num_correct / (len(correct) * (group_counts @ sizes.astype(np.float64)))
    return accuracy


@lru_cache(maxsize=32)  # enough for ten classes and the numbers of seeds of a sweep
def _draw_counts(num_items: int, num_samples: int, seed: tuple[int, ...]) -> NDArray[np.float32]:
    """Count how often each item is drawn in `num_items` draws with replacement: (num_samples, num_items)."""
    items = np.random.default_rng(seed).integers(num_items, size=(num_samples, num_items))
    items += np.arange(num_samples)[:, None] * num_items
    return (
        np.bincount(items.ravel(), minlength=num_samples * num_items).reshape(num_samples, num_items).astype(np.float32)
    )


def percentile_interval(samples: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Return the percentile interval of (..., num_samples) samples: low and high, (...) each.

    Efron & Tibshirani 1993, chapter 13.
    """
    low, high = np.quantile(samples, [0.5 - level / 2, 0.5 + level / 2], axis=-1)
    return low, high


def pairwise_intervals(samples: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Compute the percentile intervals of all differences of L networks, from their `bootstrap_accuracies`.

    Parameters
    ----------
    samples : (L, num_samples) array; row i belongs to network i

    Returns
    -------
    low, high : (L, L) arrays; [i, j] is network i minus network j, so low is -high transposed
    """
    low, high = np.zeros((2, len(samples), len(samples)))
    for i in range(len(samples) - 1):
        low[i, i + 1 :], high[i, i + 1 :] = percentile_interval(samples[i] - samples[i + 1 :], level)
    return low - high.T, high - low.T


def mcnemar(only_a: ArrayLike, only_b: ArrayLike) -> Floats:
    """Compute the exact two-sided p value of McNemar's test (1947): do two networks err equally often?

    Under the null hypothesis, where the networks differ each is equally likely to be correct: the smaller count is
    binomial with probability 1/2, and its tail is doubled, at most 1. Galaxies are taken as independent, which those
    of one sky group are not quite.

    Parameters
    ----------
    only_a, only_b : (...) integers, numbers of galaxies that only one of both classifies correctly

    Returns
    -------
    (...) array; 1 where the networks never differ

    Raises
    ------
    TypeError
        if counts are not integers: means over seeds are not binomial
    """
    a, b = (np.asarray(counts).astype(np.int64, casting="same_kind") for counts in (only_a, only_b))
    p: Floats = np.minimum(2 * bdtr(np.minimum(a, b), a + b, 0.5), 1.0)
    return p


def combine_p_values(p: ArrayLike) -> Floats:
    """Combine the p values of S dependent tests, (S, ...), into one, (...): twice the median, at most 1.

    If all S null hypotheses hold, the combined value is below alpha with a probability of at most alpha, however the
    tests depend on one another (Rüger 1978; Vovk & Wang 2020, Biometrika 107, 791). A small value means that not all
    of them hold, and that at least half the tests reject at alpha / 2. One test is unchanged; nan stays nan.
    """
    values = np.asarray(p, np.float64)
    combined: Floats = values[0] if len(values) == 1 else np.minimum(2 * np.median(values, axis=0), 1.0)
    return combined


def holm(p: ArrayLike) -> Floats:
    """Adjust (m,) p values for m tests, so that their family-wise error rate is at most alpha (Holm 1979).

    Returns
    -------
    (m,) array in the order of `p`, to be compared with alpha; nan is not a test and stays nan
    """
    values = np.asarray(p, np.float64)
    adjusted, tests = values.copy(), np.flatnonzero(~np.isnan(values))
    order = tests[np.argsort(values[tests], kind="stable")]
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def clopper_pearson(successes: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Compute the exact interval of a proportion, which covers it with at least `level` (Clopper & Pearson 1934).

    `scipy.stats.binomtest(k, n).proportion_ci(method="exact")` gives the same values but takes one pair a call and
    80 times as long.

    Parameters
    ----------
    successes, n : (...) integers, 0 <= successes <= n

    Returns
    -------
    low, high : (...) arrays in [0, 1]; 0 and 1 where n is 0
    """
    k, total = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(n, np.float64))
    failures, tail = total - k, 0.5 - level / 2
    low = np.where(k > 0, betaincinv(np.maximum(k, 1), failures + 1, tail), 0.0)
    high = np.where(failures > 0, betaincinv(k + 1, np.maximum(failures, 1), 1 - tail), 1.0)
    return low, high


def corruption_error(
    errors: ArrayLike, reference_errors: ArrayLike, conditions: Sequence[str]
) -> tuple[list[str], Floats]:
    """Compute corruption errors relative to a reference network (Hendrycks & Dietterich 2019, arXiv:1903.12261).

    CE of a condition is the sum of the errors over its severities divided by the reference's sum; the mean corruption
    error, mCE, is `ce.mean(axis=-1)`. With the errors on clean galaxies subtracted from both, it is their relative CE
    (section 4).

    Parameters
    ----------
    errors, reference_errors : (..., K) error rates of K pairs of condition and severity; leading axes broadcast
    conditions : K names, one for each pair

    Returns
    -------
    names, ce : C conditions in order of first occurrence, and (..., C). The reference's own CE is always 1; nan where
        an error is missing, and where the reference's sum is not above 0 though the network's differs.
    """
    numerator, denominator = np.broadcast_arrays(
        np.asarray(errors, np.float64), np.asarray(reference_errors, np.float64)
    )
    names, name_of_pair = list(dict.fromkeys(conditions)), np.asarray(conditions)
    masks = [name_of_pair == name for name in names]
    sums = [(numerator[..., mask].sum(-1), denominator[..., mask].sum(-1)) for mask in masks]
    ce = [np.where(a == b, 1.0, a / np.where(b > 0, b, np.nan)) for a, b in sums]
    return names, np.stack(ce, axis=-1)


def overlaps_best(mean: ArrayLike, low: ArrayLike, high: ArrayLike) -> Bools:
    """Mark the best of L means, and all whose intervals overlap its interval.

    Parameters
    ----------
    mean, low, high : (L,) arrays; nan where there is no mean or no interval

    Returns
    -------
    (L,) booleans; false without an interval, and false for all if the best mean has none
    """
    means, lows, highs = (np.asarray(values, np.float64) for values in (mean, low, high))
    if np.isnan(means).all():
        return np.zeros(len(means), dtype=bool)
    best = np.nanargmax(means)
    overlaps: Bools = (lows <= highs[best]) & (highs >= lows[best])
    return overlaps


def is_pareto_optimal(costs: ArrayLike, gains: ArrayLike) -> Bools:
    """Mark which of L networks are Pareto optimal: none gains as much for less, or more for as little.

    Parameters
    ----------
    costs, gains : (L,) arrays; all of several equal ones are marked, and nan never is

    Returns
    -------
    (L,) booleans
    """
    cost, gain = np.asarray(costs, np.float64), np.asarray(gains, np.float64)
    is_no_worse = (cost[:, None] <= cost) & (gain[:, None] >= gain)
    is_better = (cost[:, None] < cost) | (gain[:, None] > gain)
    is_optimal: Bools = ~(is_no_worse & is_better).any(axis=0) & ~np.isnan(cost) & ~np.isnan(gain)
    return is_optimal


def find_cliques(ranking: Sequence[int], significant: Bools) -> list[tuple[int, int]]:
    """Find the bars of a critical-difference diagram: longest runs of networks without a significant difference.

    Parameters
    ----------
    ranking : L networks, best first (Demšar 2006, JMLR 7, 1, figure 1)
    significant : (L, L) symmetric booleans, indexed by network

    Returns
    -------
    (first, last) positions in `ranking`, both within the run, first < last; no run lies within another
    """
    differs = significant[np.ix_(ranking, ranking)]
    runs: list[tuple[int, int]] = []
    for first in range(len(differs)):
        last = first
        while last + 1 < len(differs) and not differs[first : last + 1, last + 1].any():
            last += 1
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs
