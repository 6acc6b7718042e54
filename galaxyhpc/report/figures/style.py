"""What all figures of a sweep share: the paper they are drawn on, what they must say, and the look of a network.

A network looks the same in every figure: its colour tells the order of its group; solid lines and full markers are
rotations only, dashed lines and open markers have reflections too, black is the conventional network. Panels are
placed in inches: a layout engine would take longer than all the drawing.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

from galaxyhpc.analysis.tables import GENERATED_NOTICE, ReportInfo, Tables, sort_by_accuracy

# Okabe and Ito (2008) without yellow, which is lost on white; black is kept for networks without a group
PALETTE = ("#56B4E9", "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#8C6D46")
LINE_STYLES = {"C": "-", "D": (0, (5, 1.5)), "": (0, (1, 1))}
MARKERS = "osD^vPX*"  # tell apart networks of one group
MAX_NETWORKS = 16  # networks that can be told apart in one figure
LEGEND_LINE_INCHES = 0.6  # inches of a legend's lines, beside the room for names
NOTE_COLOUR = "0.35"  # the grey of what is said beside the point
INTERVAL_NOTE = "Bands or bars: 95 % intervals by bootstrap over seeds and pieces of sky."

LineStyle = dict[str, Any]


@dataclass(frozen=True)
class PanelGrid:
    """Panels of equal size and what is left free around them, in inches."""

    num_rows: int
    num_columns: int
    panel_width: float
    panel_height: float
    spacing: tuple[float, float] = (0.25, 0.6)
    left: float = 0.75
    right: float = 0.25
    bottom: float = 0.5
    top: float = 0.1


def make_figure(
    about: ReportInfo,
    heading: str,
    notes: Sequence[str],
    grid: PanelGrid,
    num_panels: int | None = None,
    projection: str | None = None,
) -> tuple[Figure, list[Axes]]:
    """Make a figure that says what all must, with its panels row by row, all or the first `count` of the grid."""
    across, down = grid.spacing
    width = grid.left + grid.num_columns * grid.panel_width + (grid.num_columns - 1) * across + grid.right
    generated = [f"{GENERATED_NOTICE}: this says nothing about real ones."] if about.generated else []
    note = textwrap.fill(" ".join([*(n for n in notes if n), *generated]), int(14.5 * width))
    title = "\n".join(textwrap.fill(line, int(12 * width)) for line in _make_title(about, heading))
    top = 0.2 + 0.19 * (1 + title.count("\n")) + grid.top
    bottom = 0.15 + 0.14 * (1 + note.count("\n")) + grid.bottom
    height = top + grid.num_rows * grid.panel_height + (grid.num_rows - 1) * down + bottom
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, x=0.15 / width, y=1 - 0.1 / height, fontsize=11, ha="left", va="top")
    figure.supxlabel(note, x=0.15 / width, y=0.1 / height, fontsize=8, color=NOTE_COLOUR, ha="left", va="bottom")
    corners = [
        (
            grid.left + column * (grid.panel_width + across),
            height - top - grid.panel_height - row * (grid.panel_height + down),
        )
        for row in range(grid.num_rows)
        for column in range(grid.num_columns)
    ]
    w, h = grid.panel_width / width, grid.panel_height / height
    panels = [figure.add_axes((x / width, y / height, w, h), projection=projection) for x, y in corners[:num_panels]]
    return figure, panels


def _make_title(about: ReportInfo, heading: str) -> list[str]:
    return [heading, about.title, *([GENERATED_NOTICE] if about.generated else [])]


def style_axes(axes: Axes, grid_axis: str = "y") -> None:
    """Leave only what a reader needs of a panel's frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if grid_axis:
        axes.grid(axis=grid_axis, color="0.92", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def write_empty_reason(axes: Axes, text: str) -> None:
    """Say in the middle of a panel why it is empty."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=NOTE_COLOUR, fontsize=9, wrap=True
    )


def select_best_networks(networks: pd.DataFrame, max_networks: int) -> tuple[pd.DataFrame, str]:
    """Choose the networks best on clean galaxies, in their order, and say so where it is not all.

    One place is the best conventional CNN's, whatever its own: the others are measured by it.
    """
    if len(networks) <= max_networks:
        return networks, ""
    order = networks["accuracy_mean"].sort_values(ascending=False, kind="stable").index
    cnn = [place for place in order if networks.loc[place, "arch"] == "cnn"][:1]
    chosen = networks[networks.index.isin([*cnn, *(place for place in order if place not in cnn)][:max_networks])]
    beside = " and the CNN" if cnn and cnn[0] not in order[:max_networks] else ""
    return chosen, f"Of {len(networks)} networks, the {max_networks - bool(beside)} best on clean galaxies{beside}."


def assign_styles(networks: pd.DataFrame) -> dict[str, LineStyle]:
    """Choose a look for each label of a table with the columns label and group; the first of several groups counts."""
    sizes = {group: int(re.split("[CD]", group)[1]) for group in networks["group"] if group}
    orders = sorted(set(sizes.values()))
    found: dict[str, LineStyle] = {}
    for label, group in zip(networks["label"], networks["group"], strict=True):
        colour = PALETTE[orders.index(sizes[group]) % len(PALETTE)] if group else "black"
        line = LINE_STYLES[group[:1]]
        twins = sum((look["color"], look["linestyle"]) == (colour, line) for look in found.values())
        face = "white" if group.startswith("D") else colour
        marker = MARKERS[twins % len(MARKERS)]
        found[label] = {"color": colour, "linestyle": line, "marker": marker, "markerfacecolor": face}
    return found


def select_with_styles(tables: Tables) -> tuple[pd.DataFrame, dict[str, LineStyle], str]:
    """Choose the networks of a figure that tells them apart by their looks."""
    chosen, note = select_best_networks(tables.networks, MAX_NETWORKS)
    return chosen, assign_styles(chosen), note


def format_condition(condition: str) -> str:
    """Write the name of a condition as words."""
    words = {"psf": "PSF", "jpeg": "JPEG"}
    return " + ".join(" ".join(words.get(w, w) for w in part.split("_")) for part in condition.split("+"))


def wrap_text(text: str, width: int = 30) -> str:
    """Fold a long name into lines."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def estimate_width_inches(texts: Sequence[str]) -> float:
    """Inches that folded names of 9 points take."""
    return 0.35 + 0.075 * max((len(line) for text in texts for line in wrap_text(text).split("\n")), default=0)


def draw_legend(
    figure: Figure,
    networks: pd.DataFrame,
    display_names: dict[str, str],
    styles: dict[str, LineStyle],
    margin_inches: float,
) -> None:
    """Name the networks in the margin `right` inches wide, the best first."""
    lines = [Line2D([], [], lw=1.6, ms=4.5, **styles[label]) for label in sort_by_accuracy(networks)["label"]]
    texts = [wrap_text(display_names[label]) for label in sort_by_accuracy(networks)["label"]]
    width, height = figure.get_size_inches()
    figure.legend(
        lines,
        texts,
        loc="upper left",
        bbox_to_anchor=(1 - (margin_inches - 0.1) / width, 1 - 0.8 / height),
        frameon=False,
        fontsize=9,
        handlelength=3,
        labelspacing=0.7,
    )


def write_cells(axes: Axes, cells: Sequence[tuple[float, float, str, float]], colour: str) -> None:
    """Write short texts into the cells of an image, as one shape: a text each would take longer than all else.

    `cells` has column, row, text and size in points; rows are counted from the top.
    """
    if not cells:
        return
    (right, left), (bottom, top) = axes.get_xlim()[::-1], axes.get_ylim()
    box, (width, height) = axes.get_position(), axes.figure.get_size_inches()  # type: ignore[union-attr]
    inches = np.array([box.width * width, box.height * height])
    parts, codes = [], []
    for column, row, text, size in cells:
        shape = _make_glyphs(text)
        place = np.array([(column - left) / (right - left), (row - bottom) / (top - bottom)])
        parts.append(np.asarray(shape.vertices) * size / 72 / inches + place)
        codes.append(np.asarray(shape.codes))
    path = Path(np.concatenate(parts), np.concatenate(codes))
    axes.add_artist(PathPatch(path, facecolor=colour, lw=0, transform=axes.transAxes))  # add_patch would measure it


@lru_cache(maxsize=4096)
def _make_glyphs(text: str) -> Path:
    """Outline of a text one point high, around its middle."""
    shape = TextPath((0, 0), text, size=1)
    vertices = np.asarray(shape.vertices) - np.array([shape.get_extents().intervalx.mean(), 0.36])  # of a digit's 0.73
    return Path(vertices, shape.codes)


def compute_axis_limits(values: Sequence[NDArray[np.float64]], chance: float) -> tuple[float, float]:
    """Lowest and highest per cent shown; chance is shown where that does not press the curves together."""
    every = np.concatenate([np.ravel(part) for part in values]) if len(values) else np.array([])
    every = every[np.isfinite(every)]
    if not len(every):
        return 0.0, 100.0
    low, high = float(every.min()), float(every.max())
    if low - 100 * chance < 0.5 * (high - low):
        low, high = min(low, 100 * chance), max(high, 100 * chance)  # a network may be worse than chance
    margin = 0.04 * (high - low) + 0.5
    return low - margin, high + margin


def draw_chance(axes: Axes, chance: float, should_label: bool = True) -> None:
    """Draw the line of a network that always names the commonest class, or say that it is below."""
    if not np.isfinite(chance):
        return
    below = bool(100 * chance < axes.get_ylim()[0])
    height = axes.get_ylim()[0] if below else 100 * chance
    if not below:
        axes.axhline(height, color="0.5", linewidth=0.8)
    if should_label:
        text = f"{'↓ ' if below else ''}always the commonest class: {100 * chance:.1f} %"
        axes.annotate(
            text, (0.01, height), (0, 3), axes.get_yaxis_transform(), "offset points", fontsize=8, color=NOTE_COLOUR
        )


def label_curve_ends(axes: Axes, ends: list[tuple[str, LineStyle, float, float]]) -> None:
    """Write each name right of the end (x, y) of its curve, apart from the next."""
    ends = sorted(ends, key=lambda end: end[3])
    texts = [wrap_text(text) for text, _, _, _ in ends]
    inches = axes.get_position().height * axes.figure.get_size_inches()[1]  # type: ignore[union-attr]
    low, high = axes.get_ylim()
    lines = np.array([1 + text.count("\n") for text in texts])
    heights = spread_labels(np.array([end[3] for end in ends]), lines * 0.168 * (high - low) / inches, high)
    for (_, look, x, y), text, height in zip(ends, texts, heights, strict=True):
        line = {"arrowstyle": "-", "color": look["color"], "lw": 0.7, "shrinkB": 2, "relpos": (0, 0.5), "patchA": None}
        style = {"color": look["color"], "fontsize": 9, "va": "center", "annotation_clip": False}
        axes.annotate(text, (x, y), (1.04, float(height)), "data", axes.get_yaxis_transform(), line, **style)


def spread_labels(heights: NDArray[np.float64], text_heights: NDArray[np.float64], top: float) -> NDArray[np.float64]:
    """Move rising heights as little as needed for texts as `tall` as given to stand apart, below `high` if they can."""
    if not len(heights):
        return heights
    gaps = np.cumsum(text_heights) - text_heights[0] / 2 - text_heights / 2
    wanted = heights - gaps
    # the mean of the upper and the lower monotone envelope keeps the order and the gaps, and stays near
    placed = gaps + (np.maximum.accumulate(wanted) + np.minimum.accumulate(wanted[::-1])[::-1]) / 2
    return np.asarray(placed - max(float(placed[-1]) - top, 0.0), dtype=np.float64)
