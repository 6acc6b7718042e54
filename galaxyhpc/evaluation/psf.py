"""Blurring by a point spread function: pixel-integrated kernels, and their convolution with mirrored edges.

A kernel that is equal to its mirror images, on an image continued by its own mirror image, is a product in the space
of cosines: two small matrix products each way, the same cost for every kernel. Nothing is lost at the edges, so the
flux is kept. All in float64: what follows may round, and then the last digit must not depend on the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import erf
from torch import Tensor

BETA = 4.765  # of the Moffat function: what atmospheric turbulence predicts (Trujillo et al. 2001, MNRAS 328, 977)
_NODES = 12  # a side of a pixel, Gauss-Legendre


def _reach(fwhm: float) -> int:
    """Return how many pixels a kernel goes out: 4 FWHM, beyond which a Moffat function has 0.01 % of its flux."""
    return int(np.ceil(4.0 * fwhm))


def _normal(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel /= kernel.sum()
    return kernel


def gaussian_kernel(fwhm: float) -> NDArray[np.float64]:
    """Return a (2R + 1, 2R + 1) Gaussian of this FWHM in pixels, integrated over each pixel, with sum 1."""
    edges = np.arange(-_reach(fwhm), _reach(fwhm) + 2) - 0.5
    profile = np.diff(erf(edges * 2.0 * np.sqrt(np.log(2.0)) / fwhm))
    return _normal(np.outer(profile, profile))


def moffat_width(fwhm: float, beta: float = BETA) -> float:
    """Return gamma of the Moffat function (1 + (r / gamma)^2)^-beta that has this FWHM."""
    return float(fwhm / 2.0 / np.sqrt(2.0 ** (1.0 / beta) - 1.0))


def moffat_kernel(fwhm: float) -> NDArray[np.float64]:
    """Return a (2R + 1, 2R + 1) Moffat function of this FWHM in pixels, integrated over each pixel, with sum 1."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    centres = np.arange(-_reach(fwhm), _reach(fwhm) + 1)
    offsets = (centres[:, None] + nodes / 2.0) ** 2 / moffat_width(fwhm) ** 2  # (2R + 1, nodes), both axes alike
    values = (1.0 + offsets[:, :, None, None] + offsets[None, None]) ** -BETA
    return _normal(np.einsum("ipjq,p,q->ij", values, weights, weights))


def cosines(size: int) -> NDArray[np.float64]:
    """Return the orthonormal (size, size) matrix of the discrete cosine transform II; rows are frequencies."""
    matrix: NDArray[np.float64] = np.cos(np.pi / size * np.outer(np.arange(size), np.arange(size) + 0.5))
    matrix[0] /= np.sqrt(2.0)
    matrix *= np.sqrt(2.0 / size)
    return matrix


def blurred(images: Tensor, kernel: NDArray[np.float64]) -> Tensor:
    """Convolve (N, C, S, S) with a kernel equal to its mirror images; the sky beyond an edge is the sky before it.

    Any device; the dtype stays.
    """
    size, reach = images.shape[-1], len(kernel) // 2
    waves = np.cos(np.pi / size * np.outer(np.arange(size), np.arange(-reach, reach + 1)))
    response = torch.from_numpy(waves @ kernel @ waves.T).to(images.device)
    to = torch.from_numpy(cosines(size)).to(images.device)
    return (to.T @ (to @ images.double() @ to.T * response) @ to).to(images.dtype)
