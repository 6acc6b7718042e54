"""JPEG on the device, against Pillow's."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from helpers.images import make_smooth_image
from PIL import Image

from galaxyhpc.config.conditions import CONDITIONS
from galaxyhpc.evaluation import jpeg


@pytest.mark.parametrize("quality", [*CONDITIONS["jpeg"].parameters.values(), 1.0, 95.0])
@pytest.mark.parametrize("size", [48, 65])
def test_a_jpeg_is_pillows_to_the_bit(quality: float, size: int) -> None:
    noisy = make_smooth_image(size) + 0.05 * torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    image = (noisy.clamp(0, 1) * 255).round() / 255
    file = io.BytesIO()
    pixels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=round(quality), subsampling=0)
    wanted = np.array(Image.open(file)).astype(float)
    found = jpeg.jpeg_compress(image, quality)[0].permute(1, 2, 0).double().numpy() * 255
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_the_same_pixels_in_another_batch_are_the_same_to_the_bit() -> None:
    images = torch.rand(6, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    assert torch.equal(jpeg.jpeg_compress(images, 15.0)[2:3], jpeg.jpeg_compress(images[2:3], 15.0))
