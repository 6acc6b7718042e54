"""Augmentation as one affine resampling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from galaxyhpc.config.schema import AugmentConfig
from galaxyhpc.data.augment import draw_affine_maps, draw_epoch_maps, make_sampling_grid, resample
from galaxyhpc.runtime import native

IMAGES = torch.rand(8, 3, 33, 33, generator=torch.Generator().manual_seed(0))
INDICES = torch.arange(8)
NONE = AugmentConfig(rotation=0.0, shift=0.0, flip=0.0)


def augment(images: Tensor, indices: Tensor, seed: int, epoch: int, config: AugmentConfig) -> Tensor:
    return resample(images, draw_affine_maps(indices, seed, epoch, config))


def test_without_rotation_shift_and_flips_images_stay_as_they_are() -> None:
    torch.testing.assert_close(augment(IMAGES, INDICES, 0, 0, NONE), IMAGES, rtol=0, atol=1e-5)


def test_what_happens_to_a_galaxy_depends_on_seed_epoch_and_index_alone() -> None:
    config = AugmentConfig()
    whole = augment(IMAGES, INDICES, 3, 4, config)
    torch.testing.assert_close(augment(IMAGES[5:], INDICES[5:], 3, 4, config), whole[5:])
    for seed, epoch in ((3, 5), (4, 4)):
        assert not torch.allclose(augment(IMAGES, INDICES, seed, epoch, config), whole)


def test_the_batch_and_the_threads_of_a_cpu_change_no_bit() -> None:
    config, pixels = AugmentConfig(), (255 * IMAGES).byte()
    whole, threads = augment(pixels, INDICES, 3, 4, config), torch.get_num_threads()
    assert torch.equal(
        torch.cat([augment(pixels[i : i + 3], INDICES[i : i + 3], 3, 4, config) for i in (0, 3, 6)]), whole
    )
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert torch.equal(augment(pixels, INDICES, 3, 4, config), whole)
    finally:
        torch.set_num_threads(threads)


def test_the_maps_of_an_epoch_are_those_of_its_batches() -> None:
    indices, config = torch.tensor([7, 400, 3]), AugmentConfig()
    maps = draw_epoch_maps(500, 3, 4, config, indices.device)
    assert torch.equal(maps[indices], draw_affine_maps(indices, 3, 4, config))


@pytest.mark.parametrize("compiler", [pytest.param(True, marks=pytest.mark.compiler), False])
@pytest.mark.parametrize("side", [2, 33, 64])
def test_bytes_become_what_their_floats_become(side: int, compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiler:
        monkeypatch.setattr(native, "load_library", lambda source: None)
    assert (native.load_library("data/augment.cpp") is None) != compiler
    pixels = torch.randint(256, (8, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = draw_affine_maps(INDICES, 0, 0, AugmentConfig(shift=0.5))
    maps[1:3] *= 4.0  # several images beyond the edges
    of_bytes, of_floats = (resample(images, maps) for images in (pixels, pixels.float() / 255.0))
    assert of_bytes.dtype == torch.float32
    assert compiler or torch.equal(of_bytes, of_floats)
    torch.testing.assert_close(of_bytes, of_floats, rtol=0, atol=1e-4)


def test_the_sampling_grid_is_torchs() -> None:
    maps = draw_affine_maps(INDICES, 0, 0, AugmentConfig())
    expected = torch.nn.functional.affine_grid(maps, [8, 3, 65, 65], align_corners=False)
    torch.testing.assert_close(make_sampling_grid(maps, 65), expected, rtol=0, atol=1e-6)


def test_certain_flips_turn_the_image_upside_down_and_mirror_it() -> None:
    flipped = augment(IMAGES, INDICES, 0, 0, AugmentConfig(rotation=0.0, shift=0.0, flip=1.0))
    torch.testing.assert_close(flipped, IMAGES.flip(2, 3), rtol=0, atol=1e-5)


def test_maps_are_rotations_and_reflections_with_shifts_in_range() -> None:
    maps = draw_affine_maps(torch.arange(4000), 0, 0, AugmentConfig(rotation=180.0, shift=0.1, flip=0.3))
    rotations, shifts = maps[:, :, :2], maps[:, :, 2]
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(2).expand(4000, 2, 2), rtol=0, atol=1e-5)
    reflected = (torch.linalg.det(rotations) < 0).float().mean()
    assert abs(reflected - 2 * 0.3 * 0.7) < 0.03  # exactly one of the two flips
    assert shifts.abs().max() <= 0.2 and shifts.abs().max() > 0.19  # coordinates run from -1 to 1: twice the fraction


def test_a_small_rotation_limit_is_kept() -> None:
    maps = draw_affine_maps(torch.arange(1000), 0, 0, AugmentConfig(rotation=10.0, shift=0.0, flip=0.0))
    angles = torch.rad2deg(torch.atan2(maps[:, 1, 0], maps[:, 0, 0]))
    assert angles.abs().max() <= 10.0 and angles.min() < -9.0 and angles.max() > 9.0


def test_a_blob_that_is_shifted_keeps_its_light() -> None:
    image = torch.zeros(1, 3, 65, 65)
    image[..., 28:37, 28:37] = 0.5
    shifted = augment(image, torch.tensor([7]), 0, 0, AugmentConfig(rotation=180.0, shift=0.1, flip=0.5))
    torch.testing.assert_close(shifted.sum(), image.sum(), rtol=0.02, atol=0)
    assert not torch.allclose(shifted, image, atol=0.1)
