"""Training augmentation of a whole batch on its device: rotation, shift and flips as ONE affine resampling.

What happens to a galaxy is a function of (seed, epoch, row) alone: not of the batch, the process or the past.
"""

from __future__ import annotations

from ctypes import CDLL, c_int, c_int64, c_void_p
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from galaxyhpc.config.schema import AugmentConfig
from galaxyhpc.runtime import native
from galaxyhpc.runtime.rng import make_key, uniform


def draw_affine_maps(indices: Tensor, seed: int, epoch: int, config: AugmentConfig) -> Tensor:
    """Draw one map per galaxy.

    Parameters
    ----------
    rows : (N,) int64, rows of the data file

    Returns
    -------
    (N, 2, 3) float32, from output to input coordinates in [-1, 1], as `affine_grid` takes them
    """
    angle, right, down, mirror, turn = uniform(make_key("augment", seed, epoch), indices, 5).unbind(1)
    angle = torch.deg2rad((2 * angle - 1) * config.rotation)
    horizontal = 1.0 - 2.0 * (mirror < config.flip)
    vertical = 1.0 - 2.0 * (turn < config.flip)
    cos, sin = angle.cos(), angle.sin()
    top = torch.stack([cos * horizontal, -sin * vertical, 2 * (2 * right - 1) * config.shift], 1)
    bottom = torch.stack([sin * horizontal, cos * vertical, 2 * (2 * down - 1) * config.shift], 1)
    return torch.stack([top, bottom], 1).float()


def make_sampling_grid(maps: Tensor, side: int) -> Tensor:
    """Return where (N, side, side, 2) pixels come from: `affine_grid`, a sum in the place of a matrix product.

    In memory all x lie together, and all y: sums and sampling run along rows of pixels.
    """
    at = (2.0 * torch.arange(side, device=maps.device) + 1.0) / side - 1.0
    along, down = maps[:, :, :1] * at, maps[:, :, 1:2] * at + maps[:, :, 2:]
    return (along[:, :, None] + down[..., None]).permute(0, 2, 3, 1)


@lru_cache(maxsize=2)
def draw_epoch_maps(num_galaxies: int, seed: int, epoch: int, config: AugmentConfig, device: torch.device) -> Tensor:
    """Draw the maps of all rows below `count`, once: a GPU would be told of ninety small kernels for every batch."""
    return draw_affine_maps(torch.arange(num_galaxies, device=device), seed, epoch, config)


def resample(images: Tensor, maps: Tensor) -> Tensor:
    """Resample (N, 3, S, S) images bilinearly; the sky beyond an edge is the sky before it, mirrored.

    What comes in is uint8, or floats in [0, 1]; what goes out is float32 in [0, 1]. A CPU with a compiler needs half
    of torch's time for bytes, with other last bits.
    """
    if _can_use_cpp(images, maps):
        library = native.load_library("data/augment.cpp")
        if library is not None:
            return _resample_cpp(library, images.contiguous(), maps.contiguous())
    pixels = images / 255.0 if images.dtype == torch.uint8 else images
    grid = make_sampling_grid(maps, images.shape[-1])
    return functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)


def _can_use_cpp(images: Tensor, maps: Tensor) -> bool:
    """Whether these are bytes of square images on a CPU, with as many maps."""
    fit = images.dim() == 4 and images.shape[2] == images.shape[3] > 1 and maps.shape == (len(images), 2, 3)
    kinds = (images.dtype, maps.dtype) == (torch.uint8, torch.float32) and not maps.requires_grad
    return fit and kinds and images.device.type == maps.device.type == "cpu"


def _resample_cpp(library: CDLL, images: Tensor, maps: Tensor) -> Tensor:
    count, channels, side, _ = images.shape
    moved = torch.empty(images.shape, dtype=torch.float32, device="cpu")
    pointers = (c_void_p(each.data_ptr()) for each in (images, maps, moved))
    library.resample(*pointers, *map(c_int64, (count, channels, side)), c_int(torch.get_num_threads()))
    return moved


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Turn (N, C, S, S) counter-clockwise: by multiples of 90 exactly, else bilinearly, which blurs a little."""
    quarters, rest = divmod(degrees, 90.0)
    if rest == 0.0:
        return torch.rot90(images, int(quarters), dims=(2, 3))
    angle = np.deg2rad(degrees)
    turn = [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]]
    maps = torch.tensor(turn, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)
