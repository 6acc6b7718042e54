"""Sections with pictures of galaxies: examples of each class, opened ones, and galaxies under noise."""

from __future__ import annotations

import numpy as np

from galaxyhpc.data.galaxy10 import CLASSES
from galaxyhpc.explore import figures as draw
from galaxyhpc.explore.dataset_summary import Facts, choose
from galaxyhpc.report.page import Section

EXAMPLES = 8  # of each class
NOISY = (3, 7)  # classes shown under noise: in-between smooth, unbarred loose spiral
OPENED = (1, 2, 4)  # px, radii shown
STUDY = 4 / 256  # of the side: the disk that the study opened its images with
NOISES = ("pedestal_noise", "shot_noise", "sky_noise")


def examples(facts: Facts) -> Section:
    """Show some galaxies of every class."""
    chosen, images = choose(facts.galaxies.labels, EXAMPLES), facts.galaxies.images
    named = {CLASSES[label]: [(str(row), images[row]) for row in rows] for label, rows in chosen.items()}
    figure = draw.framed(
        f"{EXAMPLES} galaxies of each class",
        "Spread evenly over the rows of each class: always the same ones. The number is the row in the file, from 0.",
        f"Ten rows of up to {EXAMPLES} pictures of galaxies, one row for each class: {', '.join(CLASSES)}.",
        draw.lines(named, facts.galaxies.generated),
        dpi=110,
    )
    return Section("Examples", figures=(figure,))


def opening(facts: Facts) -> Section:
    """Show a galaxy of every class opened with disks of several sizes."""
    import torch

    from galaxyhpc.models.opening import Opening

    galaxies, size = facts.galaxies, facts.galaxies.images.shape[-1]
    rows = [_typical(facts, label) for label in range(len(CLASSES))]
    pixels = torch.from_numpy(galaxies.images[rows]).float()
    named = {"as it is": list(zip(map(str, rows), galaxies.images[rows], strict=True))}
    for radius in OPENED:
        opened = Opening(radius)(pixels).to(torch.uint8).numpy()
        named[f"disk, {radius} px"] = [("", image) for image in opened]
    figure = draw.framed(
        "A galaxy of each class, opened",
        "Galaxies of median signal-to-noise in their classes, 0 to 9 from the left, each with its row in the file; "
        "opened with a disk of the radius on the left, every colour by itself.",
        f"Ten galaxies as they are and after openings with disks of {', '.join(map(str, OPENED))} px.",
        draw.lines(named, galaxies.generated),
        dpi=110,
    )
    words = (
        "A morphological opening takes away what is brighter than its surroundings and smaller than a disk: stars and "
        "noise, but thin arms, too. The setting model.opening puts it in front of a network. The study's disk of 4 px "
        f"at 256 px has {STUDY * size:.2g} px at {size} px.",
    )
    return Section("Opening", words=words, figures=(figure,))


def noise(facts: Facts) -> Section:
    """Show a faint and a bright kind of galaxy under the noises that networks are measured under."""
    from galaxyhpc.report.figures.contact_sheet import of_galaxies

    rows = [_typical(facts, label) for label in NOISY]
    names = " and ".join(f"{CLASSES[label]}, row {row}" for label, row in zip(NOISY, rows, strict=True))
    figure = draw.framed(
        "Under noise",
        f"{names}: of median signal-to-noise in their classes. Networks are shown these very pixels.",
        f"Two galaxies ({names}) as they are and under {', '.join(NOISES)}, each from mild to severe.",
        of_galaxies(facts.galaxies, rows, "Under noise", NOISES),
        dpi=110,
    )
    return Section("Noise", figures=(figure,))


def _typical(facts: Facts, label: int) -> int:
    """Return the row of a class whose signal-to-noise is the class's median."""
    snr = facts.light["snr"].fillna(-np.inf)[facts.galaxies.labels == label]
    return int(snr.sort_values(kind="stable").index[len(snr) // 2])
