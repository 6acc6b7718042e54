"""Catalogues (CSV, ECSV, FITS tables) with a column of image files; parquet with such a column has its own module.

CSV is read through up to the rows of a unit, so that very large catalogues are better kept as parquet or FITS.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.sources import tables
from galaxyhpc.data.sources.unlabelled import choose_directory, find_columns
from galaxyhpc.data.survey.table_rows import make_galaxies, read_files
from galaxyhpc.data.survey.unit import CHUNK_GALAXIES, Unit, UnitGalaxies, divide_rows, make_units


def find_units(paths: list[Path], config: DataConfig, galaxies_per_unit: int) -> Iterator[Unit]:
    """Yield the units of catalogues, whose rows are counted.

    Raises
    ------
    DataError
    """
    for path in paths:
        table = tables.read_table(path)
        find_columns(path, list(map(str, table.columns)), config)
        yield from make_units(path, "catalogue", divide_rows([len(table)], galaxies_per_unit))


def read_unit(unit: Unit, config: DataConfig) -> Iterator[UnitGalaxies]:
    """Yield the galaxies of a unit, a few at a time.

    Raises
    ------
    DataError
    """
    path = Path(unit.source)
    table = tables.read_table(path)
    columns = find_columns(path, list(map(str, table.columns)), config)
    directory = choose_directory(path, config)
    for first in range(unit.first, unit.stop, CHUNK_GALAXIES):
        rows = np.arange(first, min(first + CHUNK_GALAXIES, unit.stop))
        yield _read_rows(unit.source, rows, table.iloc[rows], columns, directory)


def _read_rows(
    source: str, rows: np.ndarray, table: pd.DataFrame, columns: dict[str, str], directory: Path
) -> UnitGalaxies:
    names = tables.to_texts(table[columns["file"]]).tolist()
    encoded = read_files(names, directory, source, rows)
    return make_galaxies(source, rows, table, columns, encoded, names)
