"""Figures of what a network sees: embeddings by class, how far conditions move galaxies, where it looks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from galaxyhpc.analysis.tables import ReportInfo
from galaxyhpc.config import conditions
from galaxyhpc.data.galaxy10 import CLASSES
from galaxyhpc.inspect.gradcam import GradCamTarget
from galaxyhpc.report.figures.style import (
    LineStyle,
    PanelGrid,
    assign_styles,
    estimate_width_inches,
    make_figure,
    style_axes,
    wrap_text,
)

COLOURS = [colormaps["tab10"](number) for number in range(len(CLASSES))]
MARKERS = "osD^v<>PX*"  # with the colours: ten colours alone are too many for many eyes
MAX_COLUMNS = 4  # panels in a row
METHOD_NOTES = {
    "isomap": "Isomap keeps distances along the cloud of galaxies.",
    "t-SNE": "t-SNE keeps near galaxies near: the distances between its clusters, and their sizes, mean nothing.",
    "UMAP": "UMAP keeps near galaxies near: the distances between its clusters mean little.",
}


@dataclass(frozen=True, eq=False)
class Panel:
    """A galaxy and where the network looks for two classes."""

    target: GradCamTarget
    image: NDArray[np.float32]  # (S, S, 3) in [0, 1]
    truth_heat: NDArray[np.float32]  # (S, S) in [0, 1], heat of the true class
    other_heat: NDArray[np.float32]  # (S, S) in [0, 1], heat of choice.other
    split: str  # which part of the data it is from


def make_about(title: str, generated: bool) -> ReportInfo:
    """Return what all figures of a run say."""
    return ReportInfo(title, generated, math.nan)


def draw_embedding(
    about: ReportInfo, embeddings: Mapping[str, NDArray[np.float64]], labels: NDArray[np.int64], note: str
) -> Figure:
    """Draw each method's (n, 2) places, coloured by class."""
    notes = [note, *(METHOD_NOTES[method] for method in embeddings)]
    grid = PanelGrid(1, len(embeddings), 4.6, 4.6, left=0.25, right=2.9, bottom=0.15, top=0.3)
    figure, panels = make_figure(about, "Test galaxies as the network sees them", notes, grid)
    for axes, (method, places) in zip(panels, embeddings.items(), strict=True):
        for label in np.unique(labels):
            x, y = places[labels == label].T
            name = f"{CLASSES[label]} ({len(x)})"
            look = {"marker": MARKERS[label], "color": COLOURS[label]}
            axes.scatter(x, y, s=26, alpha=0.85, linewidths=0.3, edgecolors="white", label=name, **look)
        axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
        axes.set_title(method, fontsize=10)
    _draw_side_legend(
        figure, *panels[-1].get_legend_handles_labels(), margin_inches=grid.right, title="class (galaxies)"
    )
    return figure


def draw_latent_distance(about: ReportInfo, table: pd.DataFrame, note: str) -> Figure:
    """Draw how far each condition moves the galaxies, one panel per condition, one curve per network.

    `table` has label, group, condition, severity, median, q25, q75, of one kind of features; seeds are averaged.
    """
    keys = ["label", "group", "condition", "severity"]
    table = table.groupby(keys, sort=False)[["median", "q25", "q75"]].mean().reset_index()
    names, networks = list(dict.fromkeys(table["condition"])), table[["label", "group"]].drop_duplicates()
    columns = min(MAX_COLUMNS, len(names))
    right = max(estimate_width_inches([*networks["label"]]) + 0.5, 4.5 - 2.9 * columns)
    grid = PanelGrid(math.ceil(len(names) / columns), columns, 2.9, 2.3, (0.3, 0.85), right=right, top=0.3)
    figure, panels = make_figure(about, "How far corruption moves galaxies inside the network", [note], grid)
    look, top = assign_styles(networks), 1.05 * max(1.0, float(table["q75"].max()))
    for number, (axes, name) in enumerate(zip(panels, names, strict=False)):
        for label, part in table[table["condition"] == name].groupby("label", sort=False):
            _draw_curve(axes, name, part, look[str(label)])
        axes.set_ylim(0, top)
        _format_axes(axes, name)
        if number % columns == 0:
            axes.set_ylabel("moved (galaxy distances)", fontsize=9)
        else:
            axes.set_yticklabels([])
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    lines = [Line2D([], [], lw=1.6, ms=4, **look[label]) for label in networks["label"]]
    _draw_side_legend(
        figure, lines, [wrap_text(label) for label in networks["label"]], margin_inches=right, title="network"
    )
    return figure


def _draw_curve(axes: Axes, condition: str, table: pd.DataFrame, line_style: LineStyle) -> None:
    x = _get_positions(condition, table["severity"].to_numpy())
    axes.fill_between(x, table["q25"], table["q75"], color=line_style["color"], alpha=0.12, linewidth=0)
    axes.plot(x, table["median"], lw=1.6, ms=4, markevery=math.ceil(len(table) / 12), **line_style)


def _get_positions(condition: str, severities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where severities stand on the axis: angles to scale, others one after the other, the mildest first."""
    if condition in ("rotation", "rotation_control"):
        return severities
    order = conditions.get_severities(condition)
    return np.array([order.index(severity) for severity in severities], dtype=np.float64)


def _format_axes(axes: Axes, condition: str) -> None:
    style_axes(axes)
    axes.set_title(condition, fontsize=10)
    axes.axhline(1.0, color="0.5", linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_xlabel(conditions.get_unit(condition), fontsize=9)
    if condition == "rotation":
        axes.set(xlim=(0, 360), xticks=range(0, 361, 90))
    elif condition != "rotation_control":
        levels = conditions.get_severities(condition)
        axes.set_xticks(range(len(levels)), [f"{conditions.get_parameter(condition, level):g}" for level in levels])


def draw_grad_cam(about: ReportInfo, panels: Sequence[Panel | None], note: str) -> Figure:
    """Draw galaxies in two columns, each with the heat of the true class and of another one over it."""
    grid = PanelGrid(math.ceil(len(panels) / 2), 6, 1.9, 1.9, (0.06, 0.28), left=0.15, right=0.45, bottom=0.15, top=0.3)
    figure, axes = make_figure(about, "Where the network looks (Grad-CAM)", [note], grid)
    for number, panel in enumerate(panels):
        if panel is not None:
            _draw_panel(axes[3 * number : 3 * number + 3], panel)
    for number, each in enumerate(axes):
        each.set_axis_off()
        if number % 6 >= 3:  # two galaxies stand side by side
            box = each.get_position()
            each.set_position((box.x0 + 0.3 / figure.get_figwidth(), box.y0, box.width, box.height))
    return figure


def _draw_panel(panel_axes: Sequence[Axes], panel: Panel) -> None:
    choice = panel.target
    right = choice.predicted == choice.truth
    word, colour = ("right", "#00694B") if right else ("WRONG", "#B5400A")
    where = "" if panel.split == "test" else f" ({panel.split})"
    heads = (
        f"row {choice.row}{where}: {word}, {choice.confidence:.0%}",
        f"true: {CLASSES[choice.truth]}",
        f"{'next' if right else 'said'}: {CLASSES[choice.other_class]}",
    )
    for axes, head, heat in zip(panel_axes, heads, (None, panel.truth_heat, panel.other_heat), strict=True):
        axes.imshow(panel.image, interpolation="nearest")
        if heat is not None:
            axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6 * heat)
            head += "" if heat.any() else " (no heat)"  # every channel speaks against the class
        axes.set_title(head, fontsize=8, color=colour if heat is None else "black", pad=3)


def _draw_side_legend(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], margin_inches: float, title: str
) -> None:
    """Write a legend into the margin `right` inches wide."""
    width, height = figure.get_size_inches()
    corner = (1 - (margin_inches - 0.15) / width, 1 - 1.0 / height)
    look = {"frameon": False, "fontsize": 9, "handlelength": 2.6, "labelspacing": 0.7, "alignment": "left"}
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=corner, title=title, title_fontsize=9, **look)
