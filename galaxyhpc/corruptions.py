"""The conditions a network is measured under: pure batch functions, [0, 1] in and out.

What happens to a pixel depends on the condition, its severity and the galaxy, never on the network, the batch or the
device: every network sees the same pixels. A new condition is one function and one row of `CONDITIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from galaxyhpc.randomness import key, uniform


@dataclass(frozen=True)
class Survey:
    """What a condition may know of the data set: mean of all pixels in DN [0, 255], arcsec per pixel."""

    mean: float
    pixel_scale: float


@dataclass(frozen=True)
class Condition:
    """A function (images (N, 3, S, S) in [0, 1], severity, draw, survey) -> images, and its severities.

    `draw(count)` gives (N, count) uniform numbers in (0, 1), float64, a function of the galaxy.
    """

    apply: Callable[[Tensor, float, Callable[[int], Tensor], Survey], Tensor]
    severities: tuple[float, ...]
    meaning: str  # of the severity


EXPOSURE = {1.0: 0.5, 2.0: 0.25, 3.0: 0.1, 4.0: 0.04, 5.0: 0.02}  # fraction of the exposure time


def clean(images: Tensor, severity: float, draw: Callable[[int], Tensor], survey: Survey) -> Tensor:
    """Leave the images as they are."""
    return images


def circle(size: int, device: torch.device) -> Tensor:
    """Return the (S, S) disc inscribed in an image: 1 inside, 0 outside; equal to itself under quarter turns."""
    offset = torch.arange(size, device=device) - (size - 1) / 2
    return (offset[:, None] ** 2 + offset[None, :] ** 2 <= (size / 2) ** 2).float()


def rotation(images: Tensor, severity: float, draw: Callable[[int], Tensor], survey: Survey) -> Tensor:
    """Turn counter-clockwise by `severity` degrees inside the inscribed disc, at every angle, 0 included."""
    return turned(images * circle(images.shape[-1], images.device), severity)


def turned(images: Tensor, degrees: float) -> Tensor:
    """Turn (N, C, S, S) counter-clockwise: by multiples of 90 exactly, else bilinearly, which blurs a little."""
    quarters, rest = divmod(degrees, 90.0)
    if rest == 0.0:
        return torch.rot90(images, int(quarters), dims=(2, 3))
    angle = np.deg2rad(degrees)
    turn = [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]]
    maps = torch.tensor(turn, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def poisson(rates: np.ndarray, which: Tensor, uniforms: Tensor) -> Tensor:
    """Draw Poisson counts by inverting the distribution function, exactly and alike on every device.

    Parameters
    ----------
    rates : (L,) expected counts
    which : int64, any shape, the rate of each draw as an index into `rates`
    uniforms : float64 in (0, 1), same shape

    Returns
    -------
    counts, float64, same shape
    """
    most = int(rates.max() + 12 * np.sqrt(rates.max()) + 20)
    table = stats.poisson.cdf(np.arange(most), rates[:, None]) + 2.0 * np.arange(len(rates))[:, None]
    ladder = torch.from_numpy(table.ravel()).to(uniforms.device)  # one ascending row after the other: one search
    return (torch.searchsorted(ladder, uniforms + 2.0 * which, right=True) - which * most).double()


def pedestal_noise(images: Tensor, severity: float, draw: Callable[[int], Tensor], survey: Survey) -> Tensor:
    """Add Poisson counts of one mean to every pixel: the study's "noise", really a bright pedestal.

    Severity is the study's SNR; the mean is survey.mean (1/SNR - 1) DN (SCIENCE.md 2: +12, +37, +112 DN).
    """
    uniforms = draw(images[0].numel()).view_as(images)
    rate = np.array([survey.mean * (1.0 / severity - 1.0)])
    counts = poisson(rate, torch.zeros_like(images, dtype=torch.int64), uniforms)
    return (images + (counts / 255.0).to(images.dtype)).clamp(0.0, 1.0)


def shot_noise(images: Tensor, severity: float, draw: Callable[[int], Tensor], survey: Survey) -> Tensor:
    """Observe for a fraction t of the time: Poisson(I t)/t with one count per DN at t = 1 (EXPOSURE gives t).

    t = 1/10 (severity 3) is the usual proxy for going from ten years of a survey to one.
    """
    exposure = EXPOSURE[severity]
    levels = (images * 255.0).round().long().clamp(0, 255)
    counts = poisson(np.arange(256) * exposure, levels, draw(images[0].numel()).view_as(images))
    return (counts / exposure / 255.0).to(images.dtype).clamp(0.0, 1.0)


CONDITIONS = {
    "clean": Condition(clean, (0.0,), "none"),
    "rotation": Condition(rotation, tuple(np.arange(0.0, 360.0, 7.5).tolist()), "degrees"),
    "pedestal_noise": Condition(pedestal_noise, (0.75, 0.5, 0.25), "the study's SNR"),
    "shot_noise": Condition(shot_noise, tuple(EXPOSURE), "1 to 5"),
}


def severities(condition: str) -> tuple[float, ...]:
    """Return the severities that a condition is measured at."""
    return CONDITIONS[condition].severities


def corrupt(images: Tensor, rows: Tensor, condition: str, severity: float, survey: Survey) -> Tensor:
    """Apply a condition to (N, 3, S, S) images in [0, 1] of the galaxies in these rows of the data file."""
    name = key("corrupt", condition, severity)
    return CONDITIONS[condition].apply(images, severity, lambda count: uniform(name, rows, count), survey)
