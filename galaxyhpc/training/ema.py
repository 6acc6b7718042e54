"""The average of a network over the steps of its training, which is validated and kept in its place.

Exponential, as in Tarvainen and Valpola (2017, arXiv:1703.01780), and as in their code a plain mean at first, for as
many steps as the exponential one would remember what the network was like before it had learned anything.

The running statistics of batch norm are averaged with the weights' own factors. Those of the last step belong to
other weights; the averaged ones are, to first order in how far the weights move meanwhile, those of the averaged
weights. Measuring them anew (`torch.optim.swa_utils.update_bn`) would be exact and cost an epoch per validation.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def make_ema(network: nn.Module, decay: float | None) -> AveragedModel | None:
    """Return an average of the network, of which it is a copy before the first step; None without a decay."""
    if decay is None:
        return None

    def update(averages: Sequence[Tensor], values: Sequence[Tensor], count: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # an order of channels, a count of batches: 3 must not become 2.99
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)
            return
        steps = int(count)
        get_ema_multi_avg_fn(min(decay, steps / (steps + 1)))(averages, values, count)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)
