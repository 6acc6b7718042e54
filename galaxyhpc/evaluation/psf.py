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

MOFFAT_BETA = (
    4.765  # of the Moffat function: what atmospheric turbulence predicts (Trujillo et al. 2001, MNRAS 328, 977)
)
_NODES_PER_PIXEL = 12  # a side of a pixel, Gauss-Legendre


def _get_radius_px(fwhm_px: float) -> int:
    """Return how many pixels a kernel goes out: 4 FWHM, beyond which a Moffat function has 0.01 % of its flux."""
    return int(np.ceil(4.0 * fwhm_px))


def _normalize(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel /= kernel.sum()
    return kernel


def gaussian_kernel(fwhm_px: float) -> NDArray[np.float64]:
    """Return a (2R + 1, 2R + 1) Gaussian of this FWHM in pixels, integrated over each pixel, with sum 1."""
    edges = np.arange(-_get_radius_px(fwhm_px), _get_radius_px(fwhm_px) + 2) - 0.5
    profile = np.diff(erf(edges * 2.0 * np.sqrt(np.log(2.0)) / fwhm_px))
    return _normalize(np.outer(profile, profile))


def fwhm_to_moffat_gamma(fwhm: float, beta: float = MOFFAT_BETA) -> float:
    """Return gamma of the Moffat function (1 + (r / gamma)^2)^-beta that has this FWHM."""
    return float(fwhm / 2.0 / np.sqrt(2.0 ** (1.0 / beta) - 1.0))


def moffat_kernel(fwhm_px: float) -> NDArray[np.float64]:
    """Return a (2R + 1, 2R + 1) Moffat function of this FWHM in pixels, integrated over each pixel, with sum 1."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES_PER_PIXEL)
    centres = np.arange(-_get_radius_px(fwhm_px), _get_radius_px(fwhm_px) + 1)
    offsets = (centres[:, None] + nodes / 2.0) ** 2 / fwhm_to_moffat_gamma(
        fwhm_px
    ) ** 2  # (2R + 1, nodes), both axes alike
    values = (1.0 + offsets[:, :, None, None] + offsets[None, None]) ** -MOFFAT_BETA
    return _normalize(np.einsum("ipjq,p,q->ij", values, weights, weights))


def make_dct_matrix(size: int) -> NDArray[np.float64]:
    """Return the orthonormal (size, size) matrix of the discrete cosine transform II; rows are frequencies."""
    matrix: NDArray[np.float64] = np.cos(np.pi / size * np.outer(np.arange(size), np.arange(size) + 0.5))
    matrix[0] /= np.sqrt(2.0)
    matrix *= np.sqrt(2.0 / size)
    return matrix


def convolve_psf(images: Tensor, kernel: NDArray[np.float64]) -> Tensor:
    """Convolve (N, C, S, S) with a kernel equal to its mirror images; the sky beyond an edge is the sky before it.

    Any device; the dtype stays.
    """
    size, reach = images.shape[-1], len(kernel) // 2
    waves = np.cos(np.pi / size * np.outer(np.arange(size), np.arange(-reach, reach + 1)))
    response = torch.from_numpy(waves @ kernel @ waves.T).to(images.device)
    to = torch.from_numpy(make_dct_matrix(size)).to(images.device)
    return (to.T @ (to @ images.double() @ to.T * response) @ to).to(images.dtype)
