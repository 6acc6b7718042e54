"""Checks a tiny version of every network: one training step, and its error under symmetries of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.config.schema import ModelConfig, TrainConfig

INVARIANCE_TOLERANCE = 1e-4  # relative change of an invariant network's logits under exact symmetries of its group
TINY_SETTINGS = {"scale": 0.03, "width": "fields"}
TINY_IMAGE_SIZE_PX = 33
ANGLES_DEG = (15.0, 30.0, 45.0)  # not multiples of 90 degrees: rotations with interpolation


@dataclass(frozen=True)
class SymmetryErrors:
    """Relative changes of a network's output when the image is rotated or reflected."""

    exact_error: float | None  # of the logits, under rotations by 90 degrees and reflections of the network's group
    error_by_angle: dict[float, float]  # of the features before the classifier, by rotation angle in degrees


def tiny_config(model: ModelConfig) -> ModelConfig:
    """Return the settings of the tiny version of a network."""
    return model.model_copy(update=TINY_SETTINGS)


def check_tiny_model(
    model: ModelConfig, train: TrainConfig, num_classes: int = len(GALAXY10_CLASSES)
) -> tuple[SymmetryErrors, str]:
    """Return the symmetry errors of a tiny network, and a message if the check fails, else ''."""
    import torch

    from galaxyhpc.models.build_model import build_model
    from galaxyhpc.models.equivariance import invariance_error, measure_rotation_sensitivity

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_model(tiny_config(model), TINY_IMAGE_SIZE_PX, num_classes)
        group = model.invariance_group
        exact_error = None if group is None else invariance_error(network, group, TINY_IMAGE_SIZE_PX)
        errors = SymmetryErrors(exact_error, measure_rotation_sensitivity(network, ANGLES_DEG, TINY_IMAGE_SIZE_PX))
        if exact_error is not None and exact_error > INVARIANCE_TOLERANCE:
            change = f"its logits change by {exact_error:.1e} under exact symmetries"
            return errors, f"{change}; expected at most {INVARIANCE_TOLERANCE:.0e}"
        return errors, _check_training_step(network, train)


def _check_training_step(network: Any, train: TrainConfig) -> str:
    """Train one step on four images of noise; return a message if it fails, else ''."""
    import torch
    from torch.nn.functional import cross_entropy

    from galaxyhpc.training.optimizer import make_optimizer

    optimizer = make_optimizer(network.train(), train)
    images = torch.rand(4, 3, TINY_IMAGE_SIZE_PX, TINY_IMAGE_SIZE_PX)
    with torch.autocast("cpu", torch.bfloat16, enabled=train.precision == "bfloat16"):
        logits = network(images)
    labels = torch.arange(4) % logits.shape[1]
    loss = cross_entropy(logits.float(), labels, label_smoothing=train.label_smoothing)
    loss.backward()
    unused = [name for name, value in network.named_parameters() if value.grad is None]
    if unused:
        return f"{', '.join(unused)} got no gradient in the first step; expected a gradient for every weight"
    optimizer.step()
    is_finite = all(bool(value.isfinite().all()) for value in (loss, *network.parameters()))
    return "" if is_finite else f"the first step gives a loss of {loss.item():g} or non-finite weights"
