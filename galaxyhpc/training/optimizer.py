"""Optimizer, learning rate schedule and class weights.

The learning rate is a function of the step, not a scheduler with a state that a checkpoint would have to hold.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from galaxyhpc.config.schema import RunConfig, TrainConfig
from galaxyhpc.models.baselines import Baseline

BODY_LEARNING_RATE_FACTOR = 0.1  # of the learning rate, for the body of a pretrained network


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimizer; `set_learning_rate` sets its learning rates before every step."""
    groups, rate, decay = _make_param_groups(model, config), config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, rate, weight_decay=decay)
    return torch.optim.SGD(groups, rate, config.momentum, weight_decay=decay)


def _make_param_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return all weights in one group, or the body of a pretrained network and its new last layer in two.

    A randomly initialized last layer sends meaningless gradients into the pretrained body, which a low learning rate
    protects (Kumar et al. 2022, arXiv:2202.10054). A tenth of the last layer's rate is what Chen et al. (2017,
    arXiv:1606.00915, section 4) and Carion et al. (2020, arXiv:2005.12872, section 4) use.
    """
    pretrained = next((m for m in model.modules() if isinstance(m, Baseline) and m.pretrained_sha256), None)
    if pretrained is None:
        return [{"params": list(model.parameters())}]
    rate = config.body_learning_rate
    factor = BODY_LEARNING_RATE_FACTOR if rate is None else rate / config.learning_rate
    head = set(pretrained.head.parameters())
    body = [weight for weight in model.parameters() if weight not in head]
    return [
        {"params": body, "lr": factor * config.learning_rate, "share": factor},  # `share` is in checkpoints
        {"params": list(pretrained.head.parameters())},
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group, times the factor of the group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("share", 1.0)


def compute_class_weights(labels: Tensor, config: RunConfig) -> Tensor | None:
    """Return (K,) weights of the K classes, inverse to their frequencies, with mean 1 over the galaxies.

    A class without training galaxies has the weight of one with a single galaxy, and is not counted in the mean.
    """
    if config.train.class_weights == "none":
        return None
    counts = torch.bincount(labels, minlength=len(config.data.class_names))
    num_present = int((counts > 0).sum())
    return len(labels) / (num_present * counts.clamp(min=1).float())


def compute_learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then the schedule."""
    warmup_steps = config.warmup * total_steps
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / (warmup_steps + 1)
    if config.schedule == "cosine":
        fraction = (step - warmup_steps) / (total_steps - warmup_steps)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))
    if config.schedule == "multistep":
        num_passed = sum(step >= milestone * total_steps for milestone in config.milestones)
        return config.learning_rate * config.decay**num_passed
    return config.learning_rate
