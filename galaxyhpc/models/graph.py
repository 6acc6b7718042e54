"""A network as it is trained: on a GPU in one graph of torch.compile, unless its blocks stay in irreps.

What is compiled shares all weights with the network itself, which is evaluated as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from galaxyhpc.models.layers import SteerableConv


class Graph(nn.Module):
    """The function of a network, in training."""

    def __init__(self, network: nn.Module, *, compiled: bool) -> None:
        super().__init__()
        self.network = network
        # not a module of this one, or every weight would be there twice
        self.__dict__["run"] = torch.compile(network) if compiled and not _is_harmonic(network) else network

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> logits (N, classes)."""
        logits: Tensor = self.__dict__["run"](images)
        return logits


def _is_harmonic(network: nn.Module) -> bool:
    return any(isinstance(layer, SteerableConv) and layer.harmonic for layer in network.modules())
