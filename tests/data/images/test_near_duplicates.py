"""Copies of an image are recognised after compression, resizing, turning; different galaxies are not taken for one."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from galaxyhpc.data.images.near_duplicates import SharedPatternError, find_near_duplicates, make_thumbnails
from galaxyhpc.data.simulate import render_image
from galaxyhpc.data.sources.conversion import resize

SIDE = 96
REAL_GALAXIES = Path(__file__).parents[4] / "shared/data/galaxy10_decals_sample_128.h5"
N = 40


@cache
def galaxies() -> np.ndarray:
    return np.stack([render_image(row % 10, [3, row], SIDE) for row in range(N)])


def compress(images: np.ndarray, quality: int) -> np.ndarray:
    copies = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        copies.append(np.asarray(Image.open(file)))
    return np.stack(copies)


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG 75": lambda images: compress(images, 75),
    "JPEG 50": lambda images: compress(images, 50),
    "half the size": lambda images: resize(images, SIDE // 2).transpose(0, 2, 3, 1),
    "shifted by a pixel": lambda images: np.roll(images, 1, axis=2),
    "brighter": lambda images: np.clip(images * 1.1, 0, 255).astype(np.uint8),
    "turned": lambda images: np.rot90(images, 1, axes=(1, 2)),
    "mirrored and compressed": lambda images: compress(np.ascontiguousarray(images[:, :, ::-1]), 75),
}


@pytest.mark.parametrize("side", [16, 32, 96, 101])
def test_a_thumbnail_averages_area_and_bands(side: int) -> None:
    ramp = np.broadcast_to(np.linspace(10, 200, side)[:, None, None], (side, side, 3)).astype(np.uint8)
    (thumbnail,) = make_thumbnails(ramp[None] + np.array([0, 20, 40], np.uint8))
    assert thumbnail.shape == (32, 32) and thumbnail.mean() == pytest.approx(ramp.mean() + 20, abs=0.6)
    assert (np.diff(thumbnail.astype(int), axis=0) >= 0).all() and (thumbnail == thumbnail[:, :1]).all()


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found_and_nothing_else(name: str) -> None:
    both = np.concatenate([make_thumbnails(galaxies()), make_thumbnails(COPIES[name](galaxies()))])
    pairs, correlations = find_near_duplicates(both)
    expected = {(row, row + N) for row in range(N)}
    found = set(map(tuple, pairs.tolist()))
    assert found <= expected and len(found) >= 0.95 * N
    assert (correlations > 0.7).all() and len(correlations) == len(pairs)


@pytest.mark.slow
@pytest.mark.skipif(not REAL_GALAXIES.exists(), reason=f"{REAL_GALAXIES} is absent")
def test_real_galaxies_are_no_duplicates_and_their_compressed_copies_are() -> None:
    with h5py.File(REAL_GALAXIES) as file:
        images: np.ndarray = file["images"][:]
    assert len(find_near_duplicates(make_thumbnails(images))[0]) == 0
    copies = np.concatenate([make_thumbnails(images), make_thumbnails(compress(images, 50))])
    expected = [[row, row + len(images)] for row in range(len(images))]
    assert find_near_duplicates(copies)[0].tolist() == expected


def test_images_without_detail_are_near_none() -> None:
    blank = np.full((5, 32, 32), 9, np.uint8)
    pairs, _ = find_near_duplicates(np.concatenate([blank, make_thumbnails(galaxies()[:5])]))
    assert len(pairs) == 0


def make_discs(n: int, side: int) -> np.ndarray:
    """Return (n, side, side, 3) discs of one size in the centre, of other colours, without noise."""
    offset = np.arange(side) - (side - 1) / 2
    disc = np.hypot(offset, offset[:, None]) < side / 5
    return (disc[None, ..., None] * np.random.default_rng(0).integers(80, 256, (n, 1, 1, 3))).astype(np.uint8)


def draw_gaussians(n: int, side: int) -> np.ndarray:
    """Return (n, side, side, 3) round, smooth sources of one size in the centre, of other brightness."""
    offset = np.arange(side) - (side - 1) / 2
    profile = np.exp(-(offset**2 + offset[:, None] ** 2) / (2 * (side / 10) ** 2))
    peaks = np.linspace(100, 255, n)[:, None, None]
    return np.repeat((profile * peaks)[..., None], 3, axis=3).astype(np.uint8)


@pytest.mark.parametrize("make_shapes", [make_discs, draw_gaussians])
@pytest.mark.parametrize("side", [32, 64])
def test_plain_shapes_without_noise_are_near_none(make_shapes: Callable[[int, int], np.ndarray], side: int) -> None:
    thumbnails = make_thumbnails(make_shapes(20, side))
    assert len(find_near_duplicates(thumbnails)[0]) == 0
    both = np.concatenate([thumbnails, make_thumbnails(galaxies()[:5]), make_thumbnails(compress(galaxies()[:5], 75))])
    assert find_near_duplicates(both)[0].tolist() == [[20 + row, 25 + row] for row in range(5)]


def test_images_that_share_a_pattern_are_refused() -> None:
    pattern = np.random.default_rng(0).integers(0, 256, (32, 32))
    noise = np.random.default_rng(1).integers(0, 20, (80, 32, 32))
    framed = np.clip(pattern + noise, 0, 255).astype(np.uint8)
    with pytest.raises(SharedPatternError):
        find_near_duplicates(np.concatenate([framed, make_thumbnails(galaxies())]))


def test_the_blocks_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    both = np.concatenate([make_thumbnails(galaxies()), make_thumbnails(compress(galaxies(), 75))])
    expected, _ = find_near_duplicates(both)
    monkeypatch.setattr("galaxyhpc.data.images.near_duplicates.BLOCK_SIZE", 7)
    assert np.array_equal(find_near_duplicates(both)[0], expected)
