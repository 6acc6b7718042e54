"""Equivariant ResNets: He et al. 2016 (arXiv:1512.03385) with regular fields instead of channels.

| part       | fields                    | depth 18: basic blocks | depth 50: bottlenecks  |
|------------|---------------------------|------------------------|------------------------|
| stem       | w                         | 7x7 stride 2, batch norm, ReLU, 3x3 max-pool stride 2 | the same |
| stage 1    | w (50: 2 w after blocks)  | 2 x (3x3, 3x3)         | 3 x (1x1, 3x3, 1x1)    |
| stage 2    | 2 w (4 w)                 | 2, the first stride 2  | 4, the first stride 2  |
| stage 3    | 4 w (8 w)                 | 2, the first stride 2  | 6, the first stride 2  |
| stage 4    | 8 w (16 w)                | 2, the first stride 2  | 3, the first stride 2  |
| head       |                           | average over the image, group pooling, Linear   | the same |

w = `base_width`, 64 by default; `blocks` sets the numbers of blocks (for the small networks of Pandya et al. 2023,
arXiv:2311.01500). Each convolution is followed by a batch norm with one mean and variance per field; a block's input is
added before its last ReLU, through a 1x1 convolution where shapes differ. Filters have e2cnn's default rings and
frequencies, weights are drawn by its generalised He rule.

Parameters grow with the group. Those of the study's networks, in millions: depth 18 with w = 80 C1 11.7; with w = 54
D1 10.7, C4 21.4, D4 42.7; with w = 5 and blocks 1 1 1 1 C4 0.1; depth 50 C4 51.7; blocks 3 2 2 2 C2 14.7, C4 29.4,
D4 58.9.

A max-pool keeps equivariance only where its windows map to windows: on the odd sizes that
`config.image_size.is_exact_image_size` allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.steerable import groups
from galaxyhpc.steerable.batch_norm import FieldBatchNorm, FusedSequential
from galaxyhpc.steerable.layers import CircularMask, GroupPooling, SteerableConv

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
EXPANSION = {18: 1, 50: 2}


class ResidualBlock(nn.Module):
    """Convolutions with batch norms, added to their input: basic (3x3, 3x3) or a bottleneck (1x1, 3x3, 1x1)."""

    def __init__(self, group: str, in_fields: int, fields: int, stride: int, depth: int) -> None:
        super().__init__()
        outputs = EXPANSION[depth] * fields
        sizes = [(3, stride), (3, 1)] if depth == 18 else [(1, 1), (3, stride), (1, 1)]
        counts = [in_fields, *[fields] * (len(sizes) - 1), outputs]
        layers: list[nn.Module] = []
        for (size, step), (num_in, num_out) in zip(sizes, pairwise(counts), strict=True):
            layers += [*_make_conv_bn(group, num_in, num_out, size, step), nn.ReLU(inplace=True)]
        self.layers = FusedSequential(*layers[:-1])
        has_same_shape = stride == 1 and in_fields == outputs
        self.shortcut = (
            nn.Identity() if has_same_shape else FusedSequential(*_make_conv_bn(group, in_fields, outputs, 1, stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs x |G|, H, W) -> (N, outputs x |G|, ceil(H / stride), ceil(W / stride))."""
        return F.relu(self.layers(x) + self.shortcut(x))


class E2ResNet(nn.Module):
    """An equivariant ResNet of four stages."""

    def __init__(
        self,
        group: str,
        depth: int,
        blocks_per_stage: Sequence[int],
        fields: Sequence[int],
        image_size: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        order = groups.group_order(group)
        self.front = CircularMask(image_size)
        stem = SteerableConv(group, 3, fields[0], 7, kind="trivial", stride=2, padding=3)
        self.stem = FusedSequential(stem, FieldBatchNorm(fields[0], order), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.Sequential()
        inputs = fields[0]
        for number, (count, repeats) in enumerate(zip(fields, blocks_per_stage, strict=True)):
            for block in range(repeats):
                stride = 2 if number > 0 and block == 0 else 1
                self.stages.append(ResidualBlock(group, inputs, count, stride, depth))
                inputs = EXPANSION[depth] * count
        self.average = nn.AdaptiveAvgPool2d(1)
        self.group_pool = GroupPooling(order)
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> logits (N, classes)."""
        logits: Tensor = self.linear(self.group_pool(self.average(self.forward_features(images))).flatten(1))
        return logits

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> the last map (N, fields x |G|, s, s), equivariant in channels and pixels."""
        feature_map: Tensor = self.stages(self.pool(self.stem(self.front(images))))
        return feature_map


def scale_fields(config: ModelConfig, factor: float) -> tuple[int, ...]:
    """Return the fields of the four stages, times a factor, at least one each."""
    width = 64 if config.base_width is None else config.base_width
    return tuple(max(1, round(factor * multiple * width)) for multiple in (1, 2, 4, 8))


def build_e2resnet(config: ModelConfig, fields: Sequence[int], image_size: int, num_classes: int) -> E2ResNet:
    """Build a ResNet of `config.group` and `config.depth`, with `config.blocks` if it has them."""
    assert config.group is not None and config.depth is not None
    blocks_per_stage = config.blocks or BLOCKS_PER_STAGE[config.depth]
    return E2ResNet(config.group, config.depth, blocks_per_stage, fields, image_size, num_classes)


def _make_conv_bn(group: str, in_fields: int, out_fields: int, kernel_size: int, stride: int) -> list[nn.Module]:
    convolution = SteerableConv(group, in_fields, out_fields, kernel_size, stride=stride, padding=kernel_size // 2)
    return [convolution, FieldBatchNorm(out_fields, groups.group_order(group))]
