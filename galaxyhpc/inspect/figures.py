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

from galaxyhpc.analysis.tables import About
from galaxyhpc.config import conditions
from galaxyhpc.data.galaxy10 import CLASSES
from galaxyhpc.inspect.gradcam import Choice
from galaxyhpc.report.figures.style import Grid, Look, folded, looks, plain, room, sheet

COLOURS = [colormaps["tab10"](number) for number in range(len(CLASSES))]
MARKERS = "osD^v<>PX*"  # with the colours: ten colours alone are too many for many eyes
COLUMNS = 4  # panels in a row
MEANING = {
    "isomap": "Isomap keeps distances along the cloud of galaxies.",
    "t-SNE": "t-SNE keeps near galaxies near: the distances between its clusters, and their sizes, mean nothing.",
    "UMAP": "UMAP keeps near galaxies near: the distances between its clusters mean little.",
}


@dataclass(frozen=True, eq=False)
class Panel:
    """A galaxy and where the network looks for two classes."""

    choice: Choice
    image: NDArray[np.float32]  # (S, S, 3) in [0, 1]
    truth: NDArray[np.float32]  # (S, S) in [0, 1], heat of the true class
    other: NDArray[np.float32]  # (S, S) in [0, 1], heat of choice.other
    split: str  # which part of the data it is from


def about(title: str, generated: bool) -> About:
    """Return what all figures of a run say."""
    return About(title, generated, math.nan)


def embedding(said: About, placed: Mapping[str, NDArray[np.float64]], labels: NDArray[np.int64], note: str) -> Figure:
    """Draw each method's (n, 2) places, coloured by class."""
    notes = [note, *(MEANING[method] for method in placed)]
    grid = Grid(1, len(placed), 4.6, 4.6, left=0.25, right=2.9, below=0.15, above=0.3)
    figure, panels = sheet(said, "Test galaxies as the network sees them", notes, grid)
    for axes, (method, places) in zip(panels, placed.items(), strict=True):
        for label in np.unique(labels):
            x, y = places[labels == label].T
            name = f"{CLASSES[label]} ({len(x)})"
            look = {"marker": MARKERS[label], "color": COLOURS[label]}
            axes.scatter(x, y, s=26, alpha=0.85, linewidths=0.3, edgecolors="white", label=name, **look)
        axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
        axes.set_title(method, fontsize=10)
    _beside(figure, *panels[-1].get_legend_handles_labels(), right=grid.right, title="class (galaxies)")
    return figure


def latent_distance(said: About, table: pd.DataFrame, note: str) -> Figure:
    """Draw how far each condition moves the galaxies, one panel per condition, one curve per network.

    `table` has label, group, condition, severity, median, q25, q75, of one kind of features; seeds are averaged.
    """
    keys = ["label", "group", "condition", "severity"]
    table = table.groupby(keys, sort=False)[["median", "q25", "q75"]].mean().reset_index()
    names, networks = list(dict.fromkeys(table["condition"])), table[["label", "group"]].drop_duplicates()
    columns = min(COLUMNS, len(names))
    right = max(room([*networks["label"]]) + 0.5, 4.5 - 2.9 * columns)
    grid = Grid(math.ceil(len(names) / columns), columns, 2.9, 2.3, (0.3, 0.85), right=right, above=0.3)
    figure, panels = sheet(said, "How far corruption moves galaxies inside the network", [note], grid)
    look, top = looks(networks), 1.05 * max(1.0, float(table["q75"].max()))
    for number, (axes, name) in enumerate(zip(panels, names, strict=False)):
        for label, part in table[table["condition"] == name].groupby("label", sort=False):
            _curve(axes, name, part, look[str(label)])
        axes.set_ylim(0, top)
        _dress(axes, name)
        if number % columns == 0:
            axes.set_ylabel("moved (galaxy distances)", fontsize=9)
        else:
            axes.set_yticklabels([])
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    lines = [Line2D([], [], lw=1.6, ms=4, **look[label]) for label in networks["label"]]
    _beside(figure, lines, [folded(label) for label in networks["label"]], right=right, title="network")
    return figure


def _curve(axes: Axes, name: str, part: pd.DataFrame, look: Look) -> None:
    x = _places(name, part["severity"].to_numpy())
    axes.fill_between(x, part["q25"], part["q75"], color=look["color"], alpha=0.12, linewidth=0)
    axes.plot(x, part["median"], lw=1.6, ms=4, markevery=math.ceil(len(part) / 12), **look)


def _places(name: str, severities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where severities stand on the axis: angles to scale, others one after the other, the mildest first."""
    if name in ("rotation", "rotation_control"):
        return severities
    order = conditions.severities(name)
    return np.array([order.index(severity) for severity in severities], dtype=np.float64)


def _dress(axes: Axes, name: str) -> None:
    plain(axes)
    axes.set_title(name, fontsize=10)
    axes.axhline(1.0, color="0.5", linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_xlabel(conditions.unit(name), fontsize=9)
    if name == "rotation":
        axes.set(xlim=(0, 360), xticks=range(0, 361, 90))
    elif name != "rotation_control":
        levels = conditions.severities(name)
        axes.set_xticks(range(len(levels)), [f"{conditions.parameter(name, level):g}" for level in levels])


def grad_cam(said: About, panels: Sequence[Panel | None], note: str) -> Figure:
    """Draw galaxies in two columns, each with the heat of the true class and of another one over it."""
    grid = Grid(math.ceil(len(panels) / 2), 6, 1.9, 1.9, (0.06, 0.28), left=0.15, right=0.45, below=0.15, above=0.3)
    figure, axes = sheet(said, "Where the network looks (Grad-CAM)", [note], grid)
    for number, panel in enumerate(panels):
        if panel is not None:
            _draw_panel(axes[3 * number : 3 * number + 3], panel)
    for number, each in enumerate(axes):
        each.set_axis_off()
        if number % 6 >= 3:  # two galaxies stand side by side
            box = each.get_position()
            each.set_position((box.x0 + 0.3 / figure.get_figwidth(), box.y0, box.width, box.height))
    return figure


def _draw_panel(three: Sequence[Axes], panel: Panel) -> None:
    choice = panel.choice
    right = choice.predicted == choice.truth
    word, colour = ("right", "#00694B") if right else ("WRONG", "#B5400A")
    where = "" if panel.split == "test" else f" ({panel.split})"
    heads = (
        f"row {choice.row}{where}: {word}, {choice.confidence:.0%}",
        f"true: {CLASSES[choice.truth]}",
        f"{'next' if right else 'said'}: {CLASSES[choice.other]}",
    )
    for axes, head, heat in zip(three, heads, (None, panel.truth, panel.other), strict=True):
        axes.imshow(panel.image, interpolation="nearest")
        if heat is not None:
            axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6 * heat)
            head += "" if heat.any() else " (no heat)"  # every channel speaks against the class
        axes.set_title(head, fontsize=8, color=colour if heat is None else "black", pad=3)


def _beside(figure: Figure, handles: Sequence[Any], names: Sequence[str], right: float, title: str) -> None:
    """Write a legend into the margin `right` inches wide."""
    width, height = figure.get_size_inches()
    corner = (1 - (right - 0.15) / width, 1 - 1.0 / height)
    look = {"frameon": False, "fontsize": 9, "handlelength": 2.6, "labelspacing": 0.7, "alignment": "left"}
    figure.legend(handles, names, loc="upper left", bbox_to_anchor=corner, title=title, title_fontsize=9, **look)
