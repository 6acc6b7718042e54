"""Equivariant wide ResNets (Weiler and Cesa 2019, arXiv:1911.08251, section 3.4 and their example code e2wrn).

| part    | fields                                           | layers                               |
|---------|--------------------------------------------------|--------------------------------------|
| stem    | 16 planes, regular                               | 5x5 convolution                      |
| stage 1 | 16 k planes, regular, of the group               | n blocks, the first of stride 2      |
| stage 2 | 32 k planes, regular, of the first restriction   | the same                             |
| stage 3 | 64 k planes, regular, of the second restriction  | the same, but the last block ends in |
|         |                                                  | 64 k sqrt(|H|) trivial fields        |
| head    |                                                  | batch norm, ReLU, average, Linear    |

depth = 6n + 4, k = widen. A block is batch norm, ReLU, convolution, batch norm, ReLU, dropout 0.3, convolution, added
to its input (or to a 1x1 convolution of the activated one where shapes differ). Convolutions are 5x5 while the group
has other rotations than those of C4, 3x3 afterwards, with angular frequencies up to 3 r at radius r. P planes are
P / sqrt(|G|) regular fields: a convolution then has about as many parameters as the conventional one of P channels.

Parameters, in millions: 16-8 D8D4D1 12.0, D8D4D4 10.8, D1 10.0; 28-10 D8D4D1 37.2, C8C4C1 37.2, D1 32.8; 28-7 D8D4D1
18.2; about those of the conventional network, 11.0, 36.5 and 17.9, for every group.

The logits are invariant under the LAST group only: under reflections for D8D4D1, whose first stages alone are
equivariant to more. The momentum of the last batch norm is 0.1 as everywhere; the 0.9 of e2wrn would leave little but
the last batch. Images are masked to a circle as in all our networks. Weights are drawn by the generalised He rule
(Weiler et al. 2018, arXiv:1711.07289).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.steerable import groups
from galaxyhpc.steerable.batch_norm import FieldBatchNorm, normalise
from galaxyhpc.steerable.layers import CircularMask, Restriction, SteerableConv

FREQUENCY_CUTOFF = 3.0  # angular frequencies per px of radius
DROPOUT = 0.3


class WideBlock(nn.Module):
    """A block of two convolutions, each after batch norm and ReLU."""

    def __init__(
        self,
        group: str,
        in_fields: int,
        inner_fields: int,
        out_fields: int,
        stride: int,
        out_kind: groups.FieldKind,
        in_group: str,
    ) -> None:
        super().__init__()
        order, size = groups.group_order(group), 3 if groups.count_rotations(group) in (1, 2, 4) else 5
        parts = groups.group_order(in_group) // order  # of a restricted field: e2cnn normalises them as one
        self.norm1, self.norm2 = FieldBatchNorm(in_fields // parts, order * parts), FieldBatchNorm(inner_fields, order)
        self.conv1 = SteerableConv(group, in_fields, inner_fields, size, padding=size // 2, cutoff=FREQUENCY_CUTOFF)
        make_output_conv = partial(SteerableConv, group, out_kind=out_kind, cutoff=FREQUENCY_CUTOFF, stride=stride)
        self.conv2 = make_output_conv(inner_fields, out_fields, size, padding=size // 2)
        has_same_shape = stride == 1 and in_fields == out_fields and out_kind == "regular"
        self.shortcut = None if has_same_shape else make_output_conv(in_fields, out_fields, 1)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs x |G|, H, W) -> (N, outputs x d, ceil(H / stride), ceil(W / stride))."""
        active = normalise(x, self.norm1)
        residual: Tensor = self.conv2(self.dropout(normalise(self.conv1(active), self.norm2)))
        return residual + (x if self.shortcut is None else self.shortcut(active))


class E2WRN(nn.Module):
    """An equivariant wide ResNet of three stages, each with its own group."""

    def __init__(
        self,
        stage_groups: Sequence[str],
        blocks_per_stage: int,
        fields: Sequence[int],
        image_size: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        stem, *fields_per_stage, trivial = fields
        kind: groups.FieldKind
        self.front = CircularMask(image_size)
        self.stem = SteerableConv(stage_groups[0], 3, stem, 5, kind="trivial", padding=2, cutoff=FREQUENCY_CUTOFF)
        self.stages = nn.Sequential()
        in_group, in_fields = stage_groups[0], stem
        for number, (group, stage_fields) in enumerate(zip(stage_groups, fields_per_stage, strict=True)):
            if group != in_group:
                self.stages.append(Restriction(in_group, group))
                in_fields = in_fields * groups.group_order(in_group) // groups.group_order(group)
            for block in range(blocks_per_stage):
                is_last = number == 2 and block == blocks_per_stage - 1
                out_fields, kind = (trivial, "trivial") if is_last else (stage_fields, "regular")
                self.stages.append(
                    WideBlock(group, in_fields, stage_fields, out_fields, 2 if block == 0 else 1, kind, in_group)
                )
                in_fields, in_group = out_fields, group
        self.norm = FieldBatchNorm(trivial)
        self.linear = nn.Linear(trivial, num_classes)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> logits (N, classes)."""
        logits: Tensor = self.linear(self.forward_features(images).mean((2, 3)))
        return logits

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> the last map (N, fields, s, s), which rotates with the image."""
        return normalise(self.stages(self.stem(self.front(images))), self.norm)


def scale_fields(config: ModelConfig, factor: float) -> tuple[int, ...]:
    """Return the fields of stem, stages and last block, whose planes are multiplied by a factor."""
    assert config.widen is not None
    planes, stages = [16, *(width * config.widen for width in (16, 32, 64))], _get_stage_groups(config)
    roots = [math.sqrt(groups.group_order(group)) for group in (stages[0], *stages)]
    regular = [max(1, int(factor * count / root + 1e-9)) for count, root in zip(planes, roots, strict=True)]
    return (*regular, max(1, int(factor * planes[3] * roots[3] + 1e-9)))


def build_e2wrn(config: ModelConfig, fields: Sequence[int], image_size: int, num_classes: int) -> E2WRN:
    """Build a wide ResNet of `config.depth`, whose group is restricted before the second and third stage."""
    assert config.depth is not None
    return E2WRN(_get_stage_groups(config), (config.depth - 4) // 6, fields, image_size, num_classes)


def _get_stage_groups(config: ModelConfig) -> list[str]:
    """Return the group of each stage; the last one given is repeated."""
    assert config.group is not None
    chain = [config.group, *config.restriction]
    return chain + chain[-1:] * (3 - len(chain))
