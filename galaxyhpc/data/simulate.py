"""Generated galaxies in a file laid out as the real one: images with neighbours, atmosphere and noise, and a catalogue.

Images and positions are functions of (seed, index) and (seed, number of galaxies): a file is the same every time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import scipy  # its parts load when they are used: most processes find the galaxies
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

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

DEMO_FIELD_ARCSEC = 67.0  # side of every image whatever its size in px
DEMO_SIZE_RANGE_PX = (32, 256)
MIN_DEMO_GALAXIES = 100
PUBLISHED_CLASS_COUNTS = (*(1081, 1853, 2645, 2027, 334), *(2043, 1829, 2628, 1423, 1873))
GENERATED_BY = "galaxyhpc.demo"  # the root attribute `generated_by` of a file written here

MARGIN_PX = 8  # drawn beyond the field: a convolution would wrap light round the edges
BAND_SCALES = np.array([2.2, 3.4, 6.0], np.float32)[:, None, None]  # of z, r, g: the viewer's red, green, blue
SKY_NOISE = 0.0085  # times BAND_SCALES, in a native pixel, before resampling
ELECTRONS_PER_NANOMAGGIE = 8000.0  # per nanomaggie: 3 exposures of 90 s with the 4 m Blanco


class DemoError(ValueError):
    """Arguments that cannot be satisfied."""


@dataclass(frozen=True)
class Neighbour:
    """Another galaxy of the file whose frame overlaps this one, so that it is visible in the image."""

    label: int
    seed: Seed
    x: float  # arcsec to the west
    y: float  # arcsec to the south


def render_image(label: int, seed: Seed, size: int, neighbours: Sequence[Neighbour] = ()) -> UInt8Array:
    """Render a galaxy of class `label` (0 to 9) in its field of 67 arcsec: (size, size, 3) uint8."""
    grid = _make_grid(size)
    rng = default_rng([*np.atleast_1d(seed), 1])  # of the field; the galaxy, drawn from `seed`, is the same in others
    light = draw_galaxy(label, seed, grid) + _draw_field(rng, grid)
    for other in neighbours:
        light += draw_galaxy(other.label, other.seed, grid.shift_origin(other.x, other.y))
    inner = slice(MARGIN_PX, -MARGIN_PX)
    fine = stretch(_observe(rng, light, grid)[:, inner, inner])
    block = fine.shape[0] // size
    image: UInt8Array = np.rint(fine.reshape(size, block, size, block, 3).mean((1, 3))).astype(np.uint8)
    return image


@lru_cache(maxsize=4)
def _make_grid(size: int) -> Grid:
    """Make the fine grid that an image is averaged from: 128 px or more across the field, plus the margin."""
    fine_size = size * math.ceil(128 / size)
    axis = (np.arange(-MARGIN_PX, fine_size + MARGIN_PX) - (fine_size - 1) / 2) * DEMO_FIELD_ARCSEC / fine_size
    x, y = np.meshgrid(axis.astype(np.float32), axis.astype(np.float32))
    return Grid(x, y, DEMO_FIELD_ARCSEC / fine_size)


def _draw_field(rng: Generator, grid: Grid) -> Float32Array:
    """Draw other sources: faint galaxies, stars, and in 12 % of images a large galaxy near or across the edge."""
    num_galaxies, num_stars = rng.poisson(34), rng.poisson(6)
    x, y = rng.uniform(-DEMO_FIELD_ARCSEC / 2 - 2, DEMO_FIELD_ARCSEC / 2 + 2, (2, num_galaxies + num_stars))
    galaxy_mag, star_mag = 24.6 - rng.exponential(1.1, num_galaxies), 22.6 - rng.exponential(1.6, num_stars)
    flux = 10 ** (0.4 * (22.5 - np.concatenate([galaxy_mag, np.maximum(star_mag, 16.0)])))
    radius = np.concatenate([rng.uniform(0.3, 0.9, num_galaxies), np.full(num_stars, 0.05)])
    is_dwarf = rng.random(num_stars) < 0.4  # cool dwarfs are redder in r - z than any galaxy
    galaxy_colour = rng.normal(0.9, 0.4, num_galaxies)
    star_colour = np.where(is_dwarf, rng.uniform(1.5, 4.0, num_stars), rng.uniform(0.1, 0.9, num_stars))
    light = draw_sources(grid, x, y, flux, radius, np.concatenate([galaxy_colour, star_colour]))
    if rng.random() < 0.12:
        angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(22, 38)
        shifted = grid.shift_origin(distance * math.cos(angle), distance * math.sin(angle))
        light += draw_galaxy(int(rng.integers(10)), int(rng.integers(2**32)), shifted)
    return light


def _observe(rng: Generator, light: Float32Array, grid: Grid) -> Float32Array:
    """Blur (3, F, F) light and add sky and shot noise.

    The published images were resampled and compressed as JPEG at half the colour resolution: grey noise is
    correlated within a native pixel, coloured noise over several.
    """
    light = _blur(light, grid.pixel_arcsec, rng.lognormal(math.log(1.2), 0.1))
    pixel_ratio = DECALS_PIXEL_ARCSEC / grid.pixel_arcsec
    noise = rng.standard_normal((4, *light.shape[1:]), np.float32)
    shot_noise = np.sqrt(np.maximum(light, 0) / ELECTRONS_PER_NANOMAGGIE) * noise[:3]
    grey = scipy.ndimage.gaussian_filter(noise[3], 0.12 / grid.pixel_arcsec, truncate=3.0)
    coloured = scipy.ndimage.gaussian_filter(
        noise[:3], (0, 0.4 / grid.pixel_arcsec, 0.4 / grid.pixel_arcsec), truncate=3.0
    )
    coloured *= np.array([2.7, 1.6, 1.8], np.float32)[:, None, None] * rng.lognormal(0, 0.3)
    sky = SKY_NOISE * rng.lognormal(0, 0.25) * (grey + coloured) / BAND_SCALES
    observed: Float32Array = light + (sky + shot_noise) * pixel_ratio
    return observed


def _blur(light: Float32Array, pixel_arcsec: float, seeing_arcsec: float) -> Float32Array:
    """Convolve (3, F, F) with Kolmogorov seeing, exp(-3.44 (k FWHM / 0.976)^(5/3)), of this FWHM in r."""
    side = light.shape[1]
    padded = scipy.fft.next_fast_len(side + math.ceil(12 / pixel_arcsec), real=True)  # the wings do not wrap round
    fwhm = seeing_arcsec * np.array([0.95, 1.0, 1.1], np.float32)[:, None, None]  # redder light is blurred less
    transfer = np.exp(-3.44 * (fwhm / 0.976) ** (5 / 3) * _compute_scaled_frequencies(padded, pixel_arcsec))
    spectrum = scipy.fft.rfft2(light, (padded, padded)) * transfer
    blurred: Float32Array = scipy.fft.irfft2(spectrum, (padded, padded))[:, :side, :side]
    return blurred


@lru_cache(maxsize=4)
def _compute_scaled_frequencies(side: int, pixel_arcsec: float) -> Float32Array:
    """Compute spatial frequencies in cycles per arcsec to the power 5/3, in the layout of rfft2."""
    frequency = np.hypot(np.fft.fftfreq(side, pixel_arcsec)[:, None], np.fft.rfftfreq(side, pixel_arcsec))
    scaled: Float32Array = (frequency ** (5 / 3)).astype(np.float32)
    return scaled


def stretch(light: Float32Array, scales: Float32Array = BAND_SCALES, softening: float = 20.0) -> Float32Array:
    """Apply the colour-preserving arcsinh stretch of the Legacy Surveys: (3, F, F) in z, r, g to (F, F, 3) in [0, 255].

    Light is in nanomaggies per 0.262 arcsec pixel; scales (3, 1, 1), offset and softening Q are those of `dr2_rgb` in
    their viewer's code (github.com/legacysurvey/imagine, map/views.py), after Lupton et al. (2004).
    """
    scaled = np.maximum(light * scales + 0.03, 0)
    mean = scaled.mean(0)
    factor = np.arcsinh(softening * mean) / math.sqrt(softening) / np.maximum(mean, 1e-6)
    image: Float32Array = 255 * np.clip(scaled * factor, 0, 1).transpose(1, 2, 0)
    return image


@dataclass(frozen=True)
class Catalogue:
    """Columns of a file of n galaxies, and which of its images show the same sky."""

    labels: UInt8Array  # (n,) sorted
    ra: Float64Array  # (n,) deg
    dec: Float64Array  # (n,) deg
    redshift: Float64Array  # (n,) NaN where not measured
    shown_indices: Int64Array  # (n,) index of the galaxy in the image: its own, except for duplicates
    overlapping_pairs: Int64Array  # (k, 2) pairs of indices whose frames overlap

    def render_image(self, index: int, size: int, seed: int) -> UInt8Array:
        """Render the image of one galaxy, (size, size, 3) uint8."""
        index = int(self.shown_indices[index])
        pairs = self.overlapping_pairs[(self.overlapping_pairs == index).any(1)]
        neighbours = [self._make_neighbour(index, int(other), seed) for other in pairs[pairs != index]]
        return render_image(int(self.labels[index]), [seed, index], size, neighbours)

    def _make_neighbour(self, index: int, other_index: int, seed: int) -> Neighbour:
        west = (self.ra[index] - self.ra[other_index]) * math.cos(math.radians(self.dec[index]))
        south = self.dec[index] - self.dec[other_index]
        return Neighbour(int(self.labels[other_index]), [seed, other_index], 3600 * float(west), 3600 * float(south))


def compute_class_counts(num_galaxies: int) -> Int64Array:
    """Return the (10,) number of galaxies per class: in the proportions of the real file, but at least three each."""
    counts: Int64Array = np.maximum(num_galaxies * np.array(PUBLISHED_CLASS_COUNTS) // sum(PUBLISHED_CLASS_COUNTS), 3)
    counts[np.argmax(counts)] += num_galaxies - counts.sum()
    return counts


def make_catalogue(num_galaxies: int, seed: int) -> Catalogue:
    """Draw positions, redshifts and pairs of galaxies.

    Pairs of overlapping frames, and of duplicates under two labels, are as frequent as in the real file: 177 and 59
    pairs in 17,736 galaxies.
    """
    rng = default_rng([seed, num_galaxies, 2])
    labels = np.repeat(np.arange(len(PUBLISHED_CLASS_COUNTS), dtype=np.uint8), compute_class_counts(num_galaxies))
    ra, dec = _draw_positions(rng, num_galaxies)
    redshift = np.where(rng.random(num_galaxies) < 0.04, np.nan, rng.lognormal(math.log(0.075), 0.5, num_galaxies))
    pairs = rng.permutation(num_galaxies)[: num_galaxies // 2 * 2].reshape(-1, 2)
    duplicate = np.flatnonzero(labels[pairs[:, 0]] != labels[pairs[:, 1]])[: round(num_galaxies / 300)]
    overlapping = np.delete(pairs, duplicate, axis=0)[: round(num_galaxies / 100)]
    shown_indices = np.arange(num_galaxies)
    for column in (shown_indices, ra, dec, redshift):
        column[pairs[duplicate, 1]] = column[pairs[duplicate, 0]]
    first, second = overlapping.T
    separation, angle = rng.uniform(8, 60, len(first)) / 3600, rng.uniform(0, 2 * np.pi, len(first))
    dec[second] = dec[first] + separation * np.sin(angle)
    ra[second] = (ra[first] + separation * np.cos(angle) / np.cos(np.deg2rad(dec[first]))) % 360
    return Catalogue(labels, ra, dec, redshift, shown_indices, overlapping)


def _draw_positions(rng: Generator, num_galaxies: int) -> tuple[Float64Array, Float64Array]:
    """Draw right ascensions and declinations in deg, uniform on two boxes inside the footprint of DECaLS."""
    north = rng.random(num_galaxies) < 0.65
    ra = np.where(north, rng.uniform(115, 255, num_galaxies), rng.uniform(-40, 40, num_galaxies) % 360)
    low, high = np.sin(np.deg2rad(np.where(north, [[-4.0], [31.0]], [[-9.0], [30.0]])))
    return ra, np.rad2deg(np.arcsin(rng.uniform(low, high)))


def write_galaxies(path: Path, num_galaxies: int, size: int, seed: int) -> None:
    """Write galaxies of `size` px to `path`, the whole file or none of it, with a progress bar on a terminal.

    Raises
    ------
    DemoError
        If there are too few galaxies, the size is out of range, the seed is negative, or `path` was not generated.
    OSError
    """
    _check_arguments(path, num_galaxies, size, seed)
    catalogue = make_catalogue(num_galaxies, seed)
    with atomic_write(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
        file.attrs.update(generated_by=GENERATED_BY, n=num_galaxies, size=size, seed=seed)
        file["ans"], file["ra"], file["dec"] = catalogue.labels, catalogue.ra, catalogue.dec
        file["redshift"], file["pxscale"] = catalogue.redshift, np.full(num_galaxies, DEMO_FIELD_ARCSEC / size)
        shape, chunks = (num_galaxies, size, size, 3), (min(num_galaxies, 555), 16, 16, 1)  # chunks as published
        images = file.create_dataset("images", shape, np.uint8, chunks=chunks, compression="gzip")
        _render_all(images, catalogue, size, seed)


def _render_all(images: h5py.Dataset, catalogue: Catalogue, size: int, seed: int) -> None:
    """Fill the (n, S, S, 3) dataset in slices of whole chunks: writing single images would rewrite every chunk."""
    console, slice_size = Console(stderr=True), images.chunks[0]
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("rendering galaxies", total=len(images))
        for start in range(0, len(images), slice_size):
            rendered = np.empty((min(slice_size, len(images) - start), size, size, 3), np.uint8)
            for i in range(len(rendered)):
                rendered[i] = catalogue.render_image(start + i, size, seed)
                progress.advance(task)
            images[start : start + len(rendered)] = rendered


def _check_arguments(path: Path, num_galaxies: int, size: int, seed: int) -> None:
    if num_galaxies < MIN_DEMO_GALAXIES:
        raise DemoError(f"n: got {num_galaxies}; expected {MIN_DEMO_GALAXIES} galaxies or more")
    if not DEMO_SIZE_RANGE_PX[0] <= size <= DEMO_SIZE_RANGE_PX[1]:
        raise DemoError(f"size: got {size}; expected {DEMO_SIZE_RANGE_PX[0]} to {DEMO_SIZE_RANGE_PX[1]} px")
    if seed < 0:
        raise DemoError(f"seed: got {seed}; expected 0 or more")
    if path.exists() and not is_generated(path):
        raise DemoError(f"{path}: exists and was not generated by {GENERATED_BY}; choose another name")


def is_generated(path: Path) -> bool:
    """Whether `path` is a file of generated galaxies."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with h5py.File(path, locking=False) as file:
        return bool(file.attrs.get("generated_by", "") == GENERATED_BY)
