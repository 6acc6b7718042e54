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

from galaxyhpc.analysis.tables import GENERATED, About, Tables, ranked
from galaxyhpc.config.conditions import DEFAULT, KINDS, described, is_condition

ROWS, COLUMNS = 40, 8  # networks that fit a page as rows, and as columns
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}
ABSENT = "--"
BOLD = (
    "Bold: the best, and all that cannot be told apart from it (clean: paired comparisons, exact McNemar with Holm's "
    "correction and bootstrap; elsewhere: overlapping intervals)."
)

Cell = tuple[float, float, float]  # mean, low, high; low and high are nan without an interval
Row = dict[Any, Any]


def document(tables: Tables, about: About) -> str:
    """Write all tables, to be read by \\input."""
    head = r"% written by galaxyhpc.aggregate; needs \usepackage{booktabs}"
    return "\n\n".join([head, main_table(tables, about), robustness_table(tables, about)]) + "\n"


def main_table(tables: Tables, about: About) -> str:
    """Write one row per network, the best on clean galaxies first: its cost, accuracy and calibration."""
    networks, note = _best(tables.networks, ROWS)
    clean = networks.merge(_at(tables.summary, "clean"), on="label", how="left", suffixes=("", "_clean"))
    turned = networks[["label"]].merge(_at(tables.summary, "rotation_mean"), on="label", how="left")
    cells = {
        "clean": _cells(clean, ["accuracy_mean", "ci_low", "ci_high"]),
        "turned": _cells(turned, ["accuracy_mean", "ci_low", "ci_high"]),
        "mce": _cells(networks, ["mce", "mce_low", "mce_high"]),
    }
    bold = {
        "clean": _not_separable(cells["clean"], tables.comparisons),
        "turned": overlapping(cells["turned"]),
        "mce": overlapping({label: (-mean, -high, -low) for label, (mean, low, high) in cells["mce"].items()}),
    }
    columns: dict[str, Callable[[Row], str]] = {
        "Parameters": lambda row: _count(row["parameters"]),
        "Multiply-adds": lambda row: _count(row["multiply_adds"]),
        "Seeds": lambda row: f"{row['seeds_done']}/{row['seeds_planned']}",
        r"Clean (\%)": lambda row: _interval(cells["clean"][row["label"]], row["label"] in bold["clean"]),
        r"Rotated (\%)": lambda row: _interval(cells["turned"][row["label"]], row["label"] in bold["turned"]),
        r"Macro $F_1$ (\%)": lambda row: _percent(row.get("macro_f1", math.nan)),
        r"ECE (\%)": lambda row: _percent(row.get("ece", math.nan)),
        r"ECE scaled (\%)": lambda row: _percent(row.get("ece_scaled", math.nan)),
        "mCE": lambda row: _number(cells["mce"][row["label"]][0], row["label"] in bold["mce"], "{:.2f}"),
    }
    body = {head: [write(row) for row in clean.to_dict("records")] for head, write in columns.items()}
    body = {head: texts for head, texts in body.items() if set(texts) != {ABSENT}}
    rows = list(zip(_names(networks), *body.values(), strict=True))
    said = ["In brackets: 95 % intervals over seeds and pieces of sky. Rotated: mean over all angles.", note]
    said += ["mCE: mean corruption error, the CNN's is 1."] if "mCE" in body else []
    caption = _caption("Accuracy on test galaxies", about, [*said, *_signs(networks, any(bold.values()))])
    return _table(caption, "tab:networks", "l" + "r" * len(body), ["Network", *body], rows)


def robustness_table(tables: Tables, about: About) -> str:
    """Write one row per condition, at its hardest severity, and one column per network."""
    networks, note = _best(tables.networks, COLUMNS)
    kept = tables.summary[tables.summary["label"].isin(networks["label"])]
    rows, any_bold = [], False
    for words, condition, severity in _hardest(kept):
        there = kept[(kept["condition"] == condition) & (kept["severity"] == severity)]
        cells = _cells(there, ["accuracy_mean", "ci_low", "ci_high"])
        best = overlapping(cells) if condition != "clean" else _not_separable(cells, tables.comparisons)
        any_bold = any_bold or bool(best)
        nothing = (math.nan, math.nan, math.nan)
        numbers = [_number(100 * cells.get(label, nothing)[0], label in best, "{:.1f}") for label in networks["label"]]
        rows.append([words, *numbers])
    said = ["Each condition at its hardest severity, the networks in the order of their accuracy.", note]
    caption = _caption("Accuracy in per cent under each condition", about, [*said, *_signs(networks, any_bold)])
    heads = ["Condition", *_names(networks)]
    return _table(caption, "tab:robustness", "l" + "r" * len(networks), heads, rows)


def escaped(text: str) -> str:
    """Write a text so that LaTeX prints it as it is."""
    return "".join(SPECIAL.get(character, character) for character in text)


def overlapping(cells: dict[str, Cell]) -> set[str]:
    """Choose the best and all whose intervals overlap its own; none where it stands alone or has no interval."""
    measured = {label: cell for label, cell in cells.items() if math.isfinite(cell[0])}
    if len(measured) < 2:
        return set()
    _, low, high = max(measured.values(), key=lambda cell: cell[0])
    return {label for label, (_, below, above) in measured.items() if below <= high and above >= low}


def _not_separable(cells: dict[str, Cell], comparisons: pd.DataFrame) -> set[str]:
    """Choose the best and all not separable from it: by their comparison, or else by their intervals.

    Were the best alone in bold, those whose means lie inside its interval are bold too.
    """
    near = overlapping(cells)
    if not near:
        return set()
    best = max(near, key=lambda label: cells[label][0])
    _, low, high = cells[best]
    separable = _separable(best, comparisons)
    inside = {label for label, (mean, _, _) in cells.items() if low <= mean <= high}
    chosen = {best} | {label for label in cells if not separable.get(label, label not in near)}
    return chosen if len(chosen) > 1 else chosen | inside


def _separable(best: str, comparisons: pd.DataFrame) -> dict[str, bool]:
    """Say of each network compared with the best one whether they are separable."""
    if comparisons.empty:
        return {}
    pairs = comparisons[(comparisons["a"] == best) | (comparisons["b"] == best)]
    others = np.where(pairs["a"] == best, pairs["b"], pairs["a"])
    return dict(zip(others.tolist(), pairs["separable"].tolist(), strict=True))


def _best(networks: pd.DataFrame, most: int) -> tuple[pd.DataFrame, str]:
    order = ranked(networks)
    left_out = len(order) > most
    return order[:most], f"Of {len(order)} networks, the {most} best on clean galaxies." if left_out else ""


def _at(summary: pd.DataFrame, condition: str) -> pd.DataFrame:
    numbers = ["accuracy_mean", "ci_low", "ci_high", "macro_f1", "ece", "ece_scaled"]
    return summary.loc[summary["condition"] == condition, ["label", *(n for n in numbers if n in summary)]]


def _cells(table: pd.DataFrame, columns: list[str]) -> dict[str, Cell]:
    numbers = table[columns].itertuples(index=False, name=None)
    return {str(label): (mean, low, high) for label, (mean, low, high) in zip(table["label"], numbers, strict=True)}


def _hardest(summary: pd.DataFrame) -> list[tuple[str, str, float]]:
    """List what each row is called, and its condition and severity."""
    there = dict.fromkeys(zip(summary["condition"], summary["severity"], strict=True))
    rows = [("clean", "clean", 0.0)] * (("clean", 0.0) in there)
    rows += [("rotation, mean of angles", "rotation_mean", 0.0)] * (("rotation_mean", 0.0) in there)
    names = dict.fromkeys(str(c) for c, _ in there if is_condition(str(c)))
    known = [name for name in DEFAULT if name in names]
    for name in [*known, *(n for n in names if n not in known)]:
        if name in ("clean", "rotation", "rotation_control"):
            continue
        severities = [severity for condition, severity in there if condition == name]
        for severity in severities if name in KINDS else severities[-1:]:
            words = f"{name.replace('_', ' ').replace('+', ' + ')}, {described(name, severity)}"
            rows.append((escaped(words), name, severity))
    return rows


def _marks(networks: pd.DataFrame) -> dict[str, str]:
    """Give each flaw a letter."""
    return {flaw: chr(ord("a") + n) for n, flaw in enumerate(dict.fromkeys(f for f in networks["flaw"] if f))}


def _names(networks: pd.DataFrame) -> list[str]:
    """Name networks with the marks of what a reader must know of them."""
    marks = _marks(networks)
    partial = (networks["seeds_done"] < networks["seeds_planned"]).tolist()
    signs = zip(networks["label"], networks["flaw"], partial, strict=True)
    return [
        escaped(str(label)) + (rf"$^{{{marks[flaw]}}}$" if flaw else "") + (r"$^\dagger$" if lacking else "")
        for label, flaw, lacking in signs
    ]


def _interval(cell: Cell, bold: bool) -> str:
    mean, low, high = (100 * value for value in cell)
    text = _number(mean, bold, "{:.1f}")
    return text if math.isnan(low) or text == ABSENT else f"{text} ({low:.1f}--{high:.1f})"


def _percent(value: float) -> str:
    return _number(100 * value, False, "{:.1f}")


def _number(value: float, bold: bool, form: str) -> str:
    if not math.isfinite(value):
        return ABSENT
    text = form.format(value)
    return rf"\textbf{{{text}}}" if bold else text


def _count(value: float) -> str:
    """`1.25 M`."""
    if not math.isfinite(value):
        return ABSENT
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return rf"{value / factor:.3g}\,{letter}"
    return f"{value:g}"


def _signs(networks: pd.DataFrame, bold: bool) -> list[str]:
    """Say what the signs mean that occur, and name flaws."""
    said = [BOLD] if bold else []
    partial = networks["seeds_done"] < networks["seeds_planned"]
    said += ["DAGGER: not all planned seeds are in."] if partial.any() else []
    said += [f"FLAW ({mark}): {flaw}." for flaw, mark in _marks(networks).items()]
    return said


def _caption(heading: str, about: About, notes: Sequence[str]) -> str:
    said = [f"{heading}. {about.title}.", *notes]
    if np.isfinite(about.chance):
        said.append(f"Always naming the commonest class: {100 * about.chance:.1f} %.")
    said += [f"{GENERATED}: this says nothing about real ones."] if about.generated else []
    text = escaped(" ".join(note for note in said if note)).replace("DAGGER", r"$^\dagger$")
    return re.sub(r" \\%", r"\\,\\%", text)


def _table(caption: str, label: str, columns: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    empty = rf"\multicolumn{{{len(heads)}}}{{l}}{{no planned run is in yet}}"
    body = [" & ".join(row) + r" \\" for row in rows] or [empty + r" \\"]
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering\small",
            rf"\caption{{{caption}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
        ]
    )
