"""A contact sheet: a few galaxies under each condition, one row per condition, the mildest severity on the left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from galaxyhpc.data.galaxies import Galaxies
from galaxyhpc.evaluation.corruptions import Survey, corrupt
from galaxyhpc.storage.files import sanitize

NUM_COLUMNS = 6  # clean, and five severities
GALAXY_INCHES = 1.2  # size of a galaxy
TILE_GAP = 0.06  # between tiles, in galaxy sizes
TITLE_HEIGHT = 0.65  # in galaxy sizes
TILE_TEXT_HEIGHT = 0.42  # above a tile, in galaxy sizes


def draw_contact_sheet(
    images: Tensor,
    indices: Tensor,
    survey: Survey,
    title: str,
    conditions: Sequence[str] = DEFAULT_CONDITIONS,
    is_generated: bool = False,
    names: Sequence[str] = (),
) -> Figure:
    """Draw galaxies under conditions, with the physical parameter above each tile.

    Parameters
    ----------
    images : (N, 3, S, S) in [0, 1], a few galaxies, side by side in each tile
    indices : (N,) int64 rows in the data file, which seed the noise as they do in an evaluation
    survey : of the dataset at S pixels
    conditions : names of conditions, also combinations; the first column of each is clean
    is_generated : whether these are demo galaxies, which the title then says
    names : of the galaxies
    """
    drawn = [name for name in conditions if name != "clean"]
    tile_width, tile_height = len(images) + TILE_GAP, 1.0 + TILE_TEXT_HEIGHT
    width, height = NUM_COLUMNS * tile_width, len(drawn) * tile_height + TITLE_HEIGHT + TILE_GAP
    figure = Figure(figsize=(GALAXY_INCHES * width, GALAXY_INCHES * height), dpi=110)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0.0, width), ylim=(height, 0.0))
    axes.axis("off")
    axes.text(
        TILE_GAP, 0.1, title + (f" - {GENERATED_NOTICE}" if is_generated else ""), fontsize=16, va="top", weight="bold"
    )
    explanation = "One row per condition. Left: clean; then severities, the mildest first, with their physical values."
    explanation += f" Galaxies: {', '.join(names)}." if names else ""
    axes.text(TILE_GAP, 0.4, explanation, fontsize=11, va="top")
    for number, name in enumerate(drawn):
        top = TITLE_HEIGHT + number * tile_height
        description = CONDITIONS[name].description if name in CONDITIONS else "applied one after the other"
        axes.text(TILE_GAP, top + TILE_TEXT_HEIGHT - 0.17, name, fontsize=9, va="bottom", weight="bold")
        _draw_tile(axes, images, 0.0, top + TILE_TEXT_HEIGHT, description)
        for column, severity in enumerate(select_severities(name), 1):
            corrupted = corrupt(images, indices, name, severity, survey)
            _draw_tile(axes, corrupted, column * tile_width, top + TILE_TEXT_HEIGHT, describe_severity(name, severity))
    return figure


def draw_dataset_contact_sheet(
    galaxies: Galaxies, indices: Sequence[int], title: str, conditions: Sequence[str], names: Mapping[int, str]
) -> Figure:
    """Draw the galaxies in these rows of the data file under conditions, with their names or else their rows."""
    images = torch.from_numpy(np.stack([galaxies.images[row] for row in indices])).float() / 255.0
    survey = Survey(galaxies.mean, galaxies.pixel_scale_arcsec)
    called = [sanitize(names.get(row) or f"row {row}") for row in indices]
    return draw_contact_sheet(images, torch.tensor(indices), survey, title, conditions, galaxies.generated, called)


def select_severities(condition: str) -> tuple[float, ...]:
    """Return the severities of a condition that are drawn, at most five."""
    return get_levels(condition) if len(split_combination(condition)) == 1 else get_severities(condition)


def _draw_tile(axes: Axes, images: Tensor, left: float, top: float, text: str) -> None:
    """Draw galaxies side by side below a text."""
    strip: NDArray[np.float32] = np.concatenate(list(images.cpu().permute(0, 2, 3, 1).numpy()), axis=1)
    extent = (left + TILE_GAP / 2, left + TILE_GAP / 2 + len(images), top + 1.0, top)
    axes.imshow(strip, extent=extent, aspect="auto", interpolation="nearest")
    axes.text(left + TILE_GAP, top - 0.04, text, fontsize=8, va="bottom")
