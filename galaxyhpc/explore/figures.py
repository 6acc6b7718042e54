"""Figures of a dataset: class counts, sky map, violins, images and pairs of images.

Figures are made without pyplot. Splits differ in colour and marker; all colours are Okabe and Ito's.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from scipy.stats import gaussian_kde

from galaxyhpc.analysis.tables import GENERATED_NOTICE
from galaxyhpc.report.figures.plain import (
    WARNING_COLOUR,
    draw_class_axis,
    draw_graticule,
    make_plain_figure,
    project,
)
from galaxyhpc.report.figures.style import PALETTE, format_class_name, style_axes

TILE_INCHES = 1.2  # side of an image
BLUE, ORANGE, GREEN, DARK = PALETTE[:4]
LOG_TICKS = np.outer(10.0 ** np.arange(-3, 4), [1, 2, 5]).ravel()  # of a logarithmic axis
SPLIT_STYLES = {"train": (BLUE, "o"), "validation": (ORANGE, "s"), "test": (GREEN, "^"), "dropped": ("black", "x")}


def describe_left_out(shown: Sequence[int], class_names: Sequence[str]) -> str:
    """Say which classes a figure shows, if it does not show all."""
    if len(shown) == len(class_names):
        return ""
    return f" Shown: the {len(shown)} largest of {len(class_names):,} classes."


def draw_class_counts(counts: np.ndarray, class_names: Sequence[str], generated: bool) -> Figure:
    """Draw (K,) counts of galaxies per class as labelled bars."""
    figure = make_plain_figure(7.5, 0.8 + 0.28 * len(counts), generated)
    axes = figure.subplots()
    bars = axes.barh(range(len(counts)), counts, color=DARK)
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3, fontsize=9)
    draw_class_axis(axes, class_names)
    axes.set(xlabel="galaxies", xlim=(0, 1.1 * counts.max()))
    style_axes(axes, "")
    return figure


def draw_split_fractions(counts: pd.DataFrame, class_names: Sequence[str], generated: bool) -> Figure:
    """Draw the fraction of each class in each split, in per cent; `counts` has rows of `count_by_split`."""
    figure = make_plain_figure(7.5, 1.1 + 0.28 * len(counts), generated)
    axes = figure.subplots()
    percent = 100 * counts.div(counts.sum(axis=1), axis=0)
    left = np.zeros(len(percent))
    for name in percent:
        axes.barh(range(len(percent)), percent[name], left=left, color=SPLIT_STYLES[str(name)][0], label=name)
        left += percent[name].to_numpy()
    draw_class_axis(axes, class_names)
    axes.set(xlabel="per cent of the class", xlim=(0, 100))
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    style_axes(axes, "")
    return figure


def draw_sky(split: pd.DataFrame, generated: bool) -> Figure:
    """Draw all galaxies by split on an all-sky Mollweide map, east to the left, with the galactic plane."""
    figure = make_plain_figure(9.0, 5.2, generated)
    axes = figure.add_subplot(projection="mollweide")
    axes.plot(*_compute_galactic_equator(), color="0.6", lw=1, ls="--", label="galactic plane")
    size = float(np.clip(6000 / len(split), 2, 14))
    for name, (colour, marker) in SPLIT_STYLES.items():
        galaxies = split[split["split"] == name]
        if len(galaxies):
            position = project(galaxies["ra"].to_numpy(), galaxies["dec"].to_numpy())
            marker_size, edge_width = size * (1 if name == "train" else 2), 0.7 * (marker == "x")
            label = f"{name} ({len(galaxies):,})"
            axes.scatter(*position, s=marker_size, c=colour, marker=marker, lw=edge_width, label=label)
    draw_graticule(axes)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9, markerscale=1.6)
    return figure


def _compute_galactic_equator() -> tuple[np.ndarray, np.ndarray]:
    """Return the galactic equator on the map, from its left to its right edge, as (721,) x and y in radians."""
    from astropy.coordinates import SkyCoord

    equator = SkyCoord(l=np.linspace(0, 360, 721), b=np.zeros(721), unit="deg", frame="galactic").icrs
    x, y = project(equator.ra.deg, equator.dec.deg)
    order = np.argsort(x)
    return x[order], y[order]


def draw_violins(
    values: np.ndarray, labels: np.ndarray, names: Mapping[int, str], ylabel: str, generated: bool, log: bool = False
) -> Figure:
    """Draw the distribution of (N,) values in each class, as violins with the median and the central 68 %.

    `names` holds the names of the classes by their labels.

    Values that are not finite (if `log`, not positive) are left out; a class with fewer than two different values
    gets points instead.
    """
    figure = make_plain_figure(max(9.0, 1.0 + 0.3 * len(names)), 4.6, generated)
    axes = figure.subplots()
    is_shown = np.isfinite(values) & ((values > 0) if log else True)
    for position, label in enumerate(names):
        class_values = values[(labels == label) & is_shown]
        _draw_violin(axes, np.log10(class_values) if log else class_values, position)
    texts = [format_class_name(name) for name in names.values()]
    if is_wide := len(texts) <= 10 and max(len(word) for text in texts for word in text.split()) <= 12:
        texts = [text.replace(" ", "\n") for text in texts]
    axes.set_xticks(range(len(names)), texts, fontsize=8, rotation=0 if is_wide else 90)
    axes.set(ylabel=ylabel, xlim=(-0.6, len(names) - 0.4))
    if log:
        axes.yaxis.set_major_locator(FixedLocator(np.log10(LOG_TICKS).tolist()))
        axes.yaxis.set_major_formatter(lambda power, _: f"{10**power:.3g}")
    style_axes(axes)
    return figure


def _draw_violin(axes: Axes, values: np.ndarray, position: int) -> None:
    """Draw a Gaussian kernel density (Scott's rule), of the same maximum width for every class."""
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
    """Draw rows of (3, S, S) uint8 images, by the row's label on the left, each image with its title above."""
    left, column_width, row_height = 1.0, TILE_INCHES + 0.07, TILE_INCHES + 0.24
    num_columns = max(map(len, images_by_row.values()))
    size_inches = (left + column_width * num_columns, row_height * len(images_by_row))
    figure, axes = _make_tile_axes(size_inches, generated)
    for row, (label, images) in enumerate(images_by_row.items(), 1):
        text = textwrap.fill(format_class_name(label, 40), 11, break_on_hyphens=False)
        axes.text(left - 0.1, row_height * row - TILE_INCHES / 2, text, ha="right", va="center", fontsize=9)
        for column, (title, image) in enumerate(images):
            _draw_tile(axes, image, title, left + column_width * column, row_height * row - TILE_INCHES)
    return figure


def draw_pairs(images: np.ndarray, names: Sequence[str], generated: bool) -> Figure:
    """Draw (2n, 3, S, S) uint8 images as n pairs, two pairs per row, each image with its name above."""
    row_height = TILE_INCHES + 0.5
    columns = np.array([0, TILE_INCHES + 0.1, 2 * TILE_INCHES + 0.45, 3 * TILE_INCHES + 0.55])
    num_rows = -(-len(images) // len(columns))
    figure, axes = _make_tile_axes((columns[-1] + TILE_INCHES, row_height * num_rows), generated)
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        row, column = divmod(number, len(columns))
        _draw_tile(
            axes,
            image,
            textwrap.fill(format_class_name(name, 36), 18),
            columns[column],
            row_height * (row + 1) - TILE_INCHES,
        )
    return figure


def _make_tile_axes(size_inches: tuple[float, float], generated: bool) -> tuple[Figure, Axes]:
    """Make one axes in inches for all tiles: a layout engine takes seconds to place as many axes."""
    width, height = size_inches
    notice_height = 0.3 * generated
    figure = Figure(figsize=(width, height + notice_height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    if generated:
        x, y = width / 2, -notice_height / 2
        axes.text(x, y, GENERATED_NOTICE, fontsize=10, color=WARNING_COLOUR, ha="center", va="center")
    axes.set(xlim=(0.0, width), ylim=(height, -notice_height))
    return figure, axes


def _draw_tile(axes: Axes, image: np.ndarray, name: str, left: float, top: float) -> None:
    extent = (left, left + TILE_INCHES, top + TILE_INCHES, top)
    axes.imshow(image.transpose(1, 2, 0), extent=extent, aspect="auto", interpolation="nearest")
    axes.text(left + TILE_INCHES / 2, top - 0.04, name, fontsize=8, ha="center", va="bottom")
