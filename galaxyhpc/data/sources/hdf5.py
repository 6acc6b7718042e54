"""An HDF5 file laid out as Galaxy10_DECals.h5 is published: its validation, and its images in order.

Its chunks of (555, 16, 16, 1) make reading one image decompress 555 (Leung & Bovy, Zenodo 10845026), so it is
read in slices of whole chunks, whose memory does not depend on the size of the file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from h5py.h5o import open as open_object

from galaxyhpc.config.class_names import GALAXY10_CLASSES, check_class_names
from galaxyhpc.config.schema import ColumnsConfig, DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.sources.read_errors import describe_missing_array, explain_read_error, find_missing_parts
from galaxyhpc.data.sources.source import (
    MAX_BLANK_FRACTION,
    Columns,
    Source,
    check_class_counts,
    check_positions_differ,
    make_error,
)
from galaxyhpc.data.sources.tables import match_columns

FILE_TYPE = "an HDF5 file laid out as Galaxy10_DECals.h5 (Zenodo 10845026)"
FIELD_ARCSEC = 256 * 0.262  # side of a published image
MIN_GALAXIES = 100
SIZE_RANGE_PX = (16, 2048)
SLICE_BYTES = 2**27  # of pixels read at once


@contextmanager
def _translate_hdf5_errors(path: Path) -> Iterator[None]:
    """Turn the errors of HDF5 about a missing, foreign, cut off or damaged file into a DataError."""
    try:
        if not path.is_file():  # HDF5 would wait for a pipe
            raise FileNotFoundError
        yield
    except (OSError, RuntimeError, KeyError) as error:
        hint = "" if os.path.lexists(path) else ", which `galaxyhpc download galaxy10` fetches, or `demo`"
        hint += "" if os.environ.get("GALAXY10_H5") or not hint else "; the included sweeps read GALAXY10_H5"
        message = explain_read_error(path, error, FILE_TYPE + hint)
        raise DataError(f"{path}: {message}") from error


def open_hdf5(path: Path, config: DataConfig) -> Source:
    """Open a file from its header and small columns alone.

    Raises
    ------
    DataError
    """
    with _translate_hdf5_errors(path), h5py.File(path, "r", locking=False) as file:
        images = _get_images(path, file)
        count, size = images.shape[:2]
        labels = _read_column(path, file, "ans", count, "iu")
        kept, classes, labels = _select_classes(path, labels, _read_class_names(path, file, config), config.classes)
        ra, dec = (values[kept] for values in _read_positions(path, file, count))
        redshift = _read_column_or_nan(path, file, "redshift", count)[kept]
        check_positions_differ(path, ra, dec)
        slice_size = compute_slice_size(path, images)
        ids = kept.astype(str) if len(kept) < count else None  # rows of the split are then not those of the file
        return Source(
            path,
            "HDF5 file",
            classes,
            Columns(labels, ra, dec, ids=ids, redshift=redshift),
            partial(_read_kept_images, path, slice_size, kept),
            partial(_check_last_slice, path, slice_size),
            size=size,
            field_arcsec=config.field_arcsec or _read_field_arcsec(path, file, count, size),
            is_generated="generated_by" in file.attrs,
            num_left_out=count - len(kept),
        )


def _read_positions(path: Path, file: h5py.File, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ra and dec, NaN if the file has neither."""
    if "ra" not in file and "dec" not in file:
        return np.full(count, np.nan), np.full(count, np.nan)
    ra = _validate_range(path, "ra", _read_column(path, file, "ra", count, "f"), 0.0, 360.0)
    return ra, _validate_range(path, "dec", _read_column(path, file, "dec", count, "f"), -90.0, 90.0)


def list_columns(file: h5py.File) -> list[str]:
    """Return the names of the arrays with one value for each of the images."""
    shape, names = open_object(file.id, b"images").shape[:1], []  # a fifth of the time of file["images"]
    for name in file:
        with suppress(KeyError, OSError):  # a link to nothing
            item = open_object(file.id, name.encode("utf-8", "surrogateescape"))
            names += [name] if isinstance(item, h5py.h5d.DatasetID) and item.shape == shape else []
    return names


def read_known_columns(
    path: Path, file: h5py.File, rows: slice, config: ColumnsConfig
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return what is known of these rows, and the names of the columns of id, ra and dec, where they exist.

    Raises
    ------
    DataError
    """
    matched = match_columns(path, list_columns(file), config)
    columns = {key: name for key, name in matched.items() if key in ("id", "ra", "dec")}
    values = {name: _read_values(file[name], rows) for name in columns.values()}
    return pd.DataFrame(values, index=range(rows.start, rows.stop)), columns


def _read_values(dataset: h5py.Dataset, rows: slice) -> Any:
    return dataset.asstr()[rows] if h5py.check_string_dtype(dataset.dtype) else dataset[rows]


def _read_field_arcsec(path: Path, file: h5py.File, count: int, size: int) -> float:
    scales = _read_column_or_nan(path, file, "pxscale", count)
    scales = scales[scales > 0]
    return float(np.median(scales)) * size if len(scales) else FIELD_ARCSEC


def _get_dataset(path: Path, file: h5py.File, key: str) -> h5py.Dataset:
    if not isinstance(file.get(key), h5py.Dataset):
        raise make_error(path, key, describe_missing_array(file, key), "arrays images, ans, ra and dec")
    if missing := find_missing_parts(file[key]):
        raise make_error(path, key, f"values in {missing[0]}, which does not exist", "that file beside this one")
    return file[key]


def _get_images(path: Path, file: h5py.File) -> h5py.Dataset:
    images = _get_dataset(path, file, "images")
    low, high = SIZE_RANGE_PX
    is_square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == 3
    if not is_square or not low <= images.shape[1] <= high:
        raise make_error(path, "images", f"shape {images.shape}", f"(N, S, S, 3), S from {low} to {high} px")
    if images.dtype != np.uint8:
        raise make_error(path, "images", f"dtype {images.dtype}", "uint8")
    if len(images) < MIN_GALAXIES:
        raise make_error(path, "images", f"{len(images)} galaxies", f"{MIN_GALAXIES} or more")
    return images


def compute_slice_size(path: Path, images: h5py.Dataset) -> int:
    """Return the number of images to read at once: whole chunks, as many as fit in SLICE_BYTES."""
    max_images = max(1, SLICE_BYTES // int(3 * images.dtype.itemsize * images.shape[1] ** 2))
    chunk: tuple[int, ...] = images.chunks or (1,)
    if math.prod(chunk) > SLICE_BYTES:  # HDF5 itself would have to hold one
        raise make_error(path, "images", f"chunks of {chunk}", f"chunks of at most {SLICE_BYTES:,} bytes")
    return max_images if chunk[0] > max_images else max_images // chunk[0] * chunk[0]


def _read_column(path: Path, file: h5py.File, key: str, num_images: int, dtype_kinds: str) -> np.ndarray:
    column = _get_dataset(path, file, key)
    if column.shape != (num_images,):
        raise make_error(path, key, f"shape {column.shape}", f"({num_images},), one for each of the images")
    if column.dtype.kind not in dtype_kinds:
        raise make_error(path, key, f"dtype {column.dtype}", "floating-point" if dtype_kinds == "f" else "integer")
    return np.asarray(column[:])


def _read_column_or_nan(path: Path, file: h5py.File, key: str, num_images: int) -> np.ndarray:
    if key not in file:
        return np.full(num_images, np.nan)
    values = _read_column(path, file, key, num_images, "f").astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _read_class_names(path: Path, file: h5py.File, config: DataConfig) -> tuple[str, ...]:
    """Return the root attribute `classes`, an array of UTF-8 texts in the order of the labels.

    A file without it has the classes that the settings name, or else Galaxy10's or a part of them.
    """
    if "classes" not in file.attrs:
        return GALAXY10_CLASSES if set(config.classes) <= set(GALAXY10_CLASSES) else config.classes
    names = np.atleast_1d(file.attrs["classes"]).tolist()
    try:
        return check_class_names([name.decode() if isinstance(name, bytes) else name for name in names])
    except (AttributeError, ValueError) as error:  # numbers have no `strip`
        reason = error if isinstance(error, ValueError) else f"got {names[0]!r}; expected an array of texts"
        raise DataError(f"{path}: attribute classes: {reason}") from error


def _select_classes(
    path: Path, labels: np.ndarray, names: tuple[str, ...], selected: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Return the rows of the selected classes, the names of the classes in the order of their labels, and these labels.

    Wanted classes of which the file does not have all are left to the caller to refuse.
    """
    bad = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(bad):
        raise make_error(path, "ans", f"label {labels[bad[0]]} in row {bad[0]}", f"0 to {len(names) - 1}")
    classes = selected if set(selected) <= set(names) and selected else names
    new_labels = np.array([classes.index(name) if name in classes else -1 for name in names])[labels.astype(np.int64)]
    kept = np.flatnonzero(new_labels >= 0)
    check_class_counts(path, "ans", new_labels[kept], classes, lambda index: f"row {kept[index]}")
    return kept, classes, new_labels[kept]


def _validate_range(path: Path, key: str, values: np.ndarray, low: float, high: float) -> np.ndarray:
    bad = np.flatnonzero(~((values >= low) & (values <= high)))  # NaN is bad too
    if len(bad):
        raise make_error(path, key, f"{values[bad[0]]} in row {bad[0]}", f"{low:g} to {high:g} degrees")
    return values.astype(np.float64)


def _check_last_slice(path: Path, slice_size: int) -> None:
    """Read one slice of the images, as a conversion does: the last, which is missing where writing was interrupted."""
    with _translate_hdf5_errors(path), h5py.File(path, "r", locking=False) as file:
        start = (len(file["images"]) - 1) // slice_size * slice_size
        images = file["images"][start:]
    pixels = images.reshape(len(images), -1)
    num_blank = int((pixels.min(axis=1) == pixels.max(axis=1)).sum())
    if num_blank > MAX_BLANK_FRACTION * len(pixels):
        got = f"{num_blank} of {len(pixels)} images from row {start} on with one value in all pixels"
        raise make_error(path, "images", got, "galaxies: was the file written to its end?")


def _read_kept_images(path: Path, slice_size: int, kept: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the images of these rows in order as (S, S, 3) uint8, in a buffer that the next slice overwrites."""
    with _translate_hdf5_errors(path), h5py.File(path, "r", locking=False) as file:
        count, size = file["images"].shape[:2]
    buffer = np.empty((min(slice_size, count), size, size, 3), np.uint8)
    for start in range(0, count, slice_size):
        n = min(slice_size, count - start)
        with _translate_hdf5_errors(path), h5py.File(path, "r", locking=False) as file:
            file["images"].read_direct(buffer, np.s_[start : start + n], np.s_[:n])
        yield from buffer[kept[(kept >= start) & (kept < start + n)] - start]
