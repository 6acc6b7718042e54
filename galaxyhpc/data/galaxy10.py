"""The file Galaxy10_DECals.h5 as published: its validation, and its conversion to a memory-mapped array.

Its chunks of (555, 16, 16, 1) make reading one image decompress 555 (Leung & Bovy, Zenodo 10845026), so it is
read in slices of whole chunks, whose memory does not depend on the size of the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from galaxyhpc.config.class_names import GALAXY10_CLASSES, check_class_names
from galaxyhpc.data import DataError
from galaxyhpc.data.read_errors import describe_missing_array, explain_read_error, find_missing_parts
from galaxyhpc.storage.files import fsync, write_text

CLASSES = GALAXY10_CLASSES
FILE_TYPE = "an HDF5 file laid out as Galaxy10_DECals.h5 (Zenodo 10845026)"
FIELD_ARCSEC = 256 * 0.262  # side of a published image
MIN_GALAXIES = 100
MIN_GALAXIES_PER_CLASS = 3  # one for each split
MAX_AT_ONE_POSITION = 100  # galaxies; a file of unknown positions holds zeros, whose pairs would fill the memory
SIZE_RANGE_PX = (16, 2048)
MAX_BLANK_FRACTION = 0.1  # of the images of a slice
SLICE_BYTES = 2**27  # of pixels read at once
RESIZE_BATCH_BYTES = 2**25  # of float32 pixels resized at once


@dataclass(frozen=True, eq=False)
class FileMetadata:
    """Columns and properties of a file beside its pixels, validated."""

    labels: np.ndarray  # (N,) int64, index into classes
    classes: tuple[str, ...]
    ra: np.ndarray  # (N,) float64
    dec: np.ndarray  # (N,) float64
    size: int  # px, as published
    slice_size: int  # images read at once
    field_arcsec: float  # arcsec, side of an image
    is_generated: bool


def check_file(path: Path) -> None:
    """Refuse a file that is not laid out as Galaxy10_DECals.h5, from its header and small columns alone.

    Raises
    ------
    DataError
    """
    read_metadata(path)


def _make_error(path: Path, key: str, got: object, expected: str) -> DataError:
    return DataError(f"{path}: {key}: got {got}; expected {expected}")


@contextmanager
def _translate_hdf5_errors(path: Path) -> Iterator[None]:
    """Turn the errors of HDF5 about a missing, foreign, cut off or damaged file into a DataError."""
    try:
        if not path.is_file():  # HDF5 would wait for a pipe
            raise FileNotFoundError
        yield
    except (OSError, RuntimeError, KeyError) as error:
        is_set = os.environ.get("GALAXY10_H5") or os.path.exists(path)
        hint = "" if is_set else ", or `demo`; the included sweeps read GALAXY10_H5"
        message = explain_read_error(path, error, FILE_TYPE + hint)
        raise DataError(f"{path}: {message}") from error


def read_metadata(path: Path) -> FileMetadata:
    """Return a file's columns and properties.

    Raises
    ------
    DataError
    """
    with _translate_hdf5_errors(path), h5py.File(path, "r", locking=False) as file:
        images = _get_images(path, file)
        count, size = images.shape[:2]
        classes = _read_class_names(path, file)
        labels = _validate_labels(path, _read_column(path, file, "ans", count, "iu"), classes)
        ra = _validate_range(path, "ra", _read_column(path, file, "ra", count, "f"), 0.0, 360.0)
        dec = _validate_range(path, "dec", _read_column(path, file, "dec", count, "f"), -90.0, 90.0)
        _check_positions_differ(path, ra, dec)
        scales = _read_column_or_nan(path, file, "pxscale", count)
        scales = scales[scales > 0]
        field_arcsec = float(np.median(scales)) * size if len(scales) else FIELD_ARCSEC
        slice_size = compute_slice_size(path, images)
        return FileMetadata(labels, classes, ra, dec, size, slice_size, field_arcsec, "generated_by" in file.attrs)


def read_optional_column(path: Path, key: str) -> np.ndarray:
    """Return an (N,) float64 column that a file may lack, such as `redshift`: NaN where nothing was measured.

    Raises
    ------
    DataError
    """
    with _translate_hdf5_errors(path), h5py.File(path, "r", locking=False) as file:
        return _read_column_or_nan(path, file, key, len(_get_images(path, file)))


def _get_dataset(path: Path, file: h5py.File, key: str) -> h5py.Dataset:
    if not isinstance(file.get(key), h5py.Dataset):
        raise _make_error(path, key, describe_missing_array(file, key), "arrays images, ans, ra and dec")
    if missing := find_missing_parts(file[key]):
        raise _make_error(path, key, f"values in {missing[0]}, which does not exist", "that file beside this one")
    return file[key]


def _get_images(path: Path, file: h5py.File) -> h5py.Dataset:
    images = _get_dataset(path, file, "images")
    low, high = SIZE_RANGE_PX
    is_square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == 3
    if not is_square or not low <= images.shape[1] <= high:
        raise _make_error(path, "images", f"shape {images.shape}", f"(N, S, S, 3), S from {low} to {high} px")
    if images.dtype != np.uint8:
        raise _make_error(path, "images", f"dtype {images.dtype}", "uint8")
    if len(images) < MIN_GALAXIES:
        raise _make_error(path, "images", f"{len(images)} galaxies", f"{MIN_GALAXIES} or more")
    return images


def compute_slice_size(path: Path, images: h5py.Dataset) -> int:
    """Return the number of images to read at once: whole chunks, as many as fit in SLICE_BYTES."""
    max_images = max(1, SLICE_BYTES // int(3 * images.dtype.itemsize * images.shape[1] ** 2))
    chunk: tuple[int, ...] = images.chunks or (1,)
    if math.prod(chunk) > SLICE_BYTES:  # HDF5 itself would have to hold one
        raise _make_error(path, "images", f"chunks of {chunk}", f"chunks of at most {SLICE_BYTES:,} bytes")
    return max_images if chunk[0] > max_images else max_images // chunk[0] * chunk[0]


def _read_column(path: Path, file: h5py.File, key: str, num_images: int, dtype_kinds: str) -> np.ndarray:
    column = _get_dataset(path, file, key)
    if column.shape != (num_images,):
        raise _make_error(path, key, f"shape {column.shape}", f"({num_images},), one for each of the images")
    if column.dtype.kind not in dtype_kinds:
        raise _make_error(path, key, f"dtype {column.dtype}", "floating-point" if dtype_kinds == "f" else "integer")
    return np.asarray(column[:])


def _read_column_or_nan(path: Path, file: h5py.File, key: str, num_images: int) -> np.ndarray:
    if key not in file:
        return np.full(num_images, np.nan)
    values = _read_column(path, file, key, num_images, "f").astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _read_class_names(path: Path, file: h5py.File) -> tuple[str, ...]:
    """Return the root attribute `classes`, an array of UTF-8 texts in the order of the labels; else Galaxy10's."""
    if "classes" not in file.attrs:
        return GALAXY10_CLASSES
    names = np.atleast_1d(file.attrs["classes"]).tolist()
    try:
        return check_class_names([name.decode() if isinstance(name, bytes) else name for name in names])
    except (AttributeError, ValueError) as error:  # numbers have no `strip`
        reason = error if isinstance(error, ValueError) else f"got {names[0]!r}; expected an array of texts"
        raise DataError(f"{path}: attribute classes: {reason}") from error


def _validate_labels(path: Path, labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    bad = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(bad):
        raise _make_error(path, "ans", f"label {labels[bad[0]]} in row {bad[0]}", f"0 to {len(classes) - 1}")
    labels = labels.astype(np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    if counts[least := int(counts.argmin())] < MIN_GALAXIES_PER_CLASS:
        got = f"{counts[least]} galaxies of class {least} ({classes[least]})"
        raise _make_error(path, "ans", got, f"{MIN_GALAXIES_PER_CLASS} or more of every class, one for each split")
    return labels


def _validate_range(path: Path, key: str, values: np.ndarray, low: float, high: float) -> np.ndarray:
    bad = np.flatnonzero(~((values >= low) & (values <= high)))  # NaN is bad too
    if len(bad):
        raise _make_error(path, key, f"{values[bad[0]]} in row {bad[0]}", f"{low:g} to {high:g} degrees")
    return values.astype(np.float64)


def _check_positions_differ(path: Path, ra: np.ndarray, dec: np.ndarray) -> None:
    positions, counts = np.unique(np.stack([ra, dec], axis=1), axis=0, return_counts=True)
    if counts.max() > min(MAX_AT_ONE_POSITION, len(ra) // 10):
        ra_deg, dec_deg = positions[counts.argmax()]
        got = f"{counts.max()} of {len(ra)} galaxies at ra {ra_deg:g}, dec {dec_deg:g}"
        expected = "the position of each, in degrees; where none is known, any that are farther apart than "
        raise _make_error(path, "ra and dec", got, f"{expected}data.link_arcsec, or all galaxies stay in one split")


def check_pixels(path: Path, metadata: FileMetadata) -> None:
    """Read one slice of the images, as a conversion does: the last, which is missing where writing was interrupted.

    Raises
    ------
    DataError
    """
    start = (len(metadata.labels) - 1) // metadata.slice_size * metadata.slice_size
    with _translate_hdf5_errors(path), h5py.File(path, "r", locking=False) as file:
        pixels = file["images"][start:].reshape(len(metadata.labels) - start, -1)
    num_blank = int((pixels.min(axis=1) == pixels.max(axis=1)).sum())
    if num_blank > MAX_BLANK_FRACTION * len(pixels):
        got = f"{num_blank} of {len(pixels)} images from row {start} on with one value in all pixels"
        raise _make_error(path, "images", got, "galaxies: was the file written to its end?")


def _read_slices(path: Path, metadata: FileMetadata) -> Iterator[np.ndarray]:
    """Yield the images in order as (n, S, S, 3) uint8, in one buffer that the next slice overwrites."""
    count, size = len(metadata.labels), metadata.size
    buffer = np.empty((min(metadata.slice_size, count), size, size, 3), np.uint8)
    for start in range(0, count, metadata.slice_size):
        n = min(metadata.slice_size, count - start)
        with _translate_hdf5_errors(path), h5py.File(path, "r", locking=False) as file:
            file["images"].read_direct(buffer, np.s_[start : start + n], np.s_[:n])
        yield buffer[:n]


def convert(path: Path, size: int, directory: Path) -> None:
    """Write images.npy, columns.npz and, last, metadata.json into an empty directory.

    Raises
    ------
    DataError
    """
    source = read_metadata(path)
    with _show_progress(path, source, size) as advance, (directory / "images.npy").open("wb") as file:
        digests, mean = _write_images(path, source, size, file, advance)
    np.savez(directory / "columns.npz", labels=source.labels, ra=source.ra, dec=source.dec, digests=digests)
    for name in (names := ("images.npy", "columns.npz")):
        fsync(directory / name)
    metadata = {
        "classes": source.classes,
        "fingerprint": _compute_fingerprint(source, digests),
        "mean": mean,
        "pixel_scale_arcsec": source.field_arcsec / size,
        "generated": source.is_generated,
        "bytes": {name: (directory / name).stat().st_size for name in names},
    }
    write_text(directory / "metadata.json", json.dumps(metadata, indent=1))


def _write_images(
    path: Path, metadata: FileMetadata, size: int, file: BinaryIO, advance: Callable[[int], None]
) -> tuple[np.ndarray, float]:
    """Write all images as an .npy of (N, 3, size, size) uint8; return (N,) digests and the mean of published pixels.

    The file is not memory-mapped: dirty mapped pages would count as this process's memory.
    """
    shape = (len(metadata.labels), 3, size, size)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    digests, total = [], 0
    batch_size = max(1, RESIZE_BATCH_BYTES // (3 * 4 * max(metadata.size, size) ** 2))
    for images in _read_slices(path, metadata):
        digests += [hashlib.sha256(image).hexdigest() for image in images]
        total += int(images.sum(dtype=np.uint64))
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            file.write(resize(batch, size).data)
            advance(len(batch))
    return np.array(digests, dtype="S64"), total / (3 * metadata.size**2 * len(metadata.labels))


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resample (n, S, S, 3) uint8 images to (n, 3, size, size) uint8, with anti-aliasing."""
    planes = images.transpose(0, 3, 1, 2)
    if images.shape[1] == size:
        return np.ascontiguousarray(planes)
    import torch  # here: a process that finds the galaxies converted starts without it

    pixels = torch.from_numpy(np.ascontiguousarray(planes)).float()
    pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return np.asarray(pixels.round_().clamp_(0, 255).to(torch.uint8).numpy())


def _compute_fingerprint(metadata: FileMetadata, digests: np.ndarray) -> str:
    digest = hashlib.sha256(f"{len(digests)} galaxies of {metadata.size} px".encode())
    digest.update(digests.tobytes() + metadata.labels.astype("<i8").tobytes())
    digest.update(metadata.ra.astype("<f8").tobytes() + metadata.dec.astype("<f8").tobytes())
    if metadata.classes != GALAXY10_CLASSES:
        digest.update(json.dumps(metadata.classes).encode())
    return digest.hexdigest()


@contextmanager
def _show_progress(path: Path, metadata: FileMetadata, size: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of further images done; shows a bar on a terminal, one line in a log."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    text = f"converting {path.name} to {size} px"
    if not console.is_terminal:
        print(f"{text}: {len(metadata.labels)} galaxies of {metadata.size} px", file=sys.stderr, flush=True)
        yield lambda num_done: None
        return
    with Progress(console=console) as bar:
        task = bar.add_task(text, total=len(metadata.labels))
        yield lambda num_done: bar.advance(task, num_done)
