"""The table of a sweep on a terminal: one row per network, the best first.

The best value is bold together with all those whose intervals overlap its interval; without intervals nothing is bold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.text import Text

from galaxyhpc.analysis.statistics import overlaps_best
from galaxyhpc.config.conditions import ROTATION_MEAN
from galaxyhpc.runtime.console import ConsoleTable

NOISE_SEVERITIES = {"pedestal_noise": (0.75, 0.5, 0.25), "shot_noise": (3.0, 4.0, 5.0)}
COLUMN_HEADINGS = (
    *(
        "network",
        "parameters",
        "runs",
        "clean",
        "balanced accuracy\n/ macro F1",
        "rotation,\nmean of angles",
        "rotation,\nworst angle",
    ),
    *("pedestal noise,\nSNR .75 / .5 / .25", "shot noise,\nseverity 3 / 4 / 5", "mean corruption\nerror, CNN = 1"),
)

CONDITION_COLUMNS = ["condition", "severity"]
VALUE_COLUMNS = ["accuracy_mean", "balanced_accuracy", "macro_f1", "ci_low", "ci_high", "seeds_done"]

SummaryCell = dict[str, Any]  # a row of the summary; is_bold; has_other_seeds: not as many as the network's row says
NetworkCells = dict[tuple[str, float], SummaryCell]  # of one network, by condition and severity


def make_terminal_table(
    title: str, networks: pd.DataFrame, summary: pd.DataFrame, notes: Sequence[str]
) -> ConsoleTable:
    """Lay out the tables `networks` and `summary` of `tables.Tables`, with notes below."""
    cells = _make_cells(networks, summary)
    order: list[tuple[float, int, dict[Any, Any]]] = []
    for network in networks.to_dict("records"):
        clean = cells[network["label"]].get(("clean", 0.0), {"accuracy_mean": math.nan})["accuracy_mean"]
        order.append((-clean if math.isfinite(clean) else 1.0, len(order), network))
    ordered = (network for _, _, network in sorted(order, key=lambda entry: entry[:2]))
    rows = [_make_row(network, cells[network["label"]]) for network in ordered]
    marks = _explain_marks(networks, [cell for network_cells in cells.values() for cell in network_cells.values()])
    return ConsoleTable(title, COLUMN_HEADINGS, rows, notes="\n".join([*marks, *notes]))


def _make_cells(networks: pd.DataFrame, summary: pd.DataFrame) -> dict[str, NetworkCells]:
    """Return the summary's rows by network, condition and severity, without those that no seed has."""
    seeds_done = summary["label"].map(networks.set_index("label")["seeds_done"])
    marked = summary[[*CONDITION_COLUMNS, *VALUE_COLUMNS]].assign(
        is_bold=mark_best(summary), has_other_seeds=summary["seeds_done"] != seeds_done
    )
    cells: dict[str, NetworkCells] = {label: {} for label in networks["label"]}
    measured = marked[marked["seeds_done"] > 0]
    for label, cell in zip(summary.loc[measured.index, "label"], measured.to_dict("records"), strict=True):
        cells[label][cell["condition"], cell["severity"]] = {str(name): value for name, value in cell.items()}
    return cells


def mark_best(summary: pd.DataFrame) -> pd.Series:
    """Mark, for each condition and severity, the best mean and all whose intervals overlap its interval."""
    is_best = np.zeros(len(summary), dtype=bool)
    mean, low, high = summary[["accuracy_mean", "ci_low", "ci_high"]].to_numpy(float).T
    for indices in summary.groupby(CONDITION_COLUMNS).indices.values():
        is_best[indices] = overlaps_best(mean[indices], low[indices], high[indices])
    return pd.Series(is_best, index=summary.index)


def _make_row(network: dict[Any, Any], cells: NetworkCells) -> list[Text]:
    label, num_done, num_planned = network["label"], network["seeds_done"], network["seeds_planned"]
    angles = [cell for (condition, _), cell in cells.items() if condition == "rotation"]
    worst = min(angles, key=lambda cell: float(cell["accuracy_mean"]), default=None)
    return [
        Text(label),
        Text(f"{network['parameters']:,}"),
        Text(f"{num_done}/{num_planned}{'†' if num_done < num_planned else ''}"),
        _format_with_interval(cells.get(("clean", 0.0))),
        _format_class_means(cells.get(("clean", 0.0))),
        _format_with_interval(cells.get(ROTATION_MEAN)),
        _format_percent(worst) + (Text(f" at {worst['severity']:g}°") if worst else Text()),
        *(_join_percents([cells.get((name, s)) for s in severities]) for name, severities in NOISE_SEVERITIES.items()),
        _format_corruption_error(network),
    ]


def _format_class_means(cell: SummaryCell | None) -> Text:
    """Return balanced accuracy and macro F1 in per cent, `88.1 / 87.5`; never bold."""
    return Text(f"{100 * cell['balanced_accuracy']:.1f} / {100 * cell['macro_f1']:.1f}" if cell else "-")


def _format_corruption_error(network: dict[Any, Any]) -> Text:
    """Return `0.93 (0.90-0.97)`, the ratio to the CNN with its interval; never bold."""
    if math.isnan(network["mce"]):
        return Text("-")
    return Text(f"{network['mce']:.2f} ({network['mce_low']:.2f}-{network['mce_high']:.2f})")


def _format_percent(cell: SummaryCell | None) -> Text:
    """Return `93.1`, or `93.1[4]` if it is a mean over 4 runs and the row has another number of runs."""
    if cell is None:
        return Text("-")
    runs = f"[{cell['seeds_done']}]" if cell["has_other_seeds"] else ""
    return Text.assemble((f"{100 * cell['accuracy_mean']:.1f}", "bold" if cell["is_bold"] else ""), runs)


def _format_with_interval(cell: SummaryCell | None) -> Text:
    if cell is None or math.isnan(cell["ci_low"]):
        return _format_percent(cell)
    return _format_percent(cell) + Text(f" ({100 * cell['ci_low']:.1f}-{100 * cell['ci_high']:.1f})")


def _join_percents(cells: list[SummaryCell | None]) -> Text:
    return Text(" / ").join([_format_percent(cell) for cell in cells])


def _explain_marks(networks: pd.DataFrame, cells: list[SummaryCell]) -> list[str]:
    """Explain the marks that occur in the table."""
    lines = []
    if any(math.isfinite(cell["ci_low"]) for cell in cells):
        lines.append("In brackets: 95 % interval of the mean over runs (bootstrap over seeds and groups of galaxies).")
    if any(cell["is_bold"] for cell in cells):
        lines.append("Bold: the best, and all whose intervals overlap its interval.")
    if (networks["seeds_done"] < networks["seeds_planned"]).any():
        lines.append("†: not all planned runs are complete.")
    if any(cell["has_other_seeds"] for cell in cells):
        lines.append("[k]: mean over k runs, not over the number in the runs column.")
    return lines
