"""Training augmentation of a whole batch on its device: rotation, shift and flips as ONE affine resampling.

The map of a galaxy is a function of (seed, epoch, index) alone: not of the batch, the process or earlier steps.
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
    """Draw one affine map per galaxy.

    Parameters
    ----------
    indices : (N,) int64, rows of the data file

    Returns
    -------
    (N, 2, 3) float32, from output to input coordinates in [-1, 1], as `affine_grid` takes them
    """
    angle, right, down, flip_x, flip_y = uniform(make_key("augment", seed, epoch), indices, 5).unbind(1)
    angle = torch.deg2rad((2 * angle - 1) * config.rotation)
    sign_x = 1.0 - 2.0 * (flip_x < config.flip)
    sign_y = 1.0 - 2.0 * (flip_y < config.flip)
    cos, sin = angle.cos(), angle.sin()
    x = torch.stack([cos * sign_x, -sin * sign_y, 2 * (2 * right - 1) * config.shift], 1)
    y = torch.stack([sin * sign_x, cos * sign_y, 2 * (2 * down - 1) * config.shift], 1)
    return torch.stack([x, y], 1).float()


def make_sampling_grid(maps: Tensor, side: int) -> Tensor:
    """Return the (N, side, side, 2) grid of `affine_grid`, by broadcast sums instead of a matrix product.

    In memory all x lie together, and all y: sums and sampling run along rows of pixels.
    """
    centres = (2.0 * torch.arange(side, device=maps.device) + 1.0) / side - 1.0
    column_terms, row_terms = maps[:, :, :1] * centres, maps[:, :, 1:2] * centres + maps[:, :, 2:]
    return (column_terms[:, :, None] + row_terms[..., None]).permute(0, 2, 3, 1)


@lru_cache(maxsize=2)
def draw_epoch_maps(num_galaxies: int, seed: int, epoch: int, config: AugmentConfig, device: torch.device) -> Tensor:
    """Draw the maps of all galaxies once per epoch: on a GPU, drawing launches ninety small kernels."""
    return draw_affine_maps(torch.arange(num_galaxies, device=device), seed, epoch, config)


def resample(images: Tensor, maps: Tensor) -> Tensor:
    """Resample (N, 3, S, S) images bilinearly, with reflect padding: uint8, or floats in [0, 1], to float32 in [0, 1].

    For uint8 on a CPU with a compiler a C++ loop takes half of torch's time and differs in the last bits.
    """
    if _can_use_cpp(images, maps):
        library = native.load_library("data/augment.cpp")
        if library is not None:
            return _resample_cpp(library, images.contiguous(), maps.contiguous())
    pixels = images / 255.0 if images.dtype == torch.uint8 else images
    grid = make_sampling_grid(maps, images.shape[-1])
    return functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)


def _can_use_cpp(images: Tensor, maps: Tensor) -> bool:
    """Whether these are square uint8 images on a CPU, with one map each."""
    is_valid_shape = images.dim() == 4 and images.shape[2] == images.shape[3] > 1 and maps.shape == (len(images), 2, 3)
    is_valid_dtype = (images.dtype, maps.dtype) == (torch.uint8, torch.float32) and not maps.requires_grad
    return is_valid_shape and is_valid_dtype and images.device.type == maps.device.type == "cpu"


def _resample_cpp(library: CDLL, images: Tensor, maps: Tensor) -> Tensor:
    count, channels, side, _ = images.shape
    output = torch.empty(images.shape, dtype=torch.float32, device="cpu")
    pointers = (c_void_p(tensor.data_ptr()) for tensor in (images, maps, output))
    library.resample(*pointers, *map(c_int64, (count, channels, side)), c_int(torch.get_num_threads()))
    return output


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Rotate (N, C, S, S) images counter-clockwise: by multiples of 90 degrees exactly, otherwise bilinearly."""
    quarter_turns, rest = divmod(degrees, 90.0)
    if rest == 0.0:
        return torch.rot90(images, int(quarter_turns), dims=(2, 3))
    angle = np.deg2rad(degrees)
    rotation = [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]]
    maps = torch.tensor(rotation, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)
