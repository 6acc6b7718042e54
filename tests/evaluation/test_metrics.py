"""Metrics against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.tiers import num_examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)

from galaxyhpc.evaluation.metrics import (
    Counts,
    MetricsError,
    compute_counts,
    compute_metrics,
    compute_per_class,
    compute_reliability,
    consistency,
)


def galaxies(seed: int, n: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a moderately good network and the truth, of which only the first `classes` occur."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n).astype(np.uint8)
    return (rng.normal(size=(n, 10)) + 2.5 * np.eye(10)[labels]).astype(np.float32), labels


@settings(deadline=None, max_examples=num_examples(30))
@given(seed=st.integers(0, 10**6), n=st.integers(1, 300), classes=st.integers(1, 10))
def test_metrics_are_those_of_scikit_learn(seed: int, n: int, classes: int) -> None:
    logits, labels = galaxies(seed, n, classes)
    predicted, p = logits.argmax(1), softmax(logits.astype(np.float64), axis=1)
    counts = compute_counts(logits, labels)
    result = compute_metrics(counts)
    assert np.array_equal(counts.confusion, confusion_matrix(labels, predicted, labels=range(10)))
    recalls = [np.mean(predicted[labels == c] == c) for c in np.unique(labels)]
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "balanced_accuracy": np.mean(recalls),
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "nll": log_loss(labels, p, labels=range(10)),
        "brier": np.mean(np.sum((p - np.eye(10)[labels]) ** 2, axis=1)),
    }
    assert {name: float(result[name]) for name in expected} == pytest.approx(expected, rel=1e-9)
    if set(predicted) <= set(labels) and classes > 1 and n > 20:  # scikit-learn warns of the others
        assert float(result["balanced_accuracy"]) == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_ece_is_the_sum_over_bins_written_out_as_a_loop() -> None:
    logits, labels = galaxies(3, 500)
    p = softmax(logits.astype(np.float64), axis=1)
    confidence, hit, total = p.max(1), p.argmax(1) == labels, 0.0
    for b in range(15):
        inside = (confidence >= b / 15) & (confidence < (b + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert float(compute_metrics(compute_counts(logits, labels))["ece"]) == pytest.approx(total)


def test_certainty_falls_into_the_last_bin() -> None:
    counts = compute_counts(np.array([[1e4] + [0.0] * 9], dtype=np.float32), np.array([0], dtype=np.uint8))
    assert counts.bins[-1].tolist() == [1, 1, 1]
    assert float(counts.nll_sum) == 0


def test_counts_of_batches_add_up_to_the_counts_of_all() -> None:
    logits, labels = galaxies(1, 200)
    whole, added = (
        compute_counts(logits, labels),
        compute_counts(logits[:70], labels[:70]) + compute_counts(logits[70:], labels[70:]),
    )
    for name, value in vars(whole).items():
        np.testing.assert_allclose(getattr(added, name), value, rtol=1e-12)


def test_many_counts_at_once_give_the_metrics_of_each() -> None:
    each = [compute_counts(*galaxies(seed, 50)) for seed in range(4)]
    stacked = compute_metrics(Counts(*(np.stack(part) for part in zip(*(vars(c).values() for c in each), strict=True))))
    for name, values in stacked.items():
        assert values.tolist() == [float(compute_metrics(c)[name]) for c in each]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    logits, labels = galaxies(0, 20)
    logits[3:5, 2] = bad
    with pytest.raises(MetricsError, match="non-finite values for 2 of 20 galaxies"):
        compute_counts(logits, labels)


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(MetricsError, match=r"got shape \(5,\); expected \(5, classes\)"):
        compute_counts(np.zeros(5), np.zeros(5, dtype=np.uint8))
    with pytest.raises(MetricsError, match=r"got 9 classes; expected more than label 9"):
        compute_counts(np.zeros((5, 9)), np.full(5, 9, dtype=np.uint8))


@settings(deadline=None, max_examples=num_examples(20))
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), classes=st.integers(1, 10))
def test_rates_of_each_class_are_those_of_scikit_learn(seed: int, n: int, classes: int) -> None:
    logits, labels = galaxies(seed, n, classes)
    predicted = logits.argmax(1)
    expected = precision_recall_fscore_support(labels, predicted, labels=range(10), zero_division=np.nan)
    result = compute_per_class(compute_counts(logits, labels))
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(result[name], values, rtol=1e-12, err_msg=name)


def test_a_class_that_neither_occurs_nor_is_predicted_has_no_rates_and_no_support() -> None:
    result = compute_per_class(compute_counts(np.eye(10, dtype=np.float32)[:3], np.array([0, 1, 1], dtype=np.uint8)))
    np.testing.assert_array_equal(result["precision"][:4], [1, 1, 0, np.nan])
    np.testing.assert_array_equal(result["recall"][:4], [1, 0.5, np.nan, np.nan])
    assert np.isnan(result["f1"][3]) and result["support"].tolist() == [1, 2] + [0] * 8


def test_the_bins_show_what_the_ece_sums() -> None:
    logits, labels = galaxies(3, 500)
    counts = compute_counts(logits, labels)
    bins = compute_reliability(counts)
    gaps = bins["galaxies"] * np.abs(bins["accuracy"] - bins["confidence"])
    assert np.nansum(gaps) / 500 == pytest.approx(float(compute_metrics(counts)["ece"]))
    confidence = softmax(logits.astype(np.float64), axis=1).max(1)
    inside = (confidence >= 9 / 15) & (confidence < 10 / 15)
    assert bins["galaxies"][9] == inside.sum() and bins["confidence"][9] == pytest.approx(confidence[inside].mean())
    assert np.isnan(bins["accuracy"][0]) and np.isnan(bins["confidence"][0])  # ten classes: never below 1/10


def test_rates_of_many_counts_at_once_are_those_of_each() -> None:
    each = [compute_counts(*galaxies(seed, 50)) for seed in range(3)]
    stacked = Counts(*(np.stack(part) for part in zip(*(vars(c).values() for c in each), strict=True)))
    for of in (compute_per_class, compute_reliability):
        for name, values in of(stacked).items():
            np.testing.assert_array_equal(values, np.stack([of(c)[name] for c in each]))


def test_consistency_is_the_fraction_that_stays_right_or_wrong() -> None:
    clean, noisy = np.array([[1, 2, 3, 3]]), np.array([[1, 2, 3, 0], [0, 0, 0, 0], [1, 2, 3, 3]])
    assert consistency(noisy, clean).tolist() == [0.75, 0.0, 1.0]


def test_counts_at_a_temperature_are_those_of_the_divided_logits() -> None:
    logits, labels = galaxies(4, 300)
    scaled = compute_counts(logits, labels, 1.7)
    assert float(compute_metrics(scaled)["nll"]) == pytest.approx(
        log_loss(labels, softmax(logits.astype(float) / 1.7, axis=1))
    )
    assert np.array_equal(scaled.confusion, compute_counts(logits, labels).confusion)


@pytest.mark.parametrize("num_classes", [2, 3, 40, 300])
def test_metrics_of_any_number_of_classes_are_those_of_scikit_learn(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    labels = rng.permutation(np.repeat(np.arange(num_classes), 5)).astype(np.uint16)
    logits = (rng.normal(size=(len(labels), num_classes)) + 3 * np.eye(num_classes)[labels]).astype(np.float32)
    counts, predicted = compute_counts(logits, labels), logits.argmax(1)
    assert np.array_equal(counts.confusion, confusion_matrix(labels, predicted))
    result = compute_metrics(counts)
    assert float(result["balanced_accuracy"]) == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert float(result["macro_f1"]) == pytest.approx(f1_score(labels, predicted, average="macro"))
