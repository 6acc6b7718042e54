"""JPEG compression through Pillow, image by image in memory, on the CPU whatever the images' device."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def jpeg_compress(images: Tensor, quality: float) -> Tensor:
    """Return (N, 3, S, S) images in [0, 1] as JPEG files of 8 bits, 4:4:4, decode to; dtype and device stay.

    `quality` is libjpeg's, a whole number of 1 to 100.
    """
    pixels = (images.double() * 255.0).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    decoded = torch.from_numpy(np.stack([_encode_and_decode(image, round(quality)) for image in pixels]))
    return (decoded.permute(0, 3, 1, 2).to(images.device).double() / 255.0).to(images.dtype)


def _encode_and_decode(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Write one (S, S, 3) image as a JPEG file in memory and read it back."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:4:4")
    with Image.open(buffer) as file:
        return np.asarray(file)
