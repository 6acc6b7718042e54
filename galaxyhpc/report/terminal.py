"""The table of a sweep on a terminal: one row per network, the best first, nothing bolder than it deserves.

The best value is bold only together with all those whose intervals overlap its own; without intervals none is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from galaxyhpc.config.conditions import ROTATION_MEAN

if TYPE_CHECKING:
    import pandas as pd  # status wants the console alone, at once

NOISE_SEVERITIES = {"pedestal_noise": (0.75, 0.5, 0.25), "shot_noise": (3.0, 4.0, 5.0)}
COLUMN_HEADINGS = (
    *("parameters", "seeds", "clean", "rotation,\nmean of angles", "rotation,\nworst angle"),
    *("pedestal noise,\nSNR .75 / .5 / .25", "shot noise,\nseverity 3 / 4 / 5", "mean corruption\nerror, CNN = 1"),
)

CONDITION_COLUMNS = ["condition", "severity"]
VALUE_COLUMNS = ["accuracy_mean", "ci_low", "ci_high", "seeds_done"]


SummaryCell = dict[str, Any]  # a row of the summary, with `bold`, and `other` where it is not of the row's seeds
NetworkCells = dict[tuple[str, float], SummaryCell]  # of a network, by condition and severity


def make_terminal_table(title: str, networks: pd.DataFrame, summary: pd.DataFrame, notes: Sequence[str]) -> Table:
    """Lay out a sweep.

    `networks` and `summary` are those of `tables.Tables`.
    """
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("network", min_width=12)
    for head in COLUMN_HEADINGS:
        table.add_column(head, justify="right")
    cells = _make_cells(networks, summary)
    order: list[tuple[float, int, dict[Any, Any]]] = []
    for network in networks.to_dict("records"):
        clean = cells[network["label"]].get(("clean", 0.0), {"accuracy_mean": math.nan})["accuracy_mean"]
        order.append((-clean if math.isfinite(clean) else 1.0, len(order), network))
    for _, _, network in sorted(order, key=lambda entry: entry[:2]):
        table.add_row(*_make_row(network, cells[network["label"]]))
    table.caption = Text(
        "\n".join([*_explain_marks(networks, [cell for own in cells.values() for cell in own.values()]), *notes]),
        style="not italic",
    )
    return table


def _make_cells(networks: pd.DataFrame, summary: pd.DataFrame) -> dict[str, NetworkCells]:
    """Key what the table shows of the summary by network, leaving out what no seed has."""
    done = summary["label"].map(networks.set_index("label")["seeds_done"])
    marked = summary[[*CONDITION_COLUMNS, *VALUE_COLUMNS]].assign(
        bold=mark_best(summary), other=summary["seeds_done"] != done
    )
    cells: dict[str, NetworkCells] = {label: {} for label in networks["label"]}
    measured = marked[marked["seeds_done"] > 0]
    for label, cell in zip(summary.loc[measured.index, "label"], measured.to_dict("records"), strict=True):
        cells[label][cell["condition"], cell["severity"]] = {str(name): value for name, value in cell.items()}
    return cells


def mark_best(summary: pd.DataFrame) -> pd.Series:
    """Mark, for each condition and severity, the best mean and all whose intervals overlap its own."""
    measured = summary[summary["accuracy_mean"].notna()]
    best = measured.loc[measured.groupby(CONDITION_COLUMNS)["accuracy_mean"].idxmax()]
    rival = (
        summary[CONDITION_COLUMNS]
        .merge(best[[*CONDITION_COLUMNS, "ci_low", "ci_high"]], on=CONDITION_COLUMNS, how="left")
        .set_index(summary.index)
    )
    return (summary["ci_high"] >= rival["ci_low"]) & (summary["ci_low"] <= rival["ci_high"])


def _make_row(network: dict[Any, Any], cells: NetworkCells) -> list[Text]:
    label, done, planned = network["label"], network["seeds_done"], network["seeds_planned"]
    angles = [cell for (condition, _), cell in cells.items() if condition == "rotation"]
    worst = min(angles, key=lambda cell: float(cell["accuracy_mean"]), default=None)
    return [
        Text(label),
        Text(f"{network['parameters']:,}"),
        Text(f"{done}/{planned}{'†' if done < planned else ''}"),
        _format_with_interval(cells.get(("clean", 0.0))),
        _format_with_interval(cells.get(ROTATION_MEAN)),
        _format_percent(worst) + (Text(f" at {worst['severity']:g}°") if worst else Text()),
        *(_format_side_by_side([cells.get((name, s)) for s in some]) for name, some in NOISE_SEVERITIES.items()),
        _format_corruption_error(network),
    ]


def _format_corruption_error(network: dict[Any, Any]) -> Text:
    """`0.93 (0.90-0.97)`, the interval that of the ratio to the CNN; never bold."""
    if math.isnan(network["mce"]):
        return Text("-")
    return Text(f"{network['mce']:.2f} ({network['mce_low']:.2f}-{network['mce_high']:.2f})")


def _format_percent(cell: SummaryCell | None) -> Text:
    """`93.1`, and `93.1[4]` where 4 seeds are behind it and not the row's number."""
    if cell is None:
        return Text("-")
    seeds = f"[{cell['seeds_done']}]" if cell["other"] else ""
    return Text.assemble((f"{100 * cell['accuracy_mean']:.1f}", "bold" if cell["bold"] else ""), seeds)


def _format_with_interval(cell: SummaryCell | None) -> Text:
    if cell is None or math.isnan(cell["ci_low"]):
        return _format_percent(cell)
    return _format_percent(cell) + Text(f" ({100 * cell['ci_low']:.1f}-{100 * cell['ci_high']:.1f})")


def _format_side_by_side(cells: list[SummaryCell | None]) -> Text:
    return Text(" / ").join([_format_percent(cell) for cell in cells])


def _explain_marks(networks: pd.DataFrame, cells: list[SummaryCell]) -> list[str]:
    """Say what the signs mean that occur."""
    said = []
    if any(math.isfinite(cell["ci_low"]) for cell in cells):
        said.append("In brackets: 95 % interval of the mean over seeds (bootstrap over seeds and pieces of sky).")
    if any(cell["bold"] for cell in cells):
        said.append("Bold: the best, and all whose intervals overlap the best's: they cannot be told apart.")
    if (networks["seeds_done"] < networks["seeds_planned"]).any():
        said.append("†: not all planned seeds are in.")
    if any(cell["other"] for cell in cells):
        said.append("[k]: a mean over k seeds, not over the number in the column seeds.")
    return said
