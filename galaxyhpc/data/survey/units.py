"""The units of a survey's inputs, and the galaxies of a unit, whatever the kind of its file.

Inputs are HATS catalogues, parquet with images inside or the names of their files, HDF5, tar archives of images, tables
of image files (CSV, ECSV, FITS), and directories and globs of these. Columns are found by common names, or named by the
run (data.columns) or the user (`named_columns`). Files are divided so that a unit has about as many galaxies as asked
for.
"""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.images.fits_images import FITS_ENDINGS, is_fits_table
from galaxyhpc.data.images.galaxy_image import GalaxyImage, ImageError, describe_flaw, is_grey, make_error
from galaxyhpc.data.images.image_files import (
    EXPECTED_COLOURS,
    HDF5_ENDINGS,
    IMAGE_ENDINGS,
    convert_pixels,
    find_files,
    list_files,
    read_image,
)
from galaxyhpc.data.images.read_errors import translate_read_errors
from galaxyhpc.data.sources import tables
from galaxyhpc.data.survey import catalogue, directory, hats, hdf5, parquet, tar
from galaxyhpc.data.survey.unit import CheckColumns, ColumnNames, Encoded, Unit, UnitGalaxies, check_unchanged
from galaxyhpc.storage.files import sanitize

__all__ = ["Unit", "UnitGalaxies", "decode_image", "find_units", "list_inputs", "read_unit"]

GALAXIES_PER_UNIT = 20_000
TAR_ENDINGS = (".tar",)
GZIP_SIGNATURE = b"\x1f\x8b"
READERS: dict[str, Any] = {  # by kind of unit, each with find_units and read_unit
    "parquet": parquet,
    "hdf5": hdf5,
    "tar": tar,
    "catalogue": catalogue,
    "directory": directory,
}
ENDINGS = {  # of the files of a kind, in the order in which a directory is searched for them
    "parquet": tables.PARQUET_ENDINGS,
    "hdf5": HDF5_ENDINGS,
    "tar": TAR_ENDINGS,
    "directory": IMAGE_ENDINGS,
    "catalogue": (*tables.CSV_ENDINGS, *tables.ASTROPY_FORMATS),
}
SHARDS = ("parquet", "hdf5", "tar")  # a directory has one of these
KINDS = "a HATS catalogue, parquet, HDF5, tar, a table of image files (CSV, ECSV, FITS), or a directory of such files"


def accept_columns(path: Path, names: ColumnNames) -> None:
    """Accept any columns: none are named."""


def find_units(
    inputs: Sequence[str],
    config: DataConfig,
    galaxies_per_unit: int = GALAXIES_PER_UNIT,
    check: CheckColumns = accept_columns,
) -> list[Unit]:
    """Return the units of these files, globs and directories, numbered, without reading pixels.

    `check` is called with the columns of each file, or of one of those that have the same.

    Raises
    ------
    DataError
        If there is none, or a file cannot be used.
    """
    units = [
        unit
        for kind, paths in list_inputs(inputs).items()
        for unit in READERS[kind].find_units(paths, config, galaxies_per_unit, check)
    ]
    if not units:
        raise DataError(sanitize(f"{', '.join(inputs)}: got no galaxies; expected one or more"))
    return [unit._replace(number=number) for number, unit in enumerate(units)]


def list_inputs(inputs: Sequence[str]) -> dict[str, list[Path]]:
    """Return the files, or directories of images, of these inputs, each once, by kind.

    Raises
    ------
    DataError
    """
    paths: dict[str, dict[Path, None]] = {}
    for path in find_files(inputs):
        kind, members = _list_files(Path(os.path.abspath(path)))
        paths.setdefault(kind, {}).update(dict.fromkeys(file for file in members if file.name != hats.THUMBNAIL))
    return {kind: list(members) for kind, members in paths.items()}


def _list_files(path: Path) -> tuple[str, list[Path]]:
    """Return the kind of what lies at a path, and its files.

    Raises
    ------
    DataError
    """
    if not path.is_dir():
        return _find_kind(path), [path]
    if hats.is_hats(path):
        return "parquet", hats.list_partitions(path)
    names = list_files(path, sum(ENDINGS.values(), ()))
    by_kind = {kind: [path / name for name in names if name.lower().endswith(ENDINGS[kind])] for kind in ENDINGS}
    kinds = [kind for kind in ENDINGS if by_kind[kind]]
    if len(kinds_of_shards := [kind for kind in kinds if kind in SHARDS]) > 1:
        first = by_kind[kinds_of_shards[1]][0].relative_to(path)
        got = f"a directory with {' and '.join(kinds_of_shards)}, such as {first}"
        raise DataError(
            sanitize(f"{path}: got {got}; expected one of these: name the files, such as '{path}/*.parquet'")
        )
    if kinds:
        return kinds[0], [path] if kinds[0] == "directory" else by_kind[kinds[0]]
    raise DataError(sanitize(f"{path}: got a directory without such files; expected {KINDS}"))


def _find_kind(path: Path) -> str:
    """Return the kind of a file."""
    kind = next((kind for kind, endings in ENDINGS.items() if path.name.lower().endswith(endings)), "")
    if kind == "directory" and path.name.lower().endswith(FITS_ENDINGS) and is_fits_table(path):
        return "catalogue"
    if kind not in ("", "directory"):
        return kind
    got = f"the ending {path.suffix or '(none)'}" if path.exists() else "no such file"
    if kind == "directory" and path.exists():
        raise DataError(sanitize(f"{path}: got one image; expected its directory, or a table of image files"))
    raise DataError(sanitize(f"{path}: got {got}; expected {KINDS}"))


def read_unit(unit: Unit, config: DataConfig) -> Iterator[UnitGalaxies]:
    """Yield the galaxies of a unit in order, a few at a time; images that are absent are an ImageError each.

    Raises
    ------
    DataError
        If the file is damaged, or was changed after the plan was made.
    """
    check_unchanged(unit)
    yield from READERS[unit.kind].read_unit(unit, config)


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
            image = read_image(_open_bytes(encoded, name), name, config)
        else:
            pixels = convert_pixels(encoded, name, config.crop)
            image = GalaxyImage(pixels, describe_flaw(pixels))
    except ImageError as error:
        return error
    if not allow_grey and is_grey(image.pixels):
        return make_error(Path(name), "a grey image", EXPECTED_COLOURS)
    return image


def _open_bytes(encoded: bytes, name: str) -> io.BytesIO:
    """Return the bytes of an image file, unpacked if they are a FITS file's that was compressed."""
    if not encoded.startswith(GZIP_SIGNATURE):
        return io.BytesIO(encoded)
    with translate_read_errors(Path(name), "a FITS file", io.BytesIO(encoded)):
        return io.BytesIO(gzip.decompress(encoded))
