"""JPEG as libjpeg writes and reads it, on the device: 4:4:4, the standard tables (ITU-T T.81, annex K).

Its arithmetic is repeated, whole numbers with 13 or 16 binary places, in float64 where all of them are exact: the
pixels are those of libjpeg, the same on every device and in every batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

LUMINANCE_TABLE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29),
    *(51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121),
    *(120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE_TABLE = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66),
    *(99,) * 38,
)
DCT_MATRIX = (  # libjpeg's accurate transform (jfdctint.c: Loeffler, Ligtenberg and Moschytz 1989), 2^13 = 1
    (8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260, -2260, -6437, -9633, -11363),
    (10703, 4433, -4433, -10703, -10703, -4433, 4433, 10703),
    (9633, -2259, -11362, -6436, 6436, 11362, 2259, -9633),
    (8192, -8192, -8192, 8192, 8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633, -9633, -2261, 11362, -6437),
    (4433, -10704, 10704, -4433, -4433, 10704, -10704, 4433),
    (2260, -6436, 9633, -11363, 11363, -9633, 6436, -2260),
)
RGB_TO_YCC = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))  # 2^16 = 1
YCC_TO_RGB = ((65536, 0, 91881), (65536, -22554, -46802), (65536, 116130, 0))


def make_quantization_tables(quality: float) -> Tensor:
    """Return the (3, 8, 8) steps of Y, Cb and Cr, float64, for a quality of 1 to 100, by libjpeg's rule."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    tables = np.array([LUMINANCE_TABLE, CHROMINANCE_TABLE, CHROMINANCE_TABLE])
    return torch.from_numpy(((tables * scale + 50) // 100).clip(1, 255).reshape(3, 8, 8).astype(np.float64))


def _shift_right_rounded(values: Tensor, num_bits: int) -> Tensor:
    """Divide whole numbers by 2^places, rounding a half upwards."""
    return (values * 2.0**-num_bits + 0.5).floor()


def _mix_channels(images: Tensor, matrix: Sequence[Sequence[int]]) -> Tensor:
    """Mix the channels of (N, 3, H, W)."""
    weights = torch.tensor(matrix, dtype=torch.float64, device=images.device)
    return torch.einsum("dc,nchw->ndhw", weights, images)


def jpeg_compress(images: Tensor, quality: float) -> Tensor:
    """Return (N, 3, S, S) in [0, 1] as a JPEG file of 8 bits would give them back; the dtype stays."""
    size = images.shape[-1]
    mixed = _mix_channels((images.double() * 255.0).round(), RGB_TO_YCC)
    mixed[:, 1:] -= 1.0  # libjpeg rounds these halves downwards
    colours = _shift_right_rounded(mixed, 16)
    colours[:, 0] -= 128.0
    padded = functional.pad(colours, (0, -size % 8, 0, -size % 8), mode="replicate")
    blocks = padded.unflatten(2, (-1, 8)).unflatten(4, (-1, 8))  # (N, 3, rows, 8, columns, 8)
    step = make_quantization_tables(quality).to(images.device)[:, None, :, None, :]
    back = _apply_inverse_dct(_quantize(_apply_dct(blocks), step)).reshape(padded.shape)[..., :size, :size]
    back[:, 0] += 128.0
    return (_shift_right_rounded(_mix_channels(back, YCC_TO_RGB), 16).clamp(0.0, 255.0) / 255.0).to(images.dtype)


def _make_dct_matrix(like: Tensor) -> Tensor:
    return torch.tensor(DCT_MATRIX, dtype=like.dtype, device=like.device)


def _apply_dct(blocks: Tensor) -> Tensor:
    """Transform each block, rows first; 8 times the coefficients."""
    rows = _shift_right_rounded(torch.einsum("vj,ncyixj->ncyixv", _make_dct_matrix(blocks), blocks), 11)
    return _shift_right_rounded(torch.einsum("ui,ncyixv->ncyuxv", _make_dct_matrix(blocks), rows), 15)


def _quantize(coefficients: Tensor, step: Tensor) -> Tensor:
    """Round to multiples of the steps, halves away from zero."""
    return coefficients.sign() * ((coefficients.abs() + 4.0 * step) / (8.0 * step)).floor() * step


def _apply_inverse_dct(coefficients: Tensor) -> Tensor:
    """Transform each block back, columns first, to pixels about 0."""
    columns = _shift_right_rounded(torch.einsum("ui,ncyuxv->ncyixv", _make_dct_matrix(coefficients), coefficients), 11)
    return _shift_right_rounded(torch.einsum("vj,ncyixv->ncyixj", _make_dct_matrix(coefficients), columns), 18).clamp(
        -128.0, 127.0
    )
