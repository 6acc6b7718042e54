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

from galaxyhpc.data.morphology import NATIVE, Array, Floats, Grid, Seed, blobs, draw
from galaxyhpc.storage.files import atomic_write

Bytes = NDArray[np.uint8]
Rows = NDArray[np.int64]


FIELD = 67.0  # arcsec, side of every picture whatever its size in px
SIZES = (32, 256)  # px, smallest and largest picture
FEWEST = 100  # galaxies in a file
PUBLISHED = (1081, 1853, 2645, 2027, 334, 2043, 1829, 2628, 1423, 1873)  # galaxies per class in the real file
GENERATED_BY = "galaxyhpc.demo"  # the root attribute `generated_by` of a file written here


MARGIN = 8  # px drawn beyond the field, so that light near an edge does not come round at the other
STRETCH = np.array([2.2, 3.4, 6.0], np.float32)[:, None, None]  # of z, r, g: the viewer's red, green, blue
SKY_NOISE = 0.0085  # after STRETCH, in a native pixel, before resampling
ELECTRONS = 8000.0  # per nanomaggie: 3 exposures of 90 s with the 4 m Blanco


class DemoError(ValueError):
    """What was asked for cannot be generated."""


@dataclass(frozen=True)
class Neighbour:
    """Another galaxy of the file whose frame overlaps this one, so that it is seen in the picture."""

    label: int
    seed: Seed
    x: float  # arcsec to the west
    y: float  # arcsec to the south


def render(label: int, seed: Seed, size: int, neighbours: Sequence[Neighbour] = ()) -> Bytes:
    """Take a picture of a galaxy of class `label` (0 to 9) in its 67" field: (size, size, 3) uint8."""
    grid = _grid(size)
    rng = default_rng([*np.atleast_1d(seed), 1])  # its galaxy looks the same in a neighbour's picture
    light = draw(label, seed, grid) + _field(rng, grid)
    for other in neighbours:
        light += draw(other.label, other.seed, grid.seen_from(other.x, other.y))
    inner = slice(MARGIN, -MARGIN)
    fine = stretch(_observe(rng, light, grid)[:, inner, inner])
    block = fine.shape[0] // size
    picture: Bytes = np.rint(fine.reshape(size, block, size, block, 3).mean((1, 3))).astype(np.uint8)
    return picture


@lru_cache(maxsize=4)
def _grid(size: int) -> Grid:
    """The fine grid under a picture of `size` px: at least 128 px on the field, plus the margin."""
    fine = size * math.ceil(128 / size)
    axis = (np.arange(-MARGIN, fine + MARGIN) - (fine - 1) / 2) * FIELD / fine
    x, y = np.meshgrid(axis.astype(np.float32), axis.astype(np.float32))
    return Grid(x, y, FIELD / fine)


def _field(rng: Generator, grid: Grid) -> Array:
    """What else is in the picture: faint galaxies, stars, and now and then a large galaxy cut by the edge."""
    galaxies, stars = rng.poisson(34), rng.poisson(6)
    x, y = rng.uniform(-FIELD / 2 - 2, FIELD / 2 + 2, (2, galaxies + stars))
    faint, bright = 24.6 - rng.exponential(1.1, galaxies), 22.6 - rng.exponential(1.6, stars)
    flux = 10 ** (0.4 * (22.5 - np.concatenate([faint, np.maximum(bright, 16.0)])))
    radius = np.concatenate([rng.uniform(0.3, 0.9, galaxies), np.full(stars, 0.05)])
    dwarf = rng.random(stars) < 0.4  # cool dwarfs are redder in r - z than any galaxy
    colour = np.concatenate(
        [rng.normal(0.9, 0.4, galaxies), np.where(dwarf, rng.uniform(1.5, 4.0, stars), rng.uniform(0.1, 0.9, stars))]
    )
    light = blobs(grid, x, y, flux, radius, colour)
    if rng.random() < 0.12:
        toward, away = rng.uniform(0, 2 * math.pi), rng.uniform(22, 38)
        elsewhere = grid.seen_from(away * math.cos(toward), away * math.sin(toward))
        light += draw(int(rng.integers(10)), int(rng.integers(2**32)), elsewhere)
    return light


def _observe(rng: Generator, light: Array, grid: Grid) -> Array:
    """Blur (3, F, F) light and add sky and shot noise.

    The published pictures were resampled, and went through JPEG at half the colour resolution: grey noise is
    correlated within a native pixel, coloured noise over several.
    """
    light = _blur(light, grid.pixel, rng.lognormal(math.log(1.2), 0.1))
    binned = NATIVE / grid.pixel
    noise = rng.standard_normal((4, *light.shape[1:]), np.float32)
    shot = np.sqrt(np.maximum(light, 0) / ELECTRONS) * noise[:3]
    grey = ndimage.gaussian_filter(noise[3], 0.12 / grid.pixel, truncate=3.0)
    coloured = ndimage.gaussian_filter(noise[:3], (0, 0.4 / grid.pixel, 0.4 / grid.pixel), truncate=3.0)
    coloured *= np.array([2.7, 1.6, 1.8], np.float32)[:, None, None] * rng.lognormal(0, 0.3)
    sky = SKY_NOISE * rng.lognormal(0, 0.25) * (grey + coloured) / STRETCH
    observed: Array = light + (sky + shot) * binned
    return observed


def _blur(light: Array, pixel: float, seeing: float) -> Array:
    """Convolve (3, F, F) with Kolmogorov turbulence, exp(-3.44 (k FWHM / 0.976)^(5/3)); `seeing` is FWHM in arcsec."""
    side = light.shape[1]
    wide = fft.next_fast_len(side + math.ceil(12 / pixel), real=True)  # wings end before they come round
    fwhm = seeing * np.array([0.95, 1.0, 1.1], np.float32)[:, None, None]  # redder light is blurred less
    transfer = np.exp(-3.44 * (fwhm / 0.976) ** (5 / 3) * _waves(wide, pixel))
    blurred: Array = fft.irfft2(fft.rfft2(light, (wide, wide)) * transfer, (wide, wide))[:, :side, :side]
    return blurred


@lru_cache(maxsize=4)
def _waves(side: int, pixel: float) -> Array:
    """Spatial frequency in cycles per arcsec to the power 5/3, laid out as by rfft2."""
    frequency = np.hypot(np.fft.fftfreq(side, pixel)[:, None], np.fft.rfftfreq(side, pixel))
    waves: Array = (frequency ** (5 / 3)).astype(np.float32)
    return waves


def stretch(light: Array) -> Array:
    """The Legacy Surveys' stretch, colour kept: (3, F, F) light in z, r, g to (F, F, 3) in [0, 255].

    Light in nanomaggies per 0.262" pixel; scales, offset and Q are those of `dr2_rgb` in their viewer's code
    (github.com/legacysurvey/imagine, map/views.py), after Lupton et al. 2004.
    """
    scaled = np.maximum(light * STRETCH + 0.03, 0)
    mean = scaled.mean(0)
    factor = np.arcsinh(20 * mean) / math.sqrt(20) / np.maximum(mean, 1e-6)
    picture: Array = 255 * np.clip(scaled * factor, 0, 1).transpose(1, 2, 0)
    return picture


@dataclass(frozen=True)
class Catalogue:
    """What a file of n galaxies says about them, and which of its pictures show the same sky."""

    ans: Bytes  # (n,) labels, sorted
    ra: Floats  # (n,) deg
    dec: Floats  # (n,) deg
    redshift: Floats  # (n,) NaN where not measured
    shown: Rows  # (n,) the row whose galaxy is in the picture: its own, but for duplicates under another label
    overlapping: Rows  # (k, 2) pairs of rows whose frames overlap

    def picture(self, row: int, size: int, seed: int) -> Bytes:
        """Render the picture of one row."""
        row = int(self.shown[row])
        pairs = self.overlapping[(self.overlapping == row).any(1)]
        neighbours = [self._neighbour(row, int(other), seed) for other in pairs[pairs != row]]
        return render(int(self.ans[row]), [seed, row], size, neighbours)

    def _neighbour(self, row: int, other: int, seed: int) -> Neighbour:
        west = (self.ra[row] - self.ra[other]) * math.cos(math.radians(self.dec[row]))
        south = self.dec[row] - self.dec[other]
        return Neighbour(int(self.ans[other]), [seed, other], 3600 * float(west), 3600 * float(south))


def class_counts(n: int) -> Rows:
    """Galaxies per class, (10,): as in the real file, but at least three each, `n` in all."""
    counts: Rows = np.maximum(n * np.array(PUBLISHED) // sum(PUBLISHED), 3)
    counts[np.argmax(counts)] += n - counts.sum()
    return counts


def catalogue(n: int, seed: int) -> Catalogue:
    """Lay out n galaxies; pairs of frames that overlap, and one galaxy held twice under two labels, are as frequent
    as in the real file: 177 and 59 pairs in 17,736."""
    rng = default_rng([seed, n, 2])
    ans = np.repeat(np.arange(len(PUBLISHED), dtype=np.uint8), class_counts(n))
    ra, dec = _positions(rng, n)
    redshift = np.where(rng.random(n) < 0.04, np.nan, rng.lognormal(math.log(0.075), 0.5, n))
    pairs = rng.permutation(n)[: n // 2 * 2].reshape(-1, 2)
    duplicate = np.flatnonzero(ans[pairs[:, 0]] != ans[pairs[:, 1]])[: round(n / 300)]
    overlapping = np.delete(pairs, duplicate, axis=0)[: round(n / 100)]
    shown = np.arange(n)
    for column in (shown, ra, dec, redshift):
        column[pairs[duplicate, 1]] = column[pairs[duplicate, 0]]
    first, second = overlapping.T
    apart, toward = rng.uniform(8, 60, len(first)) / 3600, rng.uniform(0, 2 * np.pi, len(first))
    dec[second] = dec[first] + apart * np.sin(toward)
    ra[second] = (ra[first] + apart * np.cos(toward) / np.cos(np.deg2rad(dec[first]))) % 360
    return Catalogue(ans, ra, dec, redshift, shown, overlapping)


def _positions(rng: Generator, n: int) -> tuple[Floats, Floats]:
    """Right ascension and declination in deg, uniform on two boxes inside the footprint of DECaLS."""
    north = rng.random(n) < 0.65
    ra = np.where(north, rng.uniform(115, 255, n), rng.uniform(-40, 40, n) % 360)
    low, high = np.sin(np.deg2rad(np.where(north, [[-4.0], [31.0]], [[-9.0], [30.0]])))
    return ra, np.rad2deg(np.arcsin(rng.uniform(low, high)))


def write(path: Path, n: int, size: int, seed: int) -> None:
    """Write `n` galaxies of `size` px to `path`, whole or not at all, with a progress bar on a terminal.

    Raises
    ------
    DemoError
        for too few galaxies, a size out of range, a negative seed, or a file at `path` that was not generated
    OSError
    """
    _check(path, n, size, seed)
    table = catalogue(n, seed)
    with atomic_write(path) as aside, h5py.File(aside, "w") as file:
        file.attrs.update(generated_by=GENERATED_BY, n=n, size=size, seed=seed)
        file["ans"], file["ra"], file["dec"], file["redshift"] = table.ans, table.ra, table.dec, table.redshift
        file["pxscale"] = np.full(n, FIELD / size)
        chunks = (min(n, 555), 16, 16, 1)  # the published file's
        images = file.create_dataset("images", (n, size, size, 3), np.uint8, chunks=chunks, compression="gzip")
        _draw_all(images, table, size, seed)


def _draw_all(images: h5py.Dataset, table: Catalogue, size: int, seed: int) -> None:
    """Fill the (n, S, S, 3) data set; a row of chunks is written at once, or every picture would rewrite them all."""
    console, step = Console(stderr=True), images.chunks[0]
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("Drawing galaxies", total=len(images))
        for start in range(0, len(images), step):
            pictures = np.empty((min(step, len(images) - start), size, size, 3), np.uint8)
            for i in range(len(pictures)):
                pictures[i] = table.picture(start + i, size, seed)
                progress.advance(task)
            images[start : start + len(pictures)] = pictures


def _check(path: Path, n: int, size: int, seed: int) -> None:
    if n < FEWEST:
        raise DemoError(f"n: found {n}; allowed {FEWEST} galaxies or more")
    if not SIZES[0] <= size <= SIZES[1]:
        raise DemoError(f"size: found {size}; allowed {SIZES[0]} to {SIZES[1]} px")
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
