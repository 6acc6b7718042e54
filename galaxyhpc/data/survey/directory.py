"""Directories of image files, a galaxy each: its row is its number among all images below, by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.images.image_files import IMAGE_ENDINGS, list_files
from galaxyhpc.data.sources.source import make_error
from galaxyhpc.data.survey.table_rows import read_files
from galaxyhpc.data.survey.unit import CHUNK_GALAXIES, CheckColumns, Unit, UnitGalaxies, divide_rows, make_units


def find_units(paths: list[Path], config: DataConfig, galaxies_per_unit: int, check: CheckColumns) -> Iterator[Unit]:
    """Yield the units of directories, which say themselves when images were added or taken away."""
    for path in paths:
        check(path, {})
        count = len(list_files(path, IMAGE_ENDINGS))
        yield from make_units(path, "directory", divide_rows([count], galaxies_per_unit))


def read_unit(unit: Unit, config: DataConfig) -> Iterator[UnitGalaxies]:
    """Yield the galaxies of a unit, a few at a time.

    Raises
    ------
    DataError
    """
    names = list_files(Path(unit.source), IMAGE_ENDINGS)
    if len(names) < unit.stop:
        got = f"{len(names)} where there were {unit.stop} or more when the plan was made"
        raise make_error(Path(unit.source), "images", got, "the same files, or a new plan")
    for first in range(unit.first, unit.stop, CHUNK_GALAXIES):
        rows = np.arange(first, min(first + CHUNK_GALAXIES, unit.stop))
        ids, unknown = [names[row] for row in rows], np.full(len(rows), np.nan)
        encoded = read_files(ids, Path(unit.source), unit.source, rows)
        yield UnitGalaxies(rows, ids, unknown, unknown, encoded)
