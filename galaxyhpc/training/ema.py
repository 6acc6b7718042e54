"""Exponential moving average (EMA) of a network's weights, which is validated and saved instead of the network.

As in Tarvainen and Valpola (2017, arXiv:1703.01780), and as in their code a plain mean over the first steps, whose
untrained weights the exponential average would otherwise remember.

The running statistics of batch norm are averaged with the weights' own factors. Those of the last step belong to
other weights; the averaged ones are, to first order in how far the weights move meanwhile, those of the averaged
weights. Computing them anew (`torch.optim.swa_utils.update_bn`) would be exact and cost an epoch per validation.
"""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn


class Ema:
    """The average of a network, a copy of it at first, and the weight of the next step in it.

    The weight is a tensor on the network's device, where a captured step reads it; torch's `AveragedModel` would read
    its own count of steps on the host, and wait for the device.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module, self.decay = copy.deepcopy(network).requires_grad_(False), decay
        self.weight = torch.ones((), device=next(network.parameters()).device)

    def set_weight(self, step: int) -> None:
        """Set the weight of a step in the average, from `step`, the number of steps before it."""
        self.weight.fill_(1 - min(self.decay, step / (step + 1)))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the network by the weight; whole numbers are copied: 3 must not become 2.99."""
        averages = chain(self.module.parameters(), self.module.buffers())
        values = chain(network.parameters(), network.buffers())
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, self.weight.to(average.dtype))
            else:
                average.copy_(value)


def make_ema(network: nn.Module, decay: float | None) -> Ema | None:
    """Return an average of the network; None if `decay` is None."""
    return None if decay is None else Ema(network, decay)
