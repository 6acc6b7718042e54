"""Sections with images of galaxies: examples of each class, after openings, and under noise."""

from __future__ import annotations

import numpy as np

from galaxyhpc.explore import figures
from galaxyhpc.explore.dataset_summary import DatasetSummary, select_examples
from galaxyhpc.report.figures.plain import make_page_figure
from galaxyhpc.report.page import Section

EXAMPLES_PER_CLASS = 8  # of each class
MAX_EXAMPLE_CLASSES = 20  # the largest ones
MAX_OPENING_CLASSES = 10
OPENING_RADII_PX = (1, 2, 4)
STUDY_RADIUS_FRACTION = 4 / 256  # of the side: the disk of the opening in Pandya et al. (2023)
NOISE_CONDITIONS = ("pedestal_noise", "shot_noise", "sky_noise")


def make_examples_section(summary: DatasetSummary) -> Section:
    """Show some galaxies of every class."""
    classes, images = summary.select_largest_classes(MAX_EXAMPLE_CLASSES), summary.galaxies.images
    examples = select_examples(summary.galaxies.labels, classes, EXAMPLES_PER_CLASS)
    names = summary.class_names
    images_by_class = {names[label]: [(str(row), images[row]) for row in rows] for label, rows in examples.items()}
    figure = make_page_figure(
        f"{EXAMPLES_PER_CLASS} galaxies of each class",
        f"Evenly spaced in the rows of each class. Above each image its row in the file, from 0."
        f"{figures.describe_left_out(classes, names)}",
        f"Lines of up to {EXAMPLES_PER_CLASS} images of galaxies, one line per class: {', '.join(images_by_class)}.",
        figures.draw_image_rows(images_by_class, summary.galaxies.generated),
        dpi=110,
    )
    return Section("Examples", figures=(figure,))


def make_opening_section(summary: DatasetSummary) -> Section:
    """Show a galaxy of every class after openings with disks of several sizes."""
    import torch

    from galaxyhpc.models.opening import Opening

    galaxies, size = summary.galaxies, summary.galaxies.images.shape[-1]
    classes = summary.select_largest_classes(MAX_OPENING_CLASSES)
    rows = [_find_median_snr_galaxy(summary, label) for label in classes]
    names = [summary.class_names[label] for label in classes]
    pixels = torch.from_numpy(galaxies.images[rows]).float()
    images_by_opening = {"clean": list(zip(map(str, rows), galaxies.images[rows], strict=True))}
    for radius in OPENING_RADII_PX:
        opened = Opening(radius)(pixels).to(torch.uint8).numpy()
        images_by_opening[f"disk, {radius} px"] = [("", image) for image in opened]
    figure = make_page_figure(
        "A galaxy of each class after openings",
        "Galaxies of median signal-to-noise in their classes, each with its row in the file; opened with a disk of the "
        f"radius on the left, each colour separately. From the left: {', '.join(names)}."
        f"{figures.describe_left_out(classes, summary.class_names)}",
        f"{len(rows)} galaxies, clean and after openings with disks of {', '.join(map(str, OPENING_RADII_PX))} px.",
        figures.draw_image_rows(images_by_opening, galaxies.generated),
        dpi=110,
    )
    paragraph = (
        "A morphological opening removes structure that is brighter than its surroundings and smaller than a disk: "
        "stars and noise, but also thin arms. The setting model.opening applies it before a network. The disk of "
        f"Pandya et al. (2023), 4 px at 256 px, is {STUDY_RADIUS_FRACTION * size:.2g} px at {size} px."
    )
    return Section("Opening", paragraphs=(paragraph,), figures=(figure,))


def make_noise_section(summary: DatasetSummary) -> Section:
    """Show the classes of the lowest and the highest signal-to-noise under the noise conditions of the evaluation."""
    from galaxyhpc.report.figures.contact_sheet import draw_dataset_contact_sheet

    snr = summary.photometry["snr"].groupby(summary.galaxies.labels).median().fillna(-np.inf)
    classes = [int(snr.index[int(position)]) for position in (snr.argmin(), snr.argmax())]
    rows = [_find_median_snr_galaxy(summary, label) for label in classes]
    names = " and ".join(f"{summary.class_names[c]}, row {row}" for c, row in zip(classes, rows, strict=True))
    figure = make_page_figure(
        "Under noise",
        f"{names}: of median signal-to-noise in the classes where it is lowest and highest. Networks are evaluated on "
        "the same pixels.",
        f"Two galaxies ({names}), clean and under {', '.join(NOISE_CONDITIONS)}, each from mild to severe.",
        draw_dataset_contact_sheet(summary.galaxies, rows, "Under noise", NOISE_CONDITIONS, {}),
        dpi=110,
    )
    return Section("Noise", figures=(figure,))


def _find_median_snr_galaxy(summary: DatasetSummary, label: int) -> int:
    """Return the row of the galaxy with its class's median signal-to-noise."""
    snr = summary.photometry["snr"].fillna(-np.inf)[summary.galaxies.labels == label]
    return int(snr.sort_values(kind="stable").index[len(snr) // 2])
