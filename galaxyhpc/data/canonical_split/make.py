"""Make galaxy10_decals_sky67.csv.gz from the positions and labels of Galaxy10 DECaLS, the same bytes every time.

    python -m galaxyhpc.data.canonical_split.make Galaxy10_DECals.h5 split.csv.gz

The first path may also be a CSV table with the columns label, ra and dec (degrees) in the order of the file. It prints
the SHA-256 of what it wrote, the size of each part, and how many test galaxies random splits leak.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.canonical_split.random_splits import count_leaks
from galaxyhpc.data.sources.hdf5 import open_hdf5
from galaxyhpc.data.sources.source import Columns
from galaxyhpc.data.split import DUPLICATE_RADIUS_ARCSEC, compute_split_table, find_close_pairs
from galaxyhpc.data.split_file import DROPPED

COLUMNS = ["row", "label", "sky_group", "fold", "half", "split", "dropped"]


def read_columns(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, ra and dec (degrees), (N,) each, of a CSV table or of a file laid out as Galaxy10 DECaLS.

    Raises
    ------
    DataError, OSError, ValueError
    """
    if ".csv" in path.suffixes:
        table = pd.read_csv(path)
        labels, ra, dec = (table[name].to_numpy() for name in ("label", "ra", "dec"))
        return labels, ra, dec
    columns = open_hdf5(path, DataConfig()).columns
    return columns.labels, columns.ra, columns.dec


def make_canonical_table(labels: np.ndarray, ra: np.ndarray, dec: np.ndarray) -> pd.DataFrame:
    """Return the table of `load_galaxy10_split`: what the default settings divide if no two images are the same."""
    table = compute_split_table(DataConfig(), Columns(labels, ra, dec), np.arange(len(labels)))
    reasons = np.full(len(labels), "", dtype=object)
    for pair in find_close_pairs(ra, dec, DUPLICATE_RADIUS_ARCSEC):
        for row, twin in (pair, pair[::-1]):
            if labels[row] != labels[twin]:
                reasons[row] = f"same position as row {twin} of class {labels[twin]}"
    is_dropped = table["split"] == DROPPED
    reasons[is_dropped & (reasons == "")] = "same position as a dropped galaxy"
    return table.assign(dropped=np.where(is_dropped, reasons, ""))[COLUMNS]


def write_canonical_file(path: Path, table: pd.DataFrame) -> str:
    """Write the table compressed, without a time stamp; return its SHA-256."""
    content = gzip.compress(table.to_csv(index=False, lineterminator="\n").encode(), mtime=0)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Write the table that the command line names; 2 if the galaxies cannot be read."""
    parser = argparse.ArgumentParser(description="Make the canonical split of Galaxy10 DECaLS.")
    parser.add_argument("galaxies", type=Path, help="Galaxy10_DECals.h5, or a CSV table of label, ra and dec")
    parser.add_argument("output", type=Path, help="the .csv.gz file to write")
    options = parser.parse_args(arguments)
    try:
        labels, ra, dec = read_columns(options.galaxies)
        table = make_canonical_table(labels, ra, dec)
        print(f"SHA-256 {write_canonical_file(options.output, table)}")
    except (DataError, OSError, ValueError, KeyError) as error:
        print(f"{options.galaxies}: {error}; expected Galaxy10_DECals.h5 or label, ra and dec", file=sys.stderr)
        return 2
    for name in ("split", "fold"):
        print(table[name].value_counts().to_string())
    print(count_leaks(labels, ra, dec).agg(["mean", "min", "max"]).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
