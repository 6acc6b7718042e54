"""The units of a survey's inputs, and the galaxies of a unit, whatever the kind of its file.

Inputs are parquet with images inside or with a column of image files, HDF5, catalogues (CSV, ECSV, FITS tables) of
image files, and directories of these. Columns are found by common names, or named in data.columns.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.images.galaxy_image import GalaxyImage, ImageError, describe_flaw, is_grey, make_error
from galaxyhpc.data.images.image_files import (
    EXPECTED_COLOURS,
    HDF5_ENDINGS,
    convert_pixels,
    find_files,
    read_image,
)
from galaxyhpc.data.sources.tables import ASTROPY_FORMATS, CSV_ENDINGS, PARQUET_ENDINGS
from galaxyhpc.data.survey import catalogue, hdf5, parquet
from galaxyhpc.data.survey.unit import Encoded, Unit, UnitGalaxies, check_unchanged
from galaxyhpc.storage.files import sanitize

__all__ = ["Unit", "UnitGalaxies", "decode_image", "find_units", "read_unit"]

GALAXIES_PER_UNIT = 20_000
ENDINGS_BY_KIND = {  # in the order in which a directory is searched for files of a kind
    "parquet": PARQUET_ENDINGS,
    "hdf5": HDF5_ENDINGS,
    "catalogue": (*CSV_ENDINGS, *ASTROPY_FORMATS),
}
FIND_UNITS: dict[str, Callable[[list[Path], DataConfig, int], Iterator[Unit]]] = {
    "parquet": parquet.find_units,
    "hdf5": hdf5.find_units,
    "catalogue": catalogue.find_units,
}
READ_UNIT: dict[str, Callable[[Unit, DataConfig], Iterator[UnitGalaxies]]] = {
    "parquet": parquet.read_unit,
    "hdf5": hdf5.read_unit,
    "catalogue": catalogue.read_unit,
}


def find_units(inputs: Sequence[str], config: DataConfig, galaxies_per_unit: int = GALAXIES_PER_UNIT) -> list[Unit]:
    """Return the units of these files, globs and directories, numbered, without reading pixels.

    Raises
    ------
    DataError
        If there is none, or a file cannot be used; the message names up to a few of such.
    """
    files: dict[Path, str] = {}  # kind
    for path in find_files(inputs):
        files |= dict.fromkeys(*_list_files(Path(os.path.abspath(path))))
    units = [
        unit
        for kind, find in FIND_UNITS.items()
        if (members := [path for path, of_kind in files.items() if of_kind == kind])
        for unit in find(members, config, galaxies_per_unit)
    ]
    if not units:
        raise DataError(sanitize(f"{', '.join(inputs)}: got no galaxies; expected one or more"))
    return [unit._replace(number=number) for number, unit in enumerate(units)]


def _list_files(path: Path) -> tuple[list[Path], str]:
    """Return the files at a path, and their kind."""
    kinds = ", ".join(f"*{ending}" for endings in ENDINGS_BY_KIND.values() for ending in endings)
    if not path.is_dir():
        kind = next((kind for kind, ends in ENDINGS_BY_KIND.items() if path.name.lower().endswith(ends)), "")
        if not kind:
            got = f"the ending {path.suffix or '(none)'}" if path.exists() else "no such file"
            raise DataError(sanitize(f"{path}: got {got}; expected a directory, or {kinds}"))
        return [path], kind
    files = sorted(
        os.path.join(parent, name)
        for parent, directories, names in os.walk(path)
        for name in names
        if not name.startswith(".") and _prune_hidden(directories)
    )
    for kind, ends in ENDINGS_BY_KIND.items():
        if members := [Path(file) for file in files if file.lower().endswith(ends)]:
            return members, kind
    raise DataError(sanitize(f"{path}: got a directory without any; expected {kinds}"))


def _prune_hidden(directories: list[str]) -> bool:
    """Keep a walk out of hidden directories."""
    directories[:] = [name for name in directories if not name.startswith(".")]
    return True


def read_unit(unit: Unit, config: DataConfig, allow_grey: bool) -> Iterator[UnitGalaxies]:
    """Yield the galaxies of a unit in order, a few at a time; images that are absent are an ImageError each.

    Raises
    ------
    DataError
        If the file is damaged, or was changed after the plan was made.
    """
    check_unchanged(unit)
    yield from READ_UNIT[unit.kind](unit, config)


def decode_image(
    encoded: Encoded, config: DataConfig, allow_grey: bool, name: str = "image"
) -> GalaxyImage | ImageError:
    """Return the image of a galaxy, cropped as in `config`, or why it cannot be used; `name` is for messages.

    Without `allow_grey`, images without colours are refused: for a network that was trained on colours they mean
    nothing.
    """
    if isinstance(encoded, ImageError):
        return encoded
    try:
        if isinstance(encoded, bytes):
            image = read_image(io.BytesIO(encoded), name, config)
        else:
            pixels = convert_pixels(encoded, name, config.crop)
            image = GalaxyImage(pixels, describe_flaw(pixels))
    except ImageError as error:
        return error
    if not allow_grey and is_grey(image.pixels):
        return make_error(Path(name), "a grey image", EXPECTED_COLOURS)
    return image
