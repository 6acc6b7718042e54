"""Networks with random weights, and ones that fail, importable by a process that a test starts."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models.build_model import build_model
from galaxyhpc.steerable.batch_norm import FieldBatchNorm

SIDE = 33  # px of `make_images`


def make_untrained(config: ModelConfig) -> nn.Module:
    """Build a network with random weights whose outputs differ between images."""
    torch.manual_seed(0)
    network = build_model(config, SIDE).train()
    for layer in network.modules():
        if isinstance(layer, FieldBatchNorm):
            layer.momentum = 1.0  # statistics are those of the images that follow
    with torch.no_grad():
        network(make_images(16))
    return network.eval()


def make_images(count: int) -> Tensor:
    """Return smooth random images in [0, 1], (count, 3, SIDE, SIDE), the same ones each time."""
    coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=SIDE, mode="bilinear")


class RaisingNetwork(nn.Linear):
    """Fails as a GPU without a kernel for it."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no kernel image")


class AbortingNetwork(RaisingNetwork):
    """Ends its process as a driver may."""

    def forward(self, x: Tensor) -> Tensor:
        os.abort()
