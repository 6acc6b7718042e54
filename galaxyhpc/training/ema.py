"""Exponential moving average (EMA) of a network's weights, which is validated and saved instead of the network.

As in Tarvainen and Valpola (2017, arXiv:1703.01780), and as in their code a plain mean over the first steps, whose
untrained weights the exponential average would otherwise remember.

The running statistics of batch norm are averaged with the weights' own factors. Those of the last step belong to
other weights; the averaged ones are, to first order in how far the weights move meanwhile, those of the averaged
weights. Computing them anew (`torch.optim.swa_utils.update_bn`) would be exact and cost an epoch per validation.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def make_ema(network: nn.Module, decay: float | None) -> AveragedModel | None:
    """Return an average of the network, a copy of it before the first step; None if `decay` is None."""
    if decay is None:
        return None

    def update(averages: Sequence[Tensor], values: Sequence[Tensor], count: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # channel indices, num_batches_tracked: 3 must not become 2.99
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)
            return
        steps = int(count)
        get_ema_multi_avg_fn(min(decay, steps / (steps + 1)))(averages, values, count)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)
