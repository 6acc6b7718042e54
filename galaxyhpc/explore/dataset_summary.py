"""Summary of a dataset as arrays and tables: layout, redshifts, photometry, duplicates and split. No figures.

Pixels are read from the converted, memory-mapped images in slices, so that the size of the file does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.dataset import check_divisible
from galaxyhpc.data.galaxies import Galaxies
from galaxyhpc.data.given_split import divide
from galaxyhpc.data.split import (
    DUPLICATE_RADIUS_ARCSEC,
    SPLITS,
    chain_equal_values,
    find_close_pairs,
)

SLICE_BYTES = 2**25  # of float32 pixels measured at once
APERTURE_FRACTION, BORDER_FRACTION = 1 / 8, 1 / 16  # of the side: radius of the central disc, width of the frame
MAD_TO_SIGMA = 1.4826  # normal standard deviation / median absolute deviation


@dataclass(frozen=True)
class FileLayout:
    """Arrays, chunks, compression and pixel scale of an HDF5 file."""

    file_bytes: int
    arrays: tuple[str, ...]  # `name: shape, dtype` of each
    shape: tuple[int, ...]  # of images
    chunks: tuple[int, ...] | None
    compression: str  # gzip, lzf ..., or empty
    stored_bytes: int  # bytes of the images in the file
    has_pixel_scale: bool  # an array pxscale with numbers


@dataclass(frozen=True, eq=False)
class DatasetSummary:
    """Summary of a file of N galaxies."""

    path: Path
    layout: FileLayout | None  # of an HDF5 file
    galaxies: Galaxies
    redshift: np.ndarray  # (N,) NaN where not measured
    photometry: pd.DataFrame  # one row per galaxy: brightness, background, scatter (DN), snr and has_empty_band
    pairs: pd.DataFrame  # see `find_pairs`
    split: pd.DataFrame  # see `make_split_table`
    config: DataConfig  # of that split

    @property
    def class_counts(self) -> np.ndarray:
        """Number of galaxies of each class, (K,)."""
        return np.bincount(self.galaxies.labels, minlength=len(self.class_names))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes, in the order of the labels."""
        return self.galaxies.classes

    def select_largest_classes(self, max_classes: int) -> list[int]:
        """Return the labels of the classes with the most galaxies, in their order."""
        return sorted(np.argsort(-self.class_counts, kind="stable")[:max_classes].tolist())

    @property
    def duplicates(self) -> pd.DataFrame:
        return self.pairs[self.pairs["duplicate"]]

    @property
    def overlaps(self) -> pd.DataFrame:
        return self.pairs[~self.pairs["duplicate"]]

    @property
    def rejection(self) -> str:
        """Why a launch rejects this file with these settings, or nothing."""
        try:
            check_divisible(self.config, self.split, self.galaxies.digests)
        except DataError as error:
            return str(error).removeprefix(f"{self.config.source}: ")
        return ""


def summarize_dataset(
    path: Path, galaxies: Galaxies, config: DataConfig, on_progress: Callable[[int], None]
) -> DatasetSummary:
    """Read and measure a converted file; `on_progress` is called with the number of galaxies of each measured slice.

    Raises
    ------
    DataError
    """
    sky = (galaxies.ra, galaxies.dec, galaxies.digests)
    return DatasetSummary(
        path=path,
        layout=_read_layout(path),
        galaxies=galaxies,
        redshift=np.full(len(galaxies.labels), np.nan) if galaxies.redshift is None else galaxies.redshift,
        photometry=measure_photometry(galaxies.images, on_progress),
        pairs=find_pairs(galaxies.labels, *sky, config.link_arcsec, galaxies.near_pairs),
        split=divide(config, galaxies.columns, galaxies.digests, galaxies.near_pairs),
        config=config,
    )


def _read_layout(path: Path) -> FileLayout | None:
    if not h5py.is_hdf5(path):
        return None
    with h5py.File(path, "r", locking=False) as file:
        images, arrays = file["images"], [item for item in file.items() if isinstance(item[1], h5py.Dataset)]
        return FileLayout(
            file_bytes=path.stat().st_size,
            arrays=tuple(f"{name}: {array.shape}, {array.dtype}" for name, array in arrays),
            shape=images.shape,
            chunks=images.chunks,
            compression=images.compression or "",
            stored_bytes=images.id.get_storage_size(),
            has_pixel_scale="pxscale" in file and bool(np.isfinite(file["pxscale"][:]).any()),
        )


def measure_photometry(images: np.ndarray, on_progress: Callable[[int], None] = lambda count: None) -> pd.DataFrame:
    """Measure brightness, background and signal-to-noise of (N, 3, S, S) uint8 images.

    Of the mean of the three colours: `brightness` is the mean in a disc of radius S/8, `background` the median in a
    frame S/16 wide, `scatter` that frame's median absolute deviation x 1.4826 (all DN in [0, 255]), and `snr` =
    (brightness - background) / scatter: of one pixel, in a stretched image. NaN where the scatter is 0.
    `has_empty_band`: all pixels of a colour are the same.
    """
    slice_length = max(1, SLICE_BYTES // (3 * 4 * images.shape[-1] ** 2))
    tables = []
    for start in range(0, len(images), slice_length):
        tables.append(_measure_slice(_reopen_memmap(images)[start : start + slice_length]))
        on_progress(len(tables[-1]))
    return pd.concat(tables, ignore_index=True)


def _reopen_memmap(images: np.ndarray) -> np.ndarray:
    """Map a file's images again: pages that were read count as this process's memory until their map is closed."""
    if not isinstance(images, np.memmap) or images.filename is None:
        return images
    return np.memmap(images.filename, images.dtype, "r", images.offset, images.shape)


def _measure_slice(images: np.ndarray) -> pd.DataFrame:
    grey = images.mean(axis=1, dtype=np.float32)
    disc, frame = make_aperture_masks(images.shape[-1])
    brightness, border = grey[:, disc].mean(axis=1), grey[:, frame]
    background = np.median(border, axis=1)
    scatter = MAD_TO_SIGMA * np.median(np.abs(border - background[:, None]), axis=1)
    snr = (brightness - background) / np.where(scatter > 0, scatter, np.nan)
    has_empty_band = (images.min(axis=(2, 3)) == images.max(axis=(2, 3))).any(axis=1)
    columns = {"brightness": brightness, "background": background, "scatter": scatter, "snr": snr}
    return pd.DataFrame(columns | {"has_empty_band": has_empty_band})


def make_aperture_masks(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the (S, S) masks of the central disc and of the frame at the border."""
    offset, width = np.arange(size) - (size - 1) / 2, max(1, round(BORDER_FRACTION * size))
    disc = offset[:, None] ** 2 + offset**2 <= (APERTURE_FRACTION * size) ** 2
    inner = np.zeros((size, size), bool)
    inner[width:-width, width:-width] = True
    return disc, ~inner


def find_pairs(
    labels: np.ndarray,
    ra: np.ndarray,
    dec: np.ndarray,
    digests: np.ndarray,
    link_arcsec: float,
    near_pairs: np.ndarray | None = None,
) -> pd.DataFrame:
    """Find the pairs of galaxies that a split must keep together: one row per pair, the closest first.

    first, second : rows of the file, first < second
    arcsec : their separation
    same_pixels, same_place : identical images; positions within DUPLICATE_RADIUS_ARCSEC
    near_pixels : nearly identical images, those of `near_pairs` (M, 2)
    duplicate : any of these; otherwise only their frames overlap (closer than `link_arcsec`)
    conflict : same_pixels or same_place, with two labels
    """
    close = find_close_pairs(ra, dec, max(link_arcsec, DUPLICATE_RADIUS_ARCSEC))
    near = set() if near_pairs is None else {(min(pair), max(pair)) for pair in near_pairs.tolist()}
    pairs = {(min(pair), max(pair)) for pair in (*chain_equal_values(digests).tolist(), *close.tolist())} | near
    first, second = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    separation = compute_separation_arcsec(ra, dec, first, second)
    frame = pd.DataFrame({"first": first, "second": second, "arcsec": separation})
    frame["same_pixels"] = digests[first] == digests[second]
    frame["same_place"] = frame["arcsec"] <= DUPLICATE_RADIUS_ARCSEC
    is_same = frame["same_pixels"] | frame["same_place"]
    frame["near_pixels"] = [pair in near for pair in zip(first.tolist(), second.tolist(), strict=True)]
    frame["duplicate"] = is_same | frame["near_pixels"]
    frame["conflict"] = is_same & (labels[first] != labels[second])
    return frame.sort_values(["arcsec", "first", "second"], ignore_index=True)


def compute_separation_arcsec(ra: np.ndarray, dec: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the separations of pairs of rows on the sky, in arcsec; ra and dec in degrees."""
    from astropy.coordinates import angular_separation

    ra, dec = np.radians(ra), np.radians(dec)
    return np.asarray(3600 * np.degrees(angular_separation(ra[first], dec[first], ra[second], dec[second])))


def count_by_split(split: pd.DataFrame, num_classes: int) -> pd.DataFrame:
    """Count the galaxies of each class (row) in each split and dropped from it (columns)."""
    names = [*SPLITS, "dropped"]
    return pd.crosstab(split["label"], split["split"]).reindex(index=range(num_classes), columns=names, fill_value=0)


def compute_class_percentiles(values: np.ndarray, labels: np.ndarray, num_classes: int) -> pd.DataFrame:
    """Return, per class, the number of known and missing values, and the 16th, 50th and 84th percentiles."""
    rows = []
    for label in range(num_classes):
        class_values = values[labels == label]
        known = class_values[np.isfinite(class_values)]
        percentiles = np.percentile(known, [16, 50, 84]) if len(known) else np.full(3, np.nan)
        rows.append((len(known), len(class_values) - len(known), *percentiles))
    return pd.DataFrame(rows, columns=["known", "missing", "low", "median", "high"])


def select_examples(labels: np.ndarray, classes: Sequence[int], num_per_class: int) -> dict[int, list[int]]:
    """Select up to `num_per_class` rows of each of these classes, evenly spaced and so always the same."""
    examples = {}
    for label in classes:
        rows = np.flatnonzero(labels == label)
        positions = np.unique(np.linspace(0, len(rows) - 1, num_per_class).round().astype(int))
        examples[label] = rows[positions].tolist()
    return examples
