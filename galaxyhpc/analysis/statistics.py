"""What may be said of the differences between networks: intervals, tests, corruption errors, and fronts.

Arrays in, arrays out. All networks of one split are drawn alike: one seed gives every network the same galaxies in the
same draw, so that the draws of two networks may be subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betaincinv, ndtri

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
    """Draw the test galaxies and the training seeds again with replacement, and return each draw's mean accuracy.

    Whole sky groups are drawn, because overlapping frames are not independent. Calls with the same `groups` and `seed`
    draw the same galaxies, and with the same `trainings` the same of them: such draws are paired and may be subtracted.
    Networks with other `trainings` share the galaxies alone.

    Parameters
    ----------
    correct : (S, K, n) array of 0 and 1, or of fractions where several conditions are averaged; K are conditions, or
        networks that have the same S training seeds
    groups : (n,) sky group of each galaxy
    trainings : the S training seeds, 0 to S - 1 unless told

    Returns
    -------
    (K, draws) array in [0, 1]. For 0 and 1 in, only the last division rounds: equal networks differ by exactly 0.
    """
    labels, of_galaxy, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order, starts = np.argsort(of_galaxy, kind="stable"), np.cumsum(sizes) - sizes
    per_galaxy = correct.reshape(-1, correct.shape[-1]).T[order]
    per_group = np.add.reduceat(per_galaxy, starts, dtype=np.float32)  # along rows of memory: twice as fast
    times = _draw_counts(len(labels), num_samples, (seed, len(labels)))
    chosen = _draw_counts(len(correct), num_samples, (seed + 1, *(training_seeds or range(len(correct)))))
    hits = per_group.T @ times.T  # one product takes half the time of S
    right = np.einsum("skb,bs->kb", hits.reshape(*correct.shape[:2], num_samples), chosen, dtype=np.float64)
    accuracy: Floats = right / (len(correct) * (times @ sizes.astype(np.float64)))
    return accuracy


@lru_cache(maxsize=32)  # enough for ten classes and the numbers of seeds of a sweep
def _draw_counts(num_items: int, num_samples: int, seed: tuple[int, ...]) -> NDArray[np.float32]:
    """(draws, things): how often each thing is drawn in `things` draws with replacement."""
    chosen = np.random.default_rng(seed).integers(num_items, size=(num_samples, num_items))
    chosen += np.arange(num_samples)[:, None] * num_items
    return (
        np.bincount(chosen.ravel(), minlength=num_samples * num_items)
        .reshape(num_samples, num_items)
        .astype(np.float32)
    )


def bootstrap_interval(
    correct: NDArray[Any],
    groups: NDArray[np.integer[Any]],
    num_samples: int = NUM_BOOTSTRAP_SAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Floats, Floats]:
    """Percentile interval of the accuracy of a network: the mean over its seeds, on galaxies like these.

    Each of `accuracy_draws` draws the training seeds with the sky groups, so that the interval holds the chance of
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
    return percentile_interval(bootstrap_accuracies(correct, groups, num_samples, seed), level)


def percentile_interval(samples: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Return the middle `level` of (..., draws) draws as low and high, (...) each (Efron & Tibshirani 1993, ch. 13)."""
    low, high = np.quantile(samples, [0.5 - level / 2, 0.5 + level / 2], axis=-1)
    return low, high


def paired_interval(
    a: NDArray[Any],
    b: NDArray[Any],
    groups: NDArray[np.integer[Any]],
    num_samples: int = NUM_BOOTSTRAP_SAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Difference in accuracy a - b of two networks on the same galaxies, and its percentile interval.

    Sky groups are drawn once for both; so are training seeds where both have equally many, which then must be the same
    ones in the same order. What `bootstrap_interval` says of its limits holds here too.

    Parameters
    ----------
    a, b : (S_a, n), (S_b, n) arrays of 0 and 1, or of fractions
    groups : (n,) sky group of each galaxy

    Returns
    -------
    difference, low, high : in [-1, 1]
    """
    first, second = (bootstrap_accuracies(each[:, None], groups, num_samples, seed)[0] for each in (a, b))
    low, high = percentile_interval(first - second, level)
    return float(a.mean() - b.mean()), float(low), float(high)


def pairwise_intervals(samples: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Percentile intervals of all differences of L networks at once, from their `accuracy_draws`.

    Parameters
    ----------
    drawn : (L, draws) array; row i of one network

    Returns
    -------
    low, high : (L, L) arrays; [i, j] is of network i minus network j, so that low is -high transposed
    """
    low, high = np.zeros((2, len(samples), len(samples)))
    for i in range(len(samples) - 1):
        low[i, i + 1 :], high[i, i + 1 :] = percentile_interval(samples[i] - samples[i + 1 :], level)
    return low - high.T, high - low.T


def mcnemar(only_a: ArrayLike, only_b: ArrayLike) -> Floats:
    """Exact two-sided p of McNemar's test: do two networks err equally often on the same galaxies (1947)?

    Where they differ, each is as likely to be the right one: the smaller count is binomial with 1/2, and its tail is
    doubled, 1 at most. It takes galaxies as independent, which those of one sky group are not quite.

    Parameters
    ----------
    only_a, only_b : (...) integers, galaxies that only one of both gets right

    Returns
    -------
    (...) array; 1 where they never differ

    Raises
    ------
    TypeError
        Where counts are no integers: means over seeds have no binomial.
    """
    a, b = (np.asarray(each).astype(np.int64, casting="same_kind") for each in (only_a, only_b))
    p: Floats = np.minimum(2 * bdtr(np.minimum(a, b), a + b, 0.5), 1.0)
    return p


def combine_p_values(p: ArrayLike) -> Floats:
    """Join the p values of S dependent tests, (S, ...), into one, (...): twice the median, 1 at most.

    However the tests depend on one another, it falls below alpha with a probability of alpha at most where all S
    hypotheses hold (Rüger 1978; Vovk & Wang 2020, Biometrika 107, 791). A small value so says: not all of them hold;
    and at least half the tests said so at half of alpha. One test stays as it is; nan stays nan.
    """
    values = np.asarray(p, np.float64)
    joined: Floats = values[0] if len(values) == 1 else np.minimum(2 * np.median(values, axis=0), 1.0)
    return joined


def holm(p: ArrayLike) -> Floats:
    """Adjust (m,) p values for m tests so that their family errs with probability alpha at most (Holm 1979).

    Returns
    -------
    (m,) array in the order given, to be compared with alpha; nan is no test and stays nan
    """
    values = np.asarray(p, np.float64)
    adjusted, tests = values.copy(), np.flatnonzero(~np.isnan(values))
    order = tests[np.argsort(values[tests], kind="stable")]
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def wilson_interval(correct: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Wilson's score interval of a proportion: for ONE network on n independent galaxies (Wilson 1927)."""
    total, z = np.asarray(n, dtype=np.float64), ndtri(0.5 + level / 2)
    rate = np.asarray(correct, dtype=np.float64) / total
    centre = (rate + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * np.sqrt(rate * (1 - rate) / total + z**2 / (4 * total**2))
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def clopper_pearson(successes: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Exact interval of a proportion, which holds the truth with at least `level` (Clopper & Pearson 1934).

    Parameters
    ----------
    successes, n : (...) integers, 0 <= successes <= n

    Returns
    -------
    low, high : (...) arrays in [0, 1]; 0 and 1 where n is 0
    """
    k, total = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(n, np.float64))
    missed, tail = total - k, 0.5 - level / 2
    low = np.where(k > 0, betaincinv(np.maximum(k, 1), missed + 1, tail), 0.0)
    high = np.where(missed > 0, betaincinv(k + 1, np.maximum(missed, 1), 1 - tail), 1.0)
    return low, high


def corruption_error(
    errors: ArrayLike, reference_errors: ArrayLike, conditions: Sequence[str]
) -> tuple[list[str], Floats]:
    """Corruption errors relative to a reference network (Hendrycks & Dietterich 2019, arXiv:1903.12261, section 4).

    CE of a condition is the sum of the errors over its severities divided by the reference's sum; the mean corruption
    error, mCE, is `ce.mean(axis=-1)`. With the errors on clean galaxies subtracted from both it is their relative CE.

    Parameters
    ----------
    errors, reference : (..., K) error rates of K pairs of condition and severity; leading axes broadcast
    conditions : K names, one for each pair

    Returns
    -------
    names, ce : C conditions in the order they first come in, and (..., C). The reference's own is always 1; nan where
        an error is missing, and where the reference's sum is not above 0 though the network's is another.
    """
    above, below = np.broadcast_arrays(np.asarray(errors, np.float64), np.asarray(reference_errors, np.float64))
    names, each = list(dict.fromkeys(conditions)), np.asarray(conditions)
    sums = [(above[..., each == name].sum(-1), below[..., each == name].sum(-1)) for name in names]
    ce = [np.where(a == b, 1.0, a / np.where(b > 0, b, np.nan)) for a, b in sums]
    return names, np.stack(ce, axis=-1)


def is_pareto_optimal(costs: ArrayLike, gains: ArrayLike) -> Bools:
    """Say which of L networks no other beats: none gains as much for less, or more for as little.

    Parameters
    ----------
    costs, gains : (L,) arrays; of equal ones all are on the front, and nan never is

    Returns
    -------
    (L,) booleans
    """
    cost, gain = np.asarray(costs, np.float64), np.asarray(gains, np.float64)
    no_worse = (cost[:, None] <= cost) & (gain[:, None] >= gain)
    better = (cost[:, None] < cost) | (gain[:, None] > gain)
    front: Bools = ~(no_worse & better).any(axis=0) & ~np.isnan(cost) & ~np.isnan(gain)
    return front


def find_cliques(ranking: Sequence[int], significant: Bools) -> list[tuple[int, int]]:
    """Find the bars of a critical-difference diagram: longest runs of networks of which no two are separable.

    Parameters
    ----------
    order : L networks, best first (Demšar 2006, JMLR 7, 1, figure 1)
    separable : (L, L) symmetric booleans, indexed by network

    Returns
    -------
    (first, last) places in `order`, both within the run, first < last; no run lies within another
    """
    apart = significant[np.ix_(ranking, ranking)]
    runs: list[tuple[int, int]] = []
    for first in range(len(apart)):
        last = first
        while last + 1 < len(apart) and not apart[first : last + 1, last + 1].any():
            last += 1
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs
