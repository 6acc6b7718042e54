"""One small step of a small twin of every network: does it train, and what symmetry does it keep?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from galaxyhpc.config.schema import ModelConfig, TrainConfig

TOLERANCE = 1e-4  # relative change of an invariant network's logits under exact symmetries
SMALL = {"scale": 0.03, "width": "fields"}
TWIN_SIDE = 33  # px
ANGLES = (15.0, 30.0, 45.0)  # degrees, between those that need no interpolation


@dataclass(frozen=True)
class Symmetry:
    """How much what a network says changes, as a fraction, when the image is moved."""

    exact: float | None  # logits, by quarter turns and mirror images of the network's group; None: it claims none
    curve: dict[float, float]  # what the classifier sees, by a turn of so many degrees


def narrow(model: ModelConfig) -> ModelConfig:
    """Return the settings of a network's twin."""
    return model.model_copy(update=SMALL)


def try_twin(model: ModelConfig, train: TrainConfig) -> tuple[Symmetry, str]:
    """Return what a network's twin keeps, and what is wrong with it: nothing where all is well."""
    import torch

    from galaxyhpc.models import build_model
    from galaxyhpc.models.equivariance import invariance_error, rotation_curve

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = build_model(narrow(model), TWIN_SIDE)
        exact = None if model.symmetry is None else invariance_error(twin, model.symmetry, TWIN_SIDE)
        symmetry = Symmetry(exact, rotation_curve(twin, ANGLES, TWIN_SIDE))
        if exact is not None and exact > TOLERANCE:
            return symmetry, f"its logits change by {exact:.1e} under exact symmetries; allowed {TOLERANCE:.0e}"
        return symmetry, _step_problem(twin, train)


def _step_problem(twin: Any, train: TrainConfig) -> str:
    """Take one step with four images of noise."""
    import torch
    from torch.nn.functional import cross_entropy

    from galaxyhpc.training.optimizer import make_optimizer

    optimizer = make_optimizer(twin.train(), train)
    images, labels = torch.rand(4, 3, TWIN_SIDE, TWIN_SIDE), torch.arange(4)
    with torch.autocast("cpu", torch.bfloat16, enabled=train.precision == "bfloat16"):
        logits = twin(images)
    loss = cross_entropy(logits.float(), labels, label_smoothing=train.label_smoothing)
    loss.backward()
    without = [name for name, value in twin.named_parameters() if value.grad is None]
    if without:
        return f"{', '.join(without)} got no gradient in a first step; allowed is a network that uses all its weights"
    optimizer.step()
    finite = all(bool(value.isfinite().all()) for value in (loss, *twin.parameters()))
    return "" if finite else f"a first step gives a loss of {loss.item():g} or weights that are not finite"
