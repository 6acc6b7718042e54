"""Modules of e2cnn and escnn that treat every channel alike, on tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from galaxyhpc.steerable.acceleration.fields import split_by_size
from galaxyhpc.steerable.acceleration.typed import TensorModule, compute_convolved_sides, make_geometric
from galaxyhpc.steerable.layers import blur


class FastPointwise(TensorModule):
    """A function of each value, or pooling of each channel."""

    def __init__(self, original: Any, function: Any, **options: Any) -> None:
        super().__init__(original)
        self.function, self.options = function, options

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W')."""
        y: Tensor = self.function(x, **self.options)
        return y

    def compute_sides(self, sides: Sequence[int]) -> Sequence[int]:
        """Return the sides of maps of these sides afterwards, in px."""
        return self.compute(torch.empty(1, 1, *sides, device="meta")).shape[2:]

    def extra_repr(self) -> str:
        return ", ".join([self.function.__name__, *(f"{key}={value}" for key, value in self.options.items())])


class FastDropout(FastPointwise):
    """`PointwiseDropout`."""

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return F.dropout(x, training=self.training, **self.options)


class FastUpsampling(FastPointwise):
    """`R2Upsampling`."""

    def __init__(self, original: Any) -> None:
        options = {"scale_factor": original._scale_factor, "size": original._size}
        super().__init__(original, F.interpolate, **options, mode=original._mode, align_corners=original._align_corners)


class FastBlur(TensorModule):
    """`PointwiseAvgPoolAntialiased`, and the `Max` one with its maximum first: one filter for all channels."""

    filter: Tensor  # (k, k)

    def __init__(self, original: Any) -> None:
        super().__init__(original)
        self.register_buffer("filter", original.filter[0, 0].clone(), persistent=False)
        self.stride, self.padding = original.stride, getattr(original, "_pad", original.padding)
        names = ("kernel_size", "padding", "dilation", "ceil_mode")
        self.maximum = {name: getattr(original, name) for name in names} if hasattr(original, "_pad") else None

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W')."""
        if self.maximum is not None:
            x = F.max_pool2d(x, stride=1, **self.maximum)
        return blur(x, self.filter, self.stride, self.padding)

    def compute_sides(self, sides: Sequence[int]) -> Sequence[int]:
        """Return the sides of maps of these sides afterwards, in px."""
        if self.maximum is not None:
            sides = F.max_pool2d(torch.empty(1, 1, *sides, device="meta"), stride=1, **self.maximum).shape[2:]
        blurred: Sequence[int] = compute_convolved_sides(sides, self.filter.shape, self.stride, self.padding, 1)
        return blurred


class FastMask(TensorModule):
    """`MaskModule`."""

    mask: Tensor

    def __init__(self, original: Any) -> None:
        super().__init__(original)
        self.mask = original.mask  # a parameter without gradients, as in e2cnn's state dict

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, S, S) -> the same shape."""
        if x.shape[2:] != self.mask.shape[2:]:
            raise RuntimeError(f"MaskModule: got {tuple(x.shape[2:])} px; expected {tuple(self.mask.shape[2:])}")
        return x * self.mask


class FastGroupPooling(TensorModule):
    """`GroupPooling`, the maximum over each field."""

    def __init__(self, original: Any) -> None:
        super().__init__(original)
        self.by_size = split_by_size(original.in_type)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, fields, H, W)."""
        y = self.by_size.join_fields([_take_maximum(part) for part in self.by_size.split(x)])
        return y.contiguous()  # what follows often views all pixels as one row


def _take_maximum(x: Tensor) -> Tensor:
    """(N, fields, size, H, W) -> (N, fields, H, W); of equal values one gets the gradient, as in e2cnn."""
    if torch.is_grad_enabled() and x.requires_grad:
        return x.max(2).values
    return x.amax(2)  # faster


class FastChannelMap(TensorModule):
    """`ReshuffleModule` and `DisentangleModule`: channels in another order, or multiplied by a matrix per field."""

    order: Tensor | None
    matrix: Tensor

    def __init__(self, original: Any) -> None:
        super().__init__(original)
        matrix = make_channel_matrix(original)
        is_order = bool(((matrix == 0) | (matrix == 1)).all()) and bool((matrix.sum(1) == 1).all())
        self.register_buffer("order", matrix.argmax(1) if is_order else None, persistent=False)
        self.register_buffer("matrix", None if is_order else matrix, persistent=False)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        if self.order is not None:
            return x.index_select(1, self.order)
        return F.conv2d(x, self.matrix.to(x.dtype)[:, :, None, None])


def make_channel_matrix(original: Any) -> Tensor:
    """Return the matrix (C', C) by which a module multiplies the channels of a pixel."""
    values = [buffer for buffer in original.buffers() if buffer.is_floating_point()]
    options = {"dtype": values[0].dtype, "device": values[0].device} if values else {}
    identity = torch.eye(original.in_type.size, **options)[:, :, None, None]
    y: Tensor = original(make_geometric(identity, original.in_type)).tensor
    return y[:, :, 0, 0].T.contiguous()


class FastRestriction(TensorModule):
    """`RestrictionModule` and `IdentityModule`: the same values under another name."""

    def compute(self, x: Tensor) -> Tensor:
        """Return x."""
        return x


def adaptive_max_pool2d(x: Tensor, output_size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) -> (N, C, *output_size); torch's function cannot be pickled."""
    y: Tensor = F.adaptive_max_pool2d(x, output_size)
    return y
