"""HDF5 files with an array of images (N, S, S, 3), divided between its chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.images.image_files import HDF5_TYPE, ImageError, get_hdf5_images, to_galaxy_image
from galaxyhpc.data.images.read_errors import translate_read_errors
from galaxyhpc.data.sources.hdf5 import list_columns, read_known_columns
from galaxyhpc.data.sources.tables import match_columns
from galaxyhpc.data.survey.table_rows import make_galaxies
from galaxyhpc.data.survey.unit import (
    CHUNK_BYTES,
    CHUNK_GALAXIES,
    KEYS,
    CheckColumns,
    ColumnNames,
    Encoded,
    Unit,
    UnitGalaxies,
    divide_rows,
    make_units,
)
from galaxyhpc.runtime.parallel import parallel_map

MIN_FILES_PER_PROCESS = 2000  # whose headers are read in a second


def find_units(paths: list[Path], config: DataConfig, galaxies_per_unit: int, check: CheckColumns) -> Iterator[Unit]:
    """Yield the units of HDF5 files, from their headers; of many files by several processes, as HDF5 has one lock.

    Raises
    ------
    DataError
    """
    find = partial(_find_units_of_file, config=config, galaxies_per_unit=galaxies_per_unit, check=check)
    yield from chain.from_iterable(parallel_map(find, paths, "reading headers", MIN_FILES_PER_PROCESS))


def _find_units_of_file(path: Path, config: DataConfig, galaxies_per_unit: int, check: CheckColumns) -> list[Unit]:
    with _open_file(path) as file:
        count, chunk_length, _ = _find_layout(path, file)
        names = list_columns(file)
    check(path, sort_columns(names))
    match_columns(path, names, config.columns)  # refuses two of the same name
    counts = [min(chunk_length, count - start) for start in range(0, count, chunk_length)]
    return make_units(path, "hdf5", divide_rows(counts, max(galaxies_per_unit, chunk_length)))


def sort_columns(names: list[str]) -> ColumnNames:
    """Return the names that each key can have."""
    return dict.fromkeys(KEYS, names) | {"file": ["images"]}


@contextmanager
def _open_file(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading.

    Raises
    ------
    DataError
    """
    try:
        with translate_read_errors(path, HDF5_TYPE), h5py.File(path, "r", locking=False) as file:
            yield file
    except ImageError as error:
        raise DataError(str(error)) from error


def _find_layout(path: Path, file: h5py.File) -> tuple[int, int, int]:
    """Return the number of images, of those in a chunk, and of those to read at once: whole chunks."""
    images = get_hdf5_images(path, file)
    chunk_length = images.chunks[0] if images.chunks else 1
    bytes_per_chunk = chunk_length * math.prod(images.shape[1:]) * images.dtype.itemsize
    return len(images), chunk_length, chunk_length * max(1, CHUNK_BYTES // bytes_per_chunk)


def read_unit(unit: Unit, config: DataConfig) -> Iterator[UnitGalaxies]:
    """Yield the galaxies of a unit, a few at a time: views of slices of whole chunks.

    Raises
    ------
    DataError
    """
    path = Path(unit.source)
    with _open_file(path) as file:
        length = _find_layout(path, file)[2]
    for start in range(unit.first, unit.stop, length):
        yield from _read_slice(path, start, min(start + length, unit.stop), config)


def _read_slice(path: Path, first: int, stop: int, config: DataConfig) -> Iterator[UnitGalaxies]:
    with _open_file(path) as file:
        table, columns = read_known_columns(path, file, np.s_[first:stop], config.columns)
        images = file["images"][first:stop]
    for start in range(0, stop - first, CHUNK_GALAXIES):
        part = np.s_[start : start + CHUNK_GALAXIES]
        encoded = [_to_encoded(path, image, row) for row, image in enumerate(images[part], first + start)]
        rows = np.arange(first + start, first + start + len(encoded))
        yield make_galaxies(str(path), rows, table.iloc[part], columns, encoded, [""] * len(encoded))


def _to_encoded(path: Path, values: NDArray[Any], row: int) -> Encoded:
    """Return an image of uint8, or of floats in [0, 1], as uint8."""
    if values.dtype == np.uint8:
        return values
    image = to_galaxy_image(path, values, row)
    return image if isinstance(image, ImageError) else image.pixels
