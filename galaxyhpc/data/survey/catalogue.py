"""Catalogues (CSV, ECSV, FITS tables) with a column of image files; parquet with such a column has its own module.

A FITS table is read where the rows of a unit are. CSV is read from its beginning and ECSV as a whole, so that
catalogues of many millions are better kept as FITS or parquet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.images.fits_images import FITS_ENDINGS
from galaxyhpc.data.sources import tables
from galaxyhpc.data.sources.unlabelled import choose_directory, find_columns
from galaxyhpc.data.survey.table_rows import make_galaxies, read_files
from galaxyhpc.data.survey.unit import (
    CHUNK_GALAXIES,
    KEYS,
    CheckColumns,
    Unit,
    UnitGalaxies,
    divide_rows,
    make_units,
)

ROWS_AT_ONCE = 2**14  # of CSV


def find_units(paths: list[Path], config: DataConfig, galaxies_per_unit: int, check: CheckColumns) -> Iterator[Unit]:
    """Yield the units of catalogues, whose rows are counted.

    Raises
    ------
    DataError
    """
    for path in paths:
        names = read_names(path)
        check(path, dict.fromkeys(KEYS, names))
        columns = find_columns(path, names, config)
        yield from make_units(path, "catalogue", divide_rows([_count_rows(path, columns["file"])], galaxies_per_unit))


def read_unit(unit: Unit, config: DataConfig) -> Iterator[UnitGalaxies]:
    """Yield the galaxies of a unit, a few at a time.

    Raises
    ------
    DataError
    """
    path = Path(unit.source)
    columns, directory = find_columns(path, read_names(path), config), choose_directory(path, config)
    first = unit.first
    for table in _iterate_rows(path, list(columns.values()), unit.first, unit.stop):
        rows = np.arange(first, first + len(table))
        names = tables.to_texts(table[columns["file"]]).tolist()
        encoded = read_files(names, directory, unit.source, rows)
        yield make_galaxies(unit.source, rows, table, columns, encoded, names)
        first += len(table)


def _count_rows(path: Path, name: str) -> int:
    if tables.has_ending(path, FITS_ENDINGS):
        with _open_table(path) as hdu:
            return len(hdu.data)
    return sum(map(len, _iterate_text(path, [name])))


def _iterate_rows(path: Path, names: list[str], first: int, stop: int) -> Iterator[pd.DataFrame]:
    """Yield these columns of rows from `first` to `stop`, a few at a time."""
    if tables.has_ending(path, FITS_ENDINGS):
        for start in range(first, stop, CHUNK_GALAXIES):
            yield _read_fits_rows(path, names, start, min(start + CHUNK_GALAXIES, stop))
        return
    row = 0
    for table in _iterate_text(path, names):
        for start in range(max(first - row, 0), min(stop - row, len(table)), CHUNK_GALAXIES):
            yield table.iloc[start : min(start + CHUNK_GALAXIES, stop - row)]
        row += len(table)
        if row >= stop:
            return


def _iterate_text(path: Path, names: list[str]) -> Iterator[pd.DataFrame]:
    """Yield these columns of a table in CSV or ECSV."""
    if not tables.has_ending(path, tables.CSV_ENDINGS):
        yield tables.read_table(path)[names]
        return
    with tables.translate_table_errors(path, tables.CSV_TYPE):
        yield from pd.read_csv(path, usecols=names, chunksize=ROWS_AT_ONCE, **tables.get_csv_format(path))


def read_names(path: Path) -> list[str]:
    """Return the names of the columns that have one value per row."""
    if tables.has_ending(path, FITS_ENDINGS):
        with _open_table(path) as hdu:
            return [name for name in hdu.columns.names if hdu.data.dtype[name].shape == ()]
    if not tables.has_ending(path, tables.CSV_ENDINGS):
        return list(tables.read_table(path).columns)
    with tables.translate_table_errors(path, tables.CSV_TYPE):
        return tables.read_csv_header(path)


@contextmanager
def _open_table(path: Path) -> Iterator[Any]:
    """Open the first table of a FITS file, whose rows are memory-mapped."""
    from astropy.io import fits

    with tables.translate_table_errors(path, tables.FITS_TYPE), fits.open(path) as file:
        yield next(hdu for hdu in file if isinstance(hdu, fits.BinTableHDU | fits.TableHDU))


def _read_fits_rows(path: Path, names: list[str], first: int, stop: int) -> pd.DataFrame:
    from astropy.table import Table

    with _open_table(path) as hdu:
        rows = hdu.data[first:stop]
        table: pd.DataFrame = Table({name: rows[name] for name in names}).to_pandas()
        return table
