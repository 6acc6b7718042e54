"""A contact sheet: what each condition does to a few galaxies, one row a condition, mildest on the left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from galaxyhpc.analysis.tables import GENERATED
from galaxyhpc.config.conditions import CONDITIONS, DEFAULT, described, levels, parts, severities
from galaxyhpc.data.dataset import Galaxies
from galaxyhpc.evaluation.corruptions import Survey, corrupt

COLUMNS = 6  # as they are, and five severities
HEIGHT = 1.2  # inches of a galaxy
GAP = 0.06  # between tiles, in sides of a galaxy
HEAD = 0.65  # room for the title, in sides of a galaxy
ABOVE = 0.42  # room for the words above a tile, in sides of a galaxy


def contact_sheet(
    images: Tensor,
    rows: Tensor,
    survey: Survey,
    title: str,
    conditions: Sequence[str] = DEFAULT,
    generated: bool = False,
) -> Figure:
    """Draw galaxies under conditions, with the physical parameter above each tile.

    Parameters
    ----------
    images : (N, 3, S, S) in [0, 1], a few galaxies, side by side in each tile
    rows : (N,) int64, their rows in the data file: what is drawn for a galaxy is what networks are shown
    survey : of the data set at S pixels
    title : said at the top
    conditions : names of `conditions`, combinations too; clean is the first column of all
    generated : whether these are demo galaxies, which is then said in the title
    """
    shown = [name for name in conditions if name != "clean"]
    wide, tall = len(images) + GAP, 1.0 + ABOVE
    width, height = COLUMNS * wide, len(shown) * tall + HEAD + GAP
    figure = Figure(figsize=(HEIGHT * width, HEIGHT * height), dpi=110)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0.0, width), ylim=(height, 0.0))
    axes.axis("off")
    axes.text(GAP, 0.1, title + (f" - {GENERATED}" if generated else ""), fontsize=16, va="top", weight="bold")
    said = "One row a condition. Left: as they are; then severities, the mildest first, with what they mean."
    axes.text(GAP, 0.4, said, fontsize=11, va="top")
    for number, name in enumerate(shown):
        top = HEAD + number * tall
        what = CONDITIONS[name].what if name in CONDITIONS else "one after the other, each at its level"
        axes.text(GAP, top + ABOVE - 0.17, name, fontsize=9, va="bottom", weight="bold")
        _tile(axes, images, 0.0, top + ABOVE, what)
        for column, severity in enumerate(shown_severities(name), 1):
            found = corrupt(images, rows, name, severity, survey)
            _tile(axes, found, column * wide, top + ABOVE, described(name, severity))
    return figure


def of_galaxies(galaxies: Galaxies, rows: Sequence[int], title: str, conditions: Sequence[str]) -> Figure:
    """Draw galaxies of these rows of the data file under conditions."""
    images = torch.from_numpy(np.stack([galaxies.images[row] for row in rows])).float() / 255.0
    survey = Survey(galaxies.mean, galaxies.pixel_scale)
    return contact_sheet(images, torch.tensor(rows), survey, title, conditions, galaxies.generated)


def shown_severities(name: str) -> tuple[float, ...]:
    """Return the severities of a condition that are shown: five at most."""
    return levels(name) if len(parts(name)) == 1 else severities(name)


def _tile(axes: Axes, images: Tensor, left: float, top: float, words: str) -> None:
    """Draw galaxies side by side below their words."""
    strip: NDArray[np.float32] = np.concatenate(list(images.cpu().permute(0, 2, 3, 1).numpy()), axis=1)
    extent = (left + GAP / 2, left + GAP / 2 + len(images), top + 1.0, top)
    axes.imshow(strip, extent=extent, aspect="auto", interpolation="nearest")
    axes.text(left + GAP, top - 0.04, words, fontsize=8, va="bottom")
