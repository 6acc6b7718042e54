"""The common style of all figures of a sweep: panels, titles and notes, and the line style of each network.

A network looks the same in every figure: its colour is the order of its group; solid lines and full markers are groups
of rotations, dashed lines and open markers groups with reflections, black is the conventional network. Panels are
placed in inches, because a layout engine would take longer than all the drawing.
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

# Okabe and Ito (2008) without yellow, which is invisible on white; black is for networks without a group
PALETTE = ("#56B4E9", "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#8C6D46")
LINE_STYLES = {"C": "-", "D": (0, (5, 1.5)), "": (0, (1, 1))}
MARKERS = "osD^vPX*"  # distinguish networks of one group
MAX_NETWORKS = 16  # in one figure
LEGEND_LINE_INCHES = 0.6  # width of a legend's lines, without names
NOTE_COLOUR = "0.35"  # grey
INTERVAL_NOTE = "Bands or bars: 95 % intervals by bootstrap over seeds and groups of galaxies."

LineStyle = dict[str, Any]


@dataclass(frozen=True)
class PanelGrid:
    """Panels of equal size and the margins around them, in inches."""

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
    info: ReportInfo,
    heading: str,
    notes: Sequence[str],
    grid: PanelGrid,
    num_panels: int | None = None,
    projection: str | None = None,
) -> tuple[Figure, list[Axes]]:
    """Make a figure with title, notes and the first `num_panels` panels of the grid (default all), row by row."""
    across, down = grid.spacing
    width = grid.left + grid.num_columns * grid.panel_width + (grid.num_columns - 1) * across + grid.right
    generated = [f"{GENERATED_NOTICE}: this says nothing about real ones."] if info.generated else []
    note = textwrap.fill(" ".join([*(text for text in notes if text), *generated]), int(14.5 * width))
    title = "\n".join(textwrap.fill(line, int(12 * width)) for line in _make_title(info, heading))
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


def _make_title(info: ReportInfo, heading: str) -> list[str]:
    return [heading, info.title, *([GENERATED_NOTICE] if info.generated else [])]


def style_axes(axes: Axes, grid_axis: str = "y") -> None:
    """Remove the upper and right spines of a panel, and draw a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if grid_axis:
        axes.grid(axis=grid_axis, color="0.92", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def write_empty_reason(axes: Axes, text: str) -> None:
    """Write in the middle of a panel why it is empty."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=NOTE_COLOUR, fontsize=9, wrap=True
    )


def select_best_networks(networks: pd.DataFrame, max_networks: int) -> tuple[pd.DataFrame, str]:
    """Select the networks best on clean galaxies, in their order, with a note if some are left out.

    The best conventional CNN is always included, because the others are compared with it.
    """
    if len(networks) <= max_networks:
        return networks, ""
    order = networks["accuracy_mean"].sort_values(ascending=False, kind="stable").index
    cnn = [index for index in order if networks.loc[index, "arch"] == "cnn"][:1]
    indices = [*cnn, *(index for index in order if index not in cnn)][:max_networks]
    is_added = bool(cnn) and cnn[0] not in order[:max_networks]
    text = f"the {max_networks - is_added} best on clean galaxies{' and the CNN' if is_added else ''}"
    return networks[networks.index.isin(indices)], f"Of {len(networks)} networks, {text}."


def assign_styles(networks: pd.DataFrame) -> dict[str, LineStyle]:
    """Assign a line style to each network of a table with columns label and group (the first, if it has several)."""
    orders_by_group = {group: int(re.split("[CD]", group)[1]) for group in networks["group"] if group}
    orders = sorted(set(orders_by_group.values()))
    styles: dict[str, LineStyle] = {}
    for label, group in zip(networks["label"], networks["group"], strict=True):
        colour = PALETTE[orders.index(orders_by_group[group]) % len(PALETTE)] if group else "black"
        line = LINE_STYLES[group[:1]]
        num_alike = sum((style["color"], style["linestyle"]) == (colour, line) for style in styles.values())
        face = "white" if group.startswith("D") else colour
        marker = MARKERS[num_alike % len(MARKERS)]
        styles[label] = {"color": colour, "linestyle": line, "marker": marker, "markerfacecolor": face}
    return styles


def select_with_styles(tables: Tables) -> tuple[pd.DataFrame, dict[str, LineStyle], str]:
    """Select the networks of a figure with one style per network, with their styles and a note."""
    selected, note = select_best_networks(tables.networks, MAX_NETWORKS)
    return selected, assign_styles(selected), note


def format_condition(condition: str) -> str:
    """Write the name of a condition as words."""
    words = {"psf": "PSF", "jpeg": "JPEG"}
    return " + ".join(" ".join(words.get(w, w) for w in part.split("_")) for part in condition.split("+"))


def format_class_name(name: str, max_length: int = 24) -> str:
    """Shorten the name of a class for an axis; a dollar sign stays one, and starts no formula."""
    return (name if len(name) <= max_length else f"{name[: max_length - 1]}…").replace("$", r"\$")


def wrap_text(text: str, width: int = 30) -> str:
    """Wrap a long name into lines."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def estimate_width_inches(texts: Sequence[str]) -> float:
    """Estimate the width of wrapped names at 9 points, in inches."""
    return 0.35 + 0.075 * max((len(line) for text in texts for line in wrap_text(text).split("\n")), default=0)


def draw_legend(
    figure: Figure,
    networks: pd.DataFrame,
    display_names: dict[str, str],
    styles: dict[str, LineStyle],
    margin_inches: float,
) -> None:
    """Name the networks in the right margin, `margin_inches` wide, the best first."""
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
    """Write short texts into the cells of an image, as one shape: single texts would take longer than all the rest.

    Parameters
    ----------
    cells : column, row (from the top), text and its size in points
    """
    if not cells:
        return
    (right, left), (bottom, top) = axes.get_xlim()[::-1], axes.get_ylim()
    box, (width, height) = axes.get_position(), axes.figure.get_size_inches()  # type: ignore[union-attr]
    inches = np.array([box.width * width, box.height * height])
    parts, codes = [], []
    for column, row, text, size in cells:
        shape = _make_glyphs(text)
        position = np.array([(column - left) / (right - left), (row - bottom) / (top - bottom)])
        parts.append(np.asarray(shape.vertices) * size / 72 / inches + position)
        codes.append(np.asarray(shape.codes))
    path = Path(np.concatenate(parts), np.concatenate(codes))
    axes.add_artist(PathPatch(path, facecolor=colour, lw=0, transform=axes.transAxes))  # add_patch would measure it


@lru_cache(maxsize=4096)
def _make_glyphs(text: str) -> Path:
    """Return the outline of a text at size 1, centred."""
    shape = TextPath((0, 0), text, size=1)
    vertices = np.asarray(shape.vertices) - np.array(
        [shape.get_extents().intervalx.mean(), 0.36]
    )  # a digit is 0.73 high
    return Path(vertices, shape.codes)


def compute_axis_limits(values: Sequence[NDArray[np.float64]], chance: float) -> tuple[float, float]:
    """Return the limits of an accuracy axis in per cent; they include chance unless that would compress the curves."""
    numbers = np.concatenate([np.ravel(part) for part in values]) if len(values) else np.array([])
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return 0.0, 100.0
    low, high = float(numbers.min()), float(numbers.max())
    if low - 100 * chance < 0.5 * (high - low):
        low, high = min(low, 100 * chance), max(high, 100 * chance)  # a network may be worse than chance
    margin = 0.04 * (high - low) + 0.5
    return low - margin, high + margin


def draw_chance(axes: Axes, chance: float, should_label: bool = True) -> None:
    """Draw the accuracy of always predicting the majority class, or note that it is below the axis."""
    if not np.isfinite(chance):
        return
    is_below = bool(100 * chance < axes.get_ylim()[0])
    height = axes.get_ylim()[0] if is_below else 100 * chance
    if not is_below:
        axes.axhline(height, color="0.5", linewidth=0.8)
    if should_label:
        text = f"{'↓ ' if is_below else ''}always the majority class: {100 * chance:.1f} %"
        axes.annotate(
            text, (0.01, height), (0, 3), axes.get_yaxis_transform(), "offset points", fontsize=8, color=NOTE_COLOUR
        )


def label_curve_ends(axes: Axes, ends: list[tuple[str, LineStyle, float, float]]) -> None:
    """Write each name to the right of the end (x, y) of its curve, without overlaps."""
    ends = sorted(ends, key=lambda end: end[3])
    texts = [wrap_text(text) for text, _, _, _ in ends]
    inches = axes.get_position().height * axes.figure.get_size_inches()[1]  # type: ignore[union-attr]
    low, high = axes.get_ylim()
    lines = np.array([1 + text.count("\n") for text in texts])
    heights = spread_labels(np.array([end[3] for end in ends]), lines * 0.168 * (high - low) / inches, high)
    for (_, curve_style, x, y), text, height in zip(ends, texts, heights, strict=True):
        line = {
            "arrowstyle": "-",
            "color": curve_style["color"],
            "lw": 0.7,
            "shrinkB": 2,
            "relpos": (0, 0.5),
            "patchA": None,
        }
        style = {"color": curve_style["color"], "fontsize": 9, "va": "center", "annotation_clip": False}
        axes.annotate(text, (x, y), (1.04, float(height)), "data", axes.get_yaxis_transform(), line, **style)


def spread_labels(heights: NDArray[np.float64], text_heights: NDArray[np.float64], top: float) -> NDArray[np.float64]:
    """Move ascending heights apart by as little as texts of `text_heights` need, below `top` if possible."""
    if not len(heights):
        return heights
    gaps = np.cumsum(text_heights) - text_heights[0] / 2 - text_heights / 2
    targets = heights - gaps
    # the mean of the upper and the lower monotone envelope keeps the order and the gaps, and stays near
    positions = gaps + (np.maximum.accumulate(targets) + np.minimum.accumulate(targets[::-1])[::-1]) / 2
    return np.asarray(positions - max(float(positions[-1]) - top, 0.0), dtype=np.float64)
