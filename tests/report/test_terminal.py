"""The terminal table: the best network first, marks only where they apply, each with an explanation."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from helpers.tables import make_tables
from rich.console import Console

from galaxyhpc.analysis.tables import Tables
from galaxyhpc.report.terminal import make_terminal_table, mark_best


def render(tables: Tables, notes: tuple[str, ...] = ()) -> str:
    file = io.StringIO()
    Console(width=200, file=file).print(make_terminal_table("title", tables.networks, tables.summary, notes))
    return file.getvalue()


def test_networks_are_sorted_by_clean_accuracy() -> None:
    tables = make_tables(["CNN", "C4", "D4"])
    clean = tables.summary[tables.summary["condition"] == "clean"].sort_values("accuracy_mean", ascending=False)
    table = make_terminal_table("title", tables.networks, tables.summary, [])
    assert [str(row[0]) for row in table.rows] == clean["label"].tolist()


def test_missing_runs_are_marked_and_explained() -> None:
    """A run is a seed and a fold."""
    text = render(make_tables(["CNN", "C4"], seeds=3))
    assert text.splitlines()[2].split()[2] == "runs"
    assert "2/3†" in text and "3/3†" not in text and "†: not all planned runs are complete." in text


def test_marks_are_explained_only_if_they_occur() -> None:
    tables = make_tables(["CNN", "C4"])
    networks = tables.networks.assign(seeds_done=3)
    summary = tables.summary.assign(seeds_done=3, ci_low=np.nan, ci_high=np.nan)
    text = render(Tables(summary, networks), ("a note",))
    assert "a note" in text and not any(mark in text for mark in ("Bold", "†", "In brackets", "[k]"))


def test_a_mean_over_another_number_of_runs_says_so() -> None:
    tables = make_tables(["CNN", "C4"])
    is_clean = tables.summary["condition"] == "clean"
    summary = tables.summary.assign(seeds_done=np.where(is_clean, 1, tables.summary["seeds_done"]))
    text = render(Tables(summary, tables.networks))
    assert "[1] (" in text and "[k]: mean over k runs" in text


def test_the_best_is_marked_in_each_condition_with_all_overlapping_intervals() -> None:
    rows = [("clean", 0.9), ("clean", 0.88), ("clean", 0.5), ("flip", 0.4), ("flip", 0.8), ("flip", np.nan)]
    summary = pd.DataFrame(rows, columns=["condition", "accuracy_mean"]).assign(severity=0.0)
    summary = summary.assign(ci_low=summary["accuracy_mean"] - 0.02, ci_high=summary["accuracy_mean"] + 0.02)
    assert mark_best(summary).tolist() == [True, True, False, False, True, False]
    assert not mark_best(summary.assign(ci_low=np.nan, ci_high=np.nan)).any()
