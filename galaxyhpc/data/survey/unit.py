"""A unit of work, its galaxies as they are read from a file, and the division of a file into units."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from galaxyhpc.data import DataError
from galaxyhpc.data.images.galaxy_image import ImageError
from galaxyhpc.storage.files import sanitize

CHUNK_GALAXIES = 64  # at most, that are in memory
CHUNK_BYTES = 2**25  # of their images, about
NUM_THREADS = 16  # that wait for a shared file system

KEYS = ("file", "id", "ra", "dec")  # of columns that a user can name

ColumnNames = Mapping[str, Sequence[str]]  # by key: those that a file has, from its header
CheckColumns = Callable[[Path, ColumnNames], None]  # refuses a file without the columns that a user names
Encoded = bytes | NDArray[Any] | ImageError  # of an image file; pixels (H, W, C) or (C, H, W); why there is none


class Unit(NamedTuple):
    """One input file, or a part of a large one."""

    number: int  # in the plan
    source: str  # the file, an absolute path
    kind: str  # which reader
    first: int  # row of the file
    stop: int  # row behind the last
    num_galaxies: int
    size: int  # bytes of the file
    mtime_ns: int  # of the file


class UnitGalaxies(NamedTuple):
    """A few galaxies of a unit, whose images are not decoded yet."""

    rows: NDArray[np.int64]  # (n,) in the source, from 0
    ids: list[str]  # (n,) empty where there is none
    ra: NDArray[np.float64]  # (n,) degrees, NaN where unknown
    dec: NDArray[np.float64]  # (n,) degrees, NaN where unknown
    encoded: list[Encoded]  # (n,)


def make_units(path: Path, kind: str, ranges: Iterable[tuple[int, int]]) -> list[Unit]:
    """Return the units of a file, given the rows of each; they are numbered when those of all files are known."""
    status = path.stat()
    return [
        Unit(-1, str(path), kind, first, stop, stop - first, status.st_size, status.st_mtime_ns)
        for first, stop in ranges
    ]


def divide_rows(counts: Iterable[int], max_rows: int) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of runs of row groups of these many rows; those of more than `max_rows` are divided."""
    first = stop = 0
    for count in counts:
        if stop > first and stop - first + count > max_rows:
            yield first, stop
            first = stop
        stop += count
        while stop - first > max_rows:
            yield first, first + max_rows
            first += max_rows
    if stop > first:
        yield first, stop


def check_unchanged(unit: Unit) -> None:
    """Refuse a file that is not the one that the plan was made of.

    Raises
    ------
    DataError
    """
    try:
        status = os.stat(unit.source)
    except OSError as error:
        got = f"{error.strerror} where there were {unit.size} bytes when the plan was made"
        raise DataError(sanitize(f"{unit.source}: got {got}; expected the same file")) from error
    if (status.st_size, status.st_mtime_ns) != (unit.size, unit.mtime_ns):
        got = f"a file of {status.st_size} bytes that was changed after the plan was made"
        raise DataError(sanitize(f"{unit.source}: got {got}; expected the same file, or a new plan"))
