"""Invariance of an untrained network under rotations and reflections, measured on smooth images.

Measured on a copy in main memory whose batch norms use the statistics of these images; otherwise the outputs of an
untrained network hardly depend on the image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galaxyhpc.steerable import groups
from galaxyhpc.steerable.batch_norm import FieldBatchNorm

NUM_BLOB_IMAGES = 16  # images of the rotation curve


def invariance_error(model: nn.Module, group: str | None, image_size: int, seed: int = 0) -> float:
    """Return the largest change of the logits, relative to the largest logit, in evaluation mode.

    The group's elements that need no interpolation act on smooth random images; those of D4 if `group` is None.
    """
    generator = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.rand(4, 3, 9, 9, generator=generator), size=image_size, mode="bilinear")
    model = _calibrate_batchnorm(model, images)
    with torch.no_grad():
        logits = model(images)
        transformed = [model(element(images)) for element in groups.get_grid_elements(group or "D4")]
    return max(float((other - logits).abs().max()) for other in transformed) / float(logits.abs().max())


def measure_rotation_sensitivity(
    model: nn.Module, angles_deg: Sequence[float], image_size: int, seed: int = 0
) -> dict[float, float]:
    """Return the relative change of the features under rotations by angles in degrees, |f(rotated) - f| / |f|.

    f holds the inputs of the first linear layer for 16 images of elliptic blobs. The last layers are left out because
    they amplify the differences between images, and with them those between angles. All angles but multiples of 90
    need interpolation, which changes every network a little.
    """
    from galaxyhpc.data.augment import rotate  # slow to import: scipy's distributions

    images = _make_blob_images(image_size, seed)
    model = _calibrate_batchnorm(model, images)
    features: list[Tensor] = []
    first_linear = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
    hook = first_linear.register_forward_pre_hook(lambda layer, inputs: features.append(inputs[0]))
    with torch.no_grad():
        for angle in (0.0, *angles_deg):
            model(rotate(images, angle))
    hook.remove()
    reference, *rotated = features
    changes = [float((feature - reference).norm() / reference.norm()) for feature in rotated]
    return dict(zip(angles_deg, changes, strict=True))


def _make_blob_images(size: int, seed: int) -> Tensor:
    """Return (16, 3, size, size) images in [0, 1] of three ellipses each, of random place, shape and colour."""
    random = torch.rand(NUM_BLOB_IMAGES, 3, 8, 1, 1, generator=torch.Generator().manual_seed(seed))
    angle, radius, ratio, x, y, *colours = random.unbind(2)
    angle, radius, ratio = math.pi * angle, 0.05 + 0.3 * radius, 0.2 + 0.8 * ratio
    line = torch.linspace(-1, 1, size)
    dx, dy = line[None, :] - 0.8 * (x - 0.5), line[:, None] - 0.8 * (y - 0.5)
    along, across = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    light = torch.exp(-((along / radius).square() + (across / (ratio * radius)).square()) / 2)
    return torch.stack([(light * colour).sum(1) for colour in colours], 1).clamp(0, 1)


def _calibrate_batchnorm(model: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy in evaluation mode whose batch norms hold the statistics of these images."""
    model = copy.deepcopy(model).cpu().train()
    for module in model.modules():
        if isinstance(module, FieldBatchNorm):
            module.momentum, module.sync = 1.0, False
    with torch.no_grad():
        model(images)
    return model.eval()
