"""Figures of a file of galaxies: class counts, sky, violins, pictures and pairs of pictures.

Figures are made without pyplot. Splits are told apart by colour and by marker; all colours are Okabe and Ito's.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from scipy.stats import gaussian_kde

from galaxyhpc.analysis.tables import GENERATED_NOTICE
from galaxyhpc.data.galaxy10 import CLASSES
from galaxyhpc.report import page
from galaxyhpc.report.figures.style import PALETTE, style_axes

WARNING_COLOUR = "#B00020"
TILE_INCHES = 1.2  # inches, side of a picture
MAP_CENTRE_RA_DEG = 120.0  # right ascension in the middle of the map, deg: the survey's two halves stay whole
BLUE, ORANGE, GREEN, DARK = PALETTE[:4]
LOG_TICKS = np.outer(10.0 ** np.arange(-3, 4), [1, 2, 5]).ravel()  # of a logarithmic axis
SPLIT_STYLES = {"train": (BLUE, "o"), "validation": (ORANGE, "s"), "test": (GREEN, "^"), "dropped": ("black", "x")}
GALACTIC_POLE_DEC_RAD, GALACTIC_POLE_RA_RAD, ASCENDING_NODE_RAD = np.radians(
    [27.12825, 192.85948, 32.93192]
)  # of the Milky Way's plane in J2000 (Hipparcos)


def _make_figure(width_inches: float, height_inches: float, generated: bool) -> Figure:
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    if generated:
        figure.suptitle(GENERATED_NOTICE, fontsize=9, color=WARNING_COLOUR)
    return figure


def draw_class_counts(counts: np.ndarray, generated: bool) -> Figure:
    """Draw bars of the (10,) galaxies per class, each named and numbered."""
    figure = _make_figure(7.5, 3.6, generated)
    axes = figure.subplots()
    bars = axes.barh(CLASSES, counts, color=DARK)
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlabel="galaxies", xlim=(0, 1.1 * counts.max()))
    style_axes(axes, "")
    return figure


def draw_split_fractions(counts: pd.DataFrame, generated: bool) -> Figure:
    """Draw how each class is divided, in per cent; `counts` is that of `facts.split_counts`."""
    figure = _make_figure(7.5, 3.9, generated)
    axes = figure.subplots()
    shares = 100 * counts.div(counts.sum(axis=1), axis=0)
    left = np.zeros(len(shares))
    for name in shares:
        axes.barh(CLASSES, shares[name], left=left, color=SPLIT_STYLES[str(name)][0], label=name)
        left += shares[name].to_numpy()
    axes.invert_yaxis()
    axes.set(xlabel="per cent of the class", xlim=(0, 100))
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    style_axes(axes, "")
    return figure


def draw_sky(split: pd.DataFrame, generated: bool) -> Figure:
    """Draw all galaxies on the whole sky (Mollweide), east to the left, by split, with the Milky Way's plane."""
    figure = _make_figure(9.0, 5.2, generated)
    axes = figure.add_subplot(projection="mollweide")
    axes.plot(*_compute_galactic_equator(), color="0.6", lw=1, ls="--", label="plane of the Milky Way")
    size = float(np.clip(6000 / len(split), 2, 14))
    for name, (colour, marker) in SPLIT_STYLES.items():
        of_split = split[split["split"] == name]
        if len(of_split):
            place = _project(of_split["ra"].to_numpy(), of_split["dec"].to_numpy())
            grown, edge, label = (
                size * (1 if name == "train" else 2),
                0.7 * (marker == "x"),
                f"{name} ({len(of_split):,})",
            )
            axes.scatter(*place, s=grown, c=colour, marker=marker, lw=edge, label=label)
    _draw_graticule(axes)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9, markerscale=1.6)
    return figure


def _draw_graticule(axes: Axes) -> None:
    """Draw the lines of equal position; right ascensions stand where a survey of the equator leaves room."""
    degrees = np.arange(-150, 151, 30)
    axes.set_xticks(np.radians(degrees), [""] * len(degrees))
    for degree in degrees:
        place = (np.radians(degree), np.radians(-37.5))
        axes.text(
            *place, f"{(MAP_CENTRE_RA_DEG - degree) % 360:.0f}°", fontsize=8, color="0.3", ha="center", va="center"
        )
    axes.tick_params(axis="y", labelsize=8, labelcolor="0.3")
    axes.grid(color="0.88", lw=0.6)
    axes.set_axisbelow(True)


def _project(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn degrees into the projection's radians; right ascension grows to the left, as on the sky."""
    return np.radians((MAP_CENTRE_RA_DEG - ra + 180) % 360 - 180), np.radians(dec)


def _compute_galactic_equator() -> tuple[np.ndarray, np.ndarray]:
    """Return the galactic equator on the map, in order from its left to its right edge."""
    along = np.linspace(0, 2 * np.pi, 721) - ASCENDING_NODE_RAD
    dec = np.arcsin(np.cos(GALACTIC_POLE_DEC_RAD) * np.sin(along))
    ra = GALACTIC_POLE_RA_RAD + np.arctan2(np.cos(along), -np.sin(GALACTIC_POLE_DEC_RAD) * np.sin(along))
    x, y = _project(np.degrees(ra), np.degrees(dec))
    order = np.argsort(x)
    return x[order], y[order]


def draw_violins(values: np.ndarray, labels: np.ndarray, ylabel: str, generated: bool, log: bool = False) -> Figure:
    """Draw how (N,) values are spread in each class: violins, with the median and the middle 68 %.

    Values that are not finite (with `log`, not positive) are left out; a class with fewer than two different ones
    gets its points alone.
    """
    figure = _make_figure(9.0, 4.6, generated)
    axes = figure.subplots()
    known = np.isfinite(values) & ((values > 0) if log else True)
    for label in range(len(CLASSES)):
        of_class = values[(labels == label) & known]
        _draw_violin(axes, np.log10(of_class) if log else of_class, label)
    axes.set_xticks(range(len(CLASSES)), [name.replace(" ", "\n") for name in CLASSES], fontsize=8)
    axes.set(ylabel=ylabel, xlim=(-0.6, len(CLASSES) - 0.4))
    if log:
        axes.yaxis.set_major_locator(FixedLocator(np.log10(LOG_TICKS).tolist()))
        axes.yaxis.set_major_formatter(lambda power, _: f"{10**power:.3g}")
    style_axes(axes)
    return figure


def _draw_violin(axes: Axes, values: np.ndarray, position: int) -> None:
    """Draw a normal-kernel density of its own (Scott's rule), as wide for every class."""
    if len(np.unique(values)) < 2:  # no density to estimate
        axes.scatter(np.full(len(values), position), values, s=12, color=DARK)
        return
    heights = np.linspace(values.min(), values.max(), 200)
    density = gaussian_kde(values)(heights)
    half = 0.42 * density / density.max()
    axes.fill_betweenx(heights, position - half, position + half, facecolor=BLUE, edgecolor=DARK, alpha=0.6, lw=0.8)
    low, middle, high = np.percentile(values, [16, 50, 84])
    axes.plot([position, position], [low, high], color=DARK, lw=3, solid_capstyle="butt")
    axes.plot([position], [middle], "o", color="white", mec=DARK, ms=5)


def draw_image_rows(images_by_row: Mapping[str, Sequence[tuple[str, np.ndarray]]], generated: bool) -> Figure:
    """Draw lines of (3, S, S) uint8 pictures: by the name of the line, each picture with its own above."""
    left, across, down = 1.0, TILE_INCHES + 0.07, TILE_INCHES + 0.24
    figure, axes = _make_tile_axes(
        (left + across * max(map(len, images_by_row.values())), down * len(images_by_row)), generated
    )
    for line, (name, pictures) in enumerate(images_by_row.items(), 1):
        text = textwrap.fill(name, 11, break_on_hyphens=False)
        axes.text(left - 0.1, down * line - TILE_INCHES / 2, text, ha="right", va="center", fontsize=10)
        for column, (above, image) in enumerate(pictures):
            _draw_tile(axes, image, above, left + across * column, down * line - TILE_INCHES)
    return figure


def draw_pairs(images: np.ndarray, names: Sequence[str], generated: bool) -> Figure:
    """Draw (2n, 3, S, S) uint8 pictures as n pairs, two pairs a line, each picture with its name above."""
    down, columns = TILE_INCHES + 0.5, np.array([0, TILE_INCHES + 0.1, 2 * TILE_INCHES + 0.45, 3 * TILE_INCHES + 0.55])
    figure, axes = _make_tile_axes((columns[-1] + TILE_INCHES, down * -(-len(images) // len(columns))), generated)
    for place, (image, name) in enumerate(zip(images, names, strict=True)):
        line, column = divmod(place, len(columns))
        _draw_tile(axes, image, textwrap.fill(name, 18), columns[column], down * (line + 1) - TILE_INCHES)
    return figure


def _make_tile_axes(size_inches: tuple[float, float], generated: bool) -> tuple[Figure, Axes]:
    """Make a sheet of `size` inches to lay tiles on: a layout engine takes seconds to place as many axes."""
    width, height = size_inches
    above = 0.3 * generated
    figure = Figure(figsize=(width, height + above))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    if generated:
        axes.text(width / 2, -above / 2, GENERATED_NOTICE, fontsize=10, color=WARNING_COLOUR, ha="center", va="center")
    axes.set(xlim=(0.0, width), ylim=(height, -above))
    return figure, axes


def _draw_tile(axes: Axes, image: np.ndarray, name: str, left: float, top: float) -> None:
    extent = (left, left + TILE_INCHES, top + TILE_INCHES, top)
    axes.imshow(image.transpose(1, 2, 0), extent=extent, aspect="auto", interpolation="nearest")
    axes.text(left + TILE_INCHES / 2, top - 0.04, name, fontsize=8, ha="center", va="bottom")


def make_page_figure(title: str, caption: str, alt: str, figure: Figure, dpi: int = 140) -> page.PageFigure:
    """Return a figure as a page shows it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return page.PageFigure(title, caption, alt, buffer.getvalue())
