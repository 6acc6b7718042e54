"""The contact sheet: every condition shown, each tile with what it means."""

from __future__ import annotations

import numpy as np
import torch
from helpers.images import make_smooth_image

from galaxyhpc.config.conditions import DEFAULT_CONDITIONS, describe_severity, get_severities
from galaxyhpc.evaluation.corruptions import Survey, corrupt
from galaxyhpc.report.figures.contact_sheet import draw_contact_sheet

SURVEY = Survey(mean_dn=37.0, pixel_scale_arcsec=2.0)
IMAGES, ROWS = make_smooth_image(33).expand(2, -1, -1, -1), torch.tensor([5, 8])


def test_every_condition_is_drawn_with_its_parameters() -> None:
    (axes,) = draw_contact_sheet(IMAGES, ROWS, SURVEY, "33 px").axes
    written = [text.get_text() for text in axes.texts]
    for name in DEFAULT_CONDITIONS[1:]:
        assert (
            name in written
            and describe_severity(name, 15.0 if name == "rotation" else get_severities(name)[1]) in written
        )
    assert len(axes.images) == sum(1 + min(len(get_severities(name)), 5) for name in DEFAULT_CONDITIONS[1:])
    assert axes.get_ylim()[0] >= max(image.get_extent()[2] for image in axes.images)


def test_a_tile_holds_the_pixels_that_networks_are_shown() -> None:
    (axes,) = draw_contact_sheet(IMAGES, ROWS, SURVEY, "33 px", ("clean", "cosmic_rays")).axes
    expected = corrupt(IMAGES, ROWS, "cosmic_rays", 2.0, SURVEY).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(axes.images[2].get_array(), np.concatenate(list(expected), axis=1))


def test_the_galaxies_are_named() -> None:
    (axes,) = draw_contact_sheet(IMAGES, ROWS, SURVEY, "33 px", ("flip",), names=("NGC 1300", "row 8")).axes
    assert any(text.get_text().endswith("Galaxies: NGC 1300, row 8.") for text in axes.texts)


def test_generated_galaxies_are_called_so() -> None:
    for generated in (True, False):
        (axes,) = draw_contact_sheet(IMAGES, ROWS, SURVEY, "33 px", ("flip",), generated).axes
        assert any("GENERATED" in text.get_text() for text in axes.texts) == generated
