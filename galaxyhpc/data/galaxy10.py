"""The file Galaxy10_DECals.h5 as published: what it must hold, and its conversion to a memory-mapped array.

Its chunks of (555, 16, 16, 1) make reading one image decompress 555 (Leung & Bovy, Zenodo 10845026), so it is
read in slices of whole chunks, few enough that memory does not depend on the size of the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from galaxyhpc.storage.files import sync, write_text

CLASSES: tuple[str, ...] = (
    *("Disturbed", "Merging", "Round Smooth", "In-between Round Smooth", "Cigar Shaped Smooth"),
    *("Barred Spiral", "Unbarred Tight Spiral", "Unbarred Loose Spiral"),
    *("Edge-on without Bulge", "Edge-on with Bulge"),
)
FIELD_ARCSEC = 256 * 0.262  # side of a published image
FEWEST, FEWEST_OF_A_CLASS = 100, 3  # galaxies; one for each split
SIDES = (16, 2048)  # px
SLICE_BYTES = 2**27  # of pixels held at once
BATCH_BYTES = 2**25  # of float32 pixels resized at once


class DataError(ValueError):
    """A file of galaxies, or a sweep's split, that cannot be used."""


@dataclass(frozen=True, eq=False)
class Columns:
    """What a file says beside its pixels; checked."""

    labels: np.ndarray  # (N,) int64
    ra: np.ndarray  # (N,) float64
    dec: np.ndarray  # (N,) float64
    side: int  # px, as published
    rows: int  # images read at once
    field: float  # arcsec, side of an image
    generated: bool


def check_file(path: Path) -> None:
    """Refuse what is not laid out as Galaxy10_DECals.h5, from its header and small columns alone.

    Raises
    ------
    DataError
    """
    read_columns(path)


def _wrong(path: Path, key: str, found: object, allowed: str) -> DataError:
    return DataError(f"{path}: {key}: found {found}; allowed {allowed}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what HDF5 says about a file that is none, or is cut off or damaged, into one clear error."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; data.source is `demo` or a file laid out as Galaxy10_DECals.h5")
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(
            f"{path}: found {path.stat().st_size:,} bytes that are no HDF5 file or one cut off or damaged "
            f"({error}); allowed is a whole file laid out as Galaxy10_DECals.h5: fetch it again"
        ) from error


def read_columns(path: Path) -> Columns:
    with _reading(path), h5py.File(path, "r", locking="best-effort") as file:
        images = _images(path, file)
        count, side = images.shape[:2]
        labels = _labels(path, _column(path, file, "ans", count, "iu"))
        ra = _within(path, "ra", _column(path, file, "ra", count, "f"), 0.0, 360.0)
        dec = _within(path, "dec", _column(path, file, "dec", count, "f"), -90.0, 90.0)
        scales = _optional(path, file, "pxscale", count)
        scales = scales[scales > 0]
        field = float(np.median(scales)) * side if len(scales) else FIELD_ARCSEC
        rows = rows_at_once(path, images)
        return Columns(labels, ra, dec, side, rows, field, "generated_by" in file.attrs)


def read_measured(path: Path, key: str) -> np.ndarray:
    """Return an (N,) array of floats that a file may lack, such as `redshift`: NaN where nothing was measured.

    Raises
    ------
    DataError
    """
    with _reading(path), h5py.File(path, "r", locking="best-effort") as file:
        return _optional(path, file, key, len(_images(path, file)))


def _dataset(path: Path, file: h5py.File, key: str) -> h5py.Dataset:
    if not isinstance(file.get(key), h5py.Dataset):
        raise _wrong(path, key, f"no such array among {', '.join(file) or 'none'}", "images, ans, ra, dec")
    return file[key]


def _images(path: Path, file: h5py.File) -> h5py.Dataset:
    images = _dataset(path, file, "images")
    low, high = SIDES
    square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == 3
    if not square or not low <= images.shape[1] <= high:
        raise _wrong(path, "images", f"shape {images.shape}", f"(N, S, S, 3), S from {low} to {high} px")
    if images.dtype != np.uint8:
        raise _wrong(path, "images", f"dtype {images.dtype}", "uint8")
    if len(images) < FEWEST:
        raise _wrong(path, "images", f"{len(images)} galaxies", f"{FEWEST} or more")
    return images


def rows_at_once(path: Path, images: h5py.Dataset) -> int:
    """Return how many images to read at once: whole chunks, as many as SLICE_BYTES hold."""
    most = max(1, SLICE_BYTES // int(3 * images.dtype.itemsize * images.shape[1] ** 2))
    chunk: tuple[int, ...] = images.chunks or (1,)
    if math.prod(chunk) > SLICE_BYTES:  # HDF5 itself would have to hold one
        raise _wrong(path, "images", f"chunks of {chunk}", f"chunks of at most {SLICE_BYTES:,} bytes")
    return most if chunk[0] > most else most // chunk[0] * chunk[0]


def _column(path: Path, file: h5py.File, key: str, count: int, kinds: str) -> np.ndarray:
    column = _dataset(path, file, key)
    if column.shape != (count,):
        raise _wrong(path, key, f"shape {column.shape}", f"({count},), one for each of the images")
    if column.dtype.kind not in kinds:
        raise _wrong(path, key, f"dtype {column.dtype}", "floating-point" if kinds == "f" else "integer")
    return np.asarray(column[:])


def _optional(path: Path, file: h5py.File, key: str, count: int) -> np.ndarray:
    values = _column(path, file, key, count, "f").astype(np.float64) if key in file else np.full(count, np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def _labels(path: Path, labels: np.ndarray) -> np.ndarray:
    bad = np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))
    if len(bad):
        raise _wrong(path, "ans", f"label {labels[bad[0]]} in row {bad[0]}", f"0 to {len(CLASSES) - 1}")
    labels = labels.astype(np.int64)
    counts = np.bincount(labels, minlength=len(CLASSES))
    if counts[least := int(counts.argmin())] < FEWEST_OF_A_CLASS:
        found = f"{counts[least]} galaxies of class {least} ({CLASSES[least]})"
        raise _wrong(path, "ans", found, f"{FEWEST_OF_A_CLASS} or more of every class, to divide them")
    return labels


def _within(path: Path, key: str, values: np.ndarray, low: float, high: float) -> np.ndarray:
    bad = np.flatnonzero(~((values >= low) & (values <= high)))  # NaN is bad too
    if len(bad):
        raise _wrong(path, key, f"{values[bad[0]]} in row {bad[0]}", f"{low:g} to {high:g} degrees")
    return values.astype(np.float64)


def _slices(path: Path, columns: Columns) -> Iterator[np.ndarray]:
    """Yield the images in order as (n, S, S, 3) uint8, all in one buffer that the next slice overwrites."""
    count, side = len(columns.labels), columns.side
    buffer = np.empty((min(columns.rows, count), side, side, 3), np.uint8)
    for start in range(0, count, columns.rows):
        n = min(columns.rows, count - start)
        with _reading(path), h5py.File(path, "r", locking="best-effort") as file:
            file["images"].read_direct(buffer, np.s_[start : start + n], np.s_[:n])
        yield buffer[:n]


def convert(path: Path, size: int, directory: Path) -> None:
    """Write images.npy, columns.npz and, last, metadata.json into an empty directory.

    Raises
    ------
    DataError
    """
    columns = read_columns(path)
    with _progress(path, columns, size) as advance, (directory / "images.npy").open("wb") as file:
        digests, mean = _write_images(path, columns, size, file, advance)
    np.savez(directory / "columns.npz", labels=columns.labels, ra=columns.ra, dec=columns.dec, digests=digests)
    for name in (names := ("images.npy", "columns.npz")):
        sync(directory / name)
    about = {
        "fingerprint": _fingerprint(columns, digests),
        "mean": mean,
        "pixel_scale": columns.field / size,
        "generated": columns.generated,
        "bytes": {name: (directory / name).stat().st_size for name in names},
    }
    write_text(directory / "metadata.json", json.dumps(about, indent=1))


def _write_images(
    path: Path, columns: Columns, size: int, file: BinaryIO, advance: Callable[[int], None]
) -> tuple[np.ndarray, float]:
    """Write all images as an .npy of (N, 3, size, size) uint8; return digests and mean as published.

    Written, not memory-mapped: dirty mapped pages would count as this process's memory.
    """
    shape = (len(columns.labels), 3, size, size)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    digests, total = [], 0
    batch = max(1, BATCH_BYTES // (3 * 4 * max(columns.side, size) ** 2))
    for images in _slices(path, columns):
        digests += [hashlib.sha256(image).hexdigest() for image in images]
        total += int(images.sum(dtype=np.uint64))
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            file.write(resized(part, size).data)
            advance(len(part))
    return np.array(digests, dtype="S64"), total / (3 * columns.side**2 * len(columns.labels))


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Resample (n, S, S, 3) uint8 images to (n, 3, size, size) uint8, with anti-aliasing."""
    planes = images.transpose(0, 3, 1, 2)
    if images.shape[1] == size:
        return np.ascontiguousarray(planes)
    import torch  # not needed by whoever finds the galaxies converted

    pixels = torch.from_numpy(np.ascontiguousarray(planes)).float()
    pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return np.asarray(pixels.round_().clamp_(0, 255).to(torch.uint8).numpy())


def _fingerprint(columns: Columns, digests: np.ndarray) -> str:
    digest = hashlib.sha256(f"{len(digests)} galaxies of {columns.side} px".encode())
    digest.update(digests.tobytes() + columns.labels.astype("<i8").tobytes())
    digest.update(columns.ra.astype("<f8").tobytes() + columns.dec.astype("<f8").tobytes())
    return digest.hexdigest()


@contextmanager
def _progress(path: Path, columns: Columns, size: int) -> Iterator[Callable[[int], None]]:
    """Yield what is told how many more images are done: a bar on a terminal, one plain line in a log."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    text = f"converting {path.name} to {size} px"
    if not console.is_terminal:
        print(f"{text}: {len(columns.labels)} galaxies of {columns.side} px", file=sys.stderr, flush=True)
        yield lambda done: None
        return
    with Progress(console=console) as bar:
        task = bar.add_task(text, total=len(columns.labels))
        yield lambda done: bar.advance(task, done)
