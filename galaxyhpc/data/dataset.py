"""The galaxies of a run: a memory-mapped uint8 array at the wanted size, and the split that a sweep shares.

A file is converted once, into a directory that appears whole. Digests, fingerprint and mean are those of the
pixels as published: they are the same for every image size, and so is the split.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import simulate
from galaxyhpc.data.galaxy10 import CLASSES, DataError, check_file, convert
from galaxyhpc.data.split import SPLITS, make_split_table
from galaxyhpc.storage.files import fsync, write_text

__all__ = [
    "CLASSES",
    "DataError",
    "Galaxies",
    "check_file",
    "load_split",
    "open_converted",
    "prepare",
    "read_split_header",
]

CACHE_FORMAT_VERSION = 1  # raised when converted files change their meaning
SPLIT_SETTINGS = (
    "validation_fraction",
    "test_fraction",
    "split_seed",
    "link_arcsec",
    "conflicting_duplicates",
)
_READ_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    MemoryError,
    zipfile.BadZipFile,
)
SPLIT_COLUMNS = {"row": np.int64, "label": np.int64, "ra": float, "dec": float, "sky_group": np.int64, "split": str}


@dataclass(frozen=True, eq=False)
class Galaxies:
    """N galaxies at one image size S."""

    images: np.ndarray  # (N, 3, S, S) uint8, memory-mapped, read only
    labels: np.ndarray  # (N,) int64, index into CLASSES
    ra: np.ndarray  # (N,) float64, degrees in [0, 360]
    dec: np.ndarray  # (N,) float64, degrees in [-90, 90]
    digests: np.ndarray  # (N,) hexadecimal SHA-256 of each image's published pixels
    fingerprint: str  # hexadecimal SHA-256 of published pixels, labels and positions; not of how they are stored
    mean: float  # of all published pixels, DN in [0, 255]
    pixel_scale_arcsec: float  # arcsec/px at S
    generated: bool  # demo galaxies, not real ones


def prepare(config: DataConfig) -> Galaxies:
    """Open the galaxies at `config.image_size`, converting them first where no other process has done so.

    Raises
    ------
    DataError
    """
    cache = Path(config.cache)
    if not cache.is_absolute():
        raise DataError(f"data.cache: found {config.cache!r}; allowed is an absolute path")
    source = get_source_path(config)
    if (found := _open_cached(source, config.image_size, cache)) is not None:
        return found
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):
        if config.source == "demo" and not source.exists():
            _write_demo(config, source)
        found = _open_cached(source, config.image_size, cache)  # another process may have been first
        return found if found is not None else _convert_and_open(source, config.image_size, cache)


def open_converted(config: DataConfig) -> Galaxies | None:
    """Open the galaxies where they are converted already."""
    return _open_cached(get_source_path(config), config.image_size, Path(config.cache))


def get_source_path(config: DataConfig) -> Path:
    """Return the file that the galaxies come from; that of the demo is written when they are prepared."""
    if config.source != "demo":
        return Path(config.source).expanduser()
    demo = config.demo
    return Path(config.cache) / f"demo-{demo.galaxies}x{demo.size}px-s{demo.seed}.h5"


def _write_demo(config: DataConfig, path: Path) -> None:

    with _temporary_directory(path) as aside:
        simulate.write_galaxies(aside / path.name, config.demo.galaxies, config.demo.size, config.demo.seed)
        fsync(aside / path.name)
        os.replace(aside / path.name, path)
        fsync(path.parent)


@contextmanager
def _temporary_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory to make `target` in; under the cache's lock, so others are of the dead."""
    for left in target.parent.glob(".*.making"):
        shutil.rmtree(left)
    aside = target.with_name(f".{target.name}.making")
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _get_cache_directory(source: Path, image_size: int, cache: Path) -> Path:
    """Name the converted form of a file; another file, or the same one written anew, has another name."""
    about = source.stat()
    text = f"{CACHE_FORMAT_VERSION} {source.resolve()} {about.st_size} {about.st_mtime_ns}"
    return cache / f"{source.stem}-{image_size}px-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _open_cached(source: Path, image_size: int, cache: Path) -> Galaxies | None:
    """Open the converted form of `source`, or return None where there is none that is whole."""
    if not source.is_file():
        return None
    directory = _get_cache_directory(source, image_size, cache)
    try:
        about = json.loads((directory / "metadata.json").read_text(encoding="utf-8"))
        if any((directory / name).stat().st_size != length for name, length in about.pop("bytes").items()):
            return None
        images = np.load(directory / "images.npy", mmap_mode="r")
        with np.load(directory / "columns.npz") as columns:
            found = Galaxies(images, **columns, **about)
        n = len(found.labels)
        fits = (
            images.dtype == np.uint8
            and images.shape == (n, 3, image_size, image_size)
            and found.labels.max() < len(CLASSES)
        )
        fits = fits and n == len(found.ra) == len(found.dec) == len(found.digests)
        fits = fits and math.isfinite(found.mean) and math.isfinite(found.pixel_scale_arcsec)
    except _READ_ERRORS:  # absent, torn, or somebody else's
        return None
    return found if fits else None


def _convert_and_open(source: Path, image_size: int, cache: Path) -> Galaxies:
    check_file(source)
    directory = _get_cache_directory(source, image_size, cache)
    with _temporary_directory(directory) as aside:
        convert(source, image_size, aside)
        if _get_cache_directory(source, image_size, cache) != directory:
            raise DataError(f"{source}: changed while it was converted; start again when it is complete")
        shutil.rmtree(directory, ignore_errors=True)  # one that is damaged
        os.replace(aside, directory)
        fsync(cache)
    if (found := _open_cached(source, image_size, cache)) is None:
        raise DataError(f"{directory}: was just written and cannot be read back")
    return found


def load_split(config: DataConfig, galaxies: Galaxies, sweep: Path) -> pd.DataFrame:
    """Return the split of a sweep (row, label, ra, dec, sky_group, split), made by whoever asks first.

    `split` is train, validation, test or dropped. The same table is SWEEP/split.csv.

    Raises
    ------
    DataError
        If the sweep's split was made from other galaxies or with other settings.
    """
    path = sweep / "split.csv"
    sweep.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with FileLock(sweep / ".split.lock"):
            if not path.exists():
                write_text(path, _format_split(config, galaxies))
    return _read_split(path, config, galaxies)


def _get_split_settings(config: DataConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", include=set(SPLIT_SETTINGS))


def _format_split(config: DataConfig, galaxies: Galaxies) -> str:
    table = make_split_table(config, galaxies.labels, galaxies.ra, galaxies.dec, galaxies.digests)
    _check_all_classes_in_splits(config, table)
    counts = table["split"].value_counts()
    sizes = table["sky_group"].value_counts()
    lines = [
        f"fingerprint: {galaxies.fingerprint}",
        f"source: {config.source}",
        f"settings: {json.dumps(_get_split_settings(config))}",
        "counts: " + ", ".join(f"{name} {counts.get(name, 0)}" for name in (*SPLITS, "dropped")),
        f"dropped: {counts.get('dropped', 0)} with the pixels or the position (within 1 arcsec) of one of "
        f"another label (conflicting_duplicates: {config.conflicting_duplicates})",
        f"sky groups: {len(sizes)}, the largest of {sizes.max()}; a group is never divided",
    ]
    if galaxies.generated:
        lines.append("generated: these galaxies are GENERATED; nothing about real ones follows from them")
    return "".join(f"# {line}\n" for line in lines) + table.to_csv(index=False)


def _check_all_classes_in_splits(config: DataConfig, table: pd.DataFrame) -> None:
    counts = pd.crosstab(table["split"], table["label"]).reindex(
        index=SPLITS, columns=range(len(CLASSES)), fill_value=0
    )
    for split in SPLITS:
        empty = [label for label in range(len(CLASSES)) if counts.loc[split, label] == 0]
        if empty:
            raise DataError(
                f"{config.source}: class {empty[0]} ({CLASSES[empty[0]]}): found none left for {split}; "
                f"allowed is one or more: give more galaxies, a larger fraction or a smaller link_arcsec "
                f"({config.link_arcsec:g}), which ties fewer together"
            )


def read_split_header(path: Path) -> dict[str, str]:
    """Return what the comments of a split.csv say."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; allowed is the file as written") from error
    return dict(line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)


def _read_split(path: Path, config: DataConfig, galaxies: Galaxies) -> pd.DataFrame:
    head = read_split_header(path)
    made_of, settings = head.get("fingerprint", "unknown"), head.get("settings", "unknown")
    wanted = json.dumps(_get_split_settings(config))
    if (made_of, settings) != (galaxies.fingerprint, wanted):
        raise DataError(
            f"{path}: made from galaxies {made_of[:12]} ({head.get('source', 'unknown')}) with {settings}; "
            f"found galaxies {galaxies.fingerprint[:12]} ({config.source}) with {wanted}; allowed is one "
            "split for all runs of a sweep: restore that file and those settings, launch into another "
            f"directory (--runs), or remove {path.parent} and all its runs"
        )
    try:
        table = pd.read_csv(path, comment="#", usecols=list(SPLIT_COLUMNS), dtype=SPLIT_COLUMNS)
    except ValueError:
        table = pd.DataFrame(columns=list(SPLIT_COLUMNS))
    if (
        not np.array_equal(table["label"], galaxies.labels)
        or not np.array_equal(table["row"], np.arange(len(table)))
        or not table["split"].isin((*SPLITS, "dropped")).all()
    ):
        raise DataError(f"{path}: found rows that are not those of its fingerprint; allowed is the file as written")
    return table
