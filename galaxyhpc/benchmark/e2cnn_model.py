"""The steerable CNN in e2cnn's own modules, as in Pandya et al. 2023 (arXiv:2311.01500): the reference for ours."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from galaxyhpc.models.steerable_cnn import StudyCNN
from galaxyhpc.steerable import groups


class E2cnnModel(nn.Module):
    """One of our steerable CNNs in e2cnn's modules, with a copy of its weights."""

    def __init__(self, network: StudyCNN, image_size: int) -> None:
        super().__init__()
        convolution: Any = next(network.blocks[0].children())
        space = groups.make_gspace(convolution.basis_spec[0])
        from e2cnn import nn as modules  # after make_gspace, which imports compat

        self.input_type = modules.FieldType(space, [space.trivial_repr] * convolution.in_fields)
        layers: list[Any] = [modules.MaskModule(self.input_type, image_size, margin=1)]
        for block in network.blocks:
            convolution, norm, _, *pools = block.children()
            fields = modules.FieldType(space, [space.regular_repr] * convolution.out_fields)
            options = {"stride": convolution.stride, "padding": convolution.padding, "bias": False}
            layers.append(modules.R2Conv(layers[-1].out_type, fields, 3, initialize=False, **options))
            layers[-1].weights.data.copy_(convolution.weight.data)
            layers += [modules.InnerBatchNorm(fields), modules.ReLU(fields, inplace=True)]
            next(layers[-2].children()).load_state_dict(norm.state_dict(), strict=False)
            layers += [modules.PointwiseAvgPoolAntialiased(fields, pool.sigma, pool.stride) for pool in pools]
        layers.append(modules.GroupPooling(layers[-1].out_type))
        self.layers = modules.SequentialModule(*layers)
        self.average, self.mlp = copy.deepcopy(network.average), copy.deepcopy(network.mlp)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> logits (N, classes)."""
        from e2cnn.nn import GeometricTensor

        pooled: Tensor = self.layers(GeometricTensor(images, self.input_type)).tensor
        logits: Tensor = self.mlp(self.average(pooled).flatten(1))
        return logits
