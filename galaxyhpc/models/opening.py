"""Morphological opening as the first layer of a network: it removes bright objects smaller than a disk.

The study (Pandya et al. 2023, arXiv:2311.01500) opened its images with a disk of 4 px at 256 px. Here the opening is
part of the network in training, in evaluation and in every export, and applies to augmented and corrupted pixels.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d


class Opening(nn.Module):
    """Erosion, then dilation, of every channel by a flat disk: `skimage.morphology.opening(channel, disk(radius))`.

    The disk holds the offsets with dx^2 + dy^2 <= radius^2. Pixels outside the image are left out of every minimum and
    maximum, which equals scikit-image's reflection: the mirror image of a pixel outside lies nearer.
    """

    def __init__(self, radius: int) -> None:
        super().__init__()
        self.radius = radius
        heights: dict[int, int] = {}  # the disk is the union of rectangles: half width -> largest half height
        for height in range(radius + 1):
            heights[math.isqrt(radius**2 - height**2)] = height
        self.rectangles = tuple(heights.items())

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return self._dilate(-self._dilate(-images))

    def _dilate(self, images: Tensor) -> Tensor:
        return reduce(torch.maximum, [_maximum_filter(images, width, height) for width, height in self.rectangles])

    def extra_repr(self) -> str:
        return f"radius={self.radius}"


def _maximum_filter(images: Tensor, half_width: int, half_height: int) -> Tensor:
    """Return the largest value in a rectangle of (2 height + 1, 2 width + 1) px about every pixel."""
    row_maxima = max_pool2d(images, (1, 2 * half_width + 1), 1, (0, half_width))
    return max_pool2d(row_maxima, (2 * half_height + 1, 1), 1, (half_height, 0))
