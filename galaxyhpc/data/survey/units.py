"""Units (stand-in)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.images import image_files
from galaxyhpc.data.images.image_files import GalaxyImage, ImageError
from galaxyhpc.data.sources.unlabelled import list_galaxy_files


class Unit(NamedTuple):
    number: int
    source: str
    kind: str
    first: int
    stop: int
    num_galaxies: int
    size: int
    mtime_ns: int


class UnitGalaxies(NamedTuple):
    rows: NDArray[np.int64]
    ids: list[str]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    encoded: list[object]


def find_units(inputs: Sequence[str], config: DataConfig, galaxies_per_unit: int = 20_000) -> list[Unit]:
    units: list[Unit] = []
    for path in image_files.find_files(list(inputs)):
        (file,) = list_galaxy_files(Path(path), config, True)
        if file.error:
            raise DataError(file.error)
        status, count = Path(path).stat(), len(file.ids)
        for first in range(0, count, galaxies_per_unit):
            stop = min(first + galaxies_per_unit, count)
            units.append(
                Unit(len(units), str(path), "file", first, stop, stop - first, status.st_size, status.st_mtime_ns)
            )
    return units


def read_unit(unit: Unit, config: DataConfig, allow_grey: bool) -> Iterator[UnitGalaxies]:
    (file,) = list_galaxy_files(Path(unit.source), config, allow_grey)
    if file.read_images is None:
        raise DataError(file.error)
    part = slice(unit.first, unit.stop)
    images: list[object] = [*file.read_images()][part]
    rows = np.arange(unit.first, unit.stop)
    for start in range(0, len(rows), 500):
        chunk = slice(start, start + 500)
        yield UnitGalaxies(
            rows[chunk],
            list(file.ids[part])[chunk],
            np.asarray(file.ra[part])[chunk],
            np.asarray(file.dec[part])[chunk],
            images[chunk],
        )


def decode_image(encoded: object, config: DataConfig, allow_grey: bool) -> GalaxyImage | ImageError:
    assert isinstance(encoded, GalaxyImage | ImageError)
    return encoded
