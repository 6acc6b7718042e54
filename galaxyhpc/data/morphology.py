"""Surface brightness of a generated galaxy of each class, without atmosphere or noise.

Sersic bulges, discs, bars, logarithmic arms, edge-on discs, mergers and tidal disturbance in the z, r and g bands, in
nanomaggies per 0.262 arcsec pixel of DECaLS. `CLASS_PRIORS` were set so that magnitudes, half-light radii and colours
measured on generated images agree per class with those measured on 697 real ones by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Seed = int | Sequence[int]

DECALS_PIXEL_ARCSEC = 0.262  # surface brightness is per such a pixel


@dataclass(frozen=True)
class Grid:
    """Coordinates (F, F) of the pixels and the pixel size, in arcsec; x to the west, y to the south."""

    x: Float32Array
    y: Float32Array
    pixel_arcsec: float

    def shift_origin(self, x: float, y: float) -> Grid:
        """Return the same grid with (x, y) as the origin."""
        return replace(self, x=self.x - x, y=self.y - y)


@dataclass(frozen=True)
class GalaxyParameters:
    """Overall properties of one galaxy."""

    flux: float  # nanomaggies in r
    radius: float  # arcsec, about the half-light radius
    colour: float  # g - r, mag
    axis_ratio: float  # minor to major axis
    angle: float  # rad, of the major axis

    def deproject(self, grid: Grid) -> tuple[Float32Array, Float32Array]:
        """Return (F, F) coordinates in arcsec along the major axis, and along the minor axis as seen face-on."""
        along, across = _rotate(grid.x, grid.y, self.angle)
        return along, across / self.axis_ratio


def _rotate(x: Float32Array, y: Float32Array, angle: float) -> tuple[Float32Array, Float32Array]:
    """Return coordinates along and across an axis at `angle` rad."""
    c, s = math.cos(angle), math.sin(angle)
    return x * c + y * s, y * c - x * s


@dataclass(frozen=True)
class ClassPrior:
    """Distribution of the galaxies of one class."""

    magnitude: tuple[float, float]  # r: mean and deviation
    radius: tuple[float, float]  # arcsec, and dex at equal magnitude
    colour: tuple[float, float]  # g - r: mean and deviation
    axis_ratio: tuple[float, float]  # lowest and highest


CLASS_PRIORS = (
    ClassPrior((17.0, 0.70), (2.9, 0.10), (0.64, 0.16), (0.45, 0.95)),
    ClassPrior((17.5, 0.60), (1.7, 0.12), (0.85, 0.15), (0.50, 1.00)),
    ClassPrior((17.3, 0.65), (1.9, 0.10), (0.84, 0.17), (0.80, 1.00)),
    ClassPrior((17.6, 0.60), (1.6, 0.08), (0.73, 0.15), (0.42, 0.86)),
    ClassPrior((17.5, 0.75), (2.4, 0.10), (0.67, 0.15), (0.18, 0.45)),
    ClassPrior((16.2, 0.80), (4.5, 0.11), (0.71, 0.15), (0.45, 1.00)),
    ClassPrior((16.5, 0.60), (4.3, 0.09), (0.64, 0.11), (0.45, 1.00)),
    ClassPrior((17.1, 0.70), (3.5, 0.10), (0.61, 0.14), (0.40, 1.00)),
    ClassPrior((16.7, 0.85), (5.6, 0.11), (0.53, 0.17), (0.13, 0.34)),
    ClassPrior((17.2, 0.75), (3.6, 0.11), (0.88, 0.11), (0.16, 0.30)),
)


def draw_galaxy(label: int, seed: Seed, grid: Grid) -> Float32Array:
    """Draw a galaxy of class `label` (0 to 9) near the origin: light (3, F, F) in z, r, g."""
    if not 0 <= label < len(CLASS_PRIORS):
        raise ValueError(f"label: got {label}; expected 0 to {len(CLASS_PRIORS) - 1}")
    rng = default_rng(seed)
    galaxy = _draw_galaxy_parameters(rng, label)
    grid = grid.shift_origin(rng.normal(0, 0.25), rng.normal(0, 0.25))
    match label:
        case 0:
            return _draw_disturbed(rng, grid, galaxy)
        case 1:
            return _draw_merger(rng, grid, galaxy)
        case 2 | 3 | 4:
            return _draw_elliptical(rng, grid, galaxy, *((1.5, 4.5), (1.2, 3.5), (0.8, 2.0))[label - 2])
        case 5 | 6 | 7:
            return _draw_spiral(rng, grid, galaxy, _draw_arm_parameters(rng, label))
    bulge = rng.uniform(0.0, 0.1) if label == 8 else rng.uniform(0.2, 0.5)
    return _draw_edge_on(rng, grid, galaxy, bulge, rng.normal(0, 0.01))


def _draw_galaxy_parameters(rng: Generator, label: int) -> GalaxyParameters:
    prior = CLASS_PRIORS[label]
    faintness = rng.normal()
    magnitude = min(prior.magnitude[0] + prior.magnitude[1] * faintness, 18.3)
    radius = prior.radius[0] * 10 ** (prior.radius[1] * rng.normal() - 0.12 * faintness)
    colour = min(max(rng.normal(*prior.colour), 0.2), 1.15)
    ratio, angle = rng.uniform(*prior.axis_ratio), rng.uniform(0, math.pi)
    return GalaxyParameters(10 ** (0.4 * (22.5 - magnitude)), radius, colour, ratio, angle)


def compute_band_fluxes(colour: Float64Array) -> Float32Array:
    """Return (3, K) fluxes in z, r, g for one unit in r, given (K,) g - r; r - z follows as in real galaxies."""
    magnitudes = np.stack([-0.12 - 0.55 * colour, 0 * colour, colour]).astype(np.float32)
    light: Float32Array = 10 ** (-0.4 * magnitudes)
    return light


def _split_into_bands(light: Float32Array, colour: float) -> Float32Array:
    return compute_band_fluxes(np.array([colour]))[:, :, None] * light


def _compute_softened_radius(u: Float32Array, v: Float32Array, grid: Grid) -> Float32Array:
    radius: Float32Array = np.sqrt(u * u + v * v + (0.4 * grid.pixel_arcsec) ** 2)  # a cusp cannot be sampled
    return radius


def _sersic_profile(
    radius: Float32Array, galaxy: GalaxyParameters, flux_fraction: float, half_light_radius: float, sersic_index: float
) -> Float32Array:
    """Return an (F, F) Sersic profile, `half_light_radius` in arcsec, with this fraction of the galaxy's flux."""
    n = sersic_index
    b = 2 * n - 1 / 3 + 0.009876 / n
    area = 2 * math.pi * n * half_light_radius**2 * math.exp(b) * b ** (-2 * n) * math.gamma(2 * n) * galaxy.axis_ratio
    shape = np.exp(-b * ((radius / half_light_radius) ** (1 / n) - 1))
    profile: Float32Array = shape * (galaxy.flux * flux_fraction * DECALS_PIXEL_ARCSEC**2 / area)
    return profile


def _draw_elliptical(
    rng: Generator, grid: Grid, galaxy: GalaxyParameters, min_sersic_index: float, max_sersic_index: float
) -> Float32Array:
    """Draw an elliptical: a redder, more concentrated half of the light inside a bluer one."""
    radius = _compute_softened_radius(*galaxy.deproject(grid), grid)
    gradient = rng.uniform(0, 0.1)
    inner = _sersic_profile(radius, galaxy, 0.5, 0.7 * galaxy.radius, rng.uniform(min_sersic_index, max_sersic_index))
    outer = _sersic_profile(radius, galaxy, 0.5, 1.35 * galaxy.radius, rng.uniform(0.8, 1.6))
    return _split_into_bands(inner, galaxy.colour + gradient) + _split_into_bands(outer, galaxy.colour - gradient)


@dataclass(frozen=True)
class SpiralArms:
    """Properties of a spiral galaxy beyond those of every galaxy."""

    num_arms: int
    winding: float  # rad that an arm turns while the radius grows by a factor e; the sign is the handedness
    contrast: float  # 0: a smooth disc; 1: all of the disc's light is in the arms
    bar_fraction: float  # of the light
    bulge_fraction: float  # of the light
    start_radius: float  # in half-light radii, where the arms start and the bar ends
    angle: float  # rad, where the first arm starts and the bar points


def _draw_arm_parameters(rng: Generator, label: int) -> SpiralArms:
    """Draw pitch angle, bar and bulge for a class of spirals; the ranges touch, as the classes do."""
    tight, barred = label == 6, label == 5
    pitch_deg = rng.uniform(5, 15) if tight else rng.uniform(8 if barred else 14, 36)
    num_arms = 2 if barred else rng.choice([2, 3, 4], p=[0.45, 0.3, 0.25] if tight else [0.75, 0.18, 0.07])
    return SpiralArms(
        num_arms=int(num_arms),
        winding=int(rng.choice([-1, 1])) / math.tan(math.radians(pitch_deg)),
        contrast=rng.uniform(0.1, 0.65) if tight else rng.uniform(0.15, 0.8),
        bar_fraction=rng.uniform(0.08, 0.3) if barred else max(0.0, rng.uniform(-0.1, 0.06)),
        bulge_fraction=rng.uniform(0.08, 0.3) if tight else rng.uniform(0.02, 0.18),
        start_radius=rng.uniform(0.5, 1.0),
        angle=rng.uniform(0, math.pi),
    )


def _draw_spiral(rng: Generator, grid: Grid, galaxy: GalaxyParameters, arms: SpiralArms) -> Float32Array:
    """Draw a disc with logarithmic arms, a bulge, and a bar if it has light; red inside, blue in the arms."""
    u, v = galaxy.deproject(grid)
    radius = _compute_softened_radius(u, v, grid)
    disc = _sersic_profile(radius, galaxy, 1 - arms.bulge_fraction - arms.bar_fraction, 1.1 * galaxy.radius, 1.0)
    fraction, density = _compute_arm_pattern(rng, np.arctan2(v, u), radius / galaxy.radius, arms)
    bulge = _sersic_profile(radius, galaxy, arms.bulge_fraction, 0.28 * galaxy.radius, 2.0)
    light = _split_into_bands(disc * (1 - fraction), galaxy.colour + 0.02)
    light += _split_into_bands(disc * fraction * density, galaxy.colour - 0.12)
    light += _split_into_bands(bulge, galaxy.colour + 0.42)
    if arms.bar_fraction > 0:
        light += _split_into_bands(_compute_bar(u, v, galaxy, arms), galaxy.colour + 0.24)
    return light + _draw_star_forming_regions(rng, grid, galaxy, arms)


def _compute_arm_pattern(
    rng: Generator, azimuth: Float32Array, radius: Float32Array, arms: SpiralArms
) -> tuple[Float32Array, Float32Array]:
    """Return the fraction of the disc's light in arms, and its density there relative to a mean of about 1."""
    ripple = rng.uniform(0.1, 0.6) * np.sin(int(rng.integers(1, 4)) * azimuth + 3 * radius + rng.uniform(0, 6))
    phase = arms.num_arms * (azimuth - arms.angle - arms.winding * np.log(radius / arms.start_radius)) + ripple
    sharpness = rng.uniform(0.8, 2.0)
    density = np.exp(sharpness * (np.cos(phase) - 1)) / float(scipy.special.i0e(sharpness))
    fraction = arms.contrast * (1 - np.exp(-((radius / (0.7 * arms.start_radius)) ** 2)))  # none inside the bar
    return fraction, density


def _compute_bar(u: Float32Array, v: Float32Array, galaxy: GalaxyParameters, arms: SpiralArms) -> Float32Array:
    length, width = arms.start_radius * galaxy.radius, 0.24 * arms.start_radius * galaxy.radius
    along, across = _rotate(u, v, arms.angle)
    area = 1.8128 * math.sqrt(math.pi) * length * width * galaxy.axis_ratio  # the integral of the exponential
    bar: Float32Array = np.exp(-((along / length) ** 4) - (across / width) ** 2)
    return bar * (galaxy.flux * arms.bar_fraction * DECALS_PIXEL_ARCSEC**2 / area)


def _draw_star_forming_regions(rng: Generator, grid: Grid, galaxy: GalaxyParameters, arms: SpiralArms) -> Float32Array:
    """Draw blue star-forming regions along the arms."""
    count = rng.poisson(25 * arms.contrast)
    radius = rng.uniform(0.5, 2.0, count)
    azimuth = arms.angle + arms.winding * np.log(radius / arms.start_radius) + rng.normal(0, 0.12, count)
    azimuth += 2 * np.pi * rng.integers(0, arms.num_arms, count) / arms.num_arms
    u, v = radius * galaxy.radius * np.cos(azimuth), radius * galaxy.radius * np.sin(azimuth) * galaxy.axis_ratio
    c, s = math.cos(galaxy.angle), math.sin(galaxy.angle)
    x, y = u * c - v * s, u * s + v * c
    flux = galaxy.flux * rng.uniform(0.0005, 0.003, count)
    return draw_sources(grid, x, y, flux, np.full(count, 0.4), np.full(count, galaxy.colour - 0.3))


def _draw_edge_on(
    rng: Generator, grid: Grid, galaxy: GalaxyParameters, bulge_fraction: float, warp: float
) -> Float32Array:
    """Draw an edge-on disc, (r/h) K1(r/h) sech^2(z/z0), within a thicker one, a bulge, and mostly a dust lane."""
    u, v = galaxy.deproject(grid)
    scale, height = 0.85 * galaxy.radius, galaxy.axis_ratio * galaxy.radius
    z: Float32Array = v * galaxy.axis_ratio - warp * u * np.abs(u) / galaxy.radius
    r = np.sqrt(u * u + grid.pixel_arcsec**2) / scale
    peak = galaxy.flux * 0.5 * (1 - bulge_fraction) * DECALS_PIXEL_ARCSEC**2 / (2 * math.pi * scale * height)
    radius, thick_fraction = _compute_softened_radius(u, z / galaxy.axis_ratio, grid), 0.5 * (1 - bulge_fraction)
    disc = _sersic_profile(radius, galaxy, thick_fraction, 1.25 * galaxy.radius, rng.uniform(0.5, 0.9))
    disc += peak * r * scipy.special.k1(r) / np.cosh(np.clip(z / height, -20, 20)) ** 2
    light = _split_into_bands(disc, galaxy.colour - 0.02)
    bulge = replace(galaxy, axis_ratio=rng.uniform(0.55, 0.9))
    bulge_radius, index = rng.uniform(0.25, 0.45) * galaxy.radius, rng.uniform(1.5, 3.0)
    radius = _compute_softened_radius(*bulge.deproject(grid), grid)
    profile = _sersic_profile(radius, bulge, bulge_fraction, bulge_radius, index)
    light += _split_into_bands(profile, galaxy.colour + 0.22)
    if rng.random() < 0.5:
        middle = rng.uniform(-0.3, 0.3) * height
        lane = np.exp(-(((z - middle) / (0.35 * height)) ** 2) - r / 3) * rng.uniform(0.2, 0.7)
        light *= 1 - np.array([0.5, 0.75, 1.0], np.float32)[:, None, None] * lane  # dust reddens
    return light


def draw_sources(
    grid: Grid, x: Float64Array, y: Float64Array, flux: Float64Array, radius: Float64Array, colour: Float64Array
) -> Float32Array:
    """Draw K small round sources: positions and half-light radii in arcsec, flux in nanomaggies in r, colour g - r."""
    side, count = grid.x.shape[0], len(x)
    if count == 0:
        return np.zeros((3, side, side), np.float32)
    half = math.ceil(3.5 * radius.max() / grid.pixel_arcsec) + 1
    column, row = (x - grid.x[0, 0])[:, None] / grid.pixel_arcsec, (y - grid.y[0, 0])[:, None] / grid.pixel_arcsec
    columns, rows = (np.rint(c).astype(np.int64) + np.arange(-half, half + 1) for c in (column, row))
    distance = np.hypot((rows - row)[:, :, None], (columns - column)[:, None, :])
    stamp = np.exp(-1.678 * distance * grid.pixel_arcsec / np.maximum(radius, 0.4 * grid.pixel_arcsec)[:, None, None])
    stamp *= (flux * (DECALS_PIXEL_ARCSEC / grid.pixel_arcsec) ** 2 / stamp.sum((1, 2)))[:, None, None]
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    pixel = (rows[:, :, None] * side + columns[:, None, :])[inside]
    planes = [np.bincount(pixel, (stamp * b[:, None, None])[inside], side * side) for b in compute_band_fluxes(colour)]
    return np.stack(planes).reshape(3, side, side).astype(np.float32)


def _draw_stream(
    rng: Generator,
    grid: Grid,
    galaxy: GalaxyParameters,
    flux_fraction: float,
    radius_range: tuple[float, float],
    azimuth_range: float,
) -> Float32Array:
    """Draw stars on a curve between two radii (arcsec) that spans `azimuth_range` rad: a tail, stream or shell."""
    t = np.linspace(0, 1, 40)
    radius = radius_range[0] + (radius_range[1] - radius_range[0]) * t
    azimuth = rng.uniform(0, 2 * math.pi) + azimuth_range * t
    flux = (1.1 - t) * galaxy.flux * flux_fraction / 22  # fades outwards
    width, colour = np.full(40, rng.uniform(0.2, 0.45) * galaxy.radius), np.full(40, galaxy.colour - 0.05)
    return draw_sources(grid, radius * np.cos(azimuth), radius * np.sin(azimuth), flux, width, colour)


def _draw_disturbed(rng: Generator, grid: Grid, galaxy: GalaxyParameters) -> Float32Array:
    """Draw a bent and lopsided galaxy, mostly with shells or streams."""
    bent, kind = _bend_grid(rng, grid, galaxy), rng.random()
    if kind < 0.55:
        light = _draw_spiral(rng, bent, galaxy, _draw_arm_parameters(rng, 7))
    elif kind < 0.8:
        light = _draw_elliptical(rng, bent, galaxy, 1.0, 3.0)
    else:
        light = _draw_edge_on(rng, grid, replace(galaxy, axis_ratio=0.22), 0.15, rng.uniform(0.02, 0.15))
    angle = rng.uniform(0, 2 * math.pi)
    side = (grid.x * math.cos(angle) + grid.y * math.sin(angle)) / galaxy.radius
    light *= 1 + rng.uniform(0.25, 0.8) * np.tanh(side)
    for _ in range(int(rng.integers(1, 4))):
        start, growth = galaxy.radius * rng.uniform(1.2, 2.6), max(1.0, rng.uniform(0.4, 2.0))  # a shell, or a stream
        radius_range = (start, start * growth)
        light += _draw_stream(rng, grid, galaxy, rng.uniform(0.03, 0.12), radius_range, rng.uniform(0.8, 2.6))
    return light


def _bend_grid(rng: Generator, grid: Grid, galaxy: GalaxyParameters) -> Grid:
    """Shift the grid across the galaxy's major axis, more at larger distance along it: light bends like a banana."""
    along, _ = galaxy.deproject(grid)
    squared = np.square(along / galaxy.radius)
    shift = rng.uniform(-0.4, 0.4) * galaxy.radius * squared / (1 + squared / 9)
    x, y = math.sin(galaxy.angle) * shift, -math.cos(galaxy.angle) * shift
    return replace(grid, x=grid.x + x, y=grid.y + y)


def _draw_merger(rng: Generator, grid: Grid, galaxy: GalaxyParameters) -> Float32Array:
    """Draw two galaxies, in 15 % of cases three, mostly with bridges and tails."""
    light = _draw_merging_galaxy(rng, grid, galaxy)
    for _ in range(2 if rng.random() < 0.15 else 1):
        separation, angle = rng.uniform(2.2, 8.0), rng.uniform(0, 2 * math.pi)
        x, y = separation * math.cos(angle), separation * math.sin(angle)
        flux, colour = galaxy.flux * rng.uniform(0.2, 0.9), galaxy.colour + rng.normal(0, 0.08)
        companion = replace(_draw_galaxy_parameters(rng, 1), flux=flux, colour=colour)
        light += _draw_merging_galaxy(rng, grid.shift_origin(x, y), companion)
        t, bridge = np.linspace(0, 1, 16), rng.uniform(0, 0.08) * galaxy.flux / 16
        light += draw_sources(grid, x * t, y * t, np.full(16, bridge), np.full(16, 1.0), np.full(16, galaxy.colour))
    for _ in range(int(rng.integers(0, 3))):
        start = galaxy.radius * rng.uniform(0.8, 1.8)
        radius_range = (start, start + rng.uniform(3, 9))
        light += _draw_stream(rng, grid, galaxy, rng.uniform(0.02, 0.1), radius_range, rng.uniform(-1.6, 1.6))
    return light


def _draw_merging_galaxy(rng: Generator, grid: Grid, galaxy: GalaxyParameters) -> Float32Array:
    if rng.random() < 0.25:
        return _draw_spiral(rng, grid, galaxy, _draw_arm_parameters(rng, 7))
    return _draw_elliptical(rng, grid, galaxy, 1.2, 4.0)
