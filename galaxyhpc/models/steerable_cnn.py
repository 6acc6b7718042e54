"""The study's steerable CNN (Pandya et al. 2023, arXiv:2311.01500) and the layout it shares with `cnn`.

Eleven blocks of 3x3 convolution, batch norm and ReLU, an anti-aliased pool after some, group pooling, an MLP. The input
is raw images in [0, 1], which are masked to a circle first, black like the sky; the batch norm after the first
convolution makes a normalisation of the images redundant. Every stage maps a grid symmetric about its centre to another
one, see `compute_stem_geometry`.

Parameters at the study's fields and with the pooling head, in millions: C1 0.4, C2 and D1 0.8, C4 and D2 1.5, C8 and
D4 3.1, C16 and D8 6.1, D16 12.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.steerable import groups
from galaxyhpc.steerable.batch_norm import FieldBatchNorm, FusedSequential
from galaxyhpc.steerable.blocks import BlockSequence
from galaxyhpc.steerable.layers import AntialiasedPool, CircularMask, GroupPooling, SteerableConv

BLOCK_FIELDS = (12, 24, 48, 48, 48, 48, 96, 96, 96, 112, 192)
POOLED_BLOCKS = (2, 4, 7, 9, 11)  # blocks, counted from 1, that are followed by a pool of stride 2
IN_CHANNELS = 3

Head = Literal["pool", "flatten"]
# 3x3: (kind of field in, fields in, fields out, stride, padding)
ConvolutionFactory = Callable[[groups.FieldKind, int, int, int, int], nn.Module]


class StudyCNN(nn.Module):
    """The layout of the study for any kind of convolution; a field has `group_order` channels.

    The head `pool` averages over the image before the MLP. The head `flatten`, the study's own, gives the MLP every
    pixel of the last map and is NOT invariant: a rotated galaxy meets other weights.
    """

    def __init__(
        self,
        make_convolution: ConvolutionFactory,
        group_order: int,
        fields: Sequence[int],
        image_size: int,
        num_classes: int,
        head: Head,
    ) -> None:
        super().__init__()
        stride, padding, last_side = compute_stem_geometry(image_size)
        convolutions = [make_convolution("trivial", IN_CHANNELS, fields[0], stride, padding)]
        convolutions += [
            make_convolution("regular", in_fields, out_fields, 1, 1) for in_fields, out_fields in pairwise(fields)
        ]
        self.front = CircularMask(image_size)
        self.blocks = BlockSequence()
        for number, (convolution, num_fields) in enumerate(zip(convolutions, fields, strict=True), start=1):
            layers = [convolution, FieldBatchNorm(num_fields, group_order), nn.ReLU(inplace=True)]
            self.blocks.append(FusedSequential(*layers, *([AntialiasedPool()] if number in POOLED_BLOCKS else [])))
        self.group_pool = GroupPooling(group_order)
        self.average = nn.AdaptiveAvgPool2d(1) if head == "pool" else nn.Identity()
        self.mlp = build_mlp(fields[-1] * (1 if head == "pool" else last_side**2), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> logits (N, classes)."""
        return self.classify(self.blocks(self.front(images)))

    def classify(self, feature_map: Tensor) -> Tensor:
        """(N, fields x |G|, s, s), the last map -> logits (N, classes)."""
        pooled: Tensor = self.average(self.group_pool(feature_map))
        logits: Tensor = self.mlp(pooled.flatten(1))
        return logits

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> the last map (N, fields, s, s), which rotates with the image."""
        feature_map: Tensor = self.group_pool(self.blocks(self.front(images)))
        return feature_map


def compute_stem_geometry(image_size: int) -> tuple[int, int, int]:
    """Return the first convolution's stride and padding, and the side of the last map, in px.

    Stride 2 keeps a grid's centre only if it takes the first and the last point: 64k-1 px need one more row of
    padding than 64k+1. Images of 33 px are not halved; for the sizes of `config.image_size.is_exact_image_size`.
    """
    stride, padding = (1, 1) if image_size == 33 else (2, 2 if image_size % 2**6 == 63 else 1)
    side = (image_size + 2 * padding - 3) // stride + 1
    for _ in POOLED_BLOCKS:
        side = (side + 1) // 2
    return stride, padding, side


def build_mlp(in_features: int, num_classes: int) -> nn.Sequential:
    """Build the study's classifier, 64-32-classes."""
    layers: list[nn.Module] = []
    for in_size, out_size in ((in_features, 64), (64, 32)):
        layers += [nn.Linear(in_size, out_size), FieldBatchNorm(out_size), nn.ELU()]
    return nn.Sequential(*layers, nn.Linear(32, num_classes))


def scale_fields(config: ModelConfig, factor: float) -> tuple[int, ...]:
    """Multiply the study's fields by a factor and round, at least one each."""
    return tuple(max(1, round(factor * count)) for count in BLOCK_FIELDS)


def build_steerable_cnn(config: ModelConfig, fields: Sequence[int], image_size: int, num_classes: int) -> StudyCNN:
    """Build the steerable CNN of `config.group`."""
    group = config.group
    assert group is not None

    def make_convolution(
        kind: groups.FieldKind, in_fields: int, out_fields: int, stride: int, padding: int
    ) -> SteerableConv:
        return SteerableConv(group, in_fields, out_fields, 3, kind=kind, stride=stride, padding=padding)

    return StudyCNN(make_convolution, groups.group_order(group), fields, image_size, num_classes, config.head)
