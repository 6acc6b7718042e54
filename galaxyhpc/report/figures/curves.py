"""Curves: accuracy against the angle, against the severity of every condition, and success against an attack's budget.

Curves are named at their ends, the names pushed apart where curves meet, because a legend of eleven curves is hard to
read; small multiples share one legend in the order of the curves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from numpy.typing import NDArray

from galaxyhpc.analysis.tables import ReportInfo, Tables, format_network_name, format_network_names
from galaxyhpc.config.conditions import (
    CATEGORICAL_LABELS,
    CONDITIONS,
    get_parameters,
    get_unit,
    is_condition,
    split_combination,
)
from galaxyhpc.report.figures.style import (
    INTERVAL_NOTE,
    LEGEND_LINE_INCHES,
    LineStyle,
    PanelGrid,
    compute_axis_limits,
    draw_chance,
    draw_legend,
    estimate_width_inches,
    format_condition,
    label_curve_ends,
    make_figure,
    select_with_styles,
    style_axes,
    write_empty_reason,
)

NO_RUNS_TEXT = "no runs complete yet"
ATTACK_SETS = {
    "own": "galaxies that the network classifies correctly",
    "common": "galaxies that all classify correctly",
}
MIN_CURVES_FOR_BARS = 6  # bands of more curves would hide one another
MAX_COLUMNS = 5  # of the small multiples

CurvePoint = tuple[float, str, float]  # position on the axis, condition, severity
# mean, low, high and number of runs by label, condition and severity
SummaryRows = dict[tuple[str, str, float], tuple[float, float, float, float]]
MISSING = (np.nan, np.nan, np.nan, 0.0)


@dataclass(frozen=True, eq=False)
class Curve:
    """One network in one panel; accuracies in per cent, nan where not measured."""

    label: str
    name: str
    style: LineStyle
    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def draw_angle_curves(tables: Tables, info: ReportInfo) -> Figure:
    """Draw accuracy against the rotation angle.

    Thin lines are rotated there and back again, which changes the images by interpolation alone.
    """
    selected, styles, note = select_with_styles(tables)
    rows = _index_summary(tables.summary, selected)
    curves = _make_curves(rows, selected, styles, _list_angle_points(tables.summary))
    angles = sorted(_list_severities(tables.summary, "rotation_control"))
    control = (
        _make_curves(rows, selected, styles, [(x, "rotation_control", x) for x in angles]) if len(curves) <= 8 else []
    )
    thin = "Thin and dotted: rotated there and back again, which only interpolates." if control else ""
    notes = ["Mean over runs.", note, _describe_intervals(curves), thin]
    grid = PanelGrid(1, 1, 7.6, 4.9, right=estimate_width_inches([curve.name for curve in curves]) + 0.3)
    figure, (axes,) = make_figure(info, "Accuracy against rotation", notes, grid)
    axes.set_ylim(compute_axis_limits(_collect_values([*curves, *control]), info.chance_accuracy))
    _draw_curves(axes, curves, mark_every=6)
    for curve in control:
        axes.plot(curve.x, curve.mean, lw=0.8, color=curve.style["color"], linestyle=":")
    axes.set(xlim=(0, 360), xticks=range(0, 361, 45), xlabel="rotation of the test galaxies (degrees)")
    axes.set_ylabel("test accuracy (%)")
    draw_chance(axes, info.chance_accuracy)
    _label_curves(axes, curves)
    return figure


def draw_polar_curves(tables: Tables, info: ReportInfo) -> Figure | None:
    """Draw accuracy around the circle of rotation angles; None without results."""
    selected, styles, note = select_with_styles(tables)
    curves = _make_curves(
        _index_summary(tables.summary, selected), selected, styles, _list_angle_points(tables.summary)
    )
    if not curves:
        return None
    names = {curve.label: curve.name for curve in curves}
    right = estimate_width_inches([*names.values()]) + LEGEND_LINE_INCHES
    has_bands = len(curves) < MIN_CURVES_FOR_BARS
    values = _collect_values(curves) if has_bands else [curve.mean for curve in curves]
    low, high = compute_axis_limits(values, np.nan)
    intervals = _describe_intervals(curves) if has_bands else "Without intervals, which would hide one another."
    notes = ["Mean over runs.", note, intervals, f"The centre is {low:.0f} %, not 0."]
    grid = PanelGrid(1, 1, 5.4, 5.4, left=0.5, right=right, bottom=0.35, top=0.35)
    figure, (axes,) = make_figure(info, "Accuracy against rotation", notes, grid, projection="polar")
    assert isinstance(axes, PolarAxes)
    for curve in curves:
        angles = np.radians(curve.x)
        if has_bands:
            axes.fill_between(angles, curve.low, curve.high, color=curve.style["color"], alpha=0.12, lw=0)
        axes.plot(angles, curve.mean, lw=1.5, ms=4, markevery=6, **curve.style)
    axes.set_theta_zero_location("N")  # counter-clockwise, as position angles in the sky
    axes.set_rlim(low, high)
    axes.set_thetagrids(range(0, 360, 45), fontsize=8)
    for tick in axes.get_yticks():
        if low < tick < high:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
            axes.text(np.radians(22.5), tick, f"{tick:g} %", fontsize=8, ha="center", va="center", bbox=box)
    axes.set_yticklabels([])
    axes.grid(color="0.9", linewidth=0.8)
    draw_legend(figure, selected[selected["label"].isin(names)], names, styles, right)
    return figure


def draw_severity_curves(tables: Tables, info: ReportInfo) -> Figure | None:
    """Draw accuracy against the severity of each condition, all on one scale, starting with clean galaxies."""
    selected, styles, note = select_with_styles(tables)
    conditions = _list_graded_conditions(tables.summary)
    if not conditions:
        return None
    rows, names = _index_summary(tables.summary, selected), format_network_names(selected)
    curves = {c: _make_curves(rows, selected, styles, _list_severity_points(tables.summary, c)) for c in conditions}
    all_curves = [curve for panel_curves in curves.values() for curve in panel_curves]
    right, columns = estimate_width_inches([*names.values()]) + LEGEND_LINE_INCHES, min(MAX_COLUMNS, len(conditions))
    notes = ["Mean over runs; further right is worse.", note, _describe_intervals(all_curves)]
    grid = PanelGrid(-(-len(conditions) // columns), columns, 2.35, 1.75, (0.2, 1.0), right=right, bottom=0.6, top=0.35)
    figure, panels = make_figure(info, "Accuracy against severity", notes, grid, num_panels=len(conditions))
    span = compute_axis_limits(_collect_values(all_curves), info.chance_accuracy)
    for n, (axes, condition) in enumerate(zip(panels, conditions, strict=True)):
        axes.set_ylim(span)
        _draw_curves(axes, curves[condition], is_connected=condition not in CATEGORICAL_LABELS)
        _label_severity_axis(axes, condition, _list_severities(tables.summary, condition))
        draw_chance(axes, info.chance_accuracy, should_label=n == 0)
        axes.tick_params(labelleft=n % columns == 0)
        if n % columns == 0:
            axes.set_ylabel("accuracy (%)", fontsize=8)
    draw_legend(figure, selected, names, styles, right)
    return figure


def draw_attack_curves(tables: Tables, info: ReportInfo) -> Figure | None:
    """Draw how often one changed pixel changes the prediction, against the queries; None without an attack."""
    if tables.attack.empty:
        return None
    selected, styles, note = select_with_styles(tables)
    is_drawn = tables.attack["label"].isin(styles) & (tables.attack["n"] > 0)  # no rate without attacked galaxies
    attacked = tables.attack[is_drawn].sort_values("budget", kind="stable")
    sets = {key: title for key, title in ATTACK_SETS.items() if (attacked["set"] == key).any()}
    if not sets:
        return None
    names = format_network_names(selected)
    grid = PanelGrid(1, len(sets), 4.4, 4.2, (0.3, 0.5), right=estimate_width_inches([*names.values()]) + 0.3, top=0.35)
    notes = ["One changed pixel; the mean over seeds.", note, "Bands or bars: 95 % intervals of Clopper and Pearson."]
    figure, panels = make_figure(info, "One-pixel attack", notes, grid)
    for n, (axes, (key, title)) in enumerate(zip(panels, sets.items(), strict=True)):
        curves = _make_attack_curves(attacked[attacked["set"] == key], names, styles)
        curves = _draw_curves(axes, curves, mark_every=max(1, min(len(curves), len(curves[0].x) // 2)), is_log=True)
        axes.set(xscale="log", xlabel="queries to the network", ylim=(0, 105 * float(attacked["high"].max())))
        budgets = sorted(set(attacked["budget"]))
        axes.set_xticks(budgets[:: -(-len(budgets) // 6)], [f"{b:g}" for b in budgets[:: -(-len(budgets) // 6)]])
        axes.minorticks_off()
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(labelleft=n == 0)
    _label_curves(panels[-1], curves)
    panels[0].set_ylabel("success of the attack (%)")
    return figure


def _make_attack_curves(rows: pd.DataFrame, display_names: dict[str, str], styles: dict[str, LineStyle]) -> list[Curve]:
    curves = []
    for label, network in rows.groupby("label", sort=False):
        rate, low, high = (100 * network[column].to_numpy(float) for column in ("rate", "low", "high"))
        budgets = network["budget"].to_numpy(float)
        curves.append(Curve(str(label), display_names[str(label)], styles[str(label)], budgets, rate, low, high))
    return curves


def _list_severities(summary: pd.DataFrame, condition: str) -> list[float]:
    """List the severities of a condition that occur, the mildest first if the condition is known."""
    occurring = set(summary.loc[summary["condition"] == condition, "severity"])
    known = CONDITIONS[condition].parameters if condition in CONDITIONS else sorted(occurring)
    return [severity for severity in known if severity in occurring]


def _list_angle_points(summary: pd.DataFrame) -> list[CurvePoint]:
    """List the rotation angles, with 0 again at 360 to close the circle."""
    angles = _list_severities(summary, "rotation")
    return [(x, "rotation", x) for x in angles] + [(360.0, "rotation", 0.0)] * bool(angles)


def _list_graded_conditions(summary: pd.DataFrame) -> list[str]:
    """List the conditions with several severities, combinations last."""
    counts = summary.groupby("condition", sort=False)["severity"].nunique()
    graded = [str(c) for c in counts[counts >= 2].index if is_condition(str(c))]
    order = [*CONDITIONS, *(c for c in graded if c not in CONDITIONS)]
    return [c for c in order if c in graded and c not in ("rotation", "rotation_control")]


def _list_severity_points(summary: pd.DataFrame, condition: str) -> list[CurvePoint]:
    severities = _list_severities(summary, condition)
    return [(0.0, "clean", 0.0), *((float(x), condition, s) for x, s in enumerate(severities, 1))]


def _label_severity_axis(axes: Axes, condition: str, severities: list[float]) -> None:
    """Label a panel's severities by their physical parameters, one line for each part of a combination."""
    steps = ["\n".join(f"{value:.4g}" for _, value in get_parameters(condition, s)) for s in severities]
    category_names = CATEGORICAL_LABELS.get(condition, {})
    margin = 0.45  # for bars beside one another
    axes.set_xlim(-margin, len(severities) + margin)
    axes.set_xticks(
        range(len(severities) + 1), ["clean", *(category_names.get(s, steps[n]) for n, s in enumerate(severities))]
    )
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel(
        "" if category_names else "; ".join(get_unit(part) for part in split_combination(condition)), fontsize=8
    )
    axes.set_title(format_condition(condition), fontsize=9, loc="left")


def _make_curves(
    summary_rows: SummaryRows, networks: pd.DataFrame, styles: dict[str, LineStyle], points: list[CurvePoint]
) -> list[Curve]:
    """Make the curves through `points`; networks without results are left out."""
    curves = []
    for network in networks.to_dict("records"):
        label = str(network["label"])
        values = [summary_rows.get((label, condition, severity), MISSING) for _, condition, severity in points]
        mean, low, high, num_runs = np.array(values, dtype=np.float64).reshape(-1, 4).T
        if not np.isfinite(mean).any():
            continue
        x = np.array([position for position, _, _ in points])
        runs_note = _format_num_runs(num_runs.astype(int), network["seeds_planned"])
        name = format_network_name(network, runs_note)
        curves.append(Curve(label, name, styles[label], x, 100 * mean, 100 * low, 100 * high))
    return curves


def _index_summary(summary: pd.DataFrame, networks: pd.DataFrame) -> SummaryRows:
    """Return the summary of some networks as a dict: selecting with pandas would take longer than all the drawing."""
    selected = summary[summary["label"].isin(networks["label"])]
    keys, values = (
        selected[columns].itertuples(index=False, name=None)
        for columns in (["label", "condition", "severity"], ["accuracy_mean", "ci_low", "ci_high", "seeds_done"])
    )
    return dict(zip(keys, values, strict=True))


def _format_num_runs(num_done: NDArray[np.int64], num_planned: int) -> str:
    """Return `3/5 runs` if runs are missing, `2-3/5 runs` if points differ, nothing if all are complete."""
    if num_done.min() == num_planned:
        return ""
    return f"{num_done.min()}{f'-{num_done.max()}' if num_done.max() > num_done.min() else ''}/{num_planned} runs"


def _describe_intervals(curves: list[Curve]) -> str:
    return INTERVAL_NOTE if any(np.isfinite(curve.low).any() for curve in curves) else ""


def _collect_values(curves: list[Curve]) -> list[NDArray[np.float64]]:
    return [part for curve in curves for part in (curve.mean, curve.low, curve.high)]


def _draw_curves(
    axes: Axes, curves: list[Curve], mark_every: int = 1, is_connected: bool = True, is_log: bool = False
) -> list[Curve]:
    """Draw the curves of one panel with their intervals: bands, or bars side by side if bands would hide each other.

    Unordered steps (`is_connected` False) are drawn as markers; `is_log` says that the axis is logarithmic. Return the
    curves at the positions where they are drawn.
    """
    style_axes(axes)
    has_bands = is_connected and len(curves) < MIN_CURVES_FOR_BARS
    bars, colours, drawn = [], [], []
    for n, curve in enumerate(curves):
        colour, marked = curve.style["color"], slice(0 if has_bands else n % mark_every, None, mark_every)
        shift = 0.5 * ((n + 0.5) / len(curves) - 0.5)
        x = curve.x if has_bands or mark_every > 1 else _shift_points(curve.x, shift, is_log)
        if has_bands:
            axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.12, lw=0)
        else:
            low_high = np.stack([np.stack([x, x]), np.stack([curve.low, curve.high])], axis=-1)[:, marked]
            bars += list(low_high.swapaxes(0, 1))
            colours += [colour] * low_high.shape[1]
        style = curve.style if is_connected else curve.style | {"linestyle": ""}
        drawn.append(replace(curve, x=x))
        axes.plot(x, curve.mean, lw=1.4, ms=3.5, markevery=marked, clip_on=False, **style)
    axes.add_collection(LineCollection(bars, colors=colours, lw=0.9, alpha=0.5, zorder=1.5), autolim=False)
    if not curves:
        write_empty_reason(axes, NO_RUNS_TEXT)
    return drawn


def _shift_points(x: NDArray[np.float64], fraction: float, is_log: bool) -> NDArray[np.float64]:
    """Shift points by a fraction of the step between the first two."""
    if len(x) < 2:
        return x
    step = float(x[1] / x[0] if is_log else x[1] - x[0])
    return x * step**fraction if is_log else x + fraction * step


def _label_curves(axes: Axes, curves: list[Curve]) -> None:
    ends = []
    for curve in curves:
        last = int(np.flatnonzero(np.isfinite(curve.mean))[-1])
        ends.append((curve.name, curve.style, float(curve.x[last]), float(curve.mean[last])))
    label_curve_ends(axes, ends)
