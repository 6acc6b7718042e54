"""One small step of a small twin of every network: does it train, and what symmetry does it keep?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from galaxyhpc.config.schema import ModelConfig, TrainConfig

INVARIANCE_TOLERANCE = 1e-4  # relative change of an invariant network's logits under exact symmetries
TINY_SETTINGS = {"scale": 0.03, "width": "fields"}
TINY_IMAGE_SIZE_PX = 33  # px
ANGLES_DEG = (15.0, 30.0, 45.0)  # degrees, between those that need no interpolation


@dataclass(frozen=True)
class SymmetryErrors:
    """How much what a network says changes, as a fraction, when the image is moved."""

    exact_error: float | None  # logits, by quarter turns and mirror images of the network's group; None: it claims none
    error_by_angle: dict[float, float]  # what the classifier sees, by a turn of so many degrees


def tiny_config(model: ModelConfig) -> ModelConfig:
    """Return the settings of a network's twin."""
    return model.model_copy(update=TINY_SETTINGS)


def check_tiny_model(model: ModelConfig, train: TrainConfig) -> tuple[SymmetryErrors, str]:
    """Return what a network's twin keeps, and what is wrong with it: nothing where all is well."""
    import torch

    from galaxyhpc.models.build_model import build_model
    from galaxyhpc.models.equivariance import invariance_error, measure_rotation_sensitivity

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = build_model(tiny_config(model), TINY_IMAGE_SIZE_PX)
        exact = (
            None
            if model.invariance_group is None
            else invariance_error(twin, model.invariance_group, TINY_IMAGE_SIZE_PX)
        )
        symmetry = SymmetryErrors(exact, measure_rotation_sensitivity(twin, ANGLES_DEG, TINY_IMAGE_SIZE_PX))
        if exact is not None and exact > INVARIANCE_TOLERANCE:
            return (
                symmetry,
                f"its logits change by {exact:.1e} under exact symmetries; allowed {INVARIANCE_TOLERANCE:.0e}",
            )
        return symmetry, _check_training_step(twin, train)


def _check_training_step(network: Any, train: TrainConfig) -> str:
    """Take one step with four images of noise."""
    import torch
    from torch.nn.functional import cross_entropy

    from galaxyhpc.training.optimizer import make_optimizer

    optimizer = make_optimizer(network.train(), train)
    images, labels = torch.rand(4, 3, TINY_IMAGE_SIZE_PX, TINY_IMAGE_SIZE_PX), torch.arange(4)
    with torch.autocast("cpu", torch.bfloat16, enabled=train.precision == "bfloat16"):
        logits = network(images)
    loss = cross_entropy(logits.float(), labels, label_smoothing=train.label_smoothing)
    loss.backward()
    without = [name for name, value in network.named_parameters() if value.grad is None]
    if without:
        return f"{', '.join(without)} got no gradient in a first step; allowed is a network that uses all its weights"
    optimizer.step()
    finite = all(bool(value.isfinite().all()) for value in (loss, *network.parameters()))
    return "" if finite else f"a first step gives a loss of {loss.item():g} or weights that are not finite"
