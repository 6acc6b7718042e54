"""Figures of a trained network: embeddings by class, latent distances by condition, Grad-CAM heat maps."""

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
from galaxyhpc.inspect.gradcam import GradCamTarget
from galaxyhpc.report.figures.style import (
    LineStyle,
    PanelGrid,
    assign_styles,
    estimate_width_inches,
    format_class_name,
    make_figure,
    style_axes,
    wrap_text,
)

COLOURS = [colormaps["tab10"](number) for number in range(10)]
MARKERS = "osD^v<>PX*"  # in addition to the colours: ten colours alone are hard to distinguish
MAX_COLOURED_CLASSES = 16  # that a legend names
MAX_COLUMNS = 4  # panels in a row
METHOD_NOTES = {
    "isomap": "Isomap preserves geodesic distances between galaxies.",
    "t-SNE": "t-SNE preserves neighbours: distances between its clusters, and their sizes, carry no information.",
    "UMAP": "UMAP preserves neighbours: distances between its clusters carry little information.",
}


@dataclass(frozen=True, eq=False)
class Panel:
    """A galaxy and its heat maps for two classes."""

    target: GradCamTarget
    image: NDArray[np.float32]  # (S, S, 3) in [0, 1]
    truth_heat: NDArray[np.float32]  # (S, S) in [0, 1], heat of the true class
    other_heat: NDArray[np.float32]  # (S, S) in [0, 1], heat of target.other_class
    split: str  # train, validation, test or dropped


def make_about(title: str, generated: bool, class_names: tuple[str, ...] = ()) -> ReportInfo:
    """Return the title and notices of all figures of a run."""
    return ReportInfo(title, generated, math.nan, class_names=class_names)


def draw_embedding(
    about: ReportInfo, embeddings: Mapping[str, NDArray[np.float64]], labels: NDArray[np.int64], note: str
) -> Figure:
    """Draw each method's (n, 2) embedding, coloured by class: the largest ones, if there are many; others are grey."""
    present, sizes = np.unique(labels, return_counts=True)
    coloured = np.sort(present[np.argsort(-sizes, kind="stable")][:MAX_COLOURED_CLASSES])
    is_other = ~np.isin(labels, coloured)
    notes = [note, *(METHOD_NOTES[method] for method in embeddings)]
    grid = PanelGrid(1, len(embeddings), 4.6, 4.6, left=0.25, right=2.9, bottom=0.15, top=0.3)
    figure, panels = make_figure(about, "Test galaxies in feature space", notes, grid)
    for axes, (method, coordinates) in zip(panels, embeddings.items(), strict=True):
        if is_other.any():
            name = f"{len(present) - len(coloured)} other classes ({is_other.sum()})"
            x, y = coordinates[is_other].T
            axes.scatter(x, y, s=10, color="0.8", linewidths=0, label=name)
        for rank, label in enumerate(coloured.tolist()):
            number = label if len(about.class_names) <= MAX_COLOURED_CLASSES else rank
            x, y = coordinates[labels == label].T
            name = f"{format_class_name(about.class_names[label])} ({len(x)})"
            style: dict[str, Any] = {"marker": MARKERS[(number + number // 10) % 10], "color": COLOURS[number % 10]}
            axes.scatter(x, y, s=26, alpha=0.85, linewidths=0.3, edgecolors="white", label=name, **style)
        axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
        axes.set_title(method, fontsize=10)
    _draw_side_legend(
        figure, *panels[-1].get_legend_handles_labels(), margin_inches=grid.right, title="class (galaxies)"
    )
    return figure


def draw_latent_distance(about: ReportInfo, table: pd.DataFrame, note: str) -> Figure:
    """Draw latent distance against severity, one panel per condition, one curve per network.

    `table` has label, group, condition, severity, median, q25, q75, of one kind of features; seeds are averaged.
    """
    keys = ["label", "group", "condition", "severity"]
    table = table.groupby(keys, sort=False)[["median", "q25", "q75"]].mean().reset_index()
    names, networks = list(dict.fromkeys(table["condition"])), table[["label", "group"]].drop_duplicates()
    columns = min(MAX_COLUMNS, len(names))
    right = max(estimate_width_inches([*networks["label"]]) + 0.5, 4.5 - 2.9 * columns)
    grid = PanelGrid(math.ceil(len(names) / columns), columns, 2.9, 2.3, (0.3, 0.85), right=right, top=0.3)
    figure, panels = make_figure(about, "Latent distance under corruption", [note], grid)
    styles, top = assign_styles(networks), 1.05 * max(1.0, float(table["q75"].max()))
    for number, (axes, name) in enumerate(zip(panels, names, strict=False)):
        for label, curve in table[table["condition"] == name].groupby("label", sort=False):
            _draw_curve(axes, name, curve, styles[str(label)])
        axes.set_ylim(0, top)
        _format_axes(axes, name)
        if number % columns == 0:
            axes.set_ylabel("latent distance", fontsize=9)
        else:
            axes.set_yticklabels([])
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    lines = [Line2D([], [], lw=1.6, ms=4, **styles[label]) for label in networks["label"]]
    _draw_side_legend(
        figure, lines, [wrap_text(label) for label in networks["label"]], margin_inches=right, title="network"
    )
    return figure


def _draw_curve(axes: Axes, condition: str, table: pd.DataFrame, line_style: LineStyle) -> None:
    x = _get_positions(condition, table["severity"].to_numpy())
    axes.fill_between(x, table["q25"], table["q75"], color=line_style["color"], alpha=0.12, linewidth=0)
    axes.plot(x, table["median"], lw=1.6, ms=4, markevery=math.ceil(len(table) / 12), **line_style)


def _get_positions(condition: str, severities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the positions of severities on the axis: angles to scale, others equally spaced, the mildest first."""
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
    """Draw galaxies in two columns, each beside overlays of its heat maps of the true class and of another one."""
    grid = PanelGrid(math.ceil(len(panels) / 2), 6, 1.9, 1.9, (0.06, 0.28), left=0.15, right=0.45, bottom=0.15, top=0.3)
    figure, all_axes = make_figure(about, "Grad-CAM heat maps", [note], grid)
    for number, panel in enumerate(panels):
        if panel is not None:
            _draw_panel(all_axes[3 * number : 3 * number + 3], panel, about.class_names)
    for number, axes in enumerate(all_axes):
        axes.set_axis_off()
        if number % 6 >= 3:  # a gap between the two columns of galaxies
            box = axes.get_position()
            axes.set_position((box.x0 + 0.3 / figure.get_figwidth(), box.y0, box.width, box.height))
    return figure


def _draw_panel(panel_axes: Sequence[Axes], panel: Panel, class_names: Sequence[str]) -> None:
    target = panel.target
    is_correct = target.predicted == target.truth
    verdict, colour = ("correct", "#00694B") if is_correct else ("WRONG", "#B5400A")
    split = "" if panel.split == "test" else f" ({panel.split})"
    titles = (
        f"row {target.row}{split}: {verdict}, {target.confidence:.0%}",
        f"true: {format_class_name(class_names[target.truth])}",
        f"{'second' if is_correct else 'predicted'}: {format_class_name(class_names[target.other_class])}",
    )
    for axes, title, heat in zip(panel_axes, titles, (None, panel.truth_heat, panel.other_heat), strict=True):
        axes.imshow(panel.image, interpolation="nearest")
        if heat is not None:
            axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6 * heat)
            title += "" if heat.any() else " (no heat)"  # every channel is evidence against the class
        axes.set_title(title, fontsize=8, color=colour if heat is None else "black", pad=3)


def _draw_side_legend(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], margin_inches: float, title: str
) -> None:
    """Draw a legend in the right margin, `margin_inches` wide."""
    width, height = figure.get_size_inches()
    corner = (1 - (margin_inches - 0.15) / width, 1 - 1.0 / height)
    style = {"frameon": False, "fontsize": 9, "handlelength": 2.6, "labelspacing": 0.7, "alignment": "left"}
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=corner, title=title, title_fontsize=9, **style)
