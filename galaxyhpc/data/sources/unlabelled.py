"""Galaxies to be classified, from every kind of source that training takes; columns of labels are not read.

A catalogue's image files are relative to its directory, or to data.images if the run was trained on that catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.images import image_files
from galaxyhpc.data.images.fits_images import FITS_ENDINGS, is_fits_table
from galaxyhpc.data.images.image_files import GalaxyImage, ImageError
from galaxyhpc.data.images.read_errors import translate_read_errors
from galaxyhpc.data.sources import parquet, tables
from galaxyhpc.data.sources.hdf5 import read_known_columns
from galaxyhpc.data.sources.source import make_error
from galaxyhpc.storage.files import sanitize

UNKNOWN = np.array([np.nan])


class GalaxyFile(NamedTuple):
    """A file with images of n galaxies, and what is known of these before a pixel is read."""

    source: str  # the file, or the catalogue that names it
    row: int = 0  # of the first galaxy in the source
    ids: Sequence[str] = ("",)  # (n,)
    ra: Sequence[float] | np.ndarray = UNKNOWN  # (n,) degrees, NaN where unknown
    dec: Sequence[float] | np.ndarray = UNKNOWN  # (n,) degrees, NaN where unknown
    read_images: Callable[[], Iterator[GalaxyImage | ImageError]] | None = None
    error: str = ""  # why the file cannot be used


def list_galaxy_files(path: Path, config: DataConfig, allow_grey: bool = False) -> Iterator[GalaxyFile]:
    """Yield the files with images at a path, their headers checked: of a directory or a catalogue, one for each image.

    `config` and `allow_grey` as for `image_files.read_images`.
    """
    try:
        if path.is_dir():
            yield from _list_directory(path, config, allow_grey)
        elif tables.has_ending(path, tables.PARQUET_ENDINGS):
            yield from _list_parquet(path, config, allow_grey)
        elif is_table(path):
            table = tables.read_table(path)
            columns = find_columns(path, list(map(str, table.columns)), config)
            yield from _list_catalogue(path, table, columns, config, allow_grey)
        else:
            yield _open_file(path, path.name, config, allow_grey)
    except (DataError, ImageError) as error:
        yield GalaxyFile(sanitize(str(path)), error=sanitize(str(error)))


def is_table(path: Path) -> bool:
    """Whether a file is a table in CSV, ECSV or FITS, by its ending and, of FITS, its content."""
    if not tables.has_ending(path, (*tables.CSV_ENDINGS, *tables.ASTROPY_FORMATS)):
        return False
    return not tables.has_ending(path, FITS_ENDINGS) or (path.is_file() and is_fits_table(path))


def _list_directory(path: Path, config: DataConfig, allow_grey: bool) -> Iterator[GalaxyFile]:
    """List shards of parquet, or else all image files below, by name; their ids are relative to the directory."""
    if shards := parquet.find_shards(path):
        for shard in shards:
            yield from list_galaxy_files(shard, config, allow_grey)
        return
    names = image_files.list_files(path, image_files.IMAGE_ENDINGS)
    if not names:
        raise make_error(path, "directory", "no images", ", ".join(f"*{end}" for end in image_files.IMAGE_ENDINGS))
    for name in names:
        try:
            yield _open_file(path / name, name, config, allow_grey)
        except ImageError as error:
            yield GalaxyFile(sanitize(str(path / name)), ids=(name,), error=sanitize(str(error)))


def _open_file(path: Path, name: str, config: DataConfig, allow_grey: bool) -> GalaxyFile:
    count, source = image_files.count_images(path, config, allow_grey), sanitize(str(path))
    read_images = partial(image_files.read_images, path, config, allow_grey)
    if not tables.has_ending(path, image_files.HDF5_ENDINGS):
        return GalaxyFile(source, ids=(name,), read_images=read_images)
    with translate_read_errors(path, image_files.HDF5_TYPE), h5py.File(path, "r", locking=False) as file:
        table, columns = read_known_columns(path, file, np.s_[0:count], config.columns)
    ids = tables.to_texts(table[columns["id"]]).tolist() if "id" in columns else ("",) * count
    return GalaxyFile(source, 0, ids, *tables.read_positions(path, table, columns), read_images)


def find_columns(path: Path, names: list[str], config: DataConfig) -> dict[str, str]:
    """Return the columns of file, id, ra and dec; the catalogue need not be that of the run's settings.

    Raises
    ------
    DataError
    """
    columns = tables.match_columns(path, names, config.columns)
    if "file" not in columns:
        listed = ", ".join(tables.COMMON_NAMES["file"])
        expected = f"one with the images, or with the names of their files, called {listed}, or --columns file=NAME"
        raise make_error(path, "columns", ", ".join(names) or "none", expected)
    return {key: name for key, name in columns.items() if key in ("file", "id", "ra", "dec")}


def choose_directory(path: Path, config: DataConfig) -> Path:
    """Return the directory that the image files of a catalogue are relative to."""
    here, source = path.resolve(), Path(config.source).expanduser().resolve()
    is_of_training = config.images and source in (here, here.parent)
    return Path(config.images).expanduser() if is_of_training else path.parent


def _list_catalogue(
    path: Path, table: pd.DataFrame, columns: dict[str, str], config: DataConfig, allow_grey: bool
) -> Iterator[GalaxyFile]:
    names = tables.to_texts(table[columns["file"]]).tolist()
    ids = tables.to_texts(table[columns["id"]]).tolist() if "id" in columns else names
    ra, dec = (values.tolist() for values in tables.read_positions(path, table, columns))
    directory, source = choose_directory(path, config), sanitize(str(path))
    for row, name in enumerate(names):
        known = GalaxyFile(source, row, (ids[row],), (ra[row],), (dec[row],))
        place, file = f" ({path.name}, row {row})", Path(directory, name)
        try:
            if not name:
                raise make_error(path, columns["file"], f"nothing in row {row}", "the name of an image file")
            image_files.check_image(file, config, allow_grey)
        except (DataError, ImageError) as error:
            yield known._replace(error=sanitize(f"{error}{place if name else ''}"))
        else:
            yield known._replace(read_images=partial(_read_listed_image, file, place, config, allow_grey))


def _read_listed_image(
    file: Path, place: str, config: DataConfig, allow_grey: bool
) -> Iterator[GalaxyImage | ImageError]:
    for image in image_files.read_images(file, config, allow_grey):
        yield ImageError(f"{image}{place}") if isinstance(image, ImageError) else image


def _list_parquet(path: Path, config: DataConfig, allow_grey: bool) -> Iterator[GalaxyFile]:
    """List the image files that a parquet file names, or itself with the images inside."""
    shards, schema = parquet.read_headers([path])
    columns = find_columns(path, schema.names, config)
    table = parquet.read_columns(shards, columns, schema)
    if columns["file"] in table:
        yield from _list_catalogue(path, table, columns, config, allow_grey)
        return
    config = config.model_copy(update={"images": str(choose_directory(path, config))})
    ra, dec = tables.read_positions(path, table, columns)
    name = columns.get("id", parquet.PATH_COLUMN)
    ids = tables.to_texts(table[name]).tolist() if name in table else ("",) * len(table)
    read_images = partial(_read_parquet, path, shards, columns["file"], config, allow_grey)
    yield GalaxyFile(sanitize(str(path)), 0, ids, ra, dec, read_images)


def _read_parquet(
    path: Path, shards: parquet.Shards, column: str, config: DataConfig, allow_grey: bool
) -> Iterator[GalaxyImage | ImageError]:
    """Yield all images of a shard; where the rest of it cannot be read, the reason in the place of each."""
    count, num_read = int(shards.starts[-1]), 0
    images = parquet.read_images(shards, column, config, np.arange(count))
    try:
        for image in images if allow_grey else image_files.refuse_grey(path, images):
            yield image
            num_read += 1
    except DataError as error:
        yield from [ImageError(str(error))] * (count - num_read)
