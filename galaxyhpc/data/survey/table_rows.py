"""The rows of a table of galaxies: their ids and positions, and the image files that they name."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from galaxyhpc.data import DataError
from galaxyhpc.data.images.galaxy_image import ImageError, make_error
from galaxyhpc.data.sources import tables
from galaxyhpc.data.survey.unit import NUM_THREADS, Encoded, UnitGalaxies
from galaxyhpc.storage.files import sanitize

PASSING_ERRNOS = {  # of a file system or a process that is in trouble for a while
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EMFILE", "ENFILE", "ENOMEM", "EHOSTDOWN", "ENOTCONN")
}
LIMITS = {"ra": (0.0, 360.0), "dec": (-90.0, 90.0)}  # degrees


def make_galaxies(
    source: str,
    rows: NDArray[np.int64],
    table: pd.DataFrame,
    columns: dict[str, str],
    encoded: list[Encoded],
    names: list[str],
) -> UnitGalaxies:
    """Return the galaxies of these rows of a table; `columns` are those of id, ra and dec, by key, where they exist.

    `names` are the ids where there is no such column. A galaxy whose position is none is an error instead of an image.
    """
    ids = tables.to_texts(table[columns["id"]]).tolist() if "id" in columns else names
    positions = {key: np.full(len(rows), np.nan) for key in LIMITS}
    for key in LIMITS if LIMITS.keys() <= columns.keys() else ():
        values = table[columns[key]]
        numbers = np.asarray(pd.to_numeric(values, errors="coerce"), dtype=np.float64)
        low, high = LIMITS[key]
        is_bad = ~((numbers >= low) & (numbers <= high))
        positions[key] = np.where(is_bad, np.nan, numbers)
        for index in np.flatnonzero(is_bad):
            if (text := str(values.iloc[index]).strip()).lower() not in (*tables.MISSING, "none"):
                got = f"{columns[key]}: got {text} in row {rows[index]}"
                encoded[index] = ImageError(sanitize(f"{source}: {got}; expected {low:g} to {high:g} degrees"))
    return UnitGalaxies(rows, ids, positions["ra"], positions["dec"], encoded)


def read_files(names: list[str], directory: Path, source: str, rows: NDArray[np.int64]) -> list[Encoded]:
    """Return the bytes of the image files that these rows name, relative to a directory, or why there are none.

    Raises
    ------
    DataError
        If a file may be readable later: an error of its row would stay in the predictions.
    """

    def read(name: str, row: int) -> Encoded:
        path, place = directory / name, sanitize(f" ({Path(source).name}, row {row})")
        if not name:
            return ImageError(sanitize(f"{source}: got nothing in row {row}; expected the name of an image file"))
        try:
            return path.read_bytes()
        except (OSError, ValueError) as error:  # the latter of a name with a null byte
            is_passing = isinstance(error, OSError) and error.errno in PASSING_ERRNOS
            reason = error.strerror if isinstance(error, OSError) else str(error)
            message = f"{make_error(path, str(reason), 'an image file')}{place}"
            if is_passing:
                raise DataError(message) from error
            return ImageError(message)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(read, names, rows.tolist()))
