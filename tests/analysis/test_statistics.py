"""Tests against scipy and statsmodels, intervals against what they promise."""

from __future__ import annotations

from itertools import combinations
from statistics import NormalDist

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binomtest
from statsmodels.stats import contingency_tables
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from galaxyhpc.analysis.statistics import (
    NUM_BOOTSTRAP_SAMPLES,
    bootstrap_accuracies,
    clopper_pearson,
    combine_p_values,
    corruption_error,
    find_cliques,
    holm,
    is_pareto_optimal,
    mcnemar,
    overlaps_best,
    pairwise_intervals,
    percentile_interval,
)


def bootstrap_interval(
    correct: np.ndarray, groups: np.ndarray, num_samples: int = NUM_BOOTSTRAP_SAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the accuracies of one network, (S, K, n)."""
    return percentile_interval(bootstrap_accuracies(correct, groups, num_samples))


def paired_interval(
    a: np.ndarray, b: np.ndarray, groups: np.ndarray, num_samples: int = NUM_BOOTSTRAP_SAMPLES, level: float = 0.95
) -> tuple[float, float, float]:
    """Difference of the accuracies of two networks, (S, n) each, and its interval."""
    first, second = (bootstrap_accuracies(correct[:, None], groups, num_samples)[0] for correct in (a, b))
    low, high = percentile_interval(first - second, level)
    return float(a.mean() - b.mean()), float(low), float(high)


def test_with_one_seed_and_lone_galaxies_the_bootstrap_is_near_wilson() -> None:
    hits = np.random.default_rng(0).random((1, 1, 1500)) < 0.8
    low, high = bootstrap_interval(hits, np.arange(1500))
    expected = binomtest(int(hits.sum()), 1500).proportion_ci(method="wilson")
    assert [low[0], high[0]] == pytest.approx([expected.low, expected.high], abs=0.004)


def test_the_bootstrap_equals_one_written_out_as_loops_within_its_noise() -> None:
    rng = np.random.default_rng(5)
    groups = rng.integers(60, size=150)
    correct = (rng.random((3, 2, 150)) < rng.uniform(0.4, 0.9, size=(3, 1, 1))).astype(float)
    means, ids = [], np.unique(groups)
    members = {g: np.flatnonzero(groups == g) for g in ids}
    for _ in range(2000):
        chosen = np.concatenate([members[g] for g in rng.choice(ids, len(ids))])
        means.append(correct[rng.integers(3, size=3)][:, :, chosen].mean(axis=(0, 2)))
    expected = np.quantile(means, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(bootstrap_interval(correct, groups, num_samples=4000), expected, atol=0.02)


def test_overlapping_frames_and_unlike_seeds_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    hits = np.repeat(rng.random((1, 1, 300)) < 0.7, 4, axis=2)  # four frames of each of 300 sky groups
    alike, unlike = np.repeat(hits, 4, axis=0), np.stack([hits[0], hits[0], ~hits[0], hits[0]])

    def width(correct: np.ndarray, groups: np.ndarray) -> float:
        low, high = bootstrap_interval(correct, groups)
        return float(high[0] - low[0])

    together, apart = np.repeat(np.arange(300), 4), np.arange(1200)
    assert width(alike, together) == pytest.approx(2 * width(alike, apart), rel=0.15)
    assert width(unlike, apart) > 2 * width(alike, apart)


def test_about_nineteen_intervals_of_twenty_contain_the_truth() -> None:
    """Galaxies are easy or hard for all seeds alike, as real ones are, and seeds differ by 3 points."""
    rng, held = np.random.default_rng(11), 0
    for _ in range(400):
        difficulty, of_seed = rng.normal(size=(1, 1, 200)), rng.normal(scale=0.1, size=(8, 1, 1))
        low, high = bootstrap_interval(difficulty + of_seed < 0.8, np.arange(200), num_samples=300)
        held += int(low[0] <= NormalDist().cdf(0.8 / np.hypot(1, 0.1)) <= high[0])
    assert 0.91 <= held / 400 <= 0.98


def test_the_same_input_gives_the_same_interval() -> None:
    hits = np.random.default_rng(0).random((3, 4, 90)) < 0.5
    first, again = (bootstrap_interval(hits, np.arange(90) // 2) for _ in range(2))
    assert np.array_equal(first, again)


def networks(gap: float, seeds: int = 3, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Hits (S, n) of two networks that find the same galaxies hard, the second a little worse."""
    rng = np.random.default_rng(8)
    difficulty = rng.normal(size=n)
    first, second = (difficulty + 0.3 * rng.normal(size=(seeds, n)) < limit for limit in (0.8, 0.8 - gap))
    return first, second


def test_the_paired_interval_equals_one_written_out_as_loops_within_its_noise() -> None:
    rng, (a, b) = np.random.default_rng(5), networks(0.2, n=150)
    groups = rng.integers(60, size=150)
    means, ids = [], np.unique(groups)
    members = {g: np.flatnonzero(groups == g) for g in ids}
    for _ in range(1500):
        chosen = np.concatenate([members[g] for g in rng.choice(ids, len(ids))])
        seeds = rng.integers(3, size=3)
        means.append(a[seeds][:, chosen].mean() - b[seeds][:, chosen].mean())
    difference, low, high = paired_interval(a, b, groups, num_samples=3000)
    assert difference == pytest.approx(a.mean() - b.mean())
    np.testing.assert_allclose([low, high], np.quantile(means, [0.025, 0.975]), atol=0.008)


def test_a_network_does_not_differ_from_itself_nor_from_its_copy_at_another_place() -> None:
    a, b = networks(0.2)
    assert paired_interval(a, a, np.arange(400)) == (0.0, 0.0, 0.0)
    low, high = pairwise_intervals(bootstrap_accuracies(np.stack([a, b, a, b, a], axis=1), np.arange(400) // 2))
    assert low[0, 4] == high[0, 4] == low[3, 1] == high[2, 0] == 0.0 and low[0, 1] < high[0, 1]


def test_a_paired_interval_excludes_zero_where_two_intervals_overlap() -> None:
    a, b = networks(0.2)
    (low_a, _), (_, high_b) = (bootstrap_interval(correct[:, None], np.arange(400)) for correct in (a, b))
    assert low_a < high_b and paired_interval(a, b, np.arange(400))[1] > 0


def test_galaxies_of_one_sky_group_are_drawn_together_in_a_pair_too() -> None:
    a, b = (np.repeat(correct, 4, axis=1) for correct in networks(0.2, seeds=1))
    apart, together = (paired_interval(a, b, groups) for groups in (np.arange(1600), np.repeat(np.arange(400), 4)))
    assert together[2] - together[1] == pytest.approx(2 * (apart[2] - apart[1]), rel=0.2)


def test_shared_training_seeds_are_drawn_together_and_others_independently() -> None:
    lucky = np.random.default_rng(0).random((3, 200)) < np.array([[0.3], [0.6], [0.9]])  # a seed's luck, in both
    own, same, others = (
        bootstrap_accuracies(lucky[:, None], np.arange(200), training_seeds=seeds)[0]
        for seeds in (None, (0, 1, 2), (3, 4, 5))
    )
    assert np.array_equal(own, same) and np.std(own - others) > 0.1
    assert paired_interval(lucky, lucky[:2], np.arange(200))[2] > 0.1  # two seeds beside three: drawn apart


def test_intervals_of_all_pairs_at_once_equal_those_of_single_pairs() -> None:
    hits = np.stack([*networks(0.1), *networks(0.4)], axis=1)
    groups = np.arange(400) // 3
    drawn = bootstrap_accuracies(hits, groups)
    low, high = pairwise_intervals(drawn, level=0.9)
    for i, j in combinations(range(4), 2):
        assert (low[i, j], high[i, j]) == paired_interval(hits[:, i], hits[:, j], groups, level=0.9)[1:]
    assert np.array_equal(low, -high.T) and not low.diagonal().any()
    np.testing.assert_array_equal(percentile_interval(drawn), bootstrap_interval(hits, groups))


def test_mcnemar_is_that_of_statsmodels() -> None:
    only_a, only_b = np.random.default_rng(0).integers(0, 60, size=(2, 5, 12))
    only_a[0, :3], only_b[0, :2] = 0, 0
    p = mcnemar(only_a, only_b)
    for at in np.ndindex(only_a.shape):
        table = [[7, only_a[at]], [only_b[at], 7]]
        assert p[at] == pytest.approx(contingency_tables.mcnemar(table, exact=True).pvalue, rel=1e-10)
    assert p[0, 0] == 1 and mcnemar(1, 500) < 1e-100


def test_mcnemar_refuses_means_over_seeds() -> None:
    with pytest.raises(TypeError, match="float64"):
        mcnemar(np.array([3.5]), np.array([2]))


@pytest.mark.parametrize("m", [0, 1, 2, 40])
def test_holm_is_that_of_statsmodels_and_leaves_out_what_was_not_tested(m: int) -> None:
    rng = np.random.default_rng(m)
    p = rng.random(m).round(2) ** 3  # with ties
    expected = multipletests(p, method="holm")[1] if m else p
    np.testing.assert_allclose(holm(p), expected, rtol=1e-12)
    places = np.sort(rng.permutation(m + 5)[:m])
    gappy = np.full(m + 5, np.nan)
    gappy[places] = p
    np.testing.assert_allclose(holm(gappy)[places], expected, rtol=1e-12)
    assert np.isnan(np.delete(holm(gappy), places)).all()


def test_combined_p_values_keep_their_error_rate_however_the_seeds_depend_on_one_another() -> None:
    rng = np.random.default_rng(3)
    for share in (0.0, 0.5, 0.95, 1.0):  # of the variance, common to all five seeds
        z = np.sqrt(share) * rng.normal(size=(1, 20_000)) + np.sqrt(1 - share) * rng.normal(size=(5, 20_000))
        p = 2 * ndtr(-np.abs(z))
        assert (combine_p_values(p) < 0.05).mean() <= 0.055, share


def test_combined_p_values_are_twice_the_median() -> None:
    assert combine_p_values([[0.01, 0.2, np.nan], [0.03, 0.9, 0.1], [0.02, 0.8, 0.1]]).tolist()[:2] == [0.04, 1.0]
    assert np.isnan(combine_p_values([[0.1], [np.nan]])).all()
    assert combine_p_values([0.01, 0.03]) == 0.04 and combine_p_values([0.3]) == 0.3  # one test is unchanged


def test_clopper_pearson_is_that_of_scipy_and_statsmodels() -> None:
    n = np.array([0, 1, 1, 7, 7, 7, 1774, 1774, 1774])
    k = np.array([0, 0, 1, 0, 3, 7, 1, 900, 1774])
    for level in (0.95, 0.68):
        low, high = clopper_pearson(k, n, level)
        assert (low[0], high[0]) == (0, 1)
        for i in range(1, len(n)):
            expected = binomtest(int(k[i]), int(n[i])).proportion_ci(level, method="exact")
            assert [low[i], high[i]] == pytest.approx([expected.low, expected.high], rel=1e-9)
            assert [low[i], high[i]] == pytest.approx(proportion_confint(k[i], n[i], 1 - level, "beta"), rel=1e-9)


def test_corruption_errors_are_sums_over_severities_divided_by_the_references() -> None:
    rng = np.random.default_rng(1)
    conditions = ["noise"] * 5 + ["blur"] * 3 + ["jpeg"]
    reference, errors = rng.uniform(0.1, 0.6, size=9), rng.uniform(0.1, 0.6, size=(2, 4, 9))
    names, ce = corruption_error(errors, reference, conditions)
    assert names == ["noise", "blur", "jpeg"] and ce.shape == (2, 4, 3)
    assert ce[1, 2, 0] == pytest.approx(sum(errors[1, 2, :5]) / sum(reference[:5]))
    assert ce[1, 2, 2] == pytest.approx(errors[1, 2, 8] / reference[8])
    np.testing.assert_array_equal(corruption_error(reference, reference, conditions)[1], [1, 1, 1])


def test_only_an_undefined_corruption_error_is_nan() -> None:
    errors = [[0.2, np.nan, 0.4, 0.4, 0.0], [0.1, 0.1, 0.2, 0.2, 0.1]]
    _, ce = corruption_error(errors, [0.1, 0.1, 0.2, 0.2, 0.0], ["a", "a", "b", "b", "perfect"])
    np.testing.assert_array_equal(ce, [[np.nan, 2.0, 1.0], [1.0, 1.0, np.nan]])


def test_pareto_optimal_is_what_no_other_beats() -> None:
    rng = np.random.default_rng(2)
    cost, gain = rng.integers(0, 12, size=(2, 60)).astype(float)
    gain[:3], cost[3:5] = np.nan, np.nan

    def beaten(i: int) -> bool:
        no_worse = (cost <= cost[i]) & (gain >= gain[i])
        return bool((no_worse & ((cost < cost[i]) | (gain > gain[i]))).any())

    is_optimal = is_pareto_optimal(cost, gain)
    assert is_optimal.tolist() == [i >= 5 and not beaten(i) for i in range(60)] and is_optimal.sum() > 1
    assert is_pareto_optimal([1, 1, 1, 2], [0.5, 0.5, 0.4, 0.5]).tolist() == [True, True, False, False]


def test_bars_join_neighbours_of_which_no_two_differ_significantly() -> None:
    place = np.array([0.0, 0.4, 0.9, 1.2, 3.0, 9.0, 9.5])
    shuffled = np.random.default_rng(0).permutation(7)
    significant = np.abs(place[shuffled, None] - place[shuffled]) > 1
    assert find_cliques(np.argsort(shuffled).tolist(), significant) == [(0, 2), (1, 3), (5, 6)]
    assert find_cliques(range(3), np.ones((3, 3), bool) & ~np.eye(3, dtype=bool)) == []
    assert find_cliques(range(3), np.zeros((3, 3), bool)) == [(0, 2)]


def test_a_significant_pair_within_a_run_ends_it() -> None:
    significant = np.zeros((4, 4), bool)
    significant[1, 2] = significant[2, 1] = True
    assert find_cliques(range(4), significant) == [(0, 1), (2, 3)]


def test_the_best_is_marked_with_all_whose_intervals_overlap_its_own() -> None:
    mean, low, high = np.array([[0.9, 0.88, 0.92], [0.87, 0.85, 0.881], [0.8, 0.78, 0.82], [np.nan] * 3]).T
    assert overlaps_best(mean, low, high).tolist() == [True, True, False, False]
    assert not overlaps_best(mean, np.full(4, np.nan), np.full(4, np.nan)).any()
    assert not overlaps_best([np.nan], [np.nan], [np.nan]).any()
