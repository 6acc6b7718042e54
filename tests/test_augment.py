"""Augmentation as one affine resampling."""

from __future__ import annotations

import torch

from galaxyhpc.augment import affine_maps, augment
from galaxyhpc.config import AugmentConfig

IMAGES = torch.rand(8, 3, 33, 33, generator=torch.Generator().manual_seed(0))
ROWS = torch.arange(8)
NONE = AugmentConfig(rotation=0.0, shift=0.0, flip=0.0)


def test_without_rotation_shift_and_flips_images_stay_as_they_are() -> None:
    torch.testing.assert_close(augment(IMAGES, ROWS, 0, 0, NONE), IMAGES, rtol=0, atol=1e-5)


def test_what_happens_to_a_galaxy_depends_on_seed_epoch_and_row_alone() -> None:
    config = AugmentConfig()
    whole = augment(IMAGES, ROWS, 3, 4, config)
    torch.testing.assert_close(augment(IMAGES[5:], ROWS[5:], 3, 4, config), whole[5:])
    for seed, epoch in ((3, 5), (4, 4)):
        assert not torch.allclose(augment(IMAGES, ROWS, seed, epoch, config), whole)


def test_certain_flips_turn_the_image_upside_down_and_mirror_it() -> None:
    flipped = augment(IMAGES, ROWS, 0, 0, AugmentConfig(rotation=0.0, shift=0.0, flip=1.0))
    torch.testing.assert_close(flipped, IMAGES.flip(2, 3), rtol=0, atol=1e-5)


def test_maps_are_rotations_and_reflections_with_shifts_in_range() -> None:
    maps = affine_maps(torch.arange(4000), 0, 0, AugmentConfig(rotation=180.0, shift=0.1, flip=0.3))
    turned, shifts = maps[:, :, :2], maps[:, :, 2]
    torch.testing.assert_close(turned @ turned.mT, torch.eye(2).expand(4000, 2, 2), rtol=0, atol=1e-5)
    reflected = (torch.linalg.det(turned) < 0).float().mean()
    assert abs(reflected - 2 * 0.3 * 0.7) < 0.03  # exactly one of the two flips
    assert shifts.abs().max() <= 0.2 and shifts.abs().max() > 0.19  # coordinates run from -1 to 1: twice the fraction


def test_a_small_rotation_limit_is_kept() -> None:
    maps = affine_maps(torch.arange(1000), 0, 0, AugmentConfig(rotation=10.0, shift=0.0, flip=0.0))
    angles = torch.rad2deg(torch.atan2(maps[:, 1, 0], maps[:, 0, 0]))
    assert angles.abs().max() <= 10.0 and angles.min() < -9.0 and angles.max() > 9.0


def test_a_blob_that_is_shifted_keeps_its_light() -> None:
    image = torch.zeros(1, 3, 65, 65)
    image[..., 28:37, 28:37] = 0.5
    moved = augment(image, torch.tensor([7]), 0, 0, AugmentConfig(rotation=180.0, shift=0.1, flip=0.5))
    torch.testing.assert_close(moved.sum(), image.sum(), rtol=0.02, atol=0)
    assert not torch.allclose(moved, image, atol=0.1)
