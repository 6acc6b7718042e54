"""The canonical split of Galaxy10 DECaLS, a table with one row per galaxy of the published file, in its order.

Galaxies within 67 arcsec of each other, the side of an image, are never divided; those that occur twice under two
labels are dropped. Only positions and labels decide. `make.py` beside this file made the table.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

SPLIT_FILE = Path(__file__).with_name("galaxy10_decals_sky67.csv.gz")
NUM_GALAXIES = 17736  # rows of Galaxy10_DECals.h5
NUM_FOLDS = 5


def load_galaxy10_split(fold: int = 0) -> pd.DataFrame:
    """Return the split in which one of the five folds is the test set; fold 0 is the split to use if only one is used.

    Returns
    -------
    row (in the file), label, sky_group, fold (0 to 4; -1: dropped), half (of its fold, 0 or 1; -1: dropped), split
    (train, validation, test or dropped), dropped (the reason, empty for the galaxies that are kept)
    """
    return divide_by_fold(pd.read_csv(SPLIT_FILE, keep_default_na=False), fold)


def divide_by_fold(table: pd.DataFrame, fold: int) -> pd.DataFrame:
    """Return a table with `split` so that `fold` is the test set and half 0 of the next fold the validation set."""
    if fold not in range(NUM_FOLDS):
        raise ValueError(f"fold: got {fold}; expected 0 to {NUM_FOLDS - 1}")
    is_validation = (table["fold"] == (fold + 1) % NUM_FOLDS) & (table["half"] == 0)
    conditions = [table["fold"] < 0, table["fold"] == fold, is_validation]
    return table.assign(split=np.select(conditions, ["dropped", "test", "validation"], "train").astype(object))
