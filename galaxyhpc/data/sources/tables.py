"""A catalogue as text and numbers: CSV, ECSV, FITS and parquet tables, their columns found by common names."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
import pandas as pd

from galaxyhpc.config.schema import ColumnsConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.sources.read_errors import explain_read_error
from galaxyhpc.data.sources.source import make_error
from galaxyhpc.storage.files import sanitize

SEPARATORS = (",", ";", "\t")  # of CSV, the most usual first
CSV_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
ASTROPY_FORMATS = {".ecsv": "ascii.ecsv", ".fits": "fits", ".fit": "fits", ".fits.gz": "fits"}
PARQUET_ENDINGS = (".parquet", ".parq")
TABLE_ENDINGS = (*CSV_ENDINGS, *ASTROPY_FORMATS, *PARQUET_ENDINGS)
COMMON_NAMES = {  # of columns, in lower case, the most usual first
    "file": ("file", "filename", "file_name", "file_loc", "image_path", "path", "image", "img"),
    "label": ("label", "labels", "class", "class_name", "hubble_class", "morphology", "hubble_type"),
    "id": ("id", "iauname", "objid", "object_id", "galaxy_id", "id_str", "dr8_id", "name"),
    "ra": ("ra", "raj2000", "ra_deg"),
    "dec": ("dec", "dej2000", "decj2000", "dec_deg"),
    "group": ("group",),
    "split": ("split",),
    "redshift": ("redshift",),  # z is a band, too
}
MISSING = ("", "nan", "null", "<na>", "--")  # texts of a value that is not there, in lower case
CSV_TYPE = "a table in CSV, in UTF-8"
FITS_TYPE = "a FITS file with a table"
INSTALL_ADVICE = "pyarrow, which reads parquet: `pip install galaxyhpc[survey]`"


def import_parquet(path: Path) -> Any:
    """Return the module pyarrow.parquet.

    Raises
    ------
    DataError
        If it is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: got a parquet file and no pyarrow; expected {INSTALL_ADVICE}") from error
    return parquet


@contextmanager
def translate_table_errors(path: Path, file_type: str = "a table") -> Iterator[None]:
    """Turn the errors of a library about a foreign or damaged table into a DataError of one line."""
    try:
        if not path.is_file():
            raise FileNotFoundError
        yield
    except DataError:
        raise
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeError) as error:
        message = " ".join(str(error).split()).replace("; ", ", ")
        raise DataError(sanitize(f"{path}: got {message}; expected {file_type}")) from error
    except Exception as error:  # a damaged file may raise anything
        raise DataError(sanitize(f"{path}: {explain_read_error(path, error, file_type)}")) from error


def has_ending(path: Path, endings: Iterator[str] | tuple[str, ...] | Mapping[str, str]) -> bool:
    """Whether a file's name ends in one of these, in any case."""
    return path.name.lower().endswith(tuple(endings))


def get_csv_format(path: Path) -> dict[str, Any]:
    """Return the arguments of pandas.read_csv that give all values of a CSV or TSV file as they are written."""
    return {"sep": _find_separator(path), "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}


def read_csv_header(path: Path) -> list[str]:
    """Return the names of a CSV file's columns as the file gives them, where pandas would number copies."""
    names: list[str] = pd.read_csv(path, header=None, nrows=1, **get_csv_format(path)).iloc[0].tolist()
    return names


def read_table(path: Path) -> pd.DataFrame:
    """Return the columns of a CSV (as text), ECSV or FITS table that have one value per row.

    Raises
    ------
    DataError
    """
    if has_ending(path, CSV_ENDINGS):
        with translate_table_errors(path, CSV_TYPE):
            texts: pd.DataFrame = pd.read_csv(path, header=None, **get_csv_format(path))
            # as the file names them: pandas would number copies
            return texts.iloc[1:].set_axis(texts.iloc[0].tolist(), axis=1).reset_index(drop=True)
    from astropy.table import Table

    file_format = next(name for ending, name in ASTROPY_FORMATS.items() if path.name.lower().endswith(ending))
    file_type = FITS_TYPE if file_format == "fits" else "a table in ECSV"
    with translate_table_errors(path, file_type):
        table = Table.read(path, format=file_format)
        table.convert_bytestring_to_unicode()
        columns: pd.DataFrame = table[[name for name in table.colnames if table[name].ndim == 1]].to_pandas()
        return columns


def _find_separator(path: Path) -> str:
    """Return what separates the names in the first line; other separators may stand in values, such as 1,5."""
    if ".tsv" in path.name.lower():
        return "\t"
    with _open_text(path) as file:
        header = next((line for line in file if line.strip()), "")
    return next((separator for separator in SEPARATORS if separator in header), ",")


def _open_text(path: Path) -> TextIO:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    return cast(TextIO, opener(path, "rt", encoding="utf-8-sig", newline=""))


def find_columns(path: Path, names: list[str], config: ColumnsConfig) -> dict[str, str]:
    """Return the names of the columns that hold file, label, id, ra, dec, group, split and redshift, where they exist.

    Raises
    ------
    DataError
        If a column that the settings name, or that of the labels, does not exist, or one that is needed exists twice.
    """
    for key in COMMON_NAMES:
        if (requested := getattr(config, key)) and requested not in names:
            close = get_close_matches(requested, names, n=1)
            hint = f"{close[0]}?" if close else f"one of {', '.join(map(str, names))}"
            raise make_error(path, f"data.columns.{key}", f"no column {requested!r}", hint)
    columns = match_columns(path, names, config)
    if "label" not in columns:
        listed = ", ".join(map(str, names)) or "none"
        raise make_error(path, "columns", listed, "one with the class of each galaxy: name it in data.columns.label")
    if ("ra" in columns) != ("dec" in columns):
        got = f"data.columns.{'ra' if 'ra' in columns else 'dec'} alone"
        raise make_error(path, "columns", got, "both ra and dec: name them in data.columns, or leave out both with ''")
    return columns


def match_columns(path: Path, names: list[str], config: ColumnsConfig) -> dict[str, str]:
    """Return which of these names are columns by the settings or, where these name none of them, by common names.

    Raises
    ------
    DataError
        If two columns have the name of one that is needed.
    """
    columns = {}
    for key, common in COMMON_NAMES.items():
        requested = getattr(config, key)
        same = [name for name in names if name == requested]
        if not same and requested != "":
            by_name = ([name for name in names if name.lower() == usual] for usual in common)
            same = next(filter(None, by_name), [])
        if len(same) > 1:
            advice = f"one: rename the other, or name it in data.columns.{key} (of predict: --columns)"
            raise make_error(path, f"column {same[0]}", f"{len(same)} of this name ({', '.join(same)})", advice)
        if same:
            columns[key] = same[0]
    return columns


def locate_row(path: Path, row: int) -> str:
    """Return where a row of a table stands: `line 17` of a CSV file, `row 15` (counted from 0) of others."""
    if not has_ending(path, CSV_ENDINGS):
        return f"row {row}"
    with _open_text(path) as file:
        reader = csv.reader(file, delimiter=_find_separator(path))
        number = -1  # of the header
        for cells in reader:
            number += bool(cells)
            if number > row:
                return f"line {reader.line_num}"
    return f"row {row}"


def to_texts(values: pd.Series[Any]) -> np.ndarray:
    """Return (N,) texts without spaces around them, empty where there is no value."""
    texts = np.array(["" if value is None else str(value).strip() for value in values.tolist()], dtype=object)
    return np.array(["" if text.lower() in MISSING else text for text in texts], dtype=str)


def read_positions(path: Path, table: pd.DataFrame, columns: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) ra and dec in degrees, NaN where there is no value or no column.

    Raises
    ------
    DataError
    """
    limits = {"ra": (0.0, 360.0), "dec": (-90.0, 90.0)}
    ra, dec = (
        to_numbers(path, columns[key], table[columns[key]], *limits[key], " degrees")
        if key in columns
        else np.full(len(table), np.nan)
        for key in limits
    )
    return ra, dec


def to_numbers(path: Path, key: str, values: pd.Series[Any], low: float, high: float, unit: str) -> np.ndarray:
    """Return (N,) float64 from low to high, NaN where there is no value.

    Raises
    ------
    DataError
        Naming the first row that is no such number.
    """
    numbers = np.asarray(pd.to_numeric(values, errors="coerce"), dtype=np.float64)
    is_bad = ~((numbers >= low) & (numbers <= high))
    for row in np.flatnonzero(is_bad):
        if str(text := values.iloc[row]).strip().lower() not in MISSING:
            expected = f"a number from {low:g} to {high:g}{unit}, or nothing where it is unknown"
            raise make_error(path, key, f"{text} in {locate_row(path, int(row))}", expected)
    return np.where(is_bad, np.nan, numbers)
