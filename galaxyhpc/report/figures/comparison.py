"""Comparisons of networks: accuracy against cost, significant differences, and errors under each condition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from galaxyhpc.analysis.statistics import find_cliques
from galaxyhpc.analysis.tables import ReportInfo, Tables, format_network_names, sort_by_accuracy
from galaxyhpc.config.conditions import DEFAULT_CONDITIONS
from galaxyhpc.report.figures.style import (
    PanelGrid,
    compute_axis_limits,
    draw_chance,
    estimate_width_inches,
    format_condition,
    label_curve_ends,
    make_figure,
    select_best_networks,
    select_with_styles,
    style_axes,
    wrap_text,
    write_cells,
)

MAX_NETWORKS = 32  # one row each
MAX_LISTED_PAIRS = 5
COST_LABELS = {
    "parameters": "parameters",
    "multiply_adds": "multiply-adds for one galaxy",
    "label_fraction": "fraction of the training galaxies used (%)",
}


def draw_pareto(tables: Tables, info: ReportInfo) -> Figure | None:
    """Draw accuracy against cost, with the Pareto front as a guide; None without results."""
    measured = tables.networks[tables.networks["accuracy_mean"].notna()]
    costs = [c for c in COST_LABELS if c in measured and (c != "label_fraction" or measured[c].nunique() > 1)]
    costs = [c for c in costs if measured[c].gt(0).any()]
    if measured.empty or not costs:
        return None
    selected, styles, note = select_with_styles(tables)
    selected = selected[selected["accuracy_mean"].notna()]
    names = format_network_names(selected)
    grid = PanelGrid(1, len(costs), 3.6, 4.6, (0.25, 0.5), right=estimate_width_inches([*names.values()]) + 0.3)
    notes = ["Clean galaxies; mean over runs with its 95 % interval.", note]
    notes += ["Grey line: Pareto front; a guide only, since most of its steps are within the intervals."]
    notes += ["Grey points: the other networks."] if note else []
    figure, panels = make_figure(info, "Accuracy against cost", notes, grid)
    span = compute_axis_limits(_get_accuracy_percent(measured), info.chance_accuracy)
    for n, (axes, cost) in enumerate(zip(panels, costs, strict=True)):
        style_axes(axes)
        axes.set_ylim(span)
        _draw_cost_panel(axes, cost, measured, styles)
        draw_chance(axes, info.chance_accuracy, should_label=n == 0)
        axes.set_xlabel(COST_LABELS[cost])
        axes.tick_params(labelleft=n == 0)
    panels[0].set_ylabel("test accuracy (%)")
    ends = zip(selected["label"], selected[costs[-1]], selected["accuracy_mean"], strict=True)
    label_curve_ends(panels[-1], [(names[label], styles[label], x, 100 * y) for label, x, y in ends if x > 0])
    return figure


def _get_accuracy_percent(networks: pd.DataFrame) -> list[NDArray[np.float64]]:
    return [100 * networks[column].to_numpy(float) for column in ("accuracy_mean", "ci_low", "ci_high")]


def _draw_cost_panel(axes: Axes, cost: str, measured_networks: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    """Draw the networks and the Pareto front in the panel of one cost."""
    networks = measured_networks[measured_networks[cost].gt(0)]
    unit = 100.0 if cost == "label_fraction" else 1.0
    for label, x, mean, low, high in networks[["label", cost, "accuracy_mean", "ci_low", "ci_high"]].itertuples(
        index=False
    ):
        style = styles.get(label, {"color": "0.75", "marker": "."})
        axes.vlines(unit * x, 100 * low, 100 * high, color=style["color"], lw=0.9, alpha=0.6)
        axes.plot(unit * x, 100 * mean, ms=5.5, zorder=3, **(style | {"linestyle": ""}))
    if cost == "label_fraction":
        for _, group in networks.sort_values(cost).groupby(["arch", "group"]):
            axes.plot(unit * group[cost], 100 * group["accuracy_mean"], color="0.7", lw=0.8)
    else:
        front = networks[networks[f"pareto_{cost}"].astype(bool)].sort_values(cost)
        axes.step(front[cost], 100 * front["accuracy_mean"], where="post", color="0.7", lw=1.0, zorder=1)
    _set_log_axis(axes, unit * networks[cost].to_numpy(float))


def _set_log_axis(axes: Axes, values: NDArray[np.float64]) -> None:
    """Make the horizontal axis logarithmic, with labelled ticks even if it spans less than a decade."""
    low, high = float(values.min()), float(values.max())
    margin = max((high / low) ** 0.08, 1.05)
    axes.set(xscale="log", xlim=(low / margin, high * margin))
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    ticks = [t for t in steps if low / margin <= t <= high * margin]
    if len(ticks) < 3:
        ticks = [
            t for t in MaxNLocator(4).tick_values(low / margin, high * margin) if low / margin <= t <= high * margin
        ]
    axes.xaxis.set_major_locator(FixedLocator(ticks[:: -(-len(ticks) // 6)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: _format_si(value))


def _format_si(value: float) -> str:
    """Return a number with its SI prefix: `400 k`, `1.5 G`."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.3g}"


def draw_comparison(tables: Tables, info: ReportInfo) -> Figure | None:
    """Draw the networks in the order of their accuracy; bars join those without significant differences."""
    measured = tables.networks[tables.networks["accuracy_mean"].notna()]
    if measured.empty:
        return None
    selected, note = select_best_networks(measured, MAX_NETWORKS)
    ordered = sort_by_accuracy(selected)
    styles, names = select_with_styles(tables)[1], format_network_names(selected)
    bars, explanations = _find_significance_bars(ordered["label"].tolist(), tables.comparisons)
    texts = [wrap_text(names[label], 44) for label in ordered["label"]]
    left = 0.5 + 0.08 * max(len(line) for text in texts for line in text.split("\n"))
    grid = PanelGrid(1, 1, 5.0, 0.3 * len(ordered) + 0.2, left=left, right=0.5 + 0.16 * len(bars))
    notes = ["Clean galaxies; mean over runs with its 95 % interval.", note, *explanations]
    if np.isfinite(info.chance_accuracy):
        notes.append(f"Always the majority class: {100 * info.chance_accuracy:.1f} %.")
    figure, (axes,) = make_figure(info, "Which differences are significant", notes, grid)
    style_axes(axes, "x")
    mean, low, high = _get_accuracy_percent(ordered)
    for row, label in enumerate(ordered["label"]):
        style = styles.get(label, {"color": "0.45", "marker": "o"}) | {"linestyle": ""}
        axes.hlines(row, low[row], high[row], color=style["color"], lw=1.2)
        axes.plot(mean[row], row, ms=6, **style)
    for n, bar in enumerate(bars):
        x = 1 + (0.2 + 0.16 * n) / grid.panel_width
        axes.plot([x, x], bar, "-", lw=3, color="0.25", transform=axes.get_yaxis_transform(), clip_on=False)
    axes.set(ylim=(len(ordered) - 0.5, -0.5), xlabel="test accuracy (%)")
    axes.set_yticks(range(len(ordered)), texts, fontsize=9)
    return figure


def _find_significance_bars(labels: list[str], comparisons: pd.DataFrame) -> tuple[list[tuple[int, int]], list[str]]:
    """Return the bars, as first and last index in `labels`, and notes on what they mean and cannot show."""
    if comparisons.empty:
        return [], ["The networks were not compared pair by pair."]
    index = {label: n for n, label in enumerate(labels)}
    significant = np.zeros((len(labels), len(labels)), dtype=bool)
    for a, b, is_significant in comparisons[["a", "b", "significant"]].itertuples(index=False):
        if a in index and b in index:
            significant[index[a], index[b]] = significant[index[b], index[a]] = is_significant
    bars = find_cliques(range(len(labels)), significant)
    notes = [
        "A bar joins networks without a significant difference between any two (exact McNemar with Holm's correction "
        "at 5 %, and the 95 % interval of the paired difference)."
    ]
    is_unjoined = ~significant
    for first, last in bars:
        is_unjoined[first : last + 1, first : last + 1] = False
    pairs = [f"{labels[i]} and {labels[j]}" for i, j in np.argwhere(np.triu(is_unjoined, 1))]
    more = f" and {len(pairs) - MAX_LISTED_PAIRS} more pairs" if len(pairs) > MAX_LISTED_PAIRS else ""
    notes += [f"Also not significant: {'; '.join(pairs[:MAX_LISTED_PAIRS])}{more}."] if pairs else []
    return bars, notes


def draw_corruption_error(tables: Tables, info: ReportInfo) -> Figure | None:
    """Draw the errors of each network under each condition, relative to the CNN; None without a CNN."""
    if tables.corruption_error.empty or not tables.corruption_error["ce"].notna().any():
        return None
    wide = tables.corruption_error.pivot(index="label", columns="condition", values="ce")
    values = pd.concat(
        [tables.networks.set_index("label")["mce"].rename("mean (mCE)"), wide[_order_conditions(wide)]], axis=1
    )
    notes = ["Errors summed over severities, divided by those of the CNN: below 1 (blue) is better than the CNN."]
    norm = LogNorm(0.4, 2.5, clip=True)
    return _draw_heatmap(tables, info, values, "Corruption error relative to the CNN", notes, norm, "RdBu_r", "{:.2f}")


def draw_consistency(tables: Tables, info: ReportInfo) -> Figure | None:
    """Draw how often each network's prediction is unchanged under each condition; None without results."""
    if "consistency" not in tables.summary:
        return None
    measured = tables.summary[tables.summary["consistency"].notna()]
    if measured.empty:
        return None
    wide = 100 * measured.pivot_table(index="label", columns="condition", values="consistency", aggfunc="mean")
    notes = ["Per cent of galaxies with the same prediction as when clean, right or wrong; mean over severities."]
    return _draw_heatmap(
        tables, info, wide[_order_conditions(wide)], "Consistency", notes, Normalize(0, 100), "cividis", "{:.0f}"
    )


def _order_conditions(table: pd.DataFrame) -> list[str]:
    known = [c for c in DEFAULT_CONDITIONS if c in table]
    return known + [c for c in table.columns if c not in known and c != "rotation_mean"]


def _draw_heatmap(
    tables: Tables,
    info: ReportInfo,
    values: pd.DataFrame,
    heading: str,
    notes: list[str],
    norm: Normalize,
    colormap: str,
    number_format: str,
) -> Figure:
    """Draw a table of networks by columns as colours with numbers, the best network first."""
    selected, note = select_best_networks(tables.networks, MAX_NETWORKS)
    labels, names = sort_by_accuracy(selected)["label"], format_network_names(selected)
    cells = values.reindex(labels)
    texts = [wrap_text(names[label], 44) for label in labels]
    left = 0.4 + 0.08 * max(len(line) for text in texts for line in text.split("\n"))
    grid = PanelGrid(1, 1, 0.42 * cells.shape[1], 0.3 * len(labels), left=left, bottom=0.2, top=1.5, right=0.9)
    notes = [*notes, "Networks in the order of their accuracy on clean galaxies.", note]
    figure, (axes,) = make_figure(info, heading, notes, grid)
    numbers = cells.to_numpy(float)
    image = axes.imshow(numbers, norm=norm, cmap=colormap, aspect="auto")
    is_dark = image.to_rgba(numbers)[..., :3] @ (0.3, 0.59, 0.11) < 0.5
    cell_texts = [["-" if np.isnan(value) else number_format.format(value) for value in row] for row in numbers]
    for flag, colour in ((True, "white"), (False, "0.1")):
        indices = np.argwhere(is_dark == flag).tolist()
        write_cells(axes, [(column, row, cell_texts[row][column], 7.0) for row, column in indices], colour)
    axes.set_yticks(range(len(labels)), texts, fontsize=8)
    axes.xaxis.tick_top()
    axes.set_xticks(
        range(cells.shape[1]), [format_condition(str(c)) for c in cells], rotation=60, ha="left", fontsize=8
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    box = axes.get_position()
    bar = figure.add_axes((box.x1 + 0.2 / figure.get_figwidth(), box.y0, 0.12 / figure.get_figwidth(), box.height))
    figure.colorbar(
        image, cax=bar, ticks=[0.4, 0.6, 1.0, 1.6, 2.5] if isinstance(norm, LogNorm) else None, format="{x:g}"
    )
    bar.minorticks_off()
    bar.tick_params(labelsize=7)
    return figure
