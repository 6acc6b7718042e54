"""What is done to the pixels under each condition: pure batch functions, [0, 1] in and out.

What happens to a pixel depends on the condition, its severity and the galaxy, never on the network, the batch or the
device: every network sees the same pixels. Each function has the name of a row in `conditions` and the signature

    (images (N, 3, S, S) in [0, 1], parameter, draw, survey) -> images

with `parameter` in the unit of its row; `draw(count)` gives (N, count) uniform numbers in (0, 1), float64, a function
of the galaxy, the condition and the severity, the same at every call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.nn import functional

from galaxyhpc.config.conditions import get_parameters
from galaxyhpc.data.augment import rotate
from galaxyhpc.evaluation import psf
from galaxyhpc.evaluation.jpeg import jpeg_compress
from galaxyhpc.runtime.rng import make_key, uniform

STREAK_LENGTH_ARCSEC = (
    2.0,
    16.0,
)  # arcsec, shortest and longest: 8 to 60 pixels of DECam, slanting through its thick CCDs
SEEING_FWHM_ARCSEC = 1.3  # arcsec FWHM of a star, typical of DECaLS (Dey et al. 2019)
STAR_MOFFAT_BETA = 2.5  # beta of a star: saturated ones show wings that turbulence alone does not have (Moffat 1969)
STAR_DISTANCE_RANGE = (0.08, 0.3)  # how far from the galaxy a star stands, in sides of the image: 5 to 20 arcsec


@dataclass(frozen=True)
class Survey:
    """What a condition may know of the data set: mean of all pixels in DN [0, 255], arcsec per pixel."""

    mean_dn: float
    pixel_scale_arcsec: float


DrawFn = Callable[[int], Tensor]
CorruptionFn = Callable[[Tensor, float, DrawFn, Survey], Tensor]


def corrupt(images: Tensor, indices: Tensor, condition: str, severity: float, survey: Survey) -> Tensor:
    """Apply a condition to (N, 3, S, S) images in [0, 1] of the galaxies in these rows of the data file."""
    several = get_parameters(condition, severity)
    for part, parameter in several:
        own = () if len(several) == 1 else (part,)  # parts of a combination draw apart
        draw = partial(uniform, make_key("corrupt", condition, float(severity), *own), indices)
        apply: CorruptionFn = globals()[part]
        images = apply(images, parameter, draw, survey)
    return images


def clean(images: Tensor, parameter: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Leave the images as they are."""
    return images


def make_disc_mask(size: int, device: torch.device) -> Tensor:
    """Return the (S, S) disc inscribed in an image: 1 inside, 0 outside; equal to itself under quarter turns."""
    offset = torch.arange(size, device=device) - (size - 1) / 2
    return (offset[:, None] ** 2 + offset[None, :] ** 2 <= (size / 2) ** 2).float()


def rotation(images: Tensor, degrees: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Turn counter-clockwise inside the inscribed disc, at every angle, 0 included."""
    return rotate(images * make_disc_mask(images.shape[-1], images.device), degrees)


def rotation_control(images: Tensor, degrees: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Turn there and back inside the same disc: what interpolation, twice, loses without any rotation."""
    return rotate(rotation(images, degrees, draw, survey), -degrees)


def flip(images: Tensor, axis: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Mirror left-right (axis 1) or upside-down (axis 2)."""
    return images.flip(3 if axis == 1.0 else 2)


def shift(images: Tensor, num_pixels: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Move each galaxy right, down, left or up by whole pixels; the sky beyond an edge is the sky before it."""
    way = (draw(1) * 4).long()
    step = torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1]], device=images.device)[way[:, 0]] * round(num_pixels)
    size = images.shape[-1]
    from_ = (torch.arange(size, device=images.device) - step[:, :, None]) % (2 * size)
    x, y = from_.minimum(2 * size - 1 - from_).unbind(1)
    moved = images.gather(2, y[:, None, :, None].expand_as(images))
    return moved.gather(3, x[:, None, None, :].expand_as(images))


def draw_poisson(rates: np.ndarray, rate_indices: Tensor, uniforms: Tensor) -> Tensor:
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
    table = _compute_poisson_cdfs(tuple(rates.tolist()))
    ladder = torch.from_numpy(table.ravel()).to(uniforms.device)  # one ascending row after the other: one search
    found: Tensor = (
        torch.searchsorted(ladder, uniforms + 2.0 * rate_indices, right=True) - rate_indices * table.shape[1]
    )
    return found.double()


@lru_cache(maxsize=8)
def _compute_poisson_cdfs(rates: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the distribution function of each rate, one a row, each row 2 above the one before."""
    most = int(max(rates) + 12 * np.sqrt(max(rates)) + 20)
    table: NDArray[np.float64] = stats.poisson.cdf(np.arange(most), np.array(rates)[:, None])
    return table + 2.0 * np.arange(len(rates))[:, None]


def _add_counts(images: Tensor, counts: Tensor) -> Tensor:
    """Add DN to images in [0, 1]."""
    return (images + (counts / 255.0).to(images.dtype)).clamp(0.0, 1.0)


def pedestal_noise(images: Tensor, snr: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Add Poisson counts of one mean to every pixel: the study's "noise", really a bright pedestal.

    The mean is survey.mean (1/SNR - 1) DN (SCIENCE.md 2: +12, +37, +112 DN).
    """
    uniforms = draw(images[0].numel()).view_as(images)
    rate = np.array([survey.mean_dn * (1.0 / snr - 1.0)])
    return _add_counts(images, draw_poisson(rate, torch.zeros_like(images, dtype=torch.int64), uniforms))


def shot_noise(images: Tensor, exposure_fraction: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Observe for a fraction t of the time: Poisson(I t)/t with one count per DN at t = 1.

    t = 1/10 is the usual proxy for going from ten years of a survey to one.
    """
    levels = (images * 255.0).round().long().clamp(0, 255)
    counts = draw_poisson(np.arange(256) * exposure_fraction, levels, draw(images[0].numel()).view_as(images))
    return (counts / exposure_fraction / 255.0).to(images.dtype).clamp(0.0, 1.0)


def sky_noise(images: Tensor, sigma_dn: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Add Gaussian noise of mean 0 and this standard deviation in DN, apart in each pixel and band."""
    return _add_counts(images, sigma_dn * torch.special.ndtri(draw(images[0].numel())).view_as(images))


def sky_pedestal(images: Tensor, level_dn: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Add the same DN everywhere: sky that was not subtracted."""
    return (images + level_dn / 255.0).clamp(0.0, 1.0)


def sky_gradient(images: Tensor, amplitude_dn: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Add a plane that rises from 0 to `amplitude` DN across the image, in a direction drawn: moonlight."""
    angle = 2 * np.pi * draw(1)
    right, down = angle.cos()[:, :, None], angle.sin()[:, :, None]
    at = torch.linspace(-0.5, 0.5, images.shape[-1], dtype=angle.dtype, device=images.device)
    ramp = (right * at + down * at[:, None]) / (right.abs() + down.abs()) + 0.5
    return _add_counts(images, amplitude_dn * ramp[:, None])


def psf_gaussian(images: Tensor, fwhm_arcsec: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Blur by a Gaussian of this FWHM in arcsec, on top of the seeing that is there."""
    return psf.convolve_psf(images, psf.gaussian_kernel(fwhm_arcsec / survey.pixel_scale_arcsec)).clamp(0.0, 1.0)


def psf_moffat(images: Tensor, fwhm_arcsec: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Blur by a Moffat function of this FWHM in arcsec, on top of the seeing that is there: wider wings."""
    return psf.convolve_psf(images, psf.moffat_kernel(fwhm_arcsec / survey.pixel_scale_arcsec)).clamp(0.0, 1.0)


def _resample(images: Tensor, fraction: float, antialias: bool) -> Tensor:
    size = images.shape[-1]
    few = max(1, round(fraction * size))
    small = functional.interpolate(images, (few, few), mode="bilinear", antialias=antialias)
    return functional.interpolate(small, (size, size), mode="bilinear").clamp(0.0, 1.0)


def downsample(images: Tensor, fraction: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Average to this fraction of the pixels a side, as coarser pixels would see it, and interpolate back."""
    return _resample(images, fraction, antialias=True)


def downsample_bilinear(images: Tensor, fraction: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Interpolate to this fraction of the pixels a side and back: the study's, which skips pixels and so aliases."""
    return _resample(images, fraction, antialias=False)


def bad_pixels(images: Tensor, fraction: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Break this fraction of the pixels, apart in each band: one half is hot (1), the other dead (0)."""
    uniforms = draw(images[0].numel()).view_as(images)
    return images.masked_fill(uniforms < fraction / 2, 1.0).masked_fill(uniforms > 1.0 - fraction / 2, 0.0)


def cosmic_rays(images: Tensor, num_streaks: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Add straight tracks one pixel wide, each in one band, with place, angle, length (STREAK) and peak drawn."""
    size, every = images.shape[-1], torch.arange(len(images), device=images.device)
    numbers = draw(6 * round(num_streaks)).view(len(images), round(num_streaks), 6).unbind(1)
    pixels = torch.arange(size, device=images.device, dtype=images.dtype)
    shortest, longest = (length / survey.pixel_scale_arcsec for length in STREAK_LENGTH_ARCSEC)
    found = images.clone()
    for streak in numbers:
        x, y, turn, stretch, band, peak = streak.unbind(1)
        half = shortest * (longest / shortest) ** stretch / 2
        right, down, half = (
            v.to(images.dtype)[:, None, None] for v in ((np.pi * turn).cos(), (np.pi * turn).sin(), half)
        )
        dx = pixels - (x * size - 0.5).to(images.dtype)[:, None, None]
        dy = pixels[:, None] - (y * size - 0.5).to(images.dtype)[:, None, None]
        beyond = ((dx * right + dy * down).abs() - half).clamp(min=0.0)
        light = (1.0 - torch.hypot(dy * right - dx * down, beyond)).clamp(min=0.0)
        hit = (every, (3 * band).long())
        found[hit] += light * (0.5 + 0.5 * peak).to(images.dtype)[:, None, None]
    return found.clamp(max=1.0)


def saturation(images: Tensor, full_well_dn: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Cut off what is brighter than `well` DN: the detector holds no more."""
    return images.clamp(max=full_well_dn / 255.0)


def band_loss(images: Tensor, channel: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Blacken one channel, as where a band was not observed: 0 (red) is z, 1 is r, 2 (blue) is g."""
    found = images.clone()
    found[:, round(channel)] = 0.0
    return found


def gain_error(images: Tensor, sigma: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Multiply each band by its own factor, log-normal with this standard deviation of its logarithm."""
    gains: Tensor = (sigma * torch.special.ndtri(draw(3))).exp().to(images.dtype)
    return (images * gains[:, :, None, None]).clamp(0.0, 1.0)


def jpeg(images: Tensor, quality: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Write as JPEG of this quality (4:4:4) and read again: libjpeg's pixels to the bit."""
    return jpeg_compress(images, quality)


def star(images: Tensor, peak: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Put a star beside the galaxy, a Moffat function of SEEING whose peak is `peak` times full scale, and saturates.

    Its place in RING and its colour are drawn; a pixel's width is added to the seeing in quadrature.
    """
    size, (far, turn, colour) = images.shape[-1], draw(3).unbind(1)
    radius, turn = (
        (STAR_DISTANCE_RANGE[0] ** 2 + far * (STAR_DISTANCE_RANGE[1] ** 2 - STAR_DISTANCE_RANGE[0] ** 2)).sqrt() * size,
        2 * np.pi * turn,
    )
    at = torch.arange(size, device=images.device) - (size - 1) / 2
    dx, dy = at - (radius * turn.cos())[:, None], at - (radius * turn.sin())[:, None]
    width = psf.fwhm_to_moffat_gamma(np.hypot(SEEING_FWHM_ARCSEC / survey.pixel_scale_arcsec, 1.0), STAR_MOFFAT_BETA)
    light: Tensor = (1.0 + (dx[:, None, :] ** 2 + dy[:, :, None] ** 2) / width**2) ** -STAR_MOFFAT_BETA
    red = 0.6 * colour - 0.3
    tint = torch.stack([1 + red, torch.ones_like(red), 1 - red], 1)
    return _add_counts(images, 255.0 * peak * tint[:, :, None, None] * light[:, None])
