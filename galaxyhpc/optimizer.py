"""What turns gradients into steps: optimizer, learning rate, weights of the classes.

The learning rate is a function of the step, not a scheduler with a state that a checkpoint would have to hold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from galaxyhpc.config import TrainConfig
from galaxyhpc.data import CLASSES


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimizer; its learning rate is set anew at every step."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    rate, momentum, decay = config.learning_rate, config.momentum, config.weight_decay
    return torch.optim.SGD(model.parameters(), rate, momentum, weight_decay=decay)


def class_weights(labels: Tensor, config: TrainConfig) -> Tensor | None:
    """Return (10,) weights inverse to the classes' frequencies, with mean 1 over the galaxies."""
    if config.class_weights == "none":
        return None
    counts = torch.bincount(labels, minlength=len(CLASSES)).clamp(min=1)
    return len(labels) / (len(CLASSES) * counts.float())


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Return the learning rate of a step, a function of the step alone."""
    warm = config.warmup * steps
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
    if config.schedule == "multistep":
        passed = sum(step >= milestone * steps for milestone in config.milestones)
        return config.learning_rate * config.decay**passed
    return config.learning_rate
