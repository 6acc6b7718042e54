"""Figures of a survey's prediction: classes, a HEALPix map of the sky, and histograms."""

from __future__ import annotations

import numpy as np
from astropy import units
from astropy_healpix import HEALPix, npix_to_nside
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from galaxyhpc.prediction.report.summary import Counts
from galaxyhpc.report.figures.plain import draw_class_axis, draw_graticule, make_plain_figure, project
from galaxyhpc.report.figures.style import PALETTE, style_axes

BLUE, _, _, DARK = PALETTE[:4]
MAX_CLASSES = 40  # in a figure; the table lists all
MAP_STEP_DEG = 0.5  # of the raster that the map is drawn with, about the size of a cell


def draw_classes(counts: Counts, confident: Counts, names: tuple[str, ...], generated: bool) -> Figure:
    """Draw the galaxies of each class as bars, the largest MAX_CLASSES in the order of their labels."""
    shown = np.sort(np.argsort(-counts, kind="stable")[:MAX_CLASSES])
    figure = make_plain_figure(7.5, 1.0 + 0.28 * len(shown), generated)
    axes = figure.subplots()
    bars = axes.barh(range(len(shown)), counts[shown], color=BLUE, label="all")
    axes.barh(range(len(shown)), confident[shown], color=DARK, label="probability above 0.9")
    axes.bar_label(bars, [f"{count:,}" for count in counts[shown]], padding=3, fontsize=9)
    draw_class_axis(axes, [names[label] for label in shown])
    axes.set(xlabel="galaxies", xlim=(0, 1.15 * max(int(counts.max()), 1)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    style_axes(axes, "")
    return figure


def draw_histogram(counts: Counts, limits: tuple[float, float], label: str, generated: bool) -> Figure:
    """Draw a histogram of equal bins."""
    figure = make_plain_figure(5.5, 3.0, generated)
    axes = figure.subplots()
    edges = np.linspace(*limits, len(counts) + 1)
    axes.stairs(counts, edges, fill=True, color=DARK)
    axes.set(xlabel=label, ylabel="galaxies", xlim=limits, ylim=(0, None))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    style_axes(axes)
    return figure


def get_nside(sky: Counts) -> int:
    """Return the HEALPix resolution of counts per cell."""
    return int(npix_to_nside(len(sky)))


def draw_sky(sky: Counts, generated: bool) -> Figure:
    """Draw counts per HEALPix cell (RING, equatorial) on an all-sky map, in galaxies per square degree."""
    figure = make_plain_figure(9.0, 5.6, generated)
    axes = figure.add_subplot(projection="mollweide")
    ra, dec = np.meshgrid((np.arange(0, 360, MAP_STEP_DEG) + MAP_STEP_DEG / 2), np.arange(-89.75, 90, MAP_STEP_DEG))
    healpix = HEALPix(get_nside(sky), order="ring")
    counts = sky[healpix.lonlat_to_healpix(ra * units.deg, dec * units.deg)]
    density = np.where(counts > 0, counts, np.nan) / healpix.pixel_area.to_value(units.deg**2)
    x, y = project(ra, dec)
    order = np.argsort(x[0])
    lowest, highest = np.nanmin(density), np.nanmax(density)
    norm = LogNorm(lowest, max(highest, 1.01 * lowest))
    cells = axes.pcolormesh(x[:, order], y, density[:, order], norm=norm, cmap="viridis", rasterized=True)
    draw_graticule(axes)
    bar = figure.colorbar(cells, ax=axes, orientation="horizontal", shrink=0.6, label="galaxies per square degree")
    for axis_format in (bar.ax.xaxis.set_major_formatter, bar.ax.xaxis.set_minor_formatter):
        axis_format(FuncFormatter(lambda value, _: f"{value:,.3g}"))
    return figure
