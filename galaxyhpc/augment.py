"""Training augmentation of a whole batch on its device: rotation, shift and flips as ONE affine resampling.

What happens to a galaxy is a function of (seed, epoch, row) alone: not of the batch, the process or the past.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from galaxyhpc.config import AugmentConfig
from galaxyhpc.randomness import key, uniform


def affine_maps(rows: Tensor, seed: int, epoch: int, config: AugmentConfig) -> Tensor:
    """Draw one map per galaxy.

    Parameters
    ----------
    rows : (N,) int64, rows of the data file

    Returns
    -------
    (N, 2, 3) float32, from output to input coordinates in [-1, 1], as `affine_grid` takes them
    """
    angle, right, down, mirror, turn = uniform(key("augment", seed, epoch), rows, 5).unbind(1)
    angle = torch.deg2rad((2 * angle - 1) * config.rotation)
    horizontal = 1.0 - 2.0 * (mirror < config.flip)
    vertical = 1.0 - 2.0 * (turn < config.flip)
    cos, sin = angle.cos(), angle.sin()
    top = torch.stack([cos * horizontal, -sin * vertical, 2 * (2 * right - 1) * config.shift], 1)
    bottom = torch.stack([sin * horizontal, cos * vertical, 2 * (2 * down - 1) * config.shift], 1)
    return torch.stack([top, bottom], 1).float()


def augment(images: Tensor, rows: Tensor, seed: int, epoch: int, config: AugmentConfig) -> Tensor:
    """Resample (N, 3, S, S) images in [0, 1], bilinearly; the sky beyond an edge is the sky before it, mirrored."""
    maps = affine_maps(rows, seed, epoch, config)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
