"""The conventional CNN in the study's layout: channels instead of fields, no symmetry in the filters.

It is the reference, so everything but the filters is the steerable CNN's own code. Its weights are drawn to keep the
variance from input to output, as those of `SteerableConv`, not by PyTorch's default.

Parameters at the study's fields and with the pooling head: 0.6 million. (A filter of C1 has 6 of a 3x3 filter's 9.)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models.steerable_cnn import StudyCNN
from galaxyhpc.steerable import groups


def build_cnn(config: ModelConfig, fields: Sequence[int], image_size: int, num_classes: int) -> StudyCNN:
    """Build the conventional CNN."""
    return StudyCNN(_make_convolution, 1, fields, image_size, num_classes, config.head)


def _make_convolution(
    kind: groups.FieldKind, in_channels: int, out_channels: int, stride: int, padding: int
) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, 3, stride, padding, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    return layer
