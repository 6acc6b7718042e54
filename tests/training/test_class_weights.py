"""Weights of the classes in the loss."""

from __future__ import annotations

import pytest
import torch

from galaxyhpc.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from galaxyhpc.training.optimizer import compute_class_weights


def weigh(labels: list[int], class_weights: str = "balanced") -> torch.Tensor | None:
    data = DataConfig(source="a.h5", classes=("E", "S0", "Sp"))
    train = TrainConfig.model_validate({"class_weights": class_weights})
    return compute_class_weights(torch.tensor(labels), RunConfig(model=ModelConfig(group="C4"), data=data, train=train))


def test_a_galaxy_of_a_rare_class_weighs_more_and_the_mean_is_one() -> None:
    labels = [0] * 6 + [1] * 3 + [2]
    weights = weigh(labels)
    assert weights is not None and weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert weights[labels].mean().item() == pytest.approx(1.0)
    assert weigh(labels, "none") is None


def test_a_class_without_training_galaxies_has_a_finite_weight_and_leaves_the_mean_at_one() -> None:
    labels = [0] * 6 + [1] * 3
    weights = weigh(labels)
    assert weights is not None and len(weights) == 3 and bool(weights.isfinite().all())
    assert weights[labels].mean().item() == pytest.approx(1.0)
