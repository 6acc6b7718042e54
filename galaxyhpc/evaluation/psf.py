"""Point spread functions: pixel-integrated kernels, and convolution with them under reflect padding.

The convolution of a reflect-padded image with a kernel that equals its mirror images is a product in the space of the
discrete cosine transform: two small matrix products each way, at the same cost for every kernel. The flux is
conserved, since nothing is lost at the edges. All in float64, so that the pixels do not depend on the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import erf
from torch import Tensor

MOFFAT_BETA = 4.765  # predicted by atmospheric turbulence (Trujillo et al. 2001, MNRAS 328, 977)
_NODES_PER_PIXEL = 12  # Gauss-Legendre nodes along each side of a pixel


def _get_radius_px(fwhm_px: float) -> int:
    """Return the radius of a kernel: 4 FWHM, beyond which a Moffat function has 0.01 % of its flux."""
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
    gamma = fwhm_to_moffat_gamma(fwhm_px)
    offsets = (centres[:, None] + nodes / 2.0) ** 2 / gamma**2  # (2R + 1, nodes), of either axis
    values = (1.0 + offsets[:, :, None, None] + offsets[None, None]) ** -MOFFAT_BETA
    return _normalize(np.einsum("ipjq,p,q->ij", values, weights, weights))


def make_dct_matrix(size: int) -> NDArray[np.float64]:
    """Return the orthonormal (size, size) matrix of the type-II discrete cosine transform; rows are frequencies."""
    matrix: NDArray[np.float64] = np.cos(np.pi / size * np.outer(np.arange(size), np.arange(size) + 0.5))
    matrix[0] /= np.sqrt(2.0)
    matrix *= np.sqrt(2.0 / size)
    return matrix


def convolve_psf(images: Tensor, kernel: NDArray[np.float64]) -> Tensor:
    """Convolve (N, C, S, S) images with a kernel equal to its mirror images, under reflect padding.

    Any device; the dtype stays.
    """
    size, radius = images.shape[-1], len(kernel) // 2
    cosines = np.cos(np.pi / size * np.outer(np.arange(size), np.arange(-radius, radius + 1)))
    response = torch.from_numpy(cosines @ kernel @ cosines.T).to(images.device)
    dct = torch.from_numpy(make_dct_matrix(size)).to(images.device)
    return (dct.T @ (dct @ images.double() @ dct.T * response) @ dct).to(images.dtype)
