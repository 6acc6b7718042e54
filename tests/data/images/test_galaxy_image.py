"""What an image shows is told from all its pixels, though most are told by a few."""

from __future__ import annotations

import numpy as np
import pytest

from galaxyhpc.data.images.galaxy_image import describe_flaw, is_grey


@pytest.fixture
def blank() -> np.ndarray:
    return np.full((40, 40, 3), 7, np.uint8)


@pytest.mark.parametrize("place", [(0, 0), (1, 3), (39, 39)])
def test_one_pixel_is_enough_for_a_band_to_show_something(blank: np.ndarray, place: tuple[int, int]) -> None:
    assert describe_flaw(blank) == "blank"
    blank[place] = 8
    assert describe_flaw(blank) == ""
    blank[..., 2] = 0
    assert describe_flaw(blank) == "no blue"


@pytest.mark.parametrize("place", [(0, 0), (1, 3), (39, 39)])
def test_one_coloured_pixel_is_enough_for_an_image_not_to_be_grey(blank: np.ndarray, place: tuple[int, int]) -> None:
    assert not is_grey(blank)  # it shows nothing
    blank[5, 5] = 9
    assert is_grey(blank)
    blank[place] = (1, 2, 3)
    assert not is_grey(blank)


def test_a_pixel_without_a_value_hides_no_empty_band(blank: np.ndarray) -> None:
    flux = blank.astype(np.float32)
    flux[0, 0, 0] = np.nan
    assert describe_flaw(flux) == "no green and no blue"
