"""Parts of tables with one row per class, and the classes that figures show."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from galaxyhpc.explore.dataset_summary import DatasetSummary
from galaxyhpc.report.page import Column, Table

MAX_SHOWN_CLASSES = 40  # in a figure; tables list all
CLASS_COLUMNS = (Column("class", "name"), Column("label", "class", "number"))


def get_shown_names(summary: DatasetSummary) -> dict[int, str]:
    """Return the names of the classes that figures show, by label."""
    return {label: summary.class_names[label] for label in summary.select_largest_classes(MAX_SHOWN_CLASSES)}


def add_class_names(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Prepend the columns class and name to a frame of one row per class."""
    return pd.DataFrame({"class": range(len(names)), "name": names}).join(frame.reset_index(drop=True))


def make_percentile_table(
    title: str, caption: str, frame: pd.DataFrame, class_names: Sequence[str], digits: int
) -> Table:
    """Return a table of `compute_class_percentiles`: counts, then the median with the central 68 %."""
    columns = (
        *CLASS_COLUMNS,
        Column("known", "known", "number"),
        Column("missing", "missing", "number"),
        Column("median", "median", "number", digits=digits),
        Column("16 %", "low", "number", digits=digits),
        Column("84 %", "high", "number", digits=digits),
    )
    return Table(title, caption, add_class_names(frame, class_names), columns)
