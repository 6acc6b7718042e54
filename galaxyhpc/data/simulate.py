"""Generated galaxies, laid out as the real file: drawn classes, neighbours, sky noise, positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from scipy import fft, ndimage

from galaxyhpc.data.morphology import (
    DECALS_PIXEL_ARCSEC,
    Float32Array,
    Float64Array,
    Grid,
    Seed,
    draw_galaxy,
    draw_sources,
)
from galaxyhpc.storage.files import atomic_write

UInt8Array = NDArray[np.uint8]
Int64Array = NDArray[np.int64]


DEMO_FIELD_ARCSEC = 67.0  # arcsec, side of every picture whatever its size in px
DEMO_SIZE_RANGE_PX = (32, 256)  # px, smallest and largest picture
MIN_DEMO_GALAXIES = 100  # galaxies in a file
PUBLISHED_CLASS_COUNTS = (
    1081,
    1853,
    2645,
    2027,
    334,
    2043,
    1829,
    2628,
    1423,
    1873,
)  # galaxies per class in the real file
GENERATED_BY = "galaxyhpc.demo"  # the root attribute `generated_by` of a file written here


MARGIN_PX = 8  # px drawn beyond the field, so that light near an edge does not come round at the other
BAND_SCALES = np.array([2.2, 3.4, 6.0], np.float32)[:, None, None]  # of z, r, g: the viewer's red, green, blue
SKY_NOISE = 0.0085  # after STRETCH, in a native pixel, before resampling
ELECTRONS_PER_NANOMAGGIE = 8000.0  # per nanomaggie: 3 exposures of 90 s with the 4 m Blanco


class DemoError(ValueError):
    """What was asked for cannot be generated."""


@dataclass(frozen=True)
class Neighbour:
    """Another galaxy of the file whose frame overlaps this one, so that it is seen in the picture."""

    label: int
    seed: Seed
    x: float  # arcsec to the west
    y: float  # arcsec to the south


def render_image(label: int, seed: Seed, size: int, neighbours: Sequence[Neighbour] = ()) -> UInt8Array:
    """Take a picture of a galaxy of class `label` (0 to 9) in its 67" field: (size, size, 3) uint8."""
    grid = _make_grid(size)
    rng = default_rng([*np.atleast_1d(seed), 1])  # its galaxy looks the same in a neighbour's picture
    light = draw_galaxy(label, seed, grid) + _draw_field(rng, grid)
    for other in neighbours:
        light += draw_galaxy(other.label, other.seed, grid.shift_origin(other.x, other.y))
    inner = slice(MARGIN_PX, -MARGIN_PX)
    fine = stretch(_observe(rng, light, grid)[:, inner, inner])
    block = fine.shape[0] // size
    picture: UInt8Array = np.rint(fine.reshape(size, block, size, block, 3).mean((1, 3))).astype(np.uint8)
    return picture


@lru_cache(maxsize=4)
def _make_grid(size: int) -> Grid:
    """The fine grid under a picture of `size` px: at least 128 px on the field, plus the margin."""
    fine = size * math.ceil(128 / size)
    axis = (np.arange(-MARGIN_PX, fine + MARGIN_PX) - (fine - 1) / 2) * DEMO_FIELD_ARCSEC / fine
    x, y = np.meshgrid(axis.astype(np.float32), axis.astype(np.float32))
    return Grid(x, y, DEMO_FIELD_ARCSEC / fine)


def _draw_field(rng: Generator, grid: Grid) -> Float32Array:
    """What else is in the picture: faint galaxies, stars, and now and then a large galaxy cut by the edge."""
    galaxies, stars = rng.poisson(34), rng.poisson(6)
    x, y = rng.uniform(-DEMO_FIELD_ARCSEC / 2 - 2, DEMO_FIELD_ARCSEC / 2 + 2, (2, galaxies + stars))
    faint, bright = 24.6 - rng.exponential(1.1, galaxies), 22.6 - rng.exponential(1.6, stars)
    flux = 10 ** (0.4 * (22.5 - np.concatenate([faint, np.maximum(bright, 16.0)])))
    radius = np.concatenate([rng.uniform(0.3, 0.9, galaxies), np.full(stars, 0.05)])
    dwarf = rng.random(stars) < 0.4  # cool dwarfs are redder in r - z than any galaxy
    colour = np.concatenate(
        [rng.normal(0.9, 0.4, galaxies), np.where(dwarf, rng.uniform(1.5, 4.0, stars), rng.uniform(0.1, 0.9, stars))]
    )
    light = draw_sources(grid, x, y, flux, radius, colour)
    if rng.random() < 0.12:
        toward, away = rng.uniform(0, 2 * math.pi), rng.uniform(22, 38)
        elsewhere = grid.shift_origin(away * math.cos(toward), away * math.sin(toward))
        light += draw_galaxy(int(rng.integers(10)), int(rng.integers(2**32)), elsewhere)
    return light


def _observe(rng: Generator, light: Float32Array, grid: Grid) -> Float32Array:
    """Blur (3, F, F) light and add sky and shot noise.

    The published pictures were resampled, and went through JPEG at half the colour resolution: grey noise is
    correlated within a native pixel, coloured noise over several.
    """
    light = _blur(light, grid.pixel_arcsec, rng.lognormal(math.log(1.2), 0.1))
    binned = DECALS_PIXEL_ARCSEC / grid.pixel_arcsec
    noise = rng.standard_normal((4, *light.shape[1:]), np.float32)
    shot = np.sqrt(np.maximum(light, 0) / ELECTRONS_PER_NANOMAGGIE) * noise[:3]
    grey = ndimage.gaussian_filter(noise[3], 0.12 / grid.pixel_arcsec, truncate=3.0)
    coloured = ndimage.gaussian_filter(noise[:3], (0, 0.4 / grid.pixel_arcsec, 0.4 / grid.pixel_arcsec), truncate=3.0)
    coloured *= np.array([2.7, 1.6, 1.8], np.float32)[:, None, None] * rng.lognormal(0, 0.3)
    sky = SKY_NOISE * rng.lognormal(0, 0.25) * (grey + coloured) / BAND_SCALES
    observed: Float32Array = light + (sky + shot) * binned
    return observed


def _blur(light: Float32Array, pixel_arcsec: float, seeing_arcsec: float) -> Float32Array:
    """Convolve (3, F, F) with Kolmogorov turbulence, exp(-3.44 (k FWHM / 0.976)^(5/3)); `seeing` is FWHM in arcsec."""
    side = light.shape[1]
    wide = fft.next_fast_len(side + math.ceil(12 / pixel_arcsec), real=True)  # wings end before they come round
    fwhm = seeing_arcsec * np.array([0.95, 1.0, 1.1], np.float32)[:, None, None]  # redder light is blurred less
    transfer = np.exp(-3.44 * (fwhm / 0.976) ** (5 / 3) * _compute_scaled_frequencies(wide, pixel_arcsec))
    blurred: Float32Array = fft.irfft2(fft.rfft2(light, (wide, wide)) * transfer, (wide, wide))[:, :side, :side]
    return blurred


@lru_cache(maxsize=4)
def _compute_scaled_frequencies(side: int, pixel_arcsec: float) -> Float32Array:
    """Spatial frequency in cycles per arcsec to the power 5/3, laid out as by rfft2."""
    frequency = np.hypot(np.fft.fftfreq(side, pixel_arcsec)[:, None], np.fft.rfftfreq(side, pixel_arcsec))
    waves: Float32Array = (frequency ** (5 / 3)).astype(np.float32)
    return waves


def stretch(light: Float32Array) -> Float32Array:
    """The Legacy Surveys' stretch, colour kept: (3, F, F) light in z, r, g to (F, F, 3) in [0, 255].

    Light in nanomaggies per 0.262" pixel; scales, offset and Q are those of `dr2_rgb` in their viewer's code
    (github.com/legacysurvey/imagine, map/views.py), after Lupton et al. 2004.
    """
    scaled = np.maximum(light * BAND_SCALES + 0.03, 0)
    mean = scaled.mean(0)
    factor = np.arcsinh(20 * mean) / math.sqrt(20) / np.maximum(mean, 1e-6)
    picture: Float32Array = 255 * np.clip(scaled * factor, 0, 1).transpose(1, 2, 0)
    return picture


@dataclass(frozen=True)
class Catalogue:
    """What a file of n galaxies says about them, and which of its pictures show the same sky."""

    labels: UInt8Array  # (n,) labels, sorted
    ra: Float64Array  # (n,) deg
    dec: Float64Array  # (n,) deg
    redshift: Float64Array  # (n,) NaN where not measured
    shown_indices: (
        Int64Array  # (n,) the row whose galaxy is in the picture: its own, but for duplicates under another label
    )
    overlapping_pairs: Int64Array  # (k, 2) pairs of rows whose frames overlap

    def render_image(self, index: int, size: int, seed: int) -> UInt8Array:
        """Render the picture of one row."""
        index = int(self.shown_indices[index])
        pairs = self.overlapping_pairs[(self.overlapping_pairs == index).any(1)]
        neighbours = [self._make_neighbour(index, int(other), seed) for other in pairs[pairs != index]]
        return render_image(int(self.labels[index]), [seed, index], size, neighbours)

    def _make_neighbour(self, index: int, other_index: int, seed: int) -> Neighbour:
        west = (self.ra[index] - self.ra[other_index]) * math.cos(math.radians(self.dec[index]))
        south = self.dec[index] - self.dec[other_index]
        return Neighbour(int(self.labels[other_index]), [seed, other_index], 3600 * float(west), 3600 * float(south))


def compute_class_counts(num_galaxies: int) -> Int64Array:
    """Galaxies per class, (10,): as in the real file, but at least three each, `n` in all."""
    counts: Int64Array = np.maximum(num_galaxies * np.array(PUBLISHED_CLASS_COUNTS) // sum(PUBLISHED_CLASS_COUNTS), 3)
    counts[np.argmax(counts)] += num_galaxies - counts.sum()
    return counts


def make_catalogue(num_galaxies: int, seed: int) -> Catalogue:
    """Lay out n galaxies; pairs of frames that overlap, and one galaxy held twice under two labels, are as frequent
    as in the real file: 177 and 59 pairs in 17,736."""
    rng = default_rng([seed, num_galaxies, 2])
    ans = np.repeat(np.arange(len(PUBLISHED_CLASS_COUNTS), dtype=np.uint8), compute_class_counts(num_galaxies))
    ra, dec = _draw_positions(rng, num_galaxies)
    redshift = np.where(rng.random(num_galaxies) < 0.04, np.nan, rng.lognormal(math.log(0.075), 0.5, num_galaxies))
    pairs = rng.permutation(num_galaxies)[: num_galaxies // 2 * 2].reshape(-1, 2)
    duplicate = np.flatnonzero(ans[pairs[:, 0]] != ans[pairs[:, 1]])[: round(num_galaxies / 300)]
    overlapping = np.delete(pairs, duplicate, axis=0)[: round(num_galaxies / 100)]
    shown = np.arange(num_galaxies)
    for column in (shown, ra, dec, redshift):
        column[pairs[duplicate, 1]] = column[pairs[duplicate, 0]]
    first, second = overlapping.T
    apart, toward = rng.uniform(8, 60, len(first)) / 3600, rng.uniform(0, 2 * np.pi, len(first))
    dec[second] = dec[first] + apart * np.sin(toward)
    ra[second] = (ra[first] + apart * np.cos(toward) / np.cos(np.deg2rad(dec[first]))) % 360
    return Catalogue(ans, ra, dec, redshift, shown, overlapping)


def _draw_positions(rng: Generator, num_galaxies: int) -> tuple[Float64Array, Float64Array]:
    """Right ascension and declination in deg, uniform on two boxes inside the footprint of DECaLS."""
    north = rng.random(num_galaxies) < 0.65
    ra = np.where(north, rng.uniform(115, 255, num_galaxies), rng.uniform(-40, 40, num_galaxies) % 360)
    low, high = np.sin(np.deg2rad(np.where(north, [[-4.0], [31.0]], [[-9.0], [30.0]])))
    return ra, np.rad2deg(np.arcsin(rng.uniform(low, high)))


def write_galaxies(path: Path, num_galaxies: int, size: int, seed: int) -> None:
    """Write `n` galaxies of `size` px to `path`, whole or not at all, with a progress bar on a terminal.

    Raises
    ------
    DemoError
        for too few galaxies, a size out of range, a negative seed, or a file at `path` that was not generated
    OSError
    """
    _check_arguments(path, num_galaxies, size, seed)
    table = make_catalogue(num_galaxies, seed)
    with atomic_write(path) as aside, h5py.File(aside, "w") as file:
        file.attrs.update(generated_by=GENERATED_BY, n=num_galaxies, size=size, seed=seed)
        file["ans"], file["ra"], file["dec"], file["redshift"] = table.labels, table.ra, table.dec, table.redshift
        file["pxscale"] = np.full(num_galaxies, DEMO_FIELD_ARCSEC / size)
        chunks = (min(num_galaxies, 555), 16, 16, 1)  # the published file's
        images = file.create_dataset(
            "images", (num_galaxies, size, size, 3), np.uint8, chunks=chunks, compression="gzip"
        )
        _render_all(images, table, size, seed)


def _render_all(images: h5py.Dataset, catalogue: Catalogue, size: int, seed: int) -> None:
    """Fill the (n, S, S, 3) data set; a row of chunks is written at once, or every picture would rewrite them all."""
    console, step = Console(stderr=True), images.chunks[0]
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("Drawing galaxies", total=len(images))
        for start in range(0, len(images), step):
            pictures = np.empty((min(step, len(images) - start), size, size, 3), np.uint8)
            for i in range(len(pictures)):
                pictures[i] = catalogue.render_image(start + i, size, seed)
                progress.advance(task)
            images[start : start + len(pictures)] = pictures


def _check_arguments(path: Path, num_galaxies: int, size: int, seed: int) -> None:
    if num_galaxies < MIN_DEMO_GALAXIES:
        raise DemoError(f"n: found {num_galaxies}; allowed {MIN_DEMO_GALAXIES} galaxies or more")
    if not DEMO_SIZE_RANGE_PX[0] <= size <= DEMO_SIZE_RANGE_PX[1]:
        raise DemoError(f"size: found {size}; allowed {DEMO_SIZE_RANGE_PX[0]} to {DEMO_SIZE_RANGE_PX[1]} px")
    if seed < 0:
        raise DemoError(f"seed: found {seed}; allowed 0 or more")
    if path.exists() and not is_generated(path):
        raise DemoError(f"{path}: is there and was not generated by {GENERATED_BY}; choose another name")


def is_generated(path: Path) -> bool:
    """Whether `path` is a file of generated galaxies."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        return bool(file.attrs.get("generated_by", "") == GENERATED_BY)
