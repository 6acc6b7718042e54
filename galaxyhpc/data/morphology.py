"""How the light of each class of galaxy lies on the sky: what `demo` takes its pictures of.

Knows Sersic bulges, discs, bars, logarithmic arms, edge-on discs, mergers and tidal disturbance, in the z, r and g
bands, in nanomaggies per 0.262" pixel of DECaLS. Not obvious: `TYPICAL` was set so that magnitudes, half-light radii
and colours measured on the generated pictures agree per class with those measured on 697 real ones by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
Seed = int | Sequence[int]

NATIVE = 0.262  # arcsec, DECaLS's pixel: surface brightness is per such a pixel


@dataclass(frozen=True)
class Grid:
    """Where light is drawn: coordinates (F, F) and pixel, in arcsec; x to the west, y to the south."""

    x: Array
    y: Array
    pixel: float

    def seen_from(self, x: float, y: float) -> Grid:
        """Return the same grid with (x, y) as the origin."""
        return replace(self, x=self.x - x, y=self.y - y)


@dataclass(frozen=True)
class Body:
    """One galaxy as a whole."""

    flux: float  # nanomaggies in r
    radius: float  # arcsec, about half of the light
    colour: float  # g - r, mag
    ratio: float  # minor to major axis
    angle: float  # rad, of the major axis

    def plane(self, grid: Grid) -> tuple[Array, Array]:
        """Coordinates (F, F) in arcsec along the major axis, and along the minor one as if seen face-on."""
        along, across = _turned(grid.x, grid.y, self.angle)
        return along, across / self.ratio


def _turned(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    """Coordinates along and across an axis that lies at `angle` rad."""
    c, s = math.cos(angle), math.sin(angle)
    return x * c + y * s, y * c - x * s


@dataclass(frozen=True)
class Typical:
    """The spread of bodies in one class."""

    magnitude: tuple[float, float]  # r: mean and deviation
    radius: tuple[float, float]  # arcsec, and dex at equal magnitude
    colour: tuple[float, float]  # g - r: mean and deviation
    ratio: tuple[float, float]  # lowest and highest


TYPICAL = (
    Typical((17.0, 0.70), (2.9, 0.10), (0.64, 0.16), (0.45, 0.95)),
    Typical((17.5, 0.60), (1.7, 0.12), (0.85, 0.15), (0.50, 1.00)),
    Typical((17.3, 0.65), (1.9, 0.10), (0.84, 0.17), (0.80, 1.00)),
    Typical((17.6, 0.60), (1.6, 0.08), (0.73, 0.15), (0.42, 0.86)),
    Typical((17.5, 0.75), (2.4, 0.10), (0.67, 0.15), (0.18, 0.45)),
    Typical((16.2, 0.80), (4.5, 0.11), (0.71, 0.15), (0.45, 1.00)),
    Typical((16.5, 0.60), (4.3, 0.09), (0.64, 0.11), (0.45, 1.00)),
    Typical((17.1, 0.70), (3.5, 0.10), (0.61, 0.14), (0.40, 1.00)),
    Typical((16.7, 0.85), (5.6, 0.11), (0.53, 0.17), (0.13, 0.34)),
    Typical((17.2, 0.75), (3.6, 0.11), (0.88, 0.11), (0.16, 0.30)),
)


def draw(label: int, seed: Seed, grid: Grid) -> Array:
    """Draw a galaxy of class `label` (0 to 9) near the origin: light (3, F, F) in z, r, g."""
    if not 0 <= label < len(TYPICAL):
        raise ValueError(f"label: found {label}; allowed 0 to {len(TYPICAL) - 1}")
    rng = default_rng(seed)
    body = _body(rng, label)
    grid = grid.seen_from(rng.normal(0, 0.25), rng.normal(0, 0.25))
    match label:
        case 0:
            return _disturbed(rng, grid, body)
        case 1:
            return _merging(rng, grid, body)
        case 2 | 3 | 4:
            return _smooth(rng, grid, body, *((1.5, 4.5), (1.2, 3.5), (0.8, 2.0))[label - 2])
        case 5 | 6 | 7:
            return _spiral(rng, grid, body, _arms(rng, label))
    bulge = rng.uniform(0.0, 0.1) if label == 8 else rng.uniform(0.2, 0.5)
    return _edge_on(rng, grid, body, bulge, rng.normal(0, 0.01))


def _body(rng: Generator, label: int) -> Body:
    typical = TYPICAL[label]
    fainter = rng.normal()
    magnitude = min(typical.magnitude[0] + typical.magnitude[1] * fainter, 18.3)
    radius = typical.radius[0] * 10 ** (typical.radius[1] * rng.normal() - 0.12 * fainter)
    colour = min(max(rng.normal(*typical.colour), 0.2), 1.15)
    ratio, angle = rng.uniform(*typical.ratio), rng.uniform(0, math.pi)
    return Body(10 ** (0.4 * (22.5 - magnitude)), radius, colour, ratio, angle)


def bands(colour: Floats) -> Array:
    """Light in z, r, g (3, K) for one unit in r, given g - r (K,): r - z follows from it, as in real galaxies."""
    magnitudes = np.stack([-0.12 - 0.55 * colour, 0 * colour, colour]).astype(np.float32)
    light: Array = 10 ** (-0.4 * magnitudes)
    return light


def _coloured(light: Array, colour: float) -> Array:
    return bands(np.array([colour]))[:, :, None] * light


def _radius(u: Array, v: Array, grid: Grid) -> Array:
    radius: Array = np.sqrt(u * u + v * v + (0.4 * grid.pixel) ** 2)  # a cusp cannot be sampled
    return radius


def _sersic(radius: Array, body: Body, share: float, size: float, index: float) -> Array:
    """Sersic profile (F, F) with half-light radius `size` arcsec that holds `share` of the body's light."""
    b = 2 * index - 1 / 3 + 0.009876 / index
    area = 2 * math.pi * index * size**2 * math.exp(b) * b ** (-2 * index) * math.gamma(2 * index) * body.ratio
    profile: Array = np.exp(-b * ((radius / size) ** (1 / index) - 1)) * (body.flux * share * NATIVE**2 / area)
    return profile


def _smooth(rng: Generator, grid: Grid, body: Body, lowest: float, highest: float) -> Array:
    """An elliptical: a redder, more concentrated half of the light inside a bluer one."""
    radius = _radius(*body.plane(grid), grid)
    gradient = rng.uniform(0, 0.1)
    inner = _sersic(radius, body, 0.5, 0.7 * body.radius, rng.uniform(lowest, highest))
    outer = _sersic(radius, body, 0.5, 1.35 * body.radius, rng.uniform(0.8, 1.6))
    return _coloured(inner, body.colour + gradient) + _coloured(outer, body.colour - gradient)


@dataclass(frozen=True)
class Arms:
    """What tells one spiral from another."""

    number: int
    winding: float  # radians that an arm turns while the radius grows e-fold; the sign is the sense
    contrast: float  # 0: a smooth disc; 1: all of the disc's light is in the arms
    bar: float  # share of the light
    bulge: float  # share of the light
    start: float  # half-light radii: where the arms start and the bar ends
    angle: float  # rad: where the first arm starts and the bar points


def _arms(rng: Generator, label: int) -> Arms:
    """Pitch angle, bar and bulge as the class has them; the ranges touch, as the classes do."""
    tight, barred = label == 6, label == 5
    pitch = rng.uniform(5, 15) if tight else rng.uniform(8 if barred else 14, 36)
    number = 2 if barred else rng.choice([2, 3, 4], p=[0.45, 0.3, 0.25] if tight else [0.75, 0.18, 0.07])
    return Arms(
        number=int(number),
        winding=int(rng.choice([-1, 1])) / math.tan(math.radians(pitch)),
        contrast=rng.uniform(0.1, 0.65) if tight else rng.uniform(0.15, 0.8),
        bar=rng.uniform(0.08, 0.3) if barred else max(0.0, rng.uniform(-0.1, 0.06)),
        bulge=rng.uniform(0.08, 0.3) if tight else rng.uniform(0.02, 0.18),
        start=rng.uniform(0.5, 1.0),
        angle=rng.uniform(0, math.pi),
    )


def _spiral(rng: Generator, grid: Grid, body: Body, arms: Arms) -> Array:
    """A disc with logarithmic arms, a bulge, and where there is one a bar; red inside, blue along the arms."""
    u, v = body.plane(grid)
    radius = _radius(u, v, grid)
    disc = _sersic(radius, body, 1 - arms.bulge - arms.bar, 1.1 * body.radius, 1.0)
    within, along = _arm_pattern(rng, np.arctan2(v, u), radius / body.radius, arms)
    light = _coloured(disc * (1 - within), body.colour + 0.02)
    light += _coloured(disc * within * along, body.colour - 0.12)
    light += _coloured(_sersic(radius, body, arms.bulge, 0.28 * body.radius, 2.0), body.colour + 0.42)
    if arms.bar > 0:
        light += _coloured(_bar(u, v, body, arms), body.colour + 0.24)
    return light + _knots(rng, grid, body, arms)


def _arm_pattern(rng: Generator, azimuth: Array, radius: Array, arms: Arms) -> tuple[Array, Array]:
    """Share of the disc's light that goes into arms, and how it is piled up there (mean about 1)."""
    ripple = rng.uniform(0.1, 0.6) * np.sin(int(rng.integers(1, 4)) * azimuth + 3 * radius + rng.uniform(0, 6))
    phase = arms.number * (azimuth - arms.angle - arms.winding * np.log(radius / arms.start)) + ripple
    sharpness = rng.uniform(0.8, 2.0)
    along = np.exp(sharpness * (np.cos(phase) - 1)) / float(special.i0e(sharpness))
    within = arms.contrast * (1 - np.exp(-((radius / (0.7 * arms.start)) ** 2)))  # none inside the bar
    return within, along


def _bar(u: Array, v: Array, body: Body, arms: Arms) -> Array:
    length, width = arms.start * body.radius, 0.24 * arms.start * body.radius
    along, across = _turned(u, v, arms.angle)
    area = 1.8128 * math.sqrt(math.pi) * length * width * body.ratio  # the integral of the exponential
    bar: Array = np.exp(-((along / length) ** 4) - (across / width) ** 2)
    return bar * (body.flux * arms.bar * NATIVE**2 / area)


def _knots(rng: Generator, grid: Grid, body: Body, arms: Arms) -> Array:
    """Star-forming regions strewn along the arms."""
    count = rng.poisson(25 * arms.contrast)
    radius = rng.uniform(0.5, 2.0, count)
    azimuth = arms.angle + arms.winding * np.log(radius / arms.start) + rng.normal(0, 0.12, count)
    azimuth += 2 * np.pi * rng.integers(0, arms.number, count) / arms.number
    u, v = radius * body.radius * np.cos(azimuth), radius * body.radius * np.sin(azimuth) * body.ratio
    c, s = math.cos(body.angle), math.sin(body.angle)
    flux = body.flux * rng.uniform(0.0005, 0.003, count)
    return blobs(grid, u * c - v * s, u * s + v * c, flux, np.full(count, 0.4), np.full(count, body.colour - 0.3))


def _edge_on(rng: Generator, grid: Grid, body: Body, bulge: float, warp: float) -> Array:
    """A disc seen from the side, (r/h) K1(r/h) sech^2(z/z0), within a fuller one; a bulge; sometimes a dust lane."""
    u, v = body.plane(grid)
    scale, height = 0.85 * body.radius, body.ratio * body.radius
    z: Array = v * body.ratio - warp * u * np.abs(u) / body.radius
    along = np.sqrt(u * u + grid.pixel**2) / scale
    peak = body.flux * 0.5 * (1 - bulge) * NATIVE**2 / (2 * math.pi * scale * height)
    disc = _sersic(_radius(u, z / body.ratio, grid), body, 0.5 * (1 - bulge), 1.25 * body.radius, rng.uniform(0.5, 0.9))
    disc += peak * along * special.k1(along) / np.cosh(np.clip(z / height, -20, 20)) ** 2
    core = replace(body, ratio=rng.uniform(0.55, 0.9))
    size, index = rng.uniform(0.25, 0.45) * body.radius, rng.uniform(1.5, 3.0)
    light = _coloured(disc, body.colour - 0.02)
    light += _coloured(_sersic(_radius(*core.plane(grid), grid), core, bulge, size, index), body.colour + 0.22)
    if rng.random() < 0.5:
        middle = rng.uniform(-0.3, 0.3) * height
        lane = np.exp(-(((z - middle) / (0.35 * height)) ** 2) - along / 3) * rng.uniform(0.2, 0.7)
        light *= 1 - np.array([0.5, 0.75, 1.0], np.float32)[:, None, None] * lane  # dust reddens
    return light


def blobs(grid: Grid, x: Floats, y: Floats, flux: Floats, radius: Floats, colour: Floats) -> Array:
    """Draw K small round sources (arcsec, nanomaggies in r, half-light arcsec, g - r): light (3, F, F)."""
    side, count = grid.x.shape[0], len(x)
    if count == 0:
        return np.zeros((3, side, side), np.float32)
    half = math.ceil(3.5 * radius.max() / grid.pixel) + 1
    column, row = (x - grid.x[0, 0])[:, None] / grid.pixel, (y - grid.y[0, 0])[:, None] / grid.pixel
    columns, rows = (np.rint(c).astype(np.int64) + np.arange(-half, half + 1) for c in (column, row))
    far = np.hypot((rows - row)[:, :, None], (columns - column)[:, None, :])
    stamp = np.exp(-1.678 * far * grid.pixel / np.maximum(radius, 0.4 * grid.pixel)[:, None, None])
    stamp *= (flux * (NATIVE / grid.pixel) ** 2 / stamp.sum((1, 2)))[:, None, None]
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    where = (rows[:, :, None] * side + columns[:, None, :])[inside]
    planes = [np.bincount(where, (stamp * b[:, None, None])[inside], side * side) for b in bands(colour)]
    return np.stack(planes).reshape(3, side, side).astype(np.float32)


def _stream(rng: Generator, grid: Grid, body: Body, share: float, ends: tuple[float, float], turn: float) -> Array:
    """Stars torn out along a curve between two radii (arcsec) that turns by `turn` rad: a tail, stream or shell."""
    t = np.linspace(0, 1, 40)
    radius, azimuth = ends[0] + (ends[1] - ends[0]) * t, rng.uniform(0, 2 * math.pi) + turn * t
    flux = (1.1 - t) * body.flux * share / 22  # fades outwards
    width, colour = np.full(40, rng.uniform(0.2, 0.45) * body.radius), np.full(40, body.colour - 0.05)
    return blobs(grid, radius * np.cos(azimuth), radius * np.sin(azimuth), flux, width, colour)


def _disturbed(rng: Generator, grid: Grid, body: Body) -> Array:
    """A galaxy bent and lopsided, mostly with shells or streams."""
    bent, kind = _bent(rng, grid, body), rng.random()
    if kind < 0.55:
        light = _spiral(rng, bent, body, _arms(rng, 7))
    elif kind < 0.8:
        light = _smooth(rng, bent, body, 1.0, 3.0)
    else:
        light = _edge_on(rng, grid, replace(body, ratio=0.22), 0.15, rng.uniform(0.02, 0.15))
    toward = rng.uniform(0, 2 * math.pi)
    side = (grid.x * math.cos(toward) + grid.y * math.sin(toward)) / body.radius
    light *= 1 + rng.uniform(0.25, 0.8) * np.tanh(side)
    for _ in range(int(rng.integers(1, 4))):
        start, growth = body.radius * rng.uniform(1.2, 2.6), max(1.0, rng.uniform(0.4, 2.0))  # a shell, or a stream
        ends = (start, start * growth)
        light += _stream(rng, grid, body, rng.uniform(0.03, 0.12), ends, rng.uniform(0.8, 2.6))
    return light


def _bent(rng: Generator, grid: Grid, body: Body) -> Grid:
    """Push the grid to one side, the more the farther out along the body's major axis: light curves like a banana."""
    along, _ = body.plane(grid)
    squared = np.square(along / body.radius)
    push = rng.uniform(-0.4, 0.4) * body.radius * squared / (1 + squared / 9)
    x, y = math.sin(body.angle) * push, -math.cos(body.angle) * push
    return replace(grid, x=grid.x + x, y=grid.y + y)


def _merging(rng: Generator, grid: Grid, body: Body) -> Array:
    """Two galaxies, seldom three, mostly with bridges and tails."""
    light = _partner(rng, grid, body)
    for _ in range(2 if rng.random() < 0.15 else 1):
        apart, toward = rng.uniform(2.2, 8.0), rng.uniform(0, 2 * math.pi)
        x, y = apart * math.cos(toward), apart * math.sin(toward)
        flux, colour = body.flux * rng.uniform(0.2, 0.9), body.colour + rng.normal(0, 0.08)
        light += _partner(rng, grid.seen_from(x, y), replace(_body(rng, 1), flux=flux, colour=colour))
        t, bridge = np.linspace(0, 1, 16), rng.uniform(0, 0.08) * body.flux / 16
        light += blobs(grid, x * t, y * t, np.full(16, bridge), np.full(16, 1.0), np.full(16, body.colour))
    for _ in range(int(rng.integers(0, 3))):
        start = body.radius * rng.uniform(0.8, 1.8)
        ends = (start, start + rng.uniform(3, 9))
        light += _stream(rng, grid, body, rng.uniform(0.02, 0.1), ends, rng.uniform(-1.6, 1.6))
    return light


def _partner(rng: Generator, grid: Grid, body: Body) -> Array:
    if rng.random() < 0.25:
        return _spiral(rng, grid, body, _arms(rng, 7))
    return _smooth(rng, grid, body, 1.2, 4.0)
