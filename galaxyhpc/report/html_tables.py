"""The tables of report.html: headings and units of their columns; empty columns are left out.

Wherever a network's numbers appear, its name includes its flaw and, if runs are missing, how many are complete.
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
INTERVAL_NOTE = "In brackets: 95 % interval of the mean, by bootstrap over seeds and groups of galaxies."
BOLD_NOTE = "Bold: the best, and all whose intervals overlap its interval."
SCALED_NOTE = "Scaled: after temperature scaling on the validation galaxies."
MAX_CONFUSED_PAIRS = 100  # of each network
BALANCED_NOTE = "Balanced accuracy: mean recall of the classes; macro F1: mean F1 of the classes."
BALANCED_COLUMNS = (
    _make_percent_column("balanced accuracy", "balanced_accuracy"),
    _make_percent_column("macro F1", "macro_f1"),
)
SCORE_COLUMNS = (
    *(_make_number_column("NLL", "nll", 3), _make_number_column("NLL, scaled", "nll_scaled", 3)),
    *(_make_number_column("Brier score", "brier", 3), _make_number_column("Brier score, scaled", "brier_scaled", 3)),
    *(_make_percent_column("ECE", "ece"), _make_percent_column("ECE, scaled", "ece_scaled")),
)


def make_networks_section(tables: Tables) -> Section:
    """List the networks, the best on clean galaxies first."""
    summary = tables.summary.assign(is_best=mark_best(tables.summary))
    clean = summary[summary["condition"] == "clean"].set_index("label")
    rotated = summary[summary["condition"] == ROTATION_MEAN[0]].set_index("label").add_prefix("rotated_")
    frame = _add_network_names(tables, tables.networks)
    frame = frame.join(clean[clean.columns.difference(frame.columns)], on="label").join(rotated, on="label")
    marks = {name: frame[name].eq(True) for name in ("is_best", "rotated_is_best")}
    frame = frame.assign(**marks).sort_values("accuracy_mean", ascending=False, kind="stable")
    return Section("Networks", tables=(*_make_accuracy_tables(frame), *_make_score_tables(frame)))


def _make_accuracy_tables(frame: pd.DataFrame) -> tuple[Table, ...]:
    rotated = ("rotated_accuracy_mean", "rotated_ci_low", "rotated_ci_high")
    labels = (Column("labels used (%)", "label_fraction", "number", 100),)
    columns = (
        NETWORK_COLUMN,
        _make_interval_column("accuracy", "accuracy_mean", "ci_low", "ci_high", "is_best"),
        *BALANCED_COLUMNS,
        _make_interval_column("all angles", *rotated, "rotated_is_best"),
        Column("mean corruption error", ("mce", "mce_low", "mce_high"), "interval", 1, 2),
        _make_number_column("parameters", "parameters"),
        Column("multiply-adds (millions)", "multiply_adds", "number", 1e-6),
        *(labels if frame.get("label_fraction", pd.Series(1.0)).ne(1.0).any() else ()),
        _make_number_column("runs complete", "seeds_done"),
        _make_number_column("planned", "seeds_planned"),
        Column("Pareto optimal in parameters", "pareto_parameters"),
        Column("Pareto optimal in multiply-adds", "pareto_multiply_adds"),
    )
    caption = (
        f"Accuracy on clean test galaxies, and on rotated ones over all angles. {INTERVAL_NOTE} {BOLD_NOTE} "
        f"{BALANCED_NOTE} Mean "
        "corruption error: errors under all conditions relative to the conventional CNN (1); lower is better. Pareto "
        "optimal: no network that is at least as accurate has fewer."
    )
    return _make_tables("All networks", caption, frame, columns, "networks.csv")


def _make_score_tables(frame: pd.DataFrame) -> tuple[Table, ...]:
    caption = (
        f"Means over runs. {SCALED_NOTE} NLL: negative log-likelihood; ECE: expected calibration error, 15 bins. "
        "Lower is better for these and for the Brier score."
    )
    sources = {column.source for column in SCORE_COLUMNS}
    has_scores = frame[[name for name in frame if name in sources]].notna().any(axis=None)
    columns = (NETWORK_COLUMN, *SCORE_COLUMNS)
    rows = frame if has_scores else frame.iloc[:0]
    return _make_tables("Other measures on clean galaxies", caption, rows, columns, "summary.csv")


def make_robustness_section(tables: Tables) -> Section:
    """List accuracies and corruption errors under each condition."""
    caption = (
        "Errors summed over the severities of a condition, relative to those of the conventional CNN: below 1 is "
        "better than the CNN."
    )
    columns = (NETWORK_COLUMN, Column("condition", "condition"), _make_number_column("corruption error", "ce", 2))
    frame = _add_network_names(tables, tables.corruption_error)
    errors = _make_tables("Corruption error by condition", caption, frame, columns, "corruption_error.csv")
    return Section("Robustness", tables=(*errors, *_make_condition_tables(tables)))


def _make_condition_tables(tables: Tables) -> tuple[Table, ...]:
    """List every measured network, condition and severity."""
    frame = tables.summary[tables.summary["accuracy_mean"].notna()]
    if len(frame):
        frame = _add_network_names(tables, frame).assign(is_best=mark_best(frame))
        ranks = {label: rank for rank, label in enumerate(sort_by_accuracy(tables.networks)["label"])}
        frame = frame.assign(rank=frame["label"].map(ranks)).sort_values("rank", kind="stable")
        frame = frame.assign(physical=list(map(cache(format_physical_severity), frame["condition"], frame["severity"])))
    columns = (
        NETWORK_COLUMN,
        Column("condition", "condition"),
        _make_number_column("severity", "severity", None),
        Column("physical severity", "physical"),
        _make_number_column("runs", "seeds_done"),
        _make_interval_column("accuracy", "accuracy_mean", "ci_low", "ci_high", "is_best"),
        _make_percent_column("spread over runs", "accuracy_std"),
        _make_percent_column("consistency with clean", "consistency"),
        *BALANCED_COLUMNS,
        *SCORE_COLUMNS,
    )
    caption = (
        f"{INTERVAL_NOTE} {BOLD_NOTE} {BALANCED_NOTE} {SCALED_NOTE} Consistency: fraction of galaxies "
        "with the same prediction as when clean, right or wrong. rotation_mean is over all angles."
    )
    return _make_tables("Every condition and severity", caption, frame, columns, "summary.csv")


def make_comparisons_section(tables: Tables) -> Section:
    """List the pairs of networks, the better of each first, and whether they differ significantly."""
    columns = (
        Column("network", "first"),
        Column("compared with", "second"),
        Column("difference (points)", ("difference", "ci_low", "ci_high"), "interval", 100, 1, signed=True),
        Column("p, after Holm", "p_holm", "p"),
        Column("significant", "significant"),
        _make_number_column("only the first correct", "only_a", 1),
        _make_number_column("only the second correct", "only_b", 1),
        Column("p", "p", "p"),
        _make_number_column("seeds", "seeds"),
    )
    caption = (
        "Clean test galaxies, the same for both. Difference of the accuracies with its 95 % interval (paired "
        "bootstrap); exact McNemar test, corrected for the number of pairs (Holm). A difference is significant if p is "
        "below 0.05 and the interval excludes 0."
    )
    frame = _sort_best_first(tables, tables.comparisons)
    pairs = _make_tables("All pairs of networks", caption, frame, columns, "comparisons.csv")
    return Section("Comparisons", tables=pairs)


def _sort_best_first(tables: Tables, comparisons: pd.DataFrame) -> pd.DataFrame:
    """Name the better network of each pair first, and sort pairs by their p value."""
    if comparisons.empty:
        return comparisons
    is_behind, names = comparisons["difference"] < 0, format_network_names(tables.networks)
    reversed_pairs = comparisons.rename(columns={"a": "b", "b": "a", "only_a": "only_b", "only_b": "only_a"})
    difference, low, high = (comparisons[name] for name in ("difference", "ci_low", "ci_high"))
    reversed_pairs = reversed_pairs.assign(difference=-difference, ci_low=-high, ci_high=-low)
    frame = pd.concat([comparisons[~is_behind], reversed_pairs[is_behind]])
    frame = frame.assign(first=frame["a"].map(names), second=frame["b"].map(names))
    return frame.sort_values(["p_holm", "difference"], ascending=[True, False], kind="stable")


def make_classes_section(tables: Tables) -> Section:
    """List precision, recall and F1 of each class."""
    columns = (
        NETWORK_COLUMN,
        Column("class", "name"),
        _make_number_column("galaxies", "support"),
        _make_percent_column("precision", "precision"),
        _make_interval_column("recall", "recall", "recall_low", "recall_high"),
        _make_percent_column("F1", "f1"),
    )
    caption = f"Clean test galaxies, means over runs. {INTERVAL_NOTE}"
    frame = _add_network_names(tables, tables.per_class)
    each_class = _make_tables("Each class", caption, frame, columns, "per_class.csv")
    return Section("Classes", tables=(*each_class, *_make_confused_pairs_table(tables)))


def _make_confused_pairs_table(tables: Tables) -> tuple[Table, ...]:
    """List the most frequent errors of each network, by their true and predicted classes."""
    if tables.confusion.empty or tables.per_class.empty:
        return ()
    totals = tables.confusion.groupby(["label", "truth"], sort=False)["count"].transform("sum")
    frame = tables.confusion.assign(percent=100 * tables.confusion["count"] / totals)
    frame = frame[(frame["truth"] != frame["predicted"]) & (frame["count"] > 0)]
    frame = frame.sort_values("count", ascending=False, kind="stable").groupby("label").head(MAX_CONFUSED_PAIRS)
    names = tables.per_class.drop_duplicates("class").set_index("class")["name"]
    frame = frame.assign(truth=frame["truth"].map(names), predicted=frame["predicted"].map(names))
    columns = (
        NETWORK_COLUMN,
        Column("class", "truth"),
        Column("predicted as", "predicted"),
        _make_number_column("galaxies", "count"),
        _make_number_column("of the class (%)", "percent", 1),
    )
    caption = (
        f"Clean test galaxies, all runs pooled: the most frequent errors, at most {MAX_CONFUSED_PAIRS} pairs of "
        "classes of each network."
    )
    return _make_tables("Most confused classes", caption, _add_network_names(tables, frame), columns, "confusion.csv")


def make_attack_section(tables: Tables) -> Section:
    """List the success rates of the one-pixel attack."""
    columns = (
        NETWORK_COLUMN,
        Column("galaxies", "galaxies"),
        _make_number_column("queries", "budget"),
        _make_number_column("attacked", "n"),
        _make_number_column("successes", "successes"),
        _make_interval_column("success rate", "rate", "low", "high"),
        _make_number_column("seeds", "seeds"),
    )
    caption = (
        "One pixel is changed until the predicted class changes, with at most this many queries to the network per "
        "galaxy. In brackets: exact 95 % interval (Clopper and Pearson)."
    )
    sets = {"own": "correctly classified by this network", "common": "correctly classified by all networks"}
    frame = _add_network_names(tables, tables.attack)
    frame = frame.assign(galaxies=frame["set"].replace(sets)) if len(frame) else frame
    return Section("One-pixel attack", tables=_make_tables("One-pixel attack", caption, frame, columns, "attack.csv"))


def describe_best_network(tables: Tables) -> str:
    """Name the best network on clean galaxies and count the intervals that overlap its own; empty without results."""
    measured = sort_by_accuracy(tables.networks).dropna(subset="accuracy_mean")
    if measured.empty:
        return ""
    first, others = measured.iloc[0], measured.iloc[1:]
    text = f"{format_network_names(tables.networks)[first['label']]}: {100 * first['accuracy_mean']:.1f} %"
    if not np.isfinite(first["ci_low"]):
        return f"{text}; without intervals"
    num_overlapping = int((others["ci_high"] >= first["ci_low"]).sum())
    text += f" ({100 * first['ci_low']:.1f}–{100 * first['ci_high']:.1f})"
    plural = "s" * (num_overlapping != 1)
    return (
        f"{text}; the interval{plural} of {num_overlapping or 'no'} other{plural} overlap{'s' * (not plural)} its own"
    )


def _add_network_names(tables: Tables, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(network=frame["label"].map(format_network_names(tables.networks))) if len(frame) else frame


def _make_tables(
    title: str, caption: str, frame: pd.DataFrame, columns: tuple[Column, ...], file: str
) -> tuple[Table, ...]:
    """Return the table with its non-empty columns, or nothing if the frame has no rows."""
    non_empty = tuple(column for column in columns if _has_values(frame, column))
    return (Table(title, caption, frame, non_empty, file),) if len(frame) else ()


def _has_values(frame: pd.DataFrame, column: Column) -> bool:
    source = column.source if isinstance(column.source, str) else column.source[0]
    return source in frame and bool((frame[source].notna() & frame[source].ne("")).any())
