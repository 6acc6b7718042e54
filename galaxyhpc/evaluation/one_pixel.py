"""The study's layout on images that differ from known ones in one pixel: only what the pixel reaches is computed.

After a convolution of 3x3 a pixel has changed 3x3 places, after two 5x5; the rest of a map is that of the unchanged
image. A patch is computed from a window of the known map into which what has changed is put, for as long as it is much
smaller than the map. The arithmetic is the network's own, up to its rounding; batch norms are folded into filters.
Maps are (N, H, W, C) here, so that a window is a row of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from galaxyhpc.models.steerable_cnn import StudyCNN
from galaxyhpc.steerable.layers import CircularMask, SteerableConv

MAX_PATCH_FRACTION = 0.8  # of a map's side: larger patches are not worth their windows


class Stage(NamedTuple):
    """A convolution with the batch norm and ReLU that follow it, or a pool, which nothing follows."""

    filters: Tensor
    bias: Tensor | None
    stride: int
    padding: int

    def __call__(self, x: Tensor, padding: int) -> Tensor:
        """(N, H, W, C) -> (N, H', W', C')."""
        groups = x.shape[-1] // self.filters.shape[1]
        found = F.conv2d(x.permute(0, 3, 1, 2), self.filters, self.bias, self.stride, padding, 1, groups)
        return (found if self.bias is None else found.relu_()).permute(0, 2, 3, 1)

    def get_output_side(self, side: int) -> int:
        """Return how many places along a side depend on `side` neighbours, at most."""
        return (side + self.filters.shape[-1] - 2) // self.stride + 1


class CachedMap(NamedTuple):
    """A map of G images with zeros around it, as its convolution sees it and a little wider."""

    values: Tensor  # (G, H + 2 margin, H + 2 margin, C)
    margin: int

    @property
    def size(self) -> int:
        return self.values.shape[1] - 2 * self.margin

    @property
    def interior(self) -> Tensor:
        """The map alone, (G, H, H, C)."""
        return self.values[:, self.margin : self.margin + self.size, self.margin : self.margin + self.size]


class OnePixelNetwork:
    """A network of the study's layout that knows G images, (G, 3, S, S) in [0, 1], and is asked about their changes.

    `(galaxies (N,), pixels (N, 5)) -> logits (N, classes)`: a pixel is column, row and red, green, blue in 0..255. The
    network is in evaluation mode.
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
        first = torch.stack([rows, columns], dim=1)
        for stage, before, after in zip(self.patch_stages, self.cached_maps, self.cached_maps[1:], strict=False):
            values, first = _propagate_patches(stage, before, image_indices, values, first, after.size)
        x = _paste_patches(self.cached_maps[-1].interior, image_indices, values, first)
        for stage in self.remaining_stages:
            x = stage(x, stage.padding)
        return self.network.classify(x.permute(0, 3, 1, 2))


def supports_one_pixel(network: object) -> TypeGuard[StudyCNN]:
    """Whether a network is of the study's layout, and looks at pixels one by one first: an opening does not."""
    return isinstance(network, StudyCNN) and isinstance(network.front, CircularMask)


def _fold_stages(network: StudyCNN) -> Iterator[Stage]:
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
    """Put zeros around a map, as many as patches `side` wide and the windows of their convolutions may reach out."""
    margin = side + 10
    return CachedMap(F.pad(x, (0, 0, margin, margin, margin, margin)).contiguous(), margin)


def _propagate_patches(
    stage: Stage, cached_map: CachedMap, image_indices: Tensor, patches: Tensor, corners: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Return what a patch (n, w, w, C), whose first row and column are (n, 2), does to the next map, `size` wide."""
    kernel, side = stage.filters.shape[-1], stage.get_output_side(patches.shape[1])
    reached = -((kernel - 1 - stage.padding - corners) // stage.stride)
    start = reached * stage.stride - stage.padding
    window = _gather_windows(
        cached_map.values, image_indices, start + cached_map.margin, (side - 1) * stage.stride + kernel
    )
    _write_patches(window, patches, corners - start)
    inside = _is_inside(*_compute_coordinates(reached, side), size)
    return stage(window, 0) * inside[..., None], reached


def _gather_windows(maps: Tensor, image_indices: Tensor, corners: Tensor, side: int) -> Tensor:
    """Return windows (n, side, side, C) of maps (G, H, H, C)."""
    numbers = _flatten_indices(image_indices, *_compute_coordinates(corners, side), maps.shape[1])
    return maps.flatten(0, 2).index_select(0, numbers.flatten()).view(*numbers.shape, -1)


def _write_patches(maps: Tensor, patches: Tensor, corners: Tensor) -> None:
    """Put patches (n, w, w, C) into maps (n, H, H, C)."""
    each = torch.arange(len(maps), device=maps.device)
    numbers = _flatten_indices(each, *_compute_coordinates(corners, patches.shape[1]), maps.shape[1])
    maps.view(-1, maps.shape[-1]).index_copy_(0, numbers.flatten(), patches.flatten(0, 2))


def _paste_patches(maps: Tensor, image_indices: Tensor, patches: Tensor, corners: Tensor) -> Tensor:
    """Return the maps (G, H, H, C) of `which` (n,) with patches (n, w, w, C) on them, as far as those lie on them."""
    size, channels = maps.shape[2:]
    found = maps.reshape(len(maps), -1).index_select(0, image_indices)
    rows, columns = _compute_coordinates(corners, patches.shape[1])
    inside = _is_inside(rows, columns, size)
    numbers = _flatten_indices(torch.arange(len(image_indices), device=maps.device), rows, columns, size)
    found.view(-1, channels).index_copy_(0, numbers[inside], patches[inside])
    return found.view(-1, size, size, channels)


def _compute_coordinates(corners: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return rows (n, side, 1) and columns (n, 1, side) from first ones (n, 2) on."""
    steps = corners[..., None] + torch.arange(side, device=corners.device)
    return steps[:, 0, :, None], steps[:, 1, None, :]


def _is_inside(rows: Tensor, columns: Tensor, size: int) -> Tensor:
    return (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)


def _flatten_indices(image_indices: Tensor, rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """Number the places of maps, (n, side, side): plain indexing by three tensors takes five times as long."""
    return (image_indices[:, None, None] * size + rows) * size + columns
