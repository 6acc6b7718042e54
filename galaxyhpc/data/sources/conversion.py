"""The conversion of a source to a memory-mapped array of images at one size, with their digests and fingerprint.

Images come one after another and are resized in batches, so that memory does not depend on the number of galaxies.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.data.images.galaxy_image import is_grey
from galaxyhpc.data.images.near_duplicates import SharedPatternError, find_near_duplicates, make_thumbnails
from galaxyhpc.data.sources.source import Columns, Source
from galaxyhpc.storage.files import fsync, write_text

if TYPE_CHECKING:
    from torch import Tensor

RESIZE_BATCH_BYTES = 2**25  # of float32 pixels resized at once


@dataclass
class PublishedPixels:
    """Properties of images as they are in the source, collected while they are read."""

    digests: list[str] = field(default_factory=list)  # SHA-256 of each
    total: int = 0  # DN
    count: int = 0  # of bands and pixels
    sizes: set[int] = field(default_factory=set)  # px
    num_grey: int = 0  # images whose three bands are equal
    thumbnails: list[np.ndarray] = field(default_factory=list)  # uint8, of images whose positions are not all known

    def add(self, image: np.ndarray) -> None:
        """Add an (S, S, 3) uint8 image."""
        self.digests.append(hashlib.sha256(np.ascontiguousarray(image).data).hexdigest())
        self.total += int(image.sum(dtype=np.uint64))
        self.count += image.size
        self.sizes.add(len(image))
        self.num_grey += is_grey(image)


def convert(source: Source, size: int, directory: Path) -> None:
    """Write images.npy, columns.npz and, last, metadata.json into an empty directory.

    Raises
    ------
    DataError
    """
    with _show_progress(source, size) as advance, (directory / "images.npy").open("wb") as file:
        pixels = _write_images(source, size, file, advance)
    digests = np.array(pixels.digests, dtype="S64")
    arrays: dict[str, Any] = source.columns.as_dict() | {"digests": digests}
    if pixels.thumbnails:
        arrays |= _find_near_pairs(source, digests, np.concatenate(pixels.thumbnails))
    np.savez(directory / "columns.npz", **arrays)
    for name in (names := ("images.npy", "columns.npz")):
        fsync(directory / name)
    metadata = {
        "classes": source.classes,
        "fingerprint": compute_fingerprint(source.classes, source.columns, digests, pixels.sizes),
        "mean": pixels.total / pixels.count,
        "pixel_scale_arcsec": source.field_arcsec / size,
        "generated": source.is_generated,
        "published_sizes": sorted(pixels.sizes),
        "num_left_out": source.num_left_out,
        "num_grey": pixels.num_grey,
        "num_filled": len(source.filled_pixels),
        "bytes": {name: (directory / name).stat().st_size for name in names},
    }
    write_text(directory / "metadata.json", json.dumps(metadata, indent=1))
    _report_images(source, pixels.num_grey)


def _find_near_pairs(source: Source, digests: np.ndarray, thumbnails: np.ndarray) -> dict[str, np.ndarray]:
    """Return near_pairs (M, 2), of one row of each set of identical images, and near_correlations (M,).

    Galaxies whose positions are known are compared by these.
    """
    rows = np.sort(np.unique(digests, return_index=True)[1])
    try:
        pairs, correlations = find_near_duplicates(thumbnails[rows])
    except SharedPatternError:
        advice = "remove what they share, such as a frame, or give groups or positions"
        print(f"{source.path}: got images that are nearly all the same and are not compared; {advice}", file=sys.stderr)
        return {}
    pairs = rows[pairs]
    is_unknown = np.isnan(source.columns.ra)[pairs].any(axis=1)
    return {"near_pairs": pairs[is_unknown], "near_correlations": correlations[is_unknown]}


def _report_images(source: Source, num_grey: int) -> None:
    """Say what was done to images, and which is the worst."""
    count, filled = len(source.columns.labels), source.filled_pixels
    if filled:
        worst = max(filled, key=lambda name: filled[name])
        total = f"{sum(filled.values())} pixels without a value in {len(filled)} of {count} images were taken as sky"
        print(f"{total}, most of them in {worst}: {filled[worst]}", file=sys.stderr)
    if num_grey:
        print(f"{num_grey} of {count} images are grey: three equal bands", file=sys.stderr)


def _write_images(source: Source, size: int, file: BinaryIO, advance: Callable[[int], None]) -> PublishedPixels:
    """Write all images as an .npy of (N, 3, size, size) uint8.

    The file is not memory-mapped: dirty mapped pages would count as this process's memory.
    """
    shape = (len(source.columns.labels), 3, size, size)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    pixels = PublishedPixels()
    for batch in _make_batches(source.read_images(), size):
        for image in batch:
            pixels.add(image)
        if np.isnan(source.columns.ra).any():
            pixels.thumbnails.append(make_thumbnails(batch))
        file.write(resize(batch, size).data)
        advance(len(batch))
    return pixels


def _make_batches(images: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield consecutive images of the same side as (n, S, S, 3), as many as are resized at once."""
    batch: list[np.ndarray] = []
    for image in images:
        max_length = max(1, RESIZE_BATCH_BYTES // (3 * 4 * max(len(image), size) ** 2))
        if batch and (len(batch) >= max_length or len(batch[0]) != len(image)):
            yield np.stack(batch)
            batch = []
        batch.append(image.copy())  # its reader may use the same memory again
    if batch:
        yield np.stack(batch)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resample (n, S, S, 3) uint8 images to (n, 3, size, size) uint8, with anti-aliasing."""
    if images.shape[1] == size:
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    import torch  # here: a process that finds the galaxies converted starts without it

    pixels = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)  # channels last is faster, and the same
    return np.ascontiguousarray(resample(pixels, size).to(torch.uint8).numpy())


def resample(pixels: Tensor, size: int) -> Tensor:
    """Resample (n, 3, S, S) floats from 0 to 255 to (n, 3, size, size) whole ones, with anti-aliasing."""
    from torch.nn.functional import interpolate

    return interpolate(pixels, (size, size), mode="bilinear", antialias=True).round_().clamp_(0, 255)


def compute_fingerprint(classes: tuple[str, ...], columns: Columns, digests: np.ndarray, sizes: set[int]) -> str:
    """Return the hexadecimal SHA-256 of all that decides what a network learns, and on which galaxies."""
    sides = " and ".join(map(str, sorted(sizes)))
    digest = hashlib.sha256(f"{len(digests)} galaxies of {sides} px".encode())
    digest.update(digests.tobytes() + columns.labels.astype("<i8").tobytes())
    digest.update(columns.ra.astype("<f8").tobytes() + columns.dec.astype("<f8").tobytes())
    if classes != GALAXY10_CLASSES:
        digest.update(json.dumps(classes).encode())
    for values in (columns.given_splits, columns.groups):
        if values is not None:
            digest.update(json.dumps(values.tolist()).encode())
    return digest.hexdigest()


@contextmanager
def _show_progress(source: Source, size: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of further images done; shows a bar on a terminal, one line in a log."""
    from rich.console import Console
    from rich.progress import Progress

    console, count = Console(stderr=True), len(source.columns.labels)
    text = f"converting {source.path.name} to {size} px"
    if not console.is_terminal:
        published = f" of {source.size} px" if source.size else ""
        left_out = f", without {source.num_left_out} of other classes" if source.num_left_out else ""
        print(f"{text}: {count} galaxies{published}{left_out}", file=sys.stderr, flush=True)
        yield lambda num_done: None
        return
    with Progress(console=console) as bar:
        task: Any = bar.add_task(text, total=count)
        yield lambda num_done: bar.advance(task, num_done)
