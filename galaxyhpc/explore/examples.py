"""Sections with pictures of galaxies: examples of each class, opened ones, and galaxies under noise."""

from __future__ import annotations

import numpy as np

from galaxyhpc.data.galaxy10 import CLASSES
from galaxyhpc.explore import figures as draw
from galaxyhpc.explore.dataset_summary import DatasetSummary, select_examples
from galaxyhpc.report.page import Section

EXAMPLES_PER_CLASS = 8  # of each class
NOISE_EXAMPLE_CLASSES = (3, 7)  # classes shown under noise: in-between smooth, unbarred loose spiral
OPENING_RADII_PX = (1, 2, 4)  # px, radii shown
STUDY_RADIUS_FRACTION = 4 / 256  # of the side: the disk that the study opened its images with
NOISE_CONDITIONS = ("pedestal_noise", "shot_noise", "sky_noise")


def make_examples_section(summary: DatasetSummary) -> Section:
    """Show some galaxies of every class."""
    chosen, images = select_examples(summary.galaxies.labels, EXAMPLES_PER_CLASS), summary.galaxies.images
    named = {CLASSES[label]: [(str(row), images[row]) for row in rows] for label, rows in chosen.items()}
    figure = draw.make_page_figure(
        f"{EXAMPLES_PER_CLASS} galaxies of each class",
        "Spread evenly over the rows of each class: always the same ones. The number is the row in the file, from 0.",
        f"Ten rows of up to {EXAMPLES_PER_CLASS} pictures of galaxies, one row for each class: {', '.join(CLASSES)}.",
        draw.draw_image_rows(named, summary.galaxies.generated),
        dpi=110,
    )
    return Section("Examples", figures=(figure,))


def make_opening_section(summary: DatasetSummary) -> Section:
    """Show a galaxy of every class opened with disks of several sizes."""
    import torch

    from galaxyhpc.models.opening import Opening

    galaxies, size = summary.galaxies, summary.galaxies.images.shape[-1]
    rows = [_find_median_snr_galaxy(summary, label) for label in range(len(CLASSES))]
    pixels = torch.from_numpy(galaxies.images[rows]).float()
    named = {"as it is": list(zip(map(str, rows), galaxies.images[rows], strict=True))}
    for radius in OPENING_RADII_PX:
        opened = Opening(radius)(pixels).to(torch.uint8).numpy()
        named[f"disk, {radius} px"] = [("", image) for image in opened]
    figure = draw.make_page_figure(
        "A galaxy of each class, opened",
        "Galaxies of median signal-to-noise in their classes, 0 to 9 from the left, each with its row in the file; "
        "opened with a disk of the radius on the left, every colour by itself.",
        f"Ten galaxies as they are and after openings with disks of {', '.join(map(str, OPENING_RADII_PX))} px.",
        draw.draw_image_rows(named, galaxies.generated),
        dpi=110,
    )
    words = (
        "A morphological opening takes away what is brighter than its surroundings and smaller than a disk: stars and "
        "noise, but thin arms, too. The setting model.opening puts it in front of a network. The study's disk of 4 px "
        f"at 256 px has {STUDY_RADIUS_FRACTION * size:.2g} px at {size} px.",
    )
    return Section("Opening", paragraphs=words, figures=(figure,))


def make_noise_section(summary: DatasetSummary) -> Section:
    """Show a faint and a bright kind of galaxy under the noises that networks are measured under."""
    from galaxyhpc.report.figures.contact_sheet import draw_dataset_contact_sheet

    rows = [_find_median_snr_galaxy(summary, label) for label in NOISE_EXAMPLE_CLASSES]
    names = " and ".join(f"{CLASSES[label]}, row {row}" for label, row in zip(NOISE_EXAMPLE_CLASSES, rows, strict=True))
    figure = draw.make_page_figure(
        "Under noise",
        f"{names}: of median signal-to-noise in their classes. Networks are shown these very pixels.",
        f"Two galaxies ({names}) as they are and under {', '.join(NOISE_CONDITIONS)}, each from mild to severe.",
        draw_dataset_contact_sheet(summary.galaxies, rows, "Under noise", NOISE_CONDITIONS),
        dpi=110,
    )
    return Section("Noise", figures=(figure,))


def _find_median_snr_galaxy(summary: DatasetSummary, label: int) -> int:
    """Return the row of a class whose signal-to-noise is the class's median."""
    snr = summary.photometry["snr"].fillna(-np.inf)[summary.galaxies.labels == label]
    return int(snr.sort_values(kind="stable").index[len(snr) // 2])
