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

from galaxyhpc.analysis.tables import GENERATED
from galaxyhpc.data.galaxy10 import CLASSES
from galaxyhpc.report import page
from galaxyhpc.report.figures.style import PALETTE, plain

WARNING = "#B00020"
TILE = 1.2  # inches, side of a picture
CENTRE = 120.0  # right ascension in the middle of the map, deg: the survey's two halves stay whole
BLUE, ORANGE, GREEN, DARK = PALETTE[:4]
TICKS = np.outer(10.0 ** np.arange(-3, 4), [1, 2, 5]).ravel()  # of a logarithmic axis
LOOKS = {"train": (BLUE, "o"), "validation": (ORANGE, "s"), "test": (GREEN, "^"), "dropped": ("black", "x")}
POLE, NODE, ASCENDING = np.radians([27.12825, 192.85948, 32.93192])  # of the Milky Way's plane in J2000 (Hipparcos)


def _sheet(width: float, height: float, generated: bool) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    if generated:
        figure.suptitle(GENERATED, fontsize=9, color=WARNING)
    return figure


def class_counts(counts: np.ndarray, generated: bool) -> Figure:
    """Draw bars of the (10,) galaxies per class, each named and numbered."""
    figure = _sheet(7.5, 3.6, generated)
    axes = figure.subplots()
    bars = axes.barh(CLASSES, counts, color=DARK)
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlabel="galaxies", xlim=(0, 1.1 * counts.max()))
    plain(axes, "")
    return figure


def split_shares(counts: pd.DataFrame, generated: bool) -> Figure:
    """Draw how each class is divided, in per cent; `counts` is that of `facts.split_counts`."""
    figure = _sheet(7.5, 3.9, generated)
    axes = figure.subplots()
    shares = 100 * counts.div(counts.sum(axis=1), axis=0)
    left = np.zeros(len(shares))
    for name in shares:
        axes.barh(CLASSES, shares[name], left=left, color=LOOKS[str(name)][0], label=name)
        left += shares[name].to_numpy()
    axes.invert_yaxis()
    axes.set(xlabel="per cent of the class", xlim=(0, 100))
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    plain(axes, "")
    return figure


def sky(split: pd.DataFrame, generated: bool) -> Figure:
    """Draw all galaxies on the whole sky (Mollweide), east to the left, by split, with the Milky Way's plane."""
    figure = _sheet(9.0, 5.2, generated)
    axes = figure.add_subplot(projection="mollweide")
    axes.plot(*_milky_way(), color="0.6", lw=1, ls="--", label="plane of the Milky Way")
    size = float(np.clip(6000 / len(split), 2, 14))
    for name, (colour, marker) in LOOKS.items():
        of_split = split[split["split"] == name]
        if len(of_split):
            place = _on_map(of_split["ra"].to_numpy(), of_split["dec"].to_numpy())
            grown, edge, label = (
                size * (1 if name == "train" else 2),
                0.7 * (marker == "x"),
                f"{name} ({len(of_split):,})",
            )
            axes.scatter(*place, s=grown, c=colour, marker=marker, lw=edge, label=label)
    _graticule(axes)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9, markerscale=1.6)
    return figure


def _graticule(axes: Axes) -> None:
    """Draw the lines of equal position; right ascensions stand where a survey of the equator leaves room."""
    degrees = np.arange(-150, 151, 30)
    axes.set_xticks(np.radians(degrees), [""] * len(degrees))
    for degree in degrees:
        place = (np.radians(degree), np.radians(-37.5))
        axes.text(*place, f"{(CENTRE - degree) % 360:.0f}°", fontsize=8, color="0.3", ha="center", va="center")
    axes.tick_params(axis="y", labelsize=8, labelcolor="0.3")
    axes.grid(color="0.88", lw=0.6)
    axes.set_axisbelow(True)


def _on_map(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn degrees into the projection's radians; right ascension grows to the left, as on the sky."""
    return np.radians((CENTRE - ra + 180) % 360 - 180), np.radians(dec)


def _milky_way() -> tuple[np.ndarray, np.ndarray]:
    """Return the galactic equator on the map, in order from its left to its right edge."""
    along = np.linspace(0, 2 * np.pi, 721) - ASCENDING
    dec = np.arcsin(np.cos(POLE) * np.sin(along))
    ra = NODE + np.arctan2(np.cos(along), -np.sin(POLE) * np.sin(along))
    x, y = _on_map(np.degrees(ra), np.degrees(dec))
    order = np.argsort(x)
    return x[order], y[order]


def violins(values: np.ndarray, labels: np.ndarray, what: str, generated: bool, log: bool = False) -> Figure:
    """Draw how (N,) values are spread in each class: violins, with the median and the middle 68 %.

    Values that are not finite (with `log`, not positive) are left out; a class with fewer than two different ones
    gets its points alone.
    """
    figure = _sheet(9.0, 4.6, generated)
    axes = figure.subplots()
    known = np.isfinite(values) & ((values > 0) if log else True)
    for label in range(len(CLASSES)):
        of_class = values[(labels == label) & known]
        _violin(axes, np.log10(of_class) if log else of_class, label)
    axes.set_xticks(range(len(CLASSES)), [name.replace(" ", "\n") for name in CLASSES], fontsize=8)
    axes.set(ylabel=what, xlim=(-0.6, len(CLASSES) - 0.4))
    if log:
        axes.yaxis.set_major_locator(FixedLocator(np.log10(TICKS).tolist()))
        axes.yaxis.set_major_formatter(lambda power, _: f"{10**power:.3g}")
    plain(axes)
    return figure


def _violin(axes: Axes, values: np.ndarray, place: int) -> None:
    """Draw a normal-kernel density of its own (Scott's rule), as wide for every class."""
    if len(np.unique(values)) < 2:  # no density to estimate
        axes.scatter(np.full(len(values), place), values, s=12, color=DARK)
        return
    heights = np.linspace(values.min(), values.max(), 200)
    density = gaussian_kde(values)(heights)
    half = 0.42 * density / density.max()
    axes.fill_betweenx(heights, place - half, place + half, facecolor=BLUE, edgecolor=DARK, alpha=0.6, lw=0.8)
    low, middle, high = np.percentile(values, [16, 50, 84])
    axes.plot([place, place], [low, high], color=DARK, lw=3, solid_capstyle="butt")
    axes.plot([place], [middle], "o", color="white", mec=DARK, ms=5)


def lines(named: Mapping[str, Sequence[tuple[str, np.ndarray]]], generated: bool) -> Figure:
    """Draw lines of (3, S, S) uint8 pictures: by the name of the line, each picture with its own above."""
    left, across, down = 1.0, TILE + 0.07, TILE + 0.24
    figure, axes = _table((left + across * max(map(len, named.values())), down * len(named)), generated)
    for line, (name, pictures) in enumerate(named.items(), 1):
        text = textwrap.fill(name, 11, break_on_hyphens=False)
        axes.text(left - 0.1, down * line - TILE / 2, text, ha="right", va="center", fontsize=10)
        for column, (above, image) in enumerate(pictures):
            _tile(axes, image, above, left + across * column, down * line - TILE)
    return figure


def pairs(images: np.ndarray, names: Sequence[str], generated: bool) -> Figure:
    """Draw (2n, 3, S, S) uint8 pictures as n pairs, two pairs a line, each picture with its name above."""
    down, columns = TILE + 0.5, np.array([0, TILE + 0.1, 2 * TILE + 0.45, 3 * TILE + 0.55])
    figure, axes = _table((columns[-1] + TILE, down * -(-len(images) // len(columns))), generated)
    for place, (image, name) in enumerate(zip(images, names, strict=True)):
        line, column = divmod(place, len(columns))
        _tile(axes, image, textwrap.fill(name, 18), columns[column], down * (line + 1) - TILE)
    return figure


def _table(size: tuple[float, float], generated: bool) -> tuple[Figure, Axes]:
    """Make a sheet of `size` inches to lay tiles on: a layout engine takes seconds to place as many axes."""
    width, height = size
    above = 0.3 * generated
    figure = Figure(figsize=(width, height + above))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    if generated:
        axes.text(width / 2, -above / 2, GENERATED, fontsize=10, color=WARNING, ha="center", va="center")
    axes.set(xlim=(0.0, width), ylim=(height, -above))
    return figure, axes


def _tile(axes: Axes, image: np.ndarray, name: str, left: float, top: float) -> None:
    extent = (left, left + TILE, top + TILE, top)
    axes.imshow(image.transpose(1, 2, 0), extent=extent, aspect="auto", interpolation="nearest")
    axes.text(left + TILE / 2, top - 0.04, name, fontsize=8, ha="center", va="bottom")


def framed(title: str, caption: str, alt: str, figure: Figure, dpi: int = 140) -> page.Figure:
    """Return a figure as a page shows it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return page.Figure(title, caption, alt, buffer.getvalue())
