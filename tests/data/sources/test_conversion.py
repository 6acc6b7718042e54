"""Images are resized as torch resizes planes, whatever the order of bands in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from galaxyhpc.data.sources.conversion import resize


@pytest.mark.parametrize("side", [24, 40, 65, 256])
@pytest.mark.parametrize("size", [33, 65, 127])
def test_resized_pixels_are_those_of_contiguous_planes(side: int, size: int) -> None:
    images = np.random.default_rng(side).integers(0, 256, (3, side, side, 3), np.uint8)
    images.setflags(write=False)  # as an image file's
    planes = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float()
    expected = interpolate(planes, (size, size), mode="bilinear", antialias=True).round_().clamp_(0, 255)
    resized = resize(images, size)
    assert resized.flags.c_contiguous and resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, expected.numpy())
    np.testing.assert_array_equal(np.concatenate([resize(image[None], size) for image in images]), resized)
