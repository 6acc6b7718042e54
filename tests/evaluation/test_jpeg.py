"""JPEG compression: the pixels of Pillow's decoder, independent of the batch."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
import torch
from helpers.images import make_smooth_image
from PIL import Image

from galaxyhpc.config.conditions import CONDITIONS
from galaxyhpc.evaluation import jpeg

PIXEL_DIGESTS = {  # SHA-256 of uint8 pixels; the same for Pillow 10.0 to 13.0 (libjpeg-turbo 2.1 to 3.2)
    75: "d81835d60c5148a9",
    50: "03684c4e533688f2",
    30: "19d0612015635fb7",
    15: "577fe211a831c813",
    8: "0f5327cf72a3571f",
}


@pytest.mark.parametrize("quality", [*CONDITIONS["jpeg"].parameters.values(), 1.0, 95.0])
@pytest.mark.parametrize("size", [48, 65])
def test_a_jpeg_is_pillows_to_the_bit(quality: float, size: int) -> None:
    noisy = make_smooth_image(size) + 0.05 * torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    image = (noisy.clamp(0, 1) * 255).round() / 255
    file = io.BytesIO()
    pixels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=round(quality), subsampling=0)
    expected = np.array(Image.open(file)).astype(float)
    compressed = jpeg.jpeg_compress(image, quality)[0].permute(1, 2, 0).double().numpy() * 255
    np.testing.assert_allclose(compressed, expected, atol=1e-4)


@pytest.mark.parametrize(("quality", "digest"), PIXEL_DIGESTS.items())
def test_every_supported_pillow_gives_the_same_pixels(quality: int, digest: str) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 65, 65), np.uint8)).float() / 255
    images = torch.cat([noise, make_smooth_image(65)])
    pixels = (jpeg.jpeg_compress(images, float(quality)) * 255).round().byte().numpy()
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == digest


def test_the_same_pixels_in_another_batch_are_the_same_to_the_bit() -> None:
    images = torch.rand(6, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    assert torch.equal(jpeg.jpeg_compress(images, 15.0)[2:3], jpeg.jpeg_compress(images[2:3], 15.0))
