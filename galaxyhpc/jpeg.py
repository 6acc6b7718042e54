"""JPEG as libjpeg writes and reads it, on the device: 4:4:4, the standard tables (ITU-T T.81, annex K).

In float64 with ties rounded away from zero, as libjpeg does, so that the same coefficients survive on every device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from galaxyhpc.psf import cosines

LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29),
    *(51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121),
    *(120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66),
    *(99,) * 38,
)
TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))
_TIE = 1e-9  # far above the rounding of float64, far below any other difference


def quantisers(quality: float) -> Tensor:
    """Return the (3, 8, 8) steps of Y, Cb and Cr, float64, for a quality of 1 to 100, by libjpeg's rule."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    tables = np.array([LUMINANCE, CHROMINANCE, CHROMINANCE])
    return torch.from_numpy(((tables * scale + 50) // 100).clip(1, 255).reshape(3, 8, 8).astype(np.float64))


def _rounded(values: Tensor) -> Tensor:
    return values.sign() * (values.abs() + 0.5 + _TIE).floor()


def _mixed(images: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Mix the channels of (N, 3, H, W)."""
    return torch.einsum("dc,nchw->ndhw", torch.tensor(matrix, dtype=torch.float64, device=images.device), images)


def compressed(images: Tensor, quality: float) -> Tensor:
    """Return (N, 3, S, S) in [0, 1] as a JPEG file of 8 bits would give them back; the dtype stays."""
    size = images.shape[-1]
    colours = _rounded(_mixed(_rounded(images.double() * 255.0), TO_YCC))
    colours[:, 0] -= 128.0
    padded = functional.pad(colours, (0, -size % 8, 0, -size % 8), mode="replicate")
    tall = padded.shape[-1]
    to = torch.from_numpy(cosines(8)).to(images.device)
    step = quantisers(quality).to(images.device)[:, None, :, None, :]
    blocks = padded.view(len(images), 3, tall // 8, 8, tall // 8, 8)
    spectrum = torch.einsum("ui,ncyixj,vj->ncyuxv", to, blocks, to)
    kept = _rounded(spectrum / step) * step
    back = torch.einsum("ui,ncyuxv,vj->ncyixj", to, kept, to).reshape(padded.shape)[..., :size, :size]
    back = _rounded(back).clamp(-128.0, 127.0)
    back[:, 0] += 128.0
    return (_rounded(_mixed(back, TO_RGB)).clamp(0.0, 255.0) / 255.0).to(images.dtype)
