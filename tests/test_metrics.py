"""Metrics against scikit-learn, intervals against what they promise."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, log_loss

from galaxyhpc.metrics import Counts, MetricsError, count, metrics
from galaxyhpc.statistics import bootstrap_interval, wilson_interval


def galaxies(seed: int, n: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a moderately good network and the truth, of which only the first `classes` occur."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n).astype(np.uint8)
    return (rng.normal(size=(n, 10)) + 2.5 * np.eye(10)[labels]).astype(np.float32), labels


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 300), classes=st.integers(1, 10))
def test_metrics_are_those_of_scikit_learn(seed: int, n: int, classes: int) -> None:
    logits, labels = galaxies(seed, n, classes)
    predicted, p = logits.argmax(1), softmax(logits.astype(np.float64), axis=1)
    counts = count(logits, labels)
    found = metrics(counts)
    assert np.array_equal(counts.confusion, confusion_matrix(labels, predicted, labels=range(10)))
    recalls = [np.mean(predicted[labels == c] == c) for c in np.unique(labels)]
    wanted = {
        "accuracy": accuracy_score(labels, predicted),
        "balanced_accuracy": np.mean(recalls),
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "nll": log_loss(labels, p, labels=range(10)),
        "brier": np.mean(np.sum((p - np.eye(10)[labels]) ** 2, axis=1)),
    }
    assert {name: float(found[name]) for name in wanted} == pytest.approx(wanted, rel=1e-9)
    if set(predicted) <= set(labels) and classes > 1 and n > 20:  # scikit-learn warns of the others
        assert float(found["balanced_accuracy"]) == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_ece_is_the_sum_over_bins_written_out_as_a_loop() -> None:
    logits, labels = galaxies(3, 500)
    p = softmax(logits.astype(np.float64), axis=1)
    confidence, hit, total = p.max(1), p.argmax(1) == labels, 0.0
    for b in range(15):
        inside = (confidence >= b / 15) & (confidence < (b + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert float(metrics(count(logits, labels))["ece"]) == pytest.approx(total)


def test_certainty_falls_into_the_last_bin() -> None:
    counts = count(np.array([[1e4] + [0.0] * 9], dtype=np.float32), np.array([0], dtype=np.uint8))
    assert counts.bins[-1].tolist() == [1, 1, 1]
    assert float(counts.nll_sum) == 0


def test_counts_of_batches_add_up_to_the_counts_of_all() -> None:
    logits, labels = galaxies(1, 200)
    whole, added = count(logits, labels), count(logits[:70], labels[:70]) + count(logits[70:], labels[70:])
    for name, value in vars(whole).items():
        np.testing.assert_allclose(getattr(added, name), value, rtol=1e-12)


def test_many_counts_at_once_give_the_metrics_of_each() -> None:
    each = [count(*galaxies(seed, 50)) for seed in range(4)]
    stacked = metrics(Counts(*(np.stack(part) for part in zip(*(vars(c).values() for c in each), strict=True))))
    for name, values in stacked.items():
        assert values.tolist() == [float(metrics(c)[name]) for c in each]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    logits, labels = galaxies(0, 20)
    logits[3:5, 2] = bad
    with pytest.raises(MetricsError, match="2 of 20 galaxies are not finite"):
        count(logits, labels)


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(MetricsError, match=r"\(5, 9\); 5 labels need \(5, 10\)"):
        count(np.zeros((5, 9)), np.zeros(5, dtype=np.uint8))


@pytest.mark.parametrize(("correct", "n"), [(0, 5), (5, 5), (3, 7), (1500, 1774)])
def test_wilson_is_that_of_scipy(correct: int, n: int) -> None:
    wanted = binomtest(correct, n).proportion_ci(method="wilson")
    assert [float(v) for v in wilson_interval(correct, n)] == pytest.approx([wanted.low, wanted.high])


def test_with_one_seed_and_lone_galaxies_the_bootstrap_is_near_wilson() -> None:
    hits = np.random.default_rng(0).random((1, 1, 1500)) < 0.8
    low, high = bootstrap_interval(hits, np.arange(1500))
    wanted = [float(v) for v in wilson_interval(hits.sum(), 1500)]
    assert [low[0], high[0]] == pytest.approx(wanted, abs=0.004)


def test_the_bootstrap_equals_one_written_out_as_loops_within_its_noise() -> None:
    rng = np.random.default_rng(5)
    groups = rng.integers(60, size=150)
    correct = (rng.random((3, 2, 150)) < rng.uniform(0.4, 0.9, size=(3, 1, 1))).astype(float)
    found, ids = [], np.unique(groups)
    for _ in range(2000):
        chosen = np.concatenate([np.flatnonzero(groups == g) for g in rng.choice(ids, len(ids))])
        found.append(correct[rng.integers(3, size=3)][:, :, chosen].mean(axis=(0, 2)))
    wanted = np.quantile(found, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(bootstrap_interval(correct, groups, draws=4000), wanted, atol=0.02)


def test_overlapping_frames_and_unlike_seeds_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    hits = np.repeat(rng.random((1, 1, 300)) < 0.7, 4, axis=2)  # four frames of each of 300 pieces of sky
    alike, unlike = np.repeat(hits, 4, axis=0), np.stack([hits[0], hits[0], ~hits[0], hits[0]])

    def width(correct: np.ndarray, groups: np.ndarray) -> float:
        low, high = bootstrap_interval(correct, groups)
        return float(high[0] - low[0])

    together, apart = np.repeat(np.arange(300), 4), np.arange(1200)
    assert width(alike, together) == pytest.approx(2 * width(alike, apart), rel=0.15)
    assert width(unlike, apart) > 2 * width(alike, apart)


def test_about_nineteen_intervals_of_twenty_hold_the_truth() -> None:
    """Galaxies are easy or hard for all seeds alike, as real ones are, and seeds differ by 3 points."""
    rng, held = np.random.default_rng(11), 0
    for _ in range(400):
        difficulty, of_seed = rng.normal(size=(1, 1, 200)), rng.normal(scale=0.1, size=(8, 1, 1))
        low, high = bootstrap_interval(difficulty + of_seed < 0.8, np.arange(200), draws=300)
        held += int(low[0] <= NormalDist().cdf(0.8 / np.hypot(1, 0.1)) <= high[0])
    assert 0.91 <= held / 400 <= 0.98


def test_the_same_input_gives_the_same_interval() -> None:
    hits = np.random.default_rng(0).random((3, 4, 90)) < 0.5
    first, again = (bootstrap_interval(hits, np.arange(90) // 2) for _ in range(2))
    assert np.array_equal(first, again)
