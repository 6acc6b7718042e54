"""The corruption of each condition: pure functions of a batch of images in [0, 1].

A corrupted pixel depends on the condition, its severity and the galaxy, never on the network, the batch or the
device: every network sees the same pixels. CORRUPTIONS has a function for each condition of `config.conditions`,
with the signature

    (images (N, 3, S, S) in [0, 1], parameter, draw, survey) -> images

`parameter` is in the condition's unit; `draw(count)` returns (N, count) uniform numbers in (0, 1), float64, that
depend on the galaxy, the condition and the severity, and are the same at every call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from galaxyhpc.config.conditions import get_parameters
from galaxyhpc.data.augment import rotate
from galaxyhpc.evaluation import psf
from galaxyhpc.evaluation.jpeg import jpeg_compress
from galaxyhpc.runtime.rng import make_key, uniform

STREAK_LENGTH_ARCSEC = (2.0, 16.0)  # minimum, maximum: 8 to 60 pixels of DECam, slanting through its thick CCDs
SEEING_FWHM_ARCSEC = 1.3  # of a star, typical of DECaLS (Dey et al. 2019)
STAR_MOFFAT_BETA = 2.5  # saturated stars show wings that turbulence alone does not have (Moffat 1969)
STAR_DISTANCE_RANGE = (0.08, 0.3)  # of a star from the centre, in image sides: 5 to 20 arcsec


@dataclass(frozen=True)
class Survey:
    """Properties of a dataset that corruptions use: mean of all pixels in DN [0, 255], arcsec per pixel."""

    mean_dn: float
    pixel_scale_arcsec: float


DrawFn = Callable[[int], Tensor]
CorruptionFn = Callable[[Tensor, float, DrawFn, Survey], Tensor]


def corrupt(images: Tensor, indices: Tensor, condition: str, severity: float, survey: Survey) -> Tensor:
    """Apply a condition to (N, 3, S, S) images in [0, 1] of the galaxies with these rows of the data file, (N,)."""
    parameters = get_parameters(condition, severity)
    for name, parameter in parameters:
        own_key = () if len(parameters) == 1 else (name,)  # the parts of a combination draw independently
        draw = partial(uniform, make_key("corrupt", condition, float(severity), *own_key), indices)
        images = CORRUPTIONS[name](images, parameter, draw, survey)
    return images


def clean(images: Tensor, parameter: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Leave the images as they are."""
    return images


def make_disc_mask(size: int, device: torch.device) -> Tensor:
    """Return the (S, S) disc inscribed in an image: 1 inside, 0 outside; unchanged by rotations by 90 degrees."""
    offset = torch.arange(size, device=device) - (size - 1) / 2
    return (offset[:, None] ** 2 + offset[None, :] ** 2 <= (size / 2) ** 2).float()


def rotation(images: Tensor, degrees: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Rotate counter-clockwise, masked by the inscribed disc at every angle, 0 included."""
    return rotate(images * make_disc_mask(images.shape[-1], images.device), degrees)


def rotation_control(images: Tensor, degrees: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Rotate there and back inside the same disc: the loss by interpolating twice, without a rotation."""
    return rotate(rotation(images, degrees, draw, survey), -degrees)


def flip(images: Tensor, axis: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Flip left-right (axis 1) or upside-down (axis 2)."""
    return images.flip(3 if axis == 1.0 else 2)


def shift(images: Tensor, num_pixels: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Shift each galaxy right, down, left or up by whole pixels, with reflect padding."""
    direction = (draw(1) * 4).long()
    step = torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1]], device=images.device)[direction[:, 0]] * round(num_pixels)
    size = images.shape[-1]
    source = (torch.arange(size, device=images.device) - step[:, :, None]) % (2 * size)
    x, y = source.minimum(2 * size - 1 - source).unbind(1)
    shifted = images.gather(2, y[:, None, :, None].expand_as(images))
    return shifted.gather(3, x[:, None, None, :].expand_as(images))


def draw_poisson(rates: np.ndarray, rate_indices: Tensor, uniforms: Tensor) -> Tensor:
    """Draw Poisson counts by inverting the distribution function: exact, and the same on every device.

    Parameters
    ----------
    rates : (L,) expected counts
    rate_indices : int64, any shape, the rate of each draw as an index into `rates`
    uniforms : float64 in (0, 1), same shape

    Returns
    -------
    counts, float64, same shape
    """
    table = _compute_poisson_cdfs(tuple(rates.tolist()))
    flat_cdfs = torch.from_numpy(table.ravel()).to(uniforms.device)  # ascending as a whole: one search for all rates
    positions = torch.searchsorted(flat_cdfs, uniforms + 2.0 * rate_indices, right=True)
    counts: Tensor = (positions - rate_indices * table.shape[1]).double()
    return counts


@lru_cache(maxsize=8)
def _compute_poisson_cdfs(rates: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the distribution function of each rate, one per row, each row 2 above the previous one."""
    max_count = int(max(rates) + 12 * np.sqrt(max(rates)) + 20)
    table: NDArray[np.float64] = scipy.special.pdtr(np.arange(max_count), np.array(rates)[:, None])
    return table + 2.0 * np.arange(len(rates))[:, None]


def _add_counts(images: Tensor, counts: Tensor) -> Tensor:
    """Add DN to images in [0, 1]."""
    return (images + (counts / 255.0).to(images.dtype)).clamp(0.0, 1.0)


def pedestal_noise(images: Tensor, snr: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Add Poisson counts of one mean to every pixel: the "noise" of Pandya et al. (2023), really a bright pedestal.

    The mean is survey.mean_dn (1/SNR - 1) DN: for Galaxy10 +12, +37 and +112 DN.
    """
    uniforms = draw(images[0].numel()).view_as(images)
    rate = np.array([survey.mean_dn * (1.0 / snr - 1.0)])
    return _add_counts(images, draw_poisson(rate, torch.zeros_like(images, dtype=torch.int64), uniforms))


def shot_noise(images: Tensor, exposure_fraction: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Shorten the exposure to a fraction t: Poisson(I t)/t with one count per DN at t = 1.

    t = 1/10 is the usual proxy for going from ten years of a survey to one.
    """
    levels = (images * 255.0).round().long().clamp(0, 255)
    counts = draw_poisson(np.arange(256) * exposure_fraction, levels, draw(images[0].numel()).view_as(images))
    return (counts / exposure_fraction / 255.0).to(images.dtype).clamp(0.0, 1.0)


def sky_noise(images: Tensor, sigma_dn: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Add Gaussian noise of mean 0 and this standard deviation in DN, independent in each pixel and band."""
    return _add_counts(images, sigma_dn * torch.special.ndtri(draw(images[0].numel())).view_as(images))


def sky_pedestal(images: Tensor, level_dn: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Add the same DN everywhere: a sky level that was not subtracted."""
    return (images + level_dn / 255.0).clamp(0.0, 1.0)


def sky_gradient(images: Tensor, amplitude_dn: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Add a plane that rises from 0 to `amplitude_dn` DN across the image in a random direction: moonlight."""
    angle = 2 * np.pi * draw(1)
    right, down = angle.cos()[:, :, None], angle.sin()[:, :, None]
    positions = torch.linspace(-0.5, 0.5, images.shape[-1], dtype=angle.dtype, device=images.device)
    ramp = (right * positions + down * positions[:, None]) / (right.abs() + down.abs()) + 0.5
    return _add_counts(images, amplitude_dn * ramp[:, None])


def psf_gaussian(images: Tensor, fwhm_arcsec: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Convolve with a Gaussian of this FWHM in arcsec, in addition to the image's own seeing."""
    return psf.convolve_psf(images, psf.gaussian_kernel(fwhm_arcsec / survey.pixel_scale_arcsec)).clamp(0.0, 1.0)


def psf_moffat(images: Tensor, fwhm_arcsec: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Convolve with a Moffat function of this FWHM in arcsec, in addition to the image's own seeing: wider wings."""
    return psf.convolve_psf(images, psf.moffat_kernel(fwhm_arcsec / survey.pixel_scale_arcsec)).clamp(0.0, 1.0)


def _resample(images: Tensor, fraction: float, antialias: bool) -> Tensor:
    size = images.shape[-1]
    small_size = max(1, round(fraction * size))
    small = functional.interpolate(images, (small_size, small_size), mode="bilinear", antialias=antialias)
    return functional.interpolate(small, (size, size), mode="bilinear").clamp(0.0, 1.0)


def downsample(images: Tensor, fraction: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Average to this fraction of the pixels per side, as coarser pixels would, and interpolate back."""
    return _resample(images, fraction, antialias=True)


def downsample_bilinear(images: Tensor, fraction: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Interpolate to this fraction of the pixels per side and back, skipping pixels: aliased, as Pandya et al. do."""
    return _resample(images, fraction, antialias=False)


def bad_pixels(images: Tensor, fraction: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Break this fraction of the pixels, independently in each band: one half is hot (1), the other dead (0)."""
    uniforms = draw(images[0].numel()).view_as(images)
    return images.masked_fill(uniforms < fraction / 2, 1.0).masked_fill(uniforms > 1.0 - fraction / 2, 0.0)


def cosmic_rays(images: Tensor, num_streaks: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Add straight streaks one pixel wide, each in one band, of random position, angle, length and peak.

    Lengths are within STREAK_LENGTH_ARCSEC.
    """
    size, batch_indices = images.shape[-1], torch.arange(len(images), device=images.device)
    streaks = draw(6 * round(num_streaks)).view(len(images), round(num_streaks), 6).unbind(1)
    pixels = torch.arange(size, device=images.device, dtype=images.dtype)
    shortest, longest = (length / survey.pixel_scale_arcsec for length in STREAK_LENGTH_ARCSEC)
    result = images.clone()
    for streak in streaks:
        x, y, angle, stretch, band, peak = streak.unbind(1)
        half_length = shortest * (longest / shortest) ** stretch / 2
        right, down, half_length = (
            v.to(images.dtype)[:, None, None] for v in ((np.pi * angle).cos(), (np.pi * angle).sin(), half_length)
        )
        dx = pixels - (x * size - 0.5).to(images.dtype)[:, None, None]
        dy = pixels[:, None] - (y * size - 0.5).to(images.dtype)[:, None, None]
        distance_past_end = ((dx * right + dy * down).abs() - half_length).clamp(min=0.0)
        profile = (1.0 - torch.hypot(dy * right - dx * down, distance_past_end)).clamp(min=0.0)
        result[batch_indices, (3 * band).long()] += profile * (0.5 + 0.5 * peak).to(images.dtype)[:, None, None]
    return result.clamp(max=1.0)


def saturation(images: Tensor, full_well_dn: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Clip at `full_well_dn` DN, the most that the detector holds."""
    return images.clamp(max=full_well_dn / 255.0)


def band_loss(images: Tensor, channel: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Set one channel to 0, as if its band was not observed: 0 (red) is z, 1 is r, 2 (blue) is g."""
    result = images.clone()
    result[:, round(channel)] = 0.0
    return result


def gain_error(images: Tensor, sigma: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Multiply each band by a random factor, log-normal with this standard deviation of its logarithm."""
    gains: Tensor = (sigma * torch.special.ndtri(draw(3))).exp().to(images.dtype)
    return (images * gains[:, :, None, None]).clamp(0.0, 1.0)


def jpeg(images: Tensor, quality: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Compress as JPEG of this quality (4:4:4) and decode again."""
    return jpeg_compress(images, quality)


def star(images: Tensor, peak: float, draw: DrawFn, survey: Survey) -> Tensor:
    """Add a star beside the galaxy, a Moffat function whose peak is `peak` times full scale, and saturate.

    Its FWHM is SEEING_FWHM_ARCSEC and the width of a pixel added in quadrature. Its position, at a distance within
    STAR_DISTANCE_RANGE, and its colour are random.
    """
    size, (area_fraction, angle_fraction, colour) = images.shape[-1], draw(3).unbind(1)
    inner, outer = STAR_DISTANCE_RANGE
    radius, angle = (inner**2 + area_fraction * (outer**2 - inner**2)).sqrt() * size, 2 * np.pi * angle_fraction
    positions = torch.arange(size, device=images.device) - (size - 1) / 2
    dx, dy = positions - (radius * angle.cos())[:, None], positions - (radius * angle.sin())[:, None]
    width = psf.fwhm_to_moffat_gamma(np.hypot(SEEING_FWHM_ARCSEC / survey.pixel_scale_arcsec, 1.0), STAR_MOFFAT_BETA)
    light: Tensor = (1.0 + (dx[:, None, :] ** 2 + dy[:, :, None] ** 2) / width**2) ** -STAR_MOFFAT_BETA
    red = 0.6 * colour - 0.3
    tint = torch.stack([1 + red, torch.ones_like(red), 1 - red], 1)
    return _add_counts(images, 255.0 * peak * tint[:, :, None, None] * light[:, None])


CORRUPTIONS: dict[str, CorruptionFn] = {
    "clean": clean,
    "rotation": rotation,
    "rotation_control": rotation_control,
    "flip": flip,
    "shift": shift,
    "pedestal_noise": pedestal_noise,
    "shot_noise": shot_noise,
    "sky_noise": sky_noise,
    "sky_pedestal": sky_pedestal,
    "sky_gradient": sky_gradient,
    "psf_gaussian": psf_gaussian,
    "psf_moffat": psf_moffat,
    "downsample": downsample,
    "downsample_bilinear": downsample_bilinear,
    "bad_pixels": bad_pixels,
    "cosmic_rays": cosmic_rays,
    "saturation": saturation,
    "band_loss": band_loss,
    "gain_error": gain_error,
    "jpeg": jpeg,
    "star": star,
}
