"""Figures with few parts, one to a section of a page: the notice above, an axis of classes, all-sky maps, the PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from galaxyhpc.analysis.tables import GENERATED_NOTICE
from galaxyhpc.report import page
from galaxyhpc.report.figures.style import format_class_name

WARNING_COLOUR = "#B00020"
MAP_CENTRE_RA_DEG = 120.0  # right ascension at the centre of a map: neither half of the Legacy Surveys is cut


def make_plain_figure(width_inches: float, height_inches: float, generated: bool) -> Figure:
    """Make a figure without panels, with a notice above if the galaxies are generated."""
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    if generated:
        figure.suptitle(GENERATED_NOTICE, fontsize=9, color=WARNING_COLOUR)
    return figure


def draw_class_axis(axes: Axes, class_names: Sequence[str]) -> None:
    """Write the names of bars from the top."""
    axes.set_yticks(range(len(class_names)), [format_class_name(name) for name in class_names])
    axes.set_ylim(len(class_names) - 0.5, -0.5)


def project(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert degrees to radians on the map, x and y; right ascension increases to the left, as on the sky."""
    return np.radians((MAP_CENTRE_RA_DEG - ra + 180) % 360 - 180), np.radians(dec)


def draw_graticule(axes: Axes) -> None:
    """Draw the grid of right ascension and declination, with labels south of a survey of the equator."""
    degrees = np.arange(-150, 151, 30)
    axes.set_xticks(np.radians(degrees), [""] * len(degrees))
    for degree in degrees:
        text = f"{(MAP_CENTRE_RA_DEG - degree) % 360:.0f}°"
        x, y = np.radians(degree), np.radians(-37.5)
        axes.text(x, y, text, fontsize=8, color="0.3", ha="center", va="center")
    axes.tick_params(axis="y", labelsize=8, labelcolor="0.3")
    axes.grid(color="0.88", lw=0.6)
    axes.set_axisbelow(True)


def make_page_figure(title: str, caption: str, alt: str, figure: Figure, dpi: int = 140) -> page.PageFigure:
    """Render a figure as PNG for a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return page.PageFigure(title, caption, alt, buffer.getvalue())
