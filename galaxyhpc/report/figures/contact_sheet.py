"""A contact sheet: what each condition does to a few galaxies, one row a condition, mildest on the left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from galaxyhpc.analysis.tables import GENERATED_NOTICE
from galaxyhpc.config.conditions import (
    CONDITIONS,
    DEFAULT_CONDITIONS,
    describe_severity,
    get_levels,
    get_severities,
    split_combination,
)
from galaxyhpc.data.dataset import Galaxies
from galaxyhpc.evaluation.corruptions import Survey, corrupt

NUM_COLUMNS = 6  # as they are, and five severities
GALAXY_INCHES = 1.2  # inches of a galaxy
TILE_GAP = 0.06  # between tiles, in sides of a galaxy
TITLE_HEIGHT = 0.65  # room for the title, in sides of a galaxy
TILE_TEXT_HEIGHT = 0.42  # room for the words above a tile, in sides of a galaxy


def draw_contact_sheet(
    images: Tensor,
    indices: Tensor,
    survey: Survey,
    title: str,
    conditions: Sequence[str] = DEFAULT_CONDITIONS,
    is_generated: bool = False,
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
    wide, tall = len(images) + TILE_GAP, 1.0 + TILE_TEXT_HEIGHT
    width, height = NUM_COLUMNS * wide, len(shown) * tall + TITLE_HEIGHT + TILE_GAP
    figure = Figure(figsize=(GALAXY_INCHES * width, GALAXY_INCHES * height), dpi=110)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0.0, width), ylim=(height, 0.0))
    axes.axis("off")
    axes.text(
        TILE_GAP, 0.1, title + (f" - {GENERATED_NOTICE}" if is_generated else ""), fontsize=16, va="top", weight="bold"
    )
    said = "One row a condition. Left: as they are; then severities, the mildest first, with what they mean."
    axes.text(TILE_GAP, 0.4, said, fontsize=11, va="top")
    for number, name in enumerate(shown):
        top = TITLE_HEIGHT + number * tall
        what = CONDITIONS[name].description if name in CONDITIONS else "one after the other, each at its level"
        axes.text(TILE_GAP, top + TILE_TEXT_HEIGHT - 0.17, name, fontsize=9, va="bottom", weight="bold")
        _draw_tile(axes, images, 0.0, top + TILE_TEXT_HEIGHT, what)
        for column, severity in enumerate(select_severities(name), 1):
            found = corrupt(images, indices, name, severity, survey)
            _draw_tile(axes, found, column * wide, top + TILE_TEXT_HEIGHT, describe_severity(name, severity))
    return figure


def draw_dataset_contact_sheet(
    galaxies: Galaxies, indices: Sequence[int], title: str, conditions: Sequence[str]
) -> Figure:
    """Draw galaxies of these rows of the data file under conditions."""
    images = torch.from_numpy(np.stack([galaxies.images[row] for row in indices])).float() / 255.0
    survey = Survey(galaxies.mean, galaxies.pixel_scale_arcsec)
    return draw_contact_sheet(images, torch.tensor(indices), survey, title, conditions, galaxies.generated)


def select_severities(condition: str) -> tuple[float, ...]:
    """Return the severities of a condition that are shown: five at most."""
    return get_levels(condition) if len(split_combination(condition)) == 1 else get_severities(condition)


def _draw_tile(axes: Axes, images: Tensor, left: float, top: float, text: str) -> None:
    """Draw galaxies side by side below their words."""
    strip: NDArray[np.float32] = np.concatenate(list(images.cpu().permute(0, 2, 3, 1).numpy()), axis=1)
    extent = (left + TILE_GAP / 2, left + TILE_GAP / 2 + len(images), top + 1.0, top)
    axes.imshow(strip, extent=extent, aspect="auto", interpolation="nearest")
    axes.text(left + TILE_GAP, top - 0.04, text, fontsize=8, va="bottom")
