"""Columns that a user names, `--columns KEY=NAME`: a file that lacks one is refused before anything is written.

Those of a run's settings name columns of the training's catalogue, and give way to common names in other files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from unicodedata import normalize

import h5py

from galaxyhpc.config.schema import ColumnsConfig, DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.images.image_files import HDF5_ENDINGS, HDF5_TYPE, ImageError
from galaxyhpc.data.images.read_errors import translate_read_errors
from galaxyhpc.data.sources import tables
from galaxyhpc.data.sources.hdf5 import list_columns
from galaxyhpc.data.sources.parquet import FILE_TYPE
from galaxyhpc.data.sources.unlabelled import is_table
from galaxyhpc.data.survey import catalogue, hdf5, parquet
from galaxyhpc.data.survey.hats import read_position_columns
from galaxyhpc.data.survey.unit import KEYS, NUM_THREADS, CheckColumns, ColumnNames, Unit
from galaxyhpc.data.survey.units import decode_image, read_unit
from galaxyhpc.runtime.console import format_count
from galaxyhpc.storage.files import sanitize

MAX_LISTED = 8  # columns in a message
NUM_TRIED = 64  # galaxies


def parse_columns(texts: Sequence[str]) -> dict[str, str]:
    """Return the names of columns by key, of `KEY=NAME` each; empty: not used.

    Raises
    ------
    DataError
    """
    columns: dict[str, str] = {}
    for text in texts:
        key, equals, name = text.partition("=")
        if key not in KEYS or not equals:
            expected = f"KEY=NAME, where KEY is {', '.join(KEYS[:-1])} or dec; files stand before it"
            raise DataError(f"--columns: got {text!a}; expected {expected}")
        if key in columns:
            raise DataError(f"--columns {key}: got {quote(columns[key])} and {quote(name)}; expected one name")
        columns[key] = name
    if columns.get("file") == "":
        raise DataError("--columns file: got nothing; expected the column of the images or of their files")
    if (columns.get("ra") == "") != (columns.get("dec") == ""):
        got = "dec" if columns.get("ra") else "ra"
        raise DataError(f"--columns: got {got}= alone; expected ra= and dec=, for positions that are not used")
    if columns.get("ra") and columns.get("ra") == columns.get("dec"):
        raise DataError(f"--columns: got {quote(columns['ra'])} for ra and dec; expected a column for each")
    return columns


def name_columns(config: DataConfig, columns: Mapping[str, str | None]) -> DataConfig:
    """Return the settings with other names for the columns of these keys."""
    return config.model_copy(update={"columns": config.columns.model_copy(update=dict(columns))})


def check_columns(paths: Iterable[Path], columns: Mapping[str, str], config: DataConfig) -> None:
    """Refuse files without the columns that a user names, by their headers; `config` has these names, too.

    Files that cannot be read are left to their readers, which say why.

    Raises
    ------
    DataError
    """
    if not any(columns.values()):
        return
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = list(pool.map(lambda path: _find_mistake_in_file(path, columns, config.columns), paths))
    if mistakes := [text for text in results if text]:
        others = f" ({len(mistakes) - 1} more of {len(results)} files are refused, too)" if len(mistakes) > 1 else ""
        raise DataError(sanitize(f"{mistakes[0]}{others}"))


def make_column_check(columns: Mapping[str, str], config: DataConfig) -> CheckColumns:
    """Return what does the same for a file whose header has been read."""
    return partial(_check_names, columns=columns, config=config.columns)


def _check_names(path: Path, names: ColumnNames, columns: Mapping[str, str], config: ColumnsConfig) -> None:
    if any(columns.values()) and (mistake := _find_mistake(path, names, columns, config)):
        raise DataError(sanitize(mistake))


def check_first_galaxies(
    units: Sequence[Unit], columns: Mapping[str, str], config: DataConfig, allow_grey: bool
) -> str:
    """Return why none of the first galaxies has an image, or nothing; `allow_grey` as for `decode_image`.

    Raises
    ------
    DataError
        With named columns, as of names for ra.
    """
    unit = units[0]._replace(stop=min(units[0].stop, units[0].first + NUM_TRIED))
    try:
        errors = [
            decode_image(image, config, allow_grey, f"{unit.source}: row {row}")
            for galaxies in read_unit(unit, config)
            for row, image in zip(galaxies.rows, galaxies.encoded, strict=True)
        ]
    except DataError as error:
        if any(columns.values()):
            raise
        return str(error)
    if not all(isinstance(error, ImageError) for error in errors):
        return ""
    text = sanitize(f"{errors[0]}; so it is for the first {format_count(len(errors), 'galaxy', 'galaxies')}")
    if any(columns.values()):
        raise DataError(f"{text}: see --columns")
    return text


def _find_mistake_in_file(path: Path, columns: Mapping[str, str], config: ColumnsConfig) -> str:
    """Return what is wrong with the columns of a file that can be read, or nothing."""
    try:
        return _find_mistake(path, _read_names(path), columns, config)
    except (DataError, ImageError, OSError):
        return ""


def _find_mistake(path: Path, names: ColumnNames, columns: Mapping[str, str], config: ColumnsConfig) -> str:
    """Return what is wrong with the columns of a file, or nothing."""
    named = {key: name for key, name in columns.items() if name}
    for key, name in named.items():
        if not names.get(key):
            return f"{path}: --columns {key}: got no columns; expected a table, parquet or HDF5 with {quote(name)}"
        if name not in names[key]:
            got = f"no column {quote(name)}{' of texts or numbers' if key != 'file' else ''}"
            return f"{path}: --columns {key}: got {got}; expected {list_nearest(name, names[key])}"
    try:
        known = {key for key, name in read_position_columns(path).items() if name in names["id"]}
        known.update(tables.match_columns(path, list(names["id"]), config))
    except DataError as error:  # of two columns with the same name
        return str(error)
    for key, other in (("ra", "dec"), ("dec", "ra")):
        if key in named and other not in known:
            return f"{path}: --columns: got {key}={named[key]} alone; expected {other}=NAME, too"
    return ""


def _read_names(path: Path) -> ColumnNames:
    """Return the names that each key can have in a file, from its header.

    Raises
    ------
    DataError, ImageError, OSError
    """
    path.stat()
    if tables.has_ending(path, HDF5_ENDINGS):
        with translate_read_errors(path, HDF5_TYPE), h5py.File(path, "r", locking=False) as file:
            return hdf5.sort_columns(list_columns(file))
    if tables.has_ending(path, tables.PARQUET_ENDINGS):
        with tables.translate_table_errors(path, FILE_TYPE), parquet.open_file(path) as file:
            return parquet.sort_columns(file.schema_arrow)
    return dict.fromkeys(KEYS, catalogue.read_names(path) if is_table(path) else [])


def list_nearest(name: str, names: Sequence[str]) -> str:
    """Return the first of these names, those nearest to `name` in front, and how many more there are."""

    def get_distance(other: str) -> float:
        return -SequenceMatcher(None, name.casefold(), other.casefold()).ratio()

    listed = ", ".join(quote(other) for other in sorted(names, key=get_distance)[:MAX_LISTED])
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{'one of ' if len(names) > 1 else ''}{listed}{more}"


def quote(name: str) -> str:
    """Return a name in quotes, with escapes where it looks like another one."""
    is_plain = name.isprintable() and name == normalize("NFKC", name)
    return repr(name) if is_plain else ascii(name)
