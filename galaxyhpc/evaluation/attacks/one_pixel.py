"""Fast evaluation of StudyCNN on images that differ from cached ones in one pixel: only its receptive field changes.

A changed pixel affects 3x3 positions after one 3x3 convolution and 5x5 after two; the rest of a feature map is that of
the unchanged image. A patch is computed from a window of the cached map with the changed values pasted in, as long as
it is much smaller than the map. The arithmetic is the network's up to rounding; batch norms are folded into filters.
Maps are (N, H, W, C) here, so that each row of a window is contiguous in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from galaxyhpc.models.steerable_cnn import StudyCNN
from galaxyhpc.steerable.layers import CircularMask, SteerableConv

MAX_PATCH_FRACTION = 0.8  # of a map's side: larger patches are no faster than whole maps


class Stage(NamedTuple):
    """A convolution with the following batch norm and ReLU, or a pool (without bias)."""

    filters: Tensor
    bias: Tensor | None
    stride: int
    padding: int

    def __call__(self, x: Tensor, padding: int) -> Tensor:
        """Apply to (N, H, W, C); return (N, H', W', C')."""
        groups = x.shape[-1] // self.filters.shape[1]
        output = F.conv2d(x.permute(0, 3, 1, 2), self.filters, self.bias, self.stride, padding, 1, groups)
        return (output if self.bias is None else output.relu_()).permute(0, 2, 3, 1)

    def get_output_side(self, side: int) -> int:
        """Return the maximum number of output positions along a side that depend on `side` adjacent inputs."""
        return (side + self.filters.shape[-1] - 2) // self.stride + 1


class CachedMap(NamedTuple):
    """Feature map of G images with zero padding, wider than its convolution needs."""

    values: Tensor  # (G, H + 2 margin, H + 2 margin, C)
    margin: int

    @property
    def size(self) -> int:
        return self.values.shape[1] - 2 * self.margin

    @property
    def interior(self) -> Tensor:
        """The map without padding, (G, H, H, C)."""
        return self.values[:, self.margin : self.margin + self.size, self.margin : self.margin + self.size]


class OnePixelNetwork:
    """A StudyCNN with cached feature maps of G images, (G, 3, S, S) in [0, 1].

    `(image_indices (N,), pixels (N, 5)) -> logits (N, classes)`: a pixel is column, row and red, green, blue in
    0..255. The network must be in evaluation mode.
    """

    def __init__(self, network: StudyCNN, images: Tensor) -> None:
        self.network, self.patch_stages, self.remaining_stages = network, list[Stage](), list(_fold_stages(network))
        self.mask = network.front(torch.ones_like(images[:1]))[0, 0]
        self.cached_maps = [_pad_map(network.front(images).permute(0, 2, 3, 1), 1)]
        side = 1
        while side <= MAX_PATCH_FRACTION * self.cached_maps[-1].size and self.remaining_stages:
            stage = self.remaining_stages.pop(0)
            side = stage.get_output_side(side)
            self.patch_stages.append(stage)
            self.cached_maps.append(_pad_map(stage(self.cached_maps[-1].interior, stage.padding), side))

    def __call__(self, image_indices: Tensor, pixels: Tensor) -> Tensor:
        columns, rows, *_ = pixels.unbind(1)
        values = (pixels[:, 2:] / 255.0 * self.mask[rows, columns, None])[:, None, None]
        corners = torch.stack([rows, columns], dim=1)
        for stage, source, output in zip(self.patch_stages, self.cached_maps, self.cached_maps[1:], strict=False):
            values, corners = _propagate_patches(stage, source, image_indices, values, corners, output.size)
        x = _paste_patches(self.cached_maps[-1].interior, image_indices, values, corners)
        for stage in self.remaining_stages:
            x = stage(x, stage.padding)
        return self.network.classify(x.permute(0, 3, 1, 2))


def supports_one_pixel(network: object) -> TypeGuard[StudyCNN]:
    """Whether a network is a StudyCNN whose front acts on each pixel alone, which an opening does not."""
    return isinstance(network, StudyCNN) and isinstance(network.front, CircularMask)


def _fold_stages(network: StudyCNN) -> Iterator[Stage]:
    """Yield the network's convolutions, with batch norms folded into filters and biases, and its pools."""
    for block in network.blocks:
        layers: list[Any] = list(block.children())
        convolution, norm, _, *pools = layers
        filters = convolution.expand_filter() if isinstance(convolution, SteerableConv) else convolution.weight
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = (norm.bias - norm.running_mean * scale).repeat_interleave(norm.size)
        scale = scale.repeat_interleave(norm.size)[:, None, None, None]
        stride, padding = (v[0] if isinstance(v, tuple) else v for v in (convolution.stride, convolution.padding))
        filters = (filters * scale).contiguous(memory_format=torch.channels_last)
        yield Stage(filters, bias, stride, padding)
        for pool in pools:
            yield Stage(pool.kernel.expand(len(filters), 1, -1, -1), None, pool.stride, pool.padding)


def _pad_map(x: Tensor, side: int) -> CachedMap:
    """Pad a map with zeros, as far as patches `side` wide and the windows of their convolutions reach out of it."""
    margin = side + 10
    return CachedMap(F.pad(x, (0, 0, margin, margin, margin, margin)).contiguous(), margin)


def _propagate_patches(
    stage: Stage, cached_map: CachedMap, image_indices: Tensor, patches: Tensor, corners: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Apply a stage to patches (n, w, w, C) with first rows and columns `corners` (n, 2).

    Returns
    -------
    the changed patches of the next map, which is `size` wide, and their corners
    """
    kernel, side = stage.filters.shape[-1], stage.get_output_side(patches.shape[1])
    next_corners = -((kernel - 1 - stage.padding - corners) // stage.stride)
    start = next_corners * stage.stride - stage.padding
    window = _gather_windows(
        cached_map.values, image_indices, start + cached_map.margin, (side - 1) * stage.stride + kernel
    )
    _write_patches(window, patches, corners - start)
    inside = _is_inside(*_compute_coordinates(next_corners, side), size)
    return stage(window, 0) * inside[..., None], next_corners


def _gather_windows(maps: Tensor, image_indices: Tensor, corners: Tensor, side: int) -> Tensor:
    """Return windows (n, side, side, C) of maps (G, H, H, C)."""
    indices = _flatten_indices(image_indices, *_compute_coordinates(corners, side), maps.shape[1])
    return maps.flatten(0, 2).index_select(0, indices.flatten()).view(*indices.shape, -1)


def _write_patches(maps: Tensor, patches: Tensor, corners: Tensor) -> None:
    """Write patches (n, w, w, C) into maps (n, H, H, C), in place."""
    map_indices = torch.arange(len(maps), device=maps.device)
    indices = _flatten_indices(map_indices, *_compute_coordinates(corners, patches.shape[1]), maps.shape[1])
    maps.view(-1, maps.shape[-1]).index_copy_(0, indices.flatten(), patches.flatten(0, 2))


def _paste_patches(maps: Tensor, image_indices: Tensor, patches: Tensor, corners: Tensor) -> Tensor:
    """Return copies of the maps (G, H, H, C) at `image_indices` (n,) with patches (n, w, w, C), clipped to the maps."""
    size, channels = maps.shape[2:]
    copies = maps.reshape(len(maps), -1).index_select(0, image_indices)
    rows, columns = _compute_coordinates(corners, patches.shape[1])
    inside = _is_inside(rows, columns, size)
    indices = _flatten_indices(torch.arange(len(image_indices), device=maps.device), rows, columns, size)
    copies.view(-1, channels).index_copy_(0, indices[inside], patches[inside])
    return copies.view(-1, size, size, channels)


def _compute_coordinates(corners: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return rows (n, side, 1) and columns (n, 1, side) of windows with these corners (n, 2)."""
    steps = corners[..., None] + torch.arange(side, device=corners.device)
    return steps[:, 0, :, None], steps[:, 1, None, :]


def _is_inside(rows: Tensor, columns: Tensor, size: int) -> Tensor:
    return (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)


def _flatten_indices(image_indices: Tensor, rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """Return flat indices (n, side, side) of positions in maps: indexing by three tensors takes five times as long."""
    return (image_indices[:, None, None] * size + rows) * size + columns
