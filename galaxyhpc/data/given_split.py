"""The division of a source's galaxies: its own where it gives one, by its groups, by sky position, or at random."""

from __future__ import annotations

import numpy as np
import pandas as pd

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.sources.source import Columns
from galaxyhpc.data.split import (
    NO_PAIRS,
    assign_parts,
    describe_origin,
    find_duplicates,
    find_label_conflicts,
    label_components,
    link_galaxies,
    make_split_table,
    tabulate_galaxies,
)
from galaxyhpc.data.split_file import AT_RANDOM, DROPPED, SPLITS
from galaxyhpc.storage.files import sanitize

MAX_LISTED = 10  # galaxies in a line
_RANDOM_DIVISION = (
    f"{AT_RANDOM}: the source has neither positions nor groups, so images of one galaxy, or overlapping ones, may lie "
    "in different parts unless their pixels are the same, or nearly"
)


def divide(
    config: DataConfig, columns: Columns, digests: np.ndarray, near_pairs: np.ndarray | None = None
) -> pd.DataFrame:
    """Return the table of `make_split_table`, and the column id where the source has one.

    `digests` (N,) are of the pixels, `near_pairs` (M, 2) the rows of nearly the same images.

    Raises
    ------
    DataError
        If duplicates are to be refused and there are some, or a fold is asked for where the source gives its split.
    """
    near_pairs = NO_PAIRS if near_pairs is None else near_pairs
    if config.conflicting_duplicates == "refuse":
        _refuse_conflicts(config, columns, digests, near_pairs)
    if columns.given_splits is None:
        table = make_split_table(config, columns, digests, near_pairs)
    elif config.fold:
        expected = "expected 0, for the source gives the split, or data.columns.split='' to divide the galaxies anew"
        raise DataError(f"{config.source}: data.fold: got {config.fold}; {expected}")
    else:
        table = _complete_given_split(config, columns, digests, near_pairs, columns.given_splits)
    if columns.ids is None:
        return table
    return table.assign(id=[sanitize(" ".join(name.split())) for name in columns.ids.tolist()])  # one line each


def describe_division(columns: Columns) -> str:
    """Return what the galaxies are divided by, and the flaw of a division that nothing is known for."""
    num_unknown = int(np.isnan(columns.ra).sum())
    if columns.given_splits is not None:
        is_whole = "validation" in columns.given_splits
        return "by column split" + ("" if is_whole else "; validation taken from its training galaxies")
    if columns.groups is not None:
        return "by column group"
    if num_unknown == len(columns.ra):
        return _RANDOM_DIVISION
    return "by sky position" + (f"; {num_unknown} galaxies without one at random" if num_unknown else "")


def describe_split_origin(config: DataConfig, columns: Columns, table: pd.DataFrame, digests: np.ndarray) -> str:
    """Return whether a table is the source's own split, the canonical one, or computed, and why."""
    if columns.given_splits is not None:
        return "the split that the source gives"
    return describe_origin(config, table, digests)


def describe_dropped(config: DataConfig, columns: Columns, table: pd.DataFrame) -> str:
    """Return how many galaxies are in no part, why, and the first of them where the source's split decides."""
    rows = np.flatnonzero(table["split"] == DROPPED)
    text = f"{len(rows)} with the pixels or the position (within 1 arcsec) of one of another label"
    if columns.given_splits is not None:
        text += ", or one of these or nearly these pixels in another part of the source's split, where the copy in the "
        text += "test set, or in validation, is kept"
        if len(rows):
            text += f": {_list_galaxies(columns, rows)}"
    return f"{text} (conflicting_duplicates: {config.conflicting_duplicates})"


def _list_galaxies(columns: Columns, rows: np.ndarray) -> str:
    names = [f"row {row}" + ("" if columns.ids is None else f" ({columns.ids[row]})") for row in rows[:MAX_LISTED]]
    return sanitize(", ".join(names)) + (", ..." if len(rows) > MAX_LISTED else "")


def _find_copies(columns: Columns, digests: np.ndarray, near_pairs: np.ndarray = NO_PAIRS) -> np.ndarray:
    """Return the number of a galaxy's set of copies, (N,): the same position or pixels, or nearly these."""
    duplicates = find_duplicates(columns, digests)
    return label_components(len(digests), np.concatenate([duplicates, near_pairs]))


def _refuse_conflicts(config: DataConfig, columns: Columns, digests: np.ndarray, near_pairs: np.ndarray) -> None:
    """Refuse copies of two labels, and in two parts of the source's split: there, nearly the same pixels count, too."""
    same, like = _find_copies(columns, digests), _find_copies(columns, digests, near_pairs)
    checks = (("label", columns.labels, same), ("part of the split", columns.given_splits, like))
    for name, values, copies in checks:
        rows = np.flatnonzero(find_label_conflicts(values, copies)) if values is not None else ()
        if len(rows):
            rows = rows[np.argsort(copies[rows], kind="stable")]  # copies beside each other
            pixels = "the pixels" if copies is same else "the pixels, or nearly these,"
            raise DataError(
                f"{config.source}: got {len(rows)} galaxies with {pixels} or the position of one of another {name}: "
                f"{_list_galaxies(columns, rows)}; expected none: remove them, or set data.conflicting_duplicates=drop"
            )


def _complete_given_split(
    config: DataConfig,
    columns: Columns,
    digests: np.ndarray,
    near_pairs: np.ndarray,
    given_splits: np.ndarray,
) -> pd.DataFrame:
    """Return the given split without duplicates across its parts, and with validation galaxies.

    Groups are those that may not be divided further: galaxies of one part that share sky, pixels or group.
    """
    groups, kept = link_galaxies(config, columns, digests, near_pairs)
    split = given_splits.astype(object)
    if config.conflicting_duplicates == "drop":
        copies = _find_copies(columns, digests, near_pairs)
        ranks = np.array([SPLITS.index(name) for name in given_splits.tolist()])
        best = pd.Series(ranks).groupby(copies).transform("max").to_numpy()
        kept &= ranks == best
    split[~kept] = DROPPED
    train = np.flatnonzero(split == "train")
    if "validation" not in given_splits and len(train):
        fractions = (1.0 - config.validation_fraction, config.validation_fraction)
        parts = assign_parts(columns.labels[train], groups[train], fractions, config.split_seed)
        split[train[parts == 1]] = "validation"
    groups = pd.factorize(pd.Series(groups).astype(str) + split)[0]
    return tabulate_galaxies(columns).assign(sky_group=groups, fold=-1, half=-1, split=split)
