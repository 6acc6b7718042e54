r"""The tables of a paper, in LaTeX with booktabs: \input{tables.tex} after \usepackage{booktabs}.

The best number is bold together with every other that does not differ significantly from it: on clean galaxies by the
paired comparisons and by its interval, elsewhere by overlapping intervals. A number without an interval is never bold.
pandas.Styler.to_latex would write the frame, but not escape captions, names with marks and bold cells: no shorter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from galaxyhpc.analysis.statistics import overlaps_best
from galaxyhpc.analysis.tables import GENERATED_NOTICE, ReportInfo, Tables, sort_by_accuracy
from galaxyhpc.config.conditions import CATEGORICAL_LABELS, DEFAULT_CONDITIONS, describe_severity, is_condition

MAX_NETWORK_ROWS, MAX_NETWORK_COLUMNS = 40, 8  # networks that fit a page as rows, and as columns
LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
}
LATEX_ESCAPES |= {character: f"\\{character}" for character in "&%$#_{}"}
MISSING_VALUE = "--"
BOLD_NOTE = (
    "Bold: the best, and all that do not differ significantly from it (clean: paired comparisons, exact McNemar test "
    "with Holm's correction and bootstrap; elsewhere: overlapping intervals)."
)

MeanWithInterval = tuple[float, float, float]  # mean, low, high; low and high are nan without an interval
NetworkRow = dict[Any, Any]


def format_document(tables: Tables, info: ReportInfo) -> str:
    """Write all tables, to be read by \\input."""
    head = r"% written by galaxyhpc.aggregate; needs \usepackage{booktabs}"
    return "\n\n".join([head, format_main_table(tables, info), format_robustness_table(tables, info)]) + "\n"


def format_main_table(tables: Tables, info: ReportInfo) -> str:
    """Write one row per network, the best on clean galaxies first: its cost, accuracy and calibration."""
    networks, note = _select_best(tables.networks, MAX_NETWORK_ROWS)
    clean = networks.merge(_select_condition(tables.summary, "clean"), on="label", how="left", suffixes=("", "_clean"))
    rotated = networks[["label"]].merge(_select_condition(tables.summary, "rotation_mean"), on="label", how="left")
    cells = {
        "clean": _get_cells(clean, ["accuracy_mean", "ci_low", "ci_high"]),
        "rotated": _get_cells(rotated, ["accuracy_mean", "ci_low", "ci_high"]),
        "mce": _get_cells(networks, ["mce", "mce_low", "mce_high"]),
    }
    bold = {
        "clean": _select_indistinguishable(cells["clean"], tables.comparisons),
        "rotated": select_overlapping(cells["rotated"]),
        "mce": select_overlapping({label: (-mean, -high, -low) for label, (mean, low, high) in cells["mce"].items()}),
    }
    columns: dict[str, Callable[[NetworkRow], str]] = {
        "Parameters": lambda row: _format_count(row["parameters"]),
        "Multiply-adds": lambda row: _format_count(row["multiply_adds"]),
        "Runs": lambda row: f"{row['seeds_done']}/{row['seeds_planned']}",
        r"Clean (\%)": lambda row: _format_interval(cells["clean"][row["label"]], row["label"] in bold["clean"]),
        r"Rotated (\%)": lambda row: _format_interval(cells["rotated"][row["label"]], row["label"] in bold["rotated"]),
        r"Balanced (\%)": lambda row: _format_percent(row.get("balanced_accuracy", math.nan)),
        r"Macro $F_1$ (\%)": lambda row: _format_percent(row.get("macro_f1", math.nan)),
        r"ECE (\%)": lambda row: _format_percent(row.get("ece", math.nan)),
        r"ECE scaled (\%)": lambda row: _format_percent(row.get("ece_scaled", math.nan)),
        "mCE": lambda row: _format_number(cells["mce"][row["label"]][0], row["label"] in bold["mce"], "{:.2f}"),
    }
    body = {heading: [write(row) for row in clean.to_dict("records")] for heading, write in columns.items()}
    body = {heading: texts for heading, texts in body.items() if set(texts) != {MISSING_VALUE}}
    rows = list(zip(_format_names(networks), *body.values(), strict=True))
    notes = ["In brackets: 95 % intervals over seeds and groups of galaxies. Rotated: mean over all angles.", note]
    notes += ["Balanced: mean recall of the classes."] if r"Balanced (\%)" in body else []
    notes += ["mCE: mean corruption error, relative to the CNN (1)."] if "mCE" in body else []
    notes += _explain_marks(networks, any(bold.values()))
    caption = _format_caption("Accuracy on test galaxies", info, notes)
    return _format_table(caption, "tab:networks", "l" + "r" * len(body), ["Network", *body], rows)


def format_robustness_table(tables: Tables, info: ReportInfo) -> str:
    """Write one row per condition, at its highest severity, and one column per network."""
    networks, note = _select_best(tables.networks, MAX_NETWORK_COLUMNS)
    summary = tables.summary[tables.summary["label"].isin(networks["label"])]
    rows, any_bold = [], False
    for name, condition, severity in _list_condition_rows(summary):
        measured = summary[(summary["condition"] == condition) & (summary["severity"] == severity)]
        cells = _get_cells(measured, ["accuracy_mean", "ci_low", "ci_high"])
        is_clean = condition == "clean"
        best = _select_indistinguishable(cells, tables.comparisons) if is_clean else select_overlapping(cells)
        any_bold = any_bold or bool(best)
        means = {label: 100 * mean for label, (mean, _, _) in cells.items()}
        labels = networks["label"]
        rows.append([name, *(_format_number(means.get(n, math.nan), n in best, "{:.1f}") for n in labels)])
    notes = ["Each condition at its highest severity; networks in the order of their accuracy.", note]
    notes += _explain_marks(networks, any_bold)
    caption = _format_caption("Accuracy in per cent under each condition", info, notes)
    headings = ["Condition", *_format_names(networks)]
    return _format_table(caption, "tab:robustness", "l" + "r" * len(networks), headings, rows)


def escape(text: str) -> str:
    """Escape the special characters of LaTeX."""
    return "".join(LATEX_ESCAPES.get(character, character) for character in text)


def select_overlapping(cells: dict[str, MeanWithInterval]) -> set[str]:
    """Select the best and all whose intervals overlap its interval; none if it is alone or has no interval."""
    measured = {label: cell for label, cell in cells.items() if math.isfinite(cell[0])}
    if len(measured) < 2:
        return set()
    is_best = overlaps_best(*np.array(list(measured.values())).T)
    return {label for label, best in zip(measured, is_best.tolist(), strict=True) if best}


def _select_indistinguishable(cells: dict[str, MeanWithInterval], comparisons: pd.DataFrame) -> set[str]:
    """Select the best and all not significantly different: by their comparison, or else by their intervals.

    If the best were bold alone, those whose means lie inside its interval are bold too.
    """
    overlapping = select_overlapping(cells)
    if not overlapping:
        return set()
    best = max(overlapping, key=lambda label: cells[label][0])
    _, low, high = cells[best]
    significant = _get_significance(best, comparisons)
    inside = {label for label, (mean, _, _) in cells.items() if low <= mean <= high}
    selected = {best} | {label for label in cells if not significant.get(label, label not in overlapping)}
    return selected if len(selected) > 1 else selected | inside


def _get_significance(best: str, comparisons: pd.DataFrame) -> dict[str, bool]:
    """Return, for each network compared with the best one, whether the difference is significant."""
    if comparisons.empty:
        return {}
    pairs = comparisons[(comparisons["a"] == best) | (comparisons["b"] == best)]
    others = np.where(pairs["a"] == best, pairs["b"], pairs["a"])
    return dict(zip(others.tolist(), pairs["significant"].tolist(), strict=True))


def _select_best(networks: pd.DataFrame, max_networks: int) -> tuple[pd.DataFrame, str]:
    ordered = sort_by_accuracy(networks)
    is_cut = len(ordered) > max_networks
    note = f"Of {len(ordered)} networks, the {max_networks} best on clean galaxies." if is_cut else ""
    return ordered[:max_networks], note


def _select_condition(summary: pd.DataFrame, condition: str) -> pd.DataFrame:
    numbers = ["accuracy_mean", "ci_low", "ci_high", "balanced_accuracy", "macro_f1", "ece", "ece_scaled"]
    return summary.loc[summary["condition"] == condition, ["label", *(n for n in numbers if n in summary)]]


def _get_cells(table: pd.DataFrame, columns: list[str]) -> dict[str, MeanWithInterval]:
    numbers = table[columns].itertuples(index=False, name=None)
    return {str(label): (mean, low, high) for label, (mean, low, high) in zip(table["label"], numbers, strict=True)}


def _list_condition_rows(summary: pd.DataFrame) -> list[tuple[str, str, float]]:
    """List the name of each row, its condition and its severity."""
    pairs = dict.fromkeys(zip(summary["condition"], summary["severity"], strict=True))
    rows = [("clean", "clean", 0.0)] * (("clean", 0.0) in pairs)
    rows += [("rotation, mean of angles", "rotation_mean", 0.0)] * (("rotation_mean", 0.0) in pairs)
    names = dict.fromkeys(str(condition) for condition, _ in pairs if is_condition(str(condition)))
    known = [name for name in DEFAULT_CONDITIONS if name in names]
    for name in [*known, *(n for n in names if n not in known)]:
        if name in ("clean", "rotation", "rotation_control"):
            continue
        severities = [severity for condition, severity in pairs if condition == name]
        for severity in severities if name in CATEGORICAL_LABELS else severities[-1:]:
            text = f"{name.replace('_', ' ').replace('+', ' + ')}, {describe_severity(name, severity)}"
            rows.append((escape(text), name, severity))
    return rows


def _assign_flaw_marks(networks: pd.DataFrame) -> dict[str, str]:
    """Return a letter for each flaw."""
    return {flaw: chr(ord("a") + n) for n, flaw in enumerate(dict.fromkeys(f for f in networks["flaw"] if f))}


def _format_names(networks: pd.DataFrame) -> list[str]:
    """Return the names of networks, with marks for flaws and missing runs."""
    marks = _assign_flaw_marks(networks)
    is_partial = (networks["seeds_done"] < networks["seeds_planned"]).tolist()
    return [
        escape(str(label)) + (rf"$^{{{marks[flaw]}}}$" if flaw else "") + (r"$^\dagger$" if partial else "")
        for label, flaw, partial in zip(networks["label"], networks["flaw"], is_partial, strict=True)
    ]


def _format_interval(cell: MeanWithInterval, is_bold: bool) -> str:
    mean, low, high = (100 * value for value in cell)
    text = _format_number(mean, is_bold, "{:.1f}")
    return text if math.isnan(low) or text == MISSING_VALUE else f"{text} ({low:.1f}--{high:.1f})"


def _format_percent(value: float) -> str:
    return _format_number(100 * value, False, "{:.1f}")


def _format_number(value: float, is_bold: bool, template: str) -> str:
    if not math.isfinite(value):
        return MISSING_VALUE
    text = template.format(value)
    return rf"\textbf{{{text}}}" if is_bold else text


def _format_count(value: float) -> str:
    """Return a large number with its unit: `1.25 M`."""
    if not math.isfinite(value):
        return MISSING_VALUE
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return rf"{value / factor:.3g}\,{letter}"
    return f"{value:g}"


def _explain_marks(networks: pd.DataFrame, has_bold: bool) -> list[str]:
    """Explain the marks that occur, and name flaws."""
    notes = [BOLD_NOTE] if has_bold else []
    partial = networks["seeds_done"] < networks["seeds_planned"]
    notes += ["DAGGER: not all planned runs are complete."] if partial.any() else []
    notes += [f"FLAW ({mark}): {flaw}." for flaw, mark in _assign_flaw_marks(networks).items()]
    return notes


def _format_caption(heading: str, info: ReportInfo, notes: Sequence[str]) -> str:
    sentences = [f"{heading}. {info.title}.", *notes, info.describe_chance()]
    sentences += [f"{GENERATED_NOTICE}: this says nothing about real ones."] if info.generated else []
    text = escape(" ".join(sentence for sentence in sentences if sentence)).replace("DAGGER", r"$^\dagger$")
    return re.sub(r" \\%", r"\\,\\%", text)


def _format_table(
    caption: str, label: str, column_spec: str, headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    empty = rf"\multicolumn{{{len(headings)}}}{{l}}{{no runs complete yet}}"
    body = [" & ".join(row) + r" \\" for row in rows] or [empty + r" \\"]
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering\small",
            rf"\caption{{{caption}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{{column_spec}}}",
            r"\toprule",
            " & ".join(headings) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
        ]
    )
