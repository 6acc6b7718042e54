"""Figures of a sweep: accuracy against the rotation angle and against noise, one curve per network.

A network looks the same in every figure: its colour tells the order of its group; solid lines are rotations only,
dashed ones have reflections too, the dotted black one is the conventional network. Curves are named at their ends,
pushed apart where they meet, because a legend of eleven is a puzzle.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito (2008) without yellow, which is lost on white; black is kept for networks without a group
PALETTE = ("#56B4E9", "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#8C6D46")
LINES = {"C": "-", "D": (0, (5, 1.5)), "": (0, (1, 1))}
MARKERS = "osD^vPX*"  # tell apart networks of one group
MOST = 16  # networks in one figure
GENERATED = "GENERATED galaxies (demo)"

Look = dict[str, Any]
Point = tuple[float, str, float]  # where on the axis, and which condition and severity


@dataclass(frozen=True)
class About:
    """What every figure of a sweep says of it."""

    title: str
    generated: bool  # demo galaxies
    chance: float  # accuracy of always naming the commonest class, 0 to 1; nan if unknown


@dataclass(frozen=True, eq=False)
class Curve:
    """One network in one panel; accuracies in per cent, nan where nothing is in."""

    name: str
    look: Look
    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def accuracy_angle(summary: pd.DataFrame, about: About) -> Figure:
    """Draw the accuracy against the rotation angle.

    `summary` is that of aggregate: one row per network (label, group), condition and severity, with seeds_done,
    seeds_planned, accuracy_mean, ci_low and ci_high (0 to 1).
    """
    figure, summary = _sheet(about, 9.5, summary)
    axes = figure.subplots()
    angles = _severities(summary, "rotation")
    points = [(angle, "rotation", angle) for angle in angles] + [(360.0, "rotation", 0.0)] * bool(angles)
    _draw([axes], [_curves(summary, points)], about, markevery=6)
    axes.set(xlim=(0, 360), xticks=range(0, 361, 45), xlabel="rotation of the test galaxies (degrees)")
    return figure


def accuracy_noise(summary: pd.DataFrame, about: About) -> Figure:
    """Draw the accuracy against both kinds of noise, beginning with none; `summary` as for `accuracy_angle`."""
    figure, summary = _sheet(about, 12.5, summary)
    panels = list(figure.subplots(1, 2, sharey=True))
    kinds = {
        "pedestal noise of the study (signal-to-noise ratio)": ("pedestal_noise", -1),  # from much signal to little
        "shot noise (severity)": ("shot_noise", 1),
    }
    curves = []
    for axes, (what, (condition, step)) in zip(panels, kinds.items(), strict=True):
        order = [("clean", 0.0), *((condition, severity) for severity in _severities(summary, condition)[::step])]
        curves.append(_curves(summary, [(float(x), *pair) for x, pair in enumerate(order)]))
        axes.set(xlim=(0, max(len(order) - 1, 1)), xlabel=what)
        axes.set_xticks(range(len(order)), ["clean", *(f"{severity:g}" for _, severity in order[1:])])
    _draw(panels, curves, about)
    return figure


def _severities(summary: pd.DataFrame, condition: str) -> list[float]:
    return sorted(set(summary.loc[summary["condition"] == condition, "severity"]))


def _sheet(about: About, width: float, summary: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Make a figure `width` inches wide that says what all must, and choose the networks that it can hold."""
    figure = Figure(figsize=(width, 6.0), layout="constrained")
    figure.suptitle(about.title + (f"\n{GENERATED}" if about.generated else ""), fontsize=11)
    note, networks = "Mean over seeds. ", summary["label"].nunique()
    if networks > MOST:
        clean = summary[summary["condition"] == "clean"].sort_values("accuracy_mean", ascending=False, kind="stable")
        summary = summary[summary["label"].isin(clean["label"][:MOST])]
        note += f"Of {networks} networks, the {MOST} best on clean galaxies. "
    if summary["ci_low"].notna().any():
        note += "The band is its 95 % interval: bootstrap over seeds and pieces of sky. "
    if about.generated:
        note += f"{GENERATED}: this says nothing about real ones."
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color="0.35")
    return figure, summary


def looks(networks: pd.DataFrame) -> dict[str, Look]:
    """Choose a look for each label of a table with the columns label and group; the first of several groups counts."""
    sizes = {group: int(re.split("[CD]", group)[1]) for group in networks["group"] if group}
    orders = sorted(set(sizes.values()))
    found: dict[str, Look] = {}
    for label, group in zip(networks["label"], networks["group"], strict=True):
        colour = PALETTE[orders.index(sizes[group]) % len(PALETTE)] if group else "black"
        twins = sum((look["color"], look["linestyle"]) == (colour, LINES[group[:1]]) for look in found.values())
        found[label] = {"color": colour, "linestyle": LINES[group[:1]], "marker": MARKERS[twins % len(MARKERS)]}
    return found


def _curves(summary: pd.DataFrame, points: list[Point]) -> list[Curve]:
    """Cut the curves through `points` out of the summary; networks without any are left out."""
    found, look = [], looks(summary[["label", "group"]].drop_duplicates())
    pairs = [(condition, severity) for _, condition, severity in points]
    for label, of_network in summary.groupby("label", sort=False):
        at = of_network.set_index(["condition", "severity"]).reindex(pairs)
        if not at["accuracy_mean"].notna().any():
            continue
        mean, low, high = (100 * at[name].to_numpy(float) for name in ("accuracy_mean", "ci_low", "ci_high"))
        x = np.array([place for place, _, _ in points])
        found.append(Curve(f"{label}{_seeds(at)}", look[str(label)], x, mean, low, high))
    return found


def _seeds(at: pd.DataFrame) -> str:
    """`, 3/5 seeds` where not all planned ones are in, `, 2-3/5 seeds` where points differ."""
    done, planned = at["seeds_done"].fillna(0).astype(int), int(at["seeds_planned"].max())
    if done.min() == planned:
        return ""
    return (
        f", {done.min()}/{planned} seeds"
        if done.min() == done.max()
        else f", {done.min()}-{done.max()}/{planned} seeds"
    )


def _draw(panels: list[Axes], curves: list[list[Curve]], about: About, markevery: int = 1) -> None:
    """Draw each panel's curves, all panels to the same scale."""
    low, high = _limits([curve for of_panel in curves for curve in of_panel], about.chance)
    panels[0].set_ylabel("test accuracy (%)")
    for axes, of_panel in zip(panels, curves, strict=True):
        axes.set_ylim(low, high)
        axes.grid(axis="y", color="0.92", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        for curve in of_panel:
            axes.fill_between(
                curve.x,
                curve.low,
                curve.high,
                color=curve.look["color"],
                alpha=0.12 if len(of_panel) < 6 else 0.07,
                lw=0,
            )
            axes.plot(curve.x, curve.mean, lw=1.6, ms=4, markevery=markevery, clip_on=False, **curve.look)
        if not of_panel:
            axes.text(0.5, 0.5, "no planned run is in yet", transform=axes.transAxes, ha="center", color="0.35")
        _draw_chance(axes, about.chance)
        _name_ends(axes, of_panel)


def _limits(curves: list[Curve], chance: float) -> tuple[float, float]:
    """Lowest and highest per cent shown; chance is shown where that does not press the curves together."""
    if not curves:
        return 0.0, 100.0
    values = np.concatenate([part for curve in curves for part in (curve.mean, curve.low, curve.high)])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low - 100 * chance < 0.5 * (high - low):
        low, high = min(low, 100 * chance), max(high, 100 * chance)  # a network may be worse than chance
    margin = 0.04 * (high - low) + 0.5
    return low - margin, high + margin


def _draw_chance(axes: Axes, chance: float) -> None:
    """Draw the line of a network that always names the commonest class, or say that it is below."""
    if not np.isfinite(chance):
        return
    below = bool(100 * chance < axes.get_ylim()[0])
    text = f"{'↓ ' if below else ''}always the commonest class: {100 * chance:.1f} %"
    height = axes.get_ylim()[0] if below else 100 * chance
    axes.annotate(text, (0.01, height), (0, 3), axes.get_yaxis_transform(), "offset points", fontsize=8, color="0.35")
    if not below:
        axes.axhline(height, color="0.5", linewidth=0.8)


def _name_ends(axes: Axes, curves: list[Curve]) -> None:
    """Write each curve's name right of its end, at least one line of text from the next."""
    ends = [(curve, int(np.flatnonzero(np.isfinite(curve.mean))[-1])) for curve in curves]
    ends.sort(key=lambda end: float(end[0].mean[end[1]]))
    heights = _apart(np.array([curve.mean[last] for curve, last in ends]), *axes.get_ylim())
    for (curve, last), height in zip(ends, heights, strict=True):
        line = {
            "arrowstyle": "-",
            "color": curve.look["color"],
            "lw": 0.7,
            "shrinkB": 2,
            "relpos": (0, 0.5),
            "patchA": None,
        }
        end, place = (float(curve.x[last]), float(curve.mean[last])), (1.04, float(height))
        style = {"color": curve.look["color"], "fontsize": 9, "va": "center", "annotation_clip": False}
        axes.annotate(curve.name, end, place, "data", axes.get_yaxis_transform(), line, **style)


def _apart(heights: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Move rising heights as little as needed to stand a line of text apart, below `high` if they can."""
    if not len(heights):
        return heights
    gaps = 0.034 * (high - low) * np.arange(len(heights))
    wanted = heights - gaps
    # the mean of the upper and the lower monotone envelope keeps the order and the gaps, and stays near
    placed = gaps + (np.maximum.accumulate(wanted) + np.minimum.accumulate(wanted[::-1])[::-1]) / 2
    return placed - max(float(placed[-1]) - high, 0.0)
