r"""The tables of a paper, in LaTeX with booktabs: \input{tables.tex} after \usepackage{booktabs}.

The best number is bold only together with every other that cannot be told apart from it: on clean galaxies by the
paired comparisons and by its interval, elsewhere by intervals that overlap. A number without an interval is never bold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

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
    "Bold: the best, and all that cannot be told apart from it (clean: paired comparisons, exact McNemar with Holm's "
    "correction and bootstrap; elsewhere: overlapping intervals)."
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
    turned = networks[["label"]].merge(_select_condition(tables.summary, "rotation_mean"), on="label", how="left")
    cells = {
        "clean": _get_cells(clean, ["accuracy_mean", "ci_low", "ci_high"]),
        "turned": _get_cells(turned, ["accuracy_mean", "ci_low", "ci_high"]),
        "mce": _get_cells(networks, ["mce", "mce_low", "mce_high"]),
    }
    bold = {
        "clean": _select_indistinguishable(cells["clean"], tables.comparisons),
        "turned": select_overlapping(cells["turned"]),
        "mce": select_overlapping({label: (-mean, -high, -low) for label, (mean, low, high) in cells["mce"].items()}),
    }
    columns: dict[str, Callable[[NetworkRow], str]] = {
        "Parameters": lambda row: _format_count(row["parameters"]),
        "Multiply-adds": lambda row: _format_count(row["multiply_adds"]),
        "Seeds": lambda row: f"{row['seeds_done']}/{row['seeds_planned']}",
        r"Clean (\%)": lambda row: _format_interval(cells["clean"][row["label"]], row["label"] in bold["clean"]),
        r"Rotated (\%)": lambda row: _format_interval(cells["turned"][row["label"]], row["label"] in bold["turned"]),
        r"Macro $F_1$ (\%)": lambda row: _format_percent(row.get("macro_f1", math.nan)),
        r"ECE (\%)": lambda row: _format_percent(row.get("ece", math.nan)),
        r"ECE scaled (\%)": lambda row: _format_percent(row.get("ece_scaled", math.nan)),
        "mCE": lambda row: _format_number(cells["mce"][row["label"]][0], row["label"] in bold["mce"], "{:.2f}"),
    }
    body = {head: [write(row) for row in clean.to_dict("records")] for head, write in columns.items()}
    body = {head: texts for head, texts in body.items() if set(texts) != {MISSING_VALUE}}
    rows = list(zip(_format_names(networks), *body.values(), strict=True))
    said = ["In brackets: 95 % intervals over seeds and pieces of sky. Rotated: mean over all angles.", note]
    said += ["mCE: mean corruption error, the CNN's is 1."] if "mCE" in body else []
    caption = _format_caption("Accuracy on test galaxies", info, [*said, *_explain_marks(networks, any(bold.values()))])
    return _format_table(caption, "tab:networks", "l" + "r" * len(body), ["Network", *body], rows)


def format_robustness_table(tables: Tables, info: ReportInfo) -> str:
    """Write one row per condition, at its hardest severity, and one column per network."""
    networks, note = _select_best(tables.networks, MAX_NETWORK_COLUMNS)
    kept = tables.summary[tables.summary["label"].isin(networks["label"])]
    rows, any_bold = [], False
    for words, condition, severity in _list_condition_rows(kept):
        there = kept[(kept["condition"] == condition) & (kept["severity"] == severity)]
        cells = _get_cells(there, ["accuracy_mean", "ci_low", "ci_high"])
        best = (
            select_overlapping(cells) if condition != "clean" else _select_indistinguishable(cells, tables.comparisons)
        )
        any_bold = any_bold or bool(best)
        nothing = (math.nan, math.nan, math.nan)
        numbers = [
            _format_number(100 * cells.get(label, nothing)[0], label in best, "{:.1f}") for label in networks["label"]
        ]
        rows.append([words, *numbers])
    said = ["Each condition at its hardest severity, the networks in the order of their accuracy.", note]
    caption = _format_caption(
        "Accuracy in per cent under each condition", info, [*said, *_explain_marks(networks, any_bold)]
    )
    heads = ["Condition", *_format_names(networks)]
    return _format_table(caption, "tab:robustness", "l" + "r" * len(networks), heads, rows)


def escape(text: str) -> str:
    """Write a text so that LaTeX prints it as it is."""
    return "".join(LATEX_ESCAPES.get(character, character) for character in text)


def select_overlapping(cells: dict[str, MeanWithInterval]) -> set[str]:
    """Choose the best and all whose intervals overlap its own; none where it stands alone or has no interval."""
    measured = {label: cell for label, cell in cells.items() if math.isfinite(cell[0])}
    if len(measured) < 2:
        return set()
    _, low, high = max(measured.values(), key=lambda cell: cell[0])
    return {label for label, (_, below, above) in measured.items() if below <= high and above >= low}


def _select_indistinguishable(cells: dict[str, MeanWithInterval], comparisons: pd.DataFrame) -> set[str]:
    """Choose the best and all not separable from it: by their comparison, or else by their intervals.

    Were the best alone in bold, those whose means lie inside its interval are bold too.
    """
    near = select_overlapping(cells)
    if not near:
        return set()
    best = max(near, key=lambda label: cells[label][0])
    _, low, high = cells[best]
    separable = _get_significance(best, comparisons)
    inside = {label for label, (mean, _, _) in cells.items() if low <= mean <= high}
    chosen = {best} | {label for label in cells if not separable.get(label, label not in near)}
    return chosen if len(chosen) > 1 else chosen | inside


def _get_significance(best: str, comparisons: pd.DataFrame) -> dict[str, bool]:
    """Say of each network compared with the best one whether they are separable."""
    if comparisons.empty:
        return {}
    pairs = comparisons[(comparisons["a"] == best) | (comparisons["b"] == best)]
    others = np.where(pairs["a"] == best, pairs["b"], pairs["a"])
    return dict(zip(others.tolist(), pairs["separable"].tolist(), strict=True))


def _select_best(networks: pd.DataFrame, max_networks: int) -> tuple[pd.DataFrame, str]:
    order = sort_by_accuracy(networks)
    left_out = len(order) > max_networks
    return order[
        :max_networks
    ], f"Of {len(order)} networks, the {max_networks} best on clean galaxies." if left_out else ""


def _select_condition(summary: pd.DataFrame, condition: str) -> pd.DataFrame:
    numbers = ["accuracy_mean", "ci_low", "ci_high", "macro_f1", "ece", "ece_scaled"]
    return summary.loc[summary["condition"] == condition, ["label", *(n for n in numbers if n in summary)]]


def _get_cells(table: pd.DataFrame, columns: list[str]) -> dict[str, MeanWithInterval]:
    numbers = table[columns].itertuples(index=False, name=None)
    return {str(label): (mean, low, high) for label, (mean, low, high) in zip(table["label"], numbers, strict=True)}


def _list_condition_rows(summary: pd.DataFrame) -> list[tuple[str, str, float]]:
    """List what each row is called, and its condition and severity."""
    there = dict.fromkeys(zip(summary["condition"], summary["severity"], strict=True))
    rows = [("clean", "clean", 0.0)] * (("clean", 0.0) in there)
    rows += [("rotation, mean of angles", "rotation_mean", 0.0)] * (("rotation_mean", 0.0) in there)
    names = dict.fromkeys(str(c) for c, _ in there if is_condition(str(c)))
    known = [name for name in DEFAULT_CONDITIONS if name in names]
    for name in [*known, *(n for n in names if n not in known)]:
        if name in ("clean", "rotation", "rotation_control"):
            continue
        severities = [severity for condition, severity in there if condition == name]
        for severity in severities if name in CATEGORICAL_LABELS else severities[-1:]:
            words = f"{name.replace('_', ' ').replace('+', ' + ')}, {describe_severity(name, severity)}"
            rows.append((escape(words), name, severity))
    return rows


def _assign_flaw_marks(networks: pd.DataFrame) -> dict[str, str]:
    """Give each flaw a letter."""
    return {flaw: chr(ord("a") + n) for n, flaw in enumerate(dict.fromkeys(f for f in networks["flaw"] if f))}


def _format_names(networks: pd.DataFrame) -> list[str]:
    """Name networks with the marks of what a reader must know of them."""
    marks = _assign_flaw_marks(networks)
    partial = (networks["seeds_done"] < networks["seeds_planned"]).tolist()
    signs = zip(networks["label"], networks["flaw"], partial, strict=True)
    return [
        escape(str(label)) + (rf"$^{{{marks[flaw]}}}$" if flaw else "") + (r"$^\dagger$" if lacking else "")
        for label, flaw, lacking in signs
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
    """`1.25 M`."""
    if not math.isfinite(value):
        return MISSING_VALUE
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return rf"{value / factor:.3g}\,{letter}"
    return f"{value:g}"


def _explain_marks(networks: pd.DataFrame, has_bold: bool) -> list[str]:
    """Say what the signs mean that occur, and name flaws."""
    said = [BOLD_NOTE] if has_bold else []
    partial = networks["seeds_done"] < networks["seeds_planned"]
    said += ["DAGGER: not all planned seeds are in."] if partial.any() else []
    said += [f"FLAW ({mark}): {flaw}." for flaw, mark in _assign_flaw_marks(networks).items()]
    return said


def _format_caption(heading: str, info: ReportInfo, notes: Sequence[str]) -> str:
    said = [f"{heading}. {info.title}.", *notes]
    if np.isfinite(info.chance_accuracy):
        said.append(f"Always naming the commonest class: {100 * info.chance_accuracy:.1f} %.")
    said += [f"{GENERATED_NOTICE}: this says nothing about real ones."] if info.generated else []
    text = escape(" ".join(note for note in said if note)).replace("DAGGER", r"$^\dagger$")
    return re.sub(r" \\%", r"\\,\\%", text)


def _format_table(
    caption: str, label: str, column_spec: str, headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    empty = rf"\multicolumn{{{len(headings)}}}{{l}}{{no planned run is in yet}}"
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
