"""The galaxies of a source: a memory-mapped uint8 array at the configured image size, with all that is known of them.

A file is converted once, into a directory that appears whole. Digests, fingerprint and mean are those of the
pixels as published: they are the same for every image size.
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

import numpy as np

from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError, simulate
from galaxyhpc.data.sources.conversion import convert
from galaxyhpc.data.sources.hdf5 import FIELD_ARCSEC
from galaxyhpc.data.sources.open_source import describe_state, open_source
from galaxyhpc.data.sources.source import Columns
from galaxyhpc.runtime.lock import hold
from galaxyhpc.storage.files import fsync

CACHE_FORMAT_VERSION = 2  # raised when converted files change their meaning
_READ_ERRORS = (  # what numpy and json raise for damaged files
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError),
    zipfile.BadZipFile,
)


@dataclass(frozen=True, eq=False)
class Galaxies:
    """N galaxies at one image size S."""

    images: np.ndarray  # (N, 3, S, S) uint8, memory-mapped, read only
    labels: np.ndarray  # (N,) int64, index into classes
    classes: tuple[str, ...]  # names of the classes that the source has
    ra: np.ndarray  # (N,) float64, degrees in [0, 360]
    dec: np.ndarray  # (N,) float64, degrees in [-90, 90]
    digests: np.ndarray  # (N,) hexadecimal SHA-256 of each image's published pixels
    fingerprint: str  # hexadecimal SHA-256 of published pixels, labels and positions; not of how they are stored
    mean: float  # of all published pixels, DN in [0, 255]
    pixel_scale_arcsec: float  # arcsec/px at S
    generated: bool  # demo galaxies, not real ones
    published_sizes: tuple[int, ...] = ()  # px, the sides of the images in the source
    num_left_out: int = 0  # galaxies of the source of other classes than data.classes
    num_grey: int = 0  # images whose three bands are equal
    num_filled: int = 0  # images with pixels that had no value, which were taken as sky
    ids: np.ndarray | None = None  # (N,) str, names of the galaxies in the source
    given_splits: np.ndarray | None = None  # (N,) str, the source's own division
    groups: np.ndarray | None = None  # (N,) int64, galaxies of one group stay in one split
    redshift: np.ndarray | None = None  # (N,) float64, NaN where not measured
    near_pairs: np.ndarray | None = None  # (M, 2) rows of nearly the same images; None where positions tell
    near_correlations: np.ndarray | None = None  # (M,) of their detail

    @property
    def columns(self) -> Columns:
        """All that is known beside the pixels."""
        optional = (self.ids, self.given_splits, self.groups, self.redshift)
        return Columns(self.labels, self.ra, self.dec, *optional)


def prepare(config: DataConfig) -> Galaxies:
    """Open the galaxies at `config.image_size`, converting them first where no other process has done so.

    Raises
    ------
    DataError
    """
    cache = Path(config.cache)
    if not cache.is_absolute():
        raise DataError(f"data.cache: got {config.cache!r}; expected an absolute path")
    galaxies = open_converted(config) or _convert_once(config)
    check_classes(config, galaxies.classes)
    return galaxies


def check_classes(config: DataConfig, names: tuple[str, ...]) -> None:
    """Refuse a source whose classes are not those of the run: its network has their number of outputs."""
    if names != (expected := config.class_names):
        label = next((i for i, pair in enumerate(zip(names, expected, strict=False)) if pair[0] != pair[1]), None)
        difference = "" if label is None else f", such as class {label}: {names[label]!r}, not {expected[label]!r}"
        raise DataError(
            f"{config.source}: got {len(names)} classes; expected the {len(expected)} of data.classes{difference}: "
            "restore the file, or launch it as another sweep without data.classes"
        )


def _convert_once(config: DataConfig) -> Galaxies:
    cache, source = Path(config.cache), get_source_path(config)
    cache.mkdir(parents=True, exist_ok=True)
    with hold(cache / ".lock", timeout=None):
        if config.source == "demo" and not source.exists():
            _write_demo(config, source)
        return open_converted(config) or _convert_and_open(config)  # another process may have been first


def open_converted(config: DataConfig) -> Galaxies | None:
    """Open the galaxies if they are converted already, whole."""
    source, image_size = get_source_path(config), config.image_size
    if not os.path.exists(source):  # False, too, where permission is missing
        return None
    try:
        directory = _get_cache_directory(config)
        metadata = json.loads((directory / "metadata.json").read_text(encoding="utf-8"))
        if any((directory / name).stat().st_size != length for name, length in metadata.pop("bytes").items()):
            return None
        images = np.load(directory / "images.npy", mmap_mode="r")
        metadata |= {name: tuple(metadata[name]) for name in ("classes", "published_sizes")}
        with np.load(directory / "columns.npz") as columns:
            galaxies = Galaxies(images, **columns, **metadata)
        return galaxies if _is_consistent(galaxies, image_size) else None
    except _READ_ERRORS:
        return None


def get_source_path(config: DataConfig) -> Path:
    """Return the data file; that of demo galaxies is written by `prepare`."""
    if config.source != "demo":
        return Path(config.source).expanduser()
    demo = config.demo
    return Path(config.cache) / f"demo-{demo.galaxies}x{demo.size}px-s{demo.seed}.h5"


def _write_demo(config: DataConfig, path: Path) -> None:
    with _temporary_directory(path) as temporary:
        simulate.write_galaxies(temporary / path.name, config.demo.galaxies, config.demo.size, config.demo.seed)
        fsync(temporary / path.name)
        os.replace(temporary / path.name, path)
        fsync(path.parent)


@contextmanager
def _temporary_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory to make `target` in, and remove those of killed processes: the caller holds the lock."""
    for leftover in target.parent.glob(".*.making"):
        shutil.rmtree(leftover)
    temporary = target.with_name(f".{target.name}.making")
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _get_cache_directory(config: DataConfig) -> Path:
    """Return the directory of converted galaxies; another source, or the same one rewritten, has another name."""
    source = get_source_path(config)
    key = f"{CACHE_FORMAT_VERSION} {source.resolve()} {describe_state(source, config)}"
    return Path(config.cache) / f"{source.stem}-{config.image_size}px-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _is_consistent(galaxies: Galaxies, image_size: int) -> bool:
    """Whether arrays and numbers have the shapes, types and ranges that they are written with."""
    n = len(galaxies.labels)
    return bool(
        galaxies.images.dtype == np.uint8
        and galaxies.images.shape == (n, 3, image_size, image_size)
        and galaxies.labels.max() < len(galaxies.classes)
        and n == len(galaxies.ra) == len(galaxies.dec) == len(galaxies.digests)
        and math.isfinite(galaxies.mean)
        and all(len(values) == n for values in galaxies.columns.as_dict().values())
    )


def _convert_and_open(config: DataConfig) -> Galaxies:
    source = open_source(get_source_path(config), config)
    directory = _get_cache_directory(config)
    with _temporary_directory(directory) as temporary:
        convert(source, config.image_size, temporary)
        if _get_cache_directory(config) != directory:
            raise DataError(f"{source.path}: changed during the conversion; rerun when the file is complete")
        shutil.rmtree(directory, ignore_errors=True)  # a damaged one
        os.replace(temporary, directory)
        fsync(directory.parent)
    if (galaxies := open_converted(config)) is None:
        raise DataError(f"{directory}: cannot be read back after it was written")
    return galaxies


def fill_in_classes(config: DataConfig) -> DataConfig:
    """Return the settings with the names of the classes that the source has; empty where they are Galaxy10's.

    Raises
    ------
    DataError
    """
    if config.source == "demo" and not config.classes:
        return config
    names = config.classes or open_source(get_source_path(config), config).classes
    return config.model_copy(update={"classes": () if names == GALAXY10_CLASSES else names})


def read_field_arcsec(config: DataConfig) -> float:
    """Return the side of an image on the sky, in arcsec; NaN where it is unknown.

    Raises
    ------
    DataError
    """
    return FIELD_ARCSEC if config.source == "demo" else open_source(get_source_path(config), config).field_arcsec


def read_columns(config: DataConfig) -> Columns:
    """Return what a source tells beside its pixels.

    Raises
    ------
    DataError
    """
    if config.source == "demo":
        catalogue = simulate.make_catalogue(config.demo.galaxies, config.demo.seed)
        return Columns(catalogue.labels.astype(np.int64), catalogue.ra, catalogue.dec)
    return open_source(get_source_path(config), config).columns
