"""Temperature scaling: a known temperature is recovered, and probabilities follow from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from galaxyhpc.evaluation.calibration import TEMPERATURE_BOUNDS, fit_temperature, softmax
from galaxyhpc.evaluation.metrics import MetricsError, compute_counts, compute_metrics

Logits = NDArray[np.float32]


def overconfident(times: float, n: int = 20_000) -> tuple[Logits, NDArray[np.int64]]:
    """Return logits that are `times` too large, and labels drawn from the calibrated probabilities."""
    rng = np.random.default_rng(1)
    right = rng.normal(0, 2, (n, 10))
    labels = (right + rng.gumbel(size=right.shape)).argmax(1)
    return (times * right).astype(np.float32), labels


@pytest.mark.parametrize("times", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found_again(times: float) -> None:
    assert fit_temperature(*overconfident(times)) == pytest.approx(times, rel=0.02)


def test_the_temperature_is_where_the_likelihoods_slope_vanishes() -> None:
    logits, labels = overconfident(2.0)
    inverse = torch.tensor(1 / fit_temperature(logits, labels), dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double() * inverse, torch.from_numpy(labels))
    loss.backward()
    assert inverse.grad is not None and abs(float(inverse.grad)) < 1e-4


def test_confidences_come_to_be_how_often_the_network_is_right() -> None:
    logits, labels = overconfident(3.0)
    scaled = logits / fit_temperature(logits, labels)
    before, after = (float(compute_metrics(compute_counts(each, labels))["ece"]) for each in (logits, scaled))
    assert before > 0.15 and after < 0.02


def test_where_nothing_can_be_learned_the_temperature_stays_finite() -> None:
    labels = np.arange(50) % 10
    perfect = 5 * np.eye(10, dtype=np.float32)[labels]
    assert TEMPERATURE_BOUNDS[0] <= fit_temperature(perfect, labels) < 0.2
    assert fit_temperature(-perfect, labels) == pytest.approx(TEMPERATURE_BOUNDS[1], rel=1e-3)


def test_probabilities_are_those_of_the_softmax_however_large_the_logits() -> None:
    logits = np.array([[1.0, 2.0, 4.0], [1e4, 0.0, -1e4]], np.float32)
    expected = torch.softmax(torch.from_numpy(logits).double() / 2.5, 1).numpy()
    np.testing.assert_allclose(softmax(logits, 2.5), expected, rtol=1e-12)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(MetricsError, match="non-finite"):
        fit_temperature(np.full((3, 10), np.nan, np.float32), np.zeros(3, np.int64))
