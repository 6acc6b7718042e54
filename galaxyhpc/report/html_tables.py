"""The tables of a report: what each column is called, in which unit; columns that hold nothing are left out.

A network is named with its flaw and, where seeds are missing, with how many are in: so wherever its numbers stand.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

from galaxyhpc.analysis.tables import Tables, format_network_names, sort_by_accuracy
from galaxyhpc.config.conditions import ROTATION_MEAN
from galaxyhpc.report.page import Column, Section, Table
from galaxyhpc.report.run_pages import format_physical_severity
from galaxyhpc.report.terminal import mark_best


def _make_percent_column(heading: str, source: str) -> Column:
    return Column(f"{heading} (%)", source, "number", 100, 1)


def _make_interval_column(heading: str, value: str, low: str, high: str, bold_source: str = "") -> Column:
    return Column(f"{heading} (%)", (value, low, high), "interval", 100, 1, bold_source=bold_source)


def _make_number_column(heading: str, source: str, digits: int | None = 0) -> Column:
    return Column(heading, source, "number", 1, digits)


NETWORK_COLUMN = Column("network", "network")
INTERVAL_NOTE = "In brackets: 95 % interval of the mean, by bootstrap over seeds and pieces of sky."
BOLD_NOTE = "Bold: the best, and all whose intervals overlap the best's, for they cannot be told apart."
SCALED_NOTE = "Scaled: after temperature scaling on the validation galaxies."
SCORE_COLUMNS = (
    *(_make_percent_column("balanced accuracy", "balanced_accuracy"), _make_percent_column("macro F1", "macro_f1")),
    *(_make_number_column("NLL", "nll", 3), _make_number_column("NLL, scaled", "nll_scaled", 3)),
    *(_make_number_column("Brier score", "brier", 3), _make_number_column("Brier score, scaled", "brier_scaled", 3)),
    *(_make_percent_column("ECE", "ece"), _make_percent_column("ECE, scaled", "ece_scaled")),
)


def make_networks_section(tables: Tables) -> Section:
    """One row per network, the best first."""
    summary = tables.summary.assign(strong=mark_best(tables.summary))
    clean = summary[summary["condition"] == "clean"].set_index("label")
    turned = summary[summary["condition"] == ROTATION_MEAN[0]].set_index("label").add_prefix("turned_")
    frame = _add_network_names(tables, tables.networks)
    frame = frame.join(clean[clean.columns.difference(frame.columns)], on="label").join(turned, on="label")
    marks = {name: frame[name].eq(True) for name in ("strong", "turned_strong")}
    frame = frame.assign(**marks).sort_values("accuracy_mean", ascending=False, kind="stable")
    tables_ = (*_make_accuracy_tables(frame), *_make_score_tables(frame))
    return Section("Networks", tables=tables_)


def _make_accuracy_tables(frame: pd.DataFrame) -> tuple[Table, ...]:
    labels = (Column("labels used (%)", "label_fraction", "number", 100),)
    columns = (
        *(NETWORK_COLUMN, _make_interval_column("accuracy", "accuracy_mean", "ci_low", "ci_high", "strong")),
        _make_interval_column("all angles", "turned_accuracy_mean", "turned_ci_low", "turned_ci_high", "turned_strong"),
        Column("mean corruption error", ("mce", "mce_low", "mce_high"), "interval", 1, 2),
        _make_number_column("parameters", "parameters"),
        Column("multiply-adds (millions)", "multiply_adds", "number", 1e-6),
        *(labels if frame.get("label_fraction", pd.Series(1.0)).ne(1.0).any() else ()),
        *(_make_number_column("seeds in", "seeds_done"), _make_number_column("planned", "seeds_planned")),
        Column("on the front of parameters", "front_parameters"),
        Column("on the front of multiply-adds", "front_multiply_adds"),
    )
    caption = f"Clean test galaxies, and turned ones over all angles. {INTERVAL_NOTE} {BOLD_NOTE} Mean corruption error: errors "
    caption += "under all conditions, those of the conventional CNN being 1; lower is better. On the front: no network "
    caption += "as good has fewer."
    return _make_tables("All networks", caption, frame, columns, "networks.csv")


def _make_score_tables(frame: pd.DataFrame) -> tuple[Table, ...]:
    caption = f"Means over seeds. {SCALED_NOTE} NLL: negative log-likelihood; ECE: expected calibration error, 15 bins. Lower "
    caption += "is better for them and for the Brier score."
    held = frame[[c for c in frame if any(c == score.source for score in SCORE_COLUMNS)]]
    rows = frame if held.notna().any(axis=None) else frame.iloc[:0]
    return _make_tables(
        "Other measures on clean galaxies", caption, rows, (NETWORK_COLUMN, *SCORE_COLUMNS), "summary.csv"
    )


def make_robustness_section(tables: Tables) -> Section:
    """How accuracy falls under each condition."""
    caption = "Errors summed over the severities of a condition, divided by those of the conventional CNN: below 1 is "
    caption += "better than it."
    columns = (NETWORK_COLUMN, Column("condition", "condition"), _make_number_column("corruption error", "ce", 2))
    frame = _add_network_names(tables, tables.corruption_error)
    errors = _make_tables("Corruption error by condition", caption, frame, columns, "corruption_error.csv")
    return Section("Robustness", tables=(*errors, *_make_condition_tables(tables)))


def _make_condition_tables(tables: Tables) -> tuple[Table, ...]:
    """One row per network, condition and severity that anything is known of."""
    frame = tables.summary[tables.summary["accuracy_mean"].notna()]
    if len(frame):
        frame = _add_network_names(tables, frame).assign(strong=mark_best(frame))
        order = {label: place for place, label in enumerate(sort_by_accuracy(tables.networks)["label"])}
        frame = frame.assign(place=frame["label"].map(order)).sort_values("place", kind="stable")
        frame = frame.assign(physical=list(map(cache(format_physical_severity), frame["condition"], frame["severity"])))
    columns = (
        *(NETWORK_COLUMN, Column("condition", "condition"), _make_number_column("severity", "severity", None)),
        *(Column("that is", "physical"), _make_number_column("seeds", "seeds_done")),
        _make_interval_column("accuracy", "accuracy_mean", "ci_low", "ci_high", "strong"),
        *(
            _make_percent_column("spread over seeds", "accuracy_std"),
            _make_percent_column("as when clean", "consistency"),
            *SCORE_COLUMNS,
        ),
    )
    caption = f"{INTERVAL_NOTE} {BOLD_NOTE} {SCALED_NOTE} As when clean: how often the prediction is that of the clean galaxy, right or "
    caption += "wrong. rotation_mean is over all angles together."
    return _make_tables("Every condition and severity", caption, frame, columns, "summary.csv")


def make_comparisons_section(tables: Tables) -> Section:
    """Which pairs of networks can be told apart; the one ahead is named first."""
    columns = (
        *(Column("network", "first"), Column("compared with", "second")),
        Column("ahead by (points)", ("difference", "ci_low", "ci_high"), "interval", 100, 1, signed=True),
        *(Column("p, after Holm", "p_holm", "p"), Column("can be told apart", "separable")),
        *(
            _make_number_column("only the first right", "only_a", 1),
            _make_number_column("only the second right", "only_b", 1),
        ),
        *(Column("p", "p", "p"), _make_number_column("seeds", "seeds")),
    )
    caption = "Clean test galaxies, the same for both. Difference of the accuracies with its 95 % interval (paired "
    caption += "bootstrap); exact McNemar test, corrected for the number of pairs (Holm). Two networks can be told "
    caption += "apart where p is below 0.05 and the interval excludes 0."
    frame = _sort_best_first(tables, tables.comparisons)
    return Section(
        "Comparisons", tables=_make_tables("All pairs of networks", caption, frame, columns, "comparisons.csv")
    )


def _sort_best_first(tables: Tables, frame: pd.DataFrame) -> pd.DataFrame:
    """Turn pairs round where the second network is ahead, and order them by their evidence."""
    if frame.empty:
        return frame
    behind, named = frame["difference"] < 0, format_network_names(tables.networks)
    turned = frame.rename(columns={"a": "b", "b": "a", "only_a": "only_b", "only_b": "only_a"})
    limits = {"difference": -frame["difference"], "ci_low": -frame["ci_high"], "ci_high": -frame["ci_low"]}
    frame = pd.concat([frame[~behind], turned.assign(**limits)[behind]])
    frame = frame.assign(first=frame["a"].map(named), second=frame["b"].map(named))
    return frame.sort_values(["p_holm", "difference"], ascending=[True, False], kind="stable")


def make_classes_section(tables: Tables) -> Section:
    """How each class fares."""
    columns = (
        *(
            NETWORK_COLUMN,
            Column("class", "name"),
            _make_number_column("galaxies", "support"),
            _make_percent_column("precision", "precision"),
        ),
        *(_make_interval_column("recall", "recall", "recall_low", "recall_high"), _make_percent_column("F1", "f1")),
    )
    caption = f"Clean test galaxies, means over seeds. {INTERVAL_NOTE}"
    frame = _add_network_names(tables, tables.per_class)
    return Section("Classes", tables=_make_tables("Each class", caption, frame, columns, "per_class.csv"))


def make_attack_section(tables: Tables) -> Section:
    """What one pixel does."""
    columns = (
        *(
            NETWORK_COLUMN,
            Column("galaxies", "of"),
            _make_number_column("queries", "budget"),
            _make_number_column("attacked", "n"),
        ),
        *(_make_number_column("successes", "successes"), _make_interval_column("success rate", "rate", "low", "high")),
        _make_number_column("seeds", "seeds"),
    )
    caption = "One pixel is changed until the class changes, with so many queries of the network per galaxy at most. "
    caption += "In brackets: exact 95 % interval (Clopper and Pearson)."
    sets = {"own": "those it gets right", "common": "those that all get right"}
    frame = _add_network_names(tables, tables.attack)
    frame = frame.assign(of=frame["set"].replace(sets)) if len(frame) else frame
    return Section("One-pixel attack", tables=_make_tables("One-pixel attack", caption, frame, columns, "attack.csv"))


def describe_best_network(tables: Tables) -> str:
    """Say which network is best on clean galaxies, and how many cannot be told from it; empty where none is in."""
    measured = sort_by_accuracy(tables.networks).dropna(subset="accuracy_mean")
    if measured.empty:
        return ""
    first, others = measured.iloc[0], measured.iloc[1:]
    said = f"{format_network_names(tables.networks)[first['label']]}: {100 * first['accuracy_mean']:.1f} %"
    if not np.isfinite(first["ci_low"]):
        return f"{said}; without intervals nothing says by how much"
    near = int((others["ci_high"] >= first["ci_low"]).sum())
    said += f" ({100 * first['ci_low']:.1f}–{100 * first['ci_high']:.1f})"
    return f"{said}; the intervals of {near or 'no'} other{'s' * (near != 1)} overlap its own"


def _add_network_names(tables: Tables, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(network=frame["label"].map(format_network_names(tables.networks))) if len(frame) else frame


def _make_tables(
    title: str, caption: str, frame: pd.DataFrame, columns: tuple[Column, ...], file: str
) -> tuple[Table, ...]:
    """Return the table with those columns that hold anything, or none where the frame has no rows."""
    kept = tuple(column for column in columns if _has_values(frame, column))
    return (Table(title, caption, frame, kept, file),) if len(frame) else ()


def _has_values(frame: pd.DataFrame, column: Column) -> bool:
    source = column.source if isinstance(column.source, str) else column.source[0]
    return source in frame and bool((frame[source].notna() & frame[source].ne("")).any())
