"""The file SWEEP/split.csv: comment lines `# key: value`, then a CSV table with one row per galaxy.

The only module that knows this format. It imports neither torch nor pandas: `status` reads labels from here.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from galaxyhpc.data import DataError

if TYPE_CHECKING:
    import pandas as pd

SPLIT_FILE_NAME = "split.csv"
SPLITS = ("train", "validation", "test")
AT_RANDOM = "at random"  # begins the value of `divided` where a source has neither groups nor positions
DROPPED = "dropped"  # in the column `split`: the galaxy belongs to none of SPLITS
COLUMN_TYPES = {
    "row": "int64",
    "label": "int64",
    "ra": "float64",
    "dec": "float64",
    "sky_group": "int64",
    "fold": "int64",
    "half": "int64",
    "split": "str",
}


def format_split_file(header: list[str], table: pd.DataFrame) -> str:
    """Return the text of the file; lines of the header are of the form `key: value`."""
    return "".join(f"# {line}\n" for line in header) + table.to_csv(index=False)


def read_split_header(path: Path) -> dict[str, str]:
    """Return the values of the comment lines by key.

    Raises
    ------
    DataError
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise _make_error(path, error) from error
    return dict(line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)


def read_flaw_of_division(path: Path) -> str:
    """Return what is wrong with a split that nothing is known for; '' where there is no such flaw, or no file."""
    try:
        division = read_split_header(path).get("divided", "")
    except DataError:
        return ""
    return f"the galaxies were divided {division}" if division.startswith(AT_RANDOM) else ""


def read_split_labels(path: Path) -> Iterator[tuple[str, str]]:
    """Return split and label of each galaxy as text; torn rows are left out.

    Raises
    ------
    DataError
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        columns, *rows = csv.reader(line for line in lines if not line.startswith("# "))
        split, label = columns.index("split"), columns.index("label")
    except (OSError, ValueError) as error:
        raise _make_error(path, error) from error
    return ((row[split], row[label]) for row in rows if len(row) == len(columns))


def read_split_table(path: Path) -> pd.DataFrame:
    """Return the table: row, label, ra, dec (degrees), sky_group, fold, half, split (one of SPLITS, or dropped).

    Positions are NaN where they are unknown. The column id, with the names of the galaxies, is that of some sources.

    Raises
    ------
    DataError
        If a column is missing, or a value is not of its column's type.
    """
    import pandas as pd  # here: `status` starts without it

    try:
        num_comments = sum(line.startswith("# ") for line in path.read_text(encoding="utf-8").splitlines())
        unknown = {"ra": [""], "dec": [""]}  # an id may be NA
        types = COLUMN_TYPES | {"id": "str"}
        table = pd.read_csv(path, skiprows=num_comments, dtype=types, keep_default_na=False, na_values=unknown)
        return table[[*COLUMN_TYPES, *table.columns.intersection(["id"])]]
    except (OSError, ValueError, KeyError) as error:
        raise _make_error(path, error) from error


def _make_error(path: Path, error: Exception) -> DataError:
    message = " ".join(str(error).split())
    return DataError(f"{path}: cannot be read: {message}; expected the file as written")
