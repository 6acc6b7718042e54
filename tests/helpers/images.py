"""Images for tests of image transformations."""

from __future__ import annotations

import numpy as np
import torch


def make_smooth_image(size: int = 48) -> torch.Tensor:
    """Make a (1, 3, size, size) image as smooth as a galaxy, with light in every corner, in whole DN over 255."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    bands = [np.exp(-(x**2 + y**2 * s) * 20) * 0.8 + 0.2 * np.abs(np.sin(s * 9 * x + y * 5)) for s in (1, 2, 3)]
    return torch.tensor(np.round(np.array(bands)[None] * 255) / 255, dtype=torch.float32)
