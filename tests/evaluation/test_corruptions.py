"""Corruptions: physics, independence of network and batch, and reference implementations."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.images import make_smooth_image
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, stats
from skimage.transform import resize

from galaxyhpc.config import conditions
from galaxyhpc.config.conditions import (
    CATEGORICAL_LABELS,
    CONDITIONS,
    DEFAULT_CONDITIONS,
    Condition,
    get_parameter,
    get_severities,
)
from galaxyhpc.evaluation import corruptions
from galaxyhpc.evaluation.corruptions import STAR_DISTANCE_RANGE, DrawFn, Survey, corrupt, draw_poisson
from galaxyhpc.runtime.rng import make_key, uniform

SURVEY = Survey(mean_dn=37.0, pixel_scale_arcsec=0.524)
IMAGES = torch.rand(4, 3, 33, 33, generator=torch.Generator().manual_seed(0))
ROWS = torch.tensor([3, 1, 4, 15])
PAIRS = [
    (name, severity)
    for name in DEFAULT_CONDITIONS
    for severity in {*get_severities(name)[:2], get_severities(name)[-1]}
]
FLAT = torch.full((4, 3, 65, 65), 100 / 255)
FOUR_ROWS = torch.arange(4)


def counts(condition: str, severity: float, flat: float = 100.0) -> NDArray[np.float32]:
    """Return the difference in DN that a condition makes to uniform images."""
    result: NDArray[np.float32] = (
        corrupt(FLAT * (flat / 100), FOUR_ROWS, condition, severity, SURVEY).numpy() * 255 - flat
    )
    return result


@pytest.mark.parametrize(("condition", "severity"), PAIRS)
def test_every_condition_keeps_shape_and_range_and_leaves_its_input_alone(condition: str, severity: float) -> None:
    before = IMAGES.clone()
    result = corrupt(IMAGES, ROWS, condition, severity, SURVEY)
    assert result.shape == IMAGES.shape and result.dtype == torch.float32
    assert result.min() >= 0.0 and result.max() <= 1.0
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize(("condition", "severity"), PAIRS)
def test_the_pixels_depend_on_the_galaxy_and_not_on_its_batch(condition: str, severity: float) -> None:
    whole = corrupt(IMAGES, ROWS, condition, severity, SURVEY)
    parts = [
        corrupt(image[None], row[None], condition, severity, SURVEY) for image, row in zip(IMAGES, ROWS, strict=True)
    ]
    np.testing.assert_allclose(whole, torch.cat(parts), rtol=0, atol=1e-6)


@pytest.mark.parametrize("condition", [name for name in CONDITIONS if name not in ("clean", *CATEGORICAL_LABELS)])
def test_a_higher_severity_changes_a_galaxy_more(condition: str) -> None:
    images, levels = make_smooth_image(33).expand(24, -1, -1, -1) * 0.8, conditions.get_levels(condition)
    masked = images * corruptions.make_disc_mask(33, images.device) if condition.startswith("rotation") else images
    changes = [(corrupt(images, torch.arange(24), condition, s, SURVEY) - masked).abs().mean() for s in levels]
    if condition == "rotation_control":  # there and back loses most where pixels fall between, not at large angles
        assert min(changes) > 0.0
    else:
        assert all(milder < harder for milder, harder in pairwise(changes))


def test_the_pixels_of_finished_runs_are_those_of_the_first_day() -> None:
    ramp = torch.arange(2 * 3 * 9 * 9).view(2, 3, 9, 9) % 256 / 255
    rows, digests = torch.tensor([7, 11]), {}
    for condition, severity in (("shot_noise", 3.0), ("pedestal_noise", 0.5), ("rotation", 90.0)):
        result = (corrupt(ramp, rows, condition, severity, SURVEY) * 255).round().byte().numpy()
        digests[condition] = hashlib.sha256(result.tobytes()).hexdigest()[:12]
    assert digests == {"shot_noise": "40092b506106", "pedestal_noise": "3994bfed1497", "rotation": "c739d94c32ea"}


def test_noise_differs_between_galaxies_and_severities() -> None:
    same = IMAGES[:1].expand(2, -1, -1, -1)
    one, other = corrupt(same, torch.tensor([0, 1]), "shot_noise", 3.0, SURVEY)
    assert not torch.equal(one, other)
    assert not torch.equal(one, corrupt(same[:1], torch.tensor([0]), "shot_noise", 4.0, SURVEY)[0])


# Combinations


def test_a_combination_is_one_after_the_other_each_at_its_own_level() -> None:
    mirrored = corrupt(IMAGES, ROWS, "saturation", 2.0, SURVEY).flip(2)
    assert torch.equal(corrupt(IMAGES, ROWS, "saturation+flip", 2.0, SURVEY), mirrored)
    rotated = corrupt(IMAGES, ROWS, "rotation", 45.0, SURVEY).clamp(max=65 / 255)
    assert torch.equal(corrupt(IMAGES, ROWS, "rotation+saturation", 5.0, SURVEY), rotated)


def test_parts_of_a_combination_draw_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Tensor] = []

    def record_draws(images: torch.Tensor, parameter: float, draw: DrawFn, survey: Survey) -> torch.Tensor:
        drawn.append(draw(5))
        return images

    for name in ("one", "two"):
        monkeypatch.setitem(CONDITIONS, name, Condition({1.0: 1.0}, "", ""))
        monkeypatch.setitem(corruptions.CORRUPTIONS, name, record_draws)
    for name in ("one", "two", "one+two", "two+one"):
        corrupt(IMAGES, ROWS, name, 1.0, SURVEY)
    assert len({tuple(numbers.flatten().tolist()) for numbers in drawn}) == len(drawn) == 6


# Geometry


@pytest.mark.parametrize("angle", [0.0, 90.0, 180.0, 270.0])
def test_quarter_turns_move_pixels_exactly(angle: float) -> None:
    masked = corrupt(IMAGES, ROWS, "rotation", 0.0, SURVEY)
    rotated = corrupt(IMAGES, ROWS, "rotation", angle, SURVEY)
    assert torch.equal(rotated, torch.rot90(masked, int(angle // 90), dims=(2, 3)))


@pytest.mark.parametrize("angle", [7.5, 45.0, 97.5, 322.5])
def test_other_turns_agree_with_scipy(angle: float) -> None:
    masked = corrupt(IMAGES, ROWS, "rotation", 0.0, SURVEY)
    expected = ndimage.rotate(masked.numpy(), angle, axes=(3, 2), reshape=False, order=1)
    result = corrupt(IMAGES, ROWS, "rotation", angle, SURVEY).numpy()
    np.testing.assert_allclose(result[..., inner()], expected[..., inner()], atol=1e-4)


def inner() -> NDArray[np.bool_]:
    y, x = np.mgrid[-16:17, -16:17]
    result: NDArray[np.bool_] = np.hypot(x, y) < 13.5  # beyond the edge scipy and torch extrapolate differently
    return result


@pytest.mark.parametrize("angle", [7.5, 45.0, 82.5])
def test_the_rotation_control_turns_there_and_back_as_scipy_does(angle: float) -> None:
    expected = corrupt(IMAGES, ROWS, "rotation", 0.0, SURVEY).numpy()
    for turn in (angle, -angle):
        expected = ndimage.rotate(expected, turn, axes=(3, 2), reshape=False, order=1)
    result = corrupt(IMAGES, ROWS, "rotation_control", angle, SURVEY).numpy()
    np.testing.assert_allclose(result[..., inner()], expected[..., inner()], atol=1e-4)


def test_a_flip_mirrors_left_and_right_and_then_up_and_down() -> None:
    assert np.array_equal(corrupt(IMAGES, ROWS, "flip", 1.0, SURVEY), IMAGES.numpy()[..., ::-1])
    assert np.array_equal(corrupt(IMAGES, ROWS, "flip", 2.0, SURVEY), IMAGES.numpy()[..., ::-1, :])


@pytest.mark.parametrize("severity", get_severities("shift"))
def test_a_shift_is_scipys_in_one_of_four_directions(severity: float) -> None:
    step, seen = get_parameter("shift", severity), set()
    rows = torch.arange(24)
    for result in corrupt(IMAGES[:1].expand(24, -1, -1, -1), rows, "shift", severity, SURVEY).numpy():
        for direction in ((0, step), (step, 0), (0, -step), (-step, 0)):
            if np.array_equal(result, ndimage.shift(IMAGES[0].numpy(), (0, *direction), order=0, mode="reflect")):
                seen.add(direction)
    assert len(seen) == 4


# Noise and sky


@pytest.mark.parametrize("rate", [0.3, 4.0, 112.0])
def test_poisson_counts_follow_the_poisson_distribution(rate: float) -> None:
    uniforms = uniform(1, torch.arange(1), 20000)[0]
    drawn = draw_poisson(np.array([1.0, rate]), torch.ones(20000, dtype=torch.int64), uniforms).numpy()
    assert drawn.mean() == pytest.approx(rate, abs=5 * (rate / 20000) ** 0.5)
    edges = np.unique(stats.poisson.ppf(np.linspace(0.0, 1.0, 8)[1:-1], rate))
    result = np.histogram(drawn, np.concatenate([[-0.5], edges + 0.5, [1e9]]))[0]
    expected = np.diff(np.concatenate([[0.0], stats.poisson.cdf(edges, rate), [1.0]])) * 20000
    assert stats.chisquare(result, expected).pvalue > 1e-3


@pytest.mark.parametrize("severity", get_severities("shot_noise"))
def test_shot_noise_keeps_the_mean_and_its_variance_grows_as_the_exposure_shrinks(severity: float) -> None:
    result = counts("shot_noise", severity, 40.0)
    assert result.mean() == pytest.approx(0.0, abs=0.8)
    assert result.var() == pytest.approx(40.0 / get_parameter("shot_noise", severity), rel=0.05)


@pytest.mark.parametrize(("snr", "pedestal"), [(0.75, 12.3), (0.5, 37.0), (0.25, 111.0)])
def test_pedestal_noise_adds_the_studys_counts_to_every_pixel(snr: float, pedestal: float) -> None:
    result = counts("pedestal_noise", snr, 20.0)
    assert result.mean() == pytest.approx(pedestal, rel=0.01)
    assert result.std() == pytest.approx(pedestal**0.5, rel=0.03)


@pytest.mark.parametrize("severity", [1.0, 4.0])
def test_sky_noise_is_gaussian_with_mean_zero_and_the_pixels_are_independent(severity: float) -> None:
    result, sigma = counts("sky_noise", severity, 127.0), get_parameter("sky_noise", severity)
    assert stats.kstest(result.ravel() / sigma, "norm").pvalue > 1e-3
    correlation = np.corrcoef(result[..., 1:].ravel(), result[..., :-1].ravel())[0, 1]
    between = np.corrcoef(result[:, 0].ravel(), result[:, 1].ravel())[0, 1]
    assert abs(correlation) < 0.02 and abs(between) < 0.03


def test_a_sky_pedestal_adds_the_same_everywhere() -> None:
    np.testing.assert_allclose(counts("sky_pedestal", 3.0), 20.0, atol=1e-4)


def test_a_sky_gradient_is_a_plane_from_nothing_to_its_amplitude_in_a_direction_of_its_own() -> None:
    result = counts("sky_gradient", 3.0)
    np.testing.assert_allclose(np.diff(result, 2, axis=-1), 0.0, atol=1e-3)
    np.testing.assert_allclose(np.diff(result, 2, axis=-2), 0.0, atol=1e-3)
    np.testing.assert_allclose(result.min((2, 3)), 0.0, atol=1e-3)
    np.testing.assert_allclose(result.max((2, 3)), 40.0, atol=1e-3)
    assert len(np.unique(np.round(result[:, 0, 0, 1] - result[:, 0, 0, 0], 3))) == 4


# Optics


@pytest.mark.parametrize("severity", get_severities("downsample"))
def test_downsampling_is_pillows(severity: float) -> None:
    band = make_smooth_image(65)[0, 0].numpy()
    small_size = round(65 * get_parameter("downsample", severity))
    small = Image.fromarray(band).resize((small_size, small_size), Image.Resampling.BILINEAR)
    expected = np.array(small.resize((65, 65), Image.Resampling.BILINEAR))
    result = corrupt(make_smooth_image(65), ROWS[:1], "downsample", severity, SURVEY)[0, 0].numpy()
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("severity", get_severities("downsample_bilinear"))
def test_the_studys_downsampling_is_scikit_images_without_smoothing(severity: float) -> None:
    band = make_smooth_image(64)[0, 0].numpy()
    small_size = round(64 * get_parameter("downsample_bilinear", severity))
    small = resize(band, (small_size, small_size), order=1, mode="edge", anti_aliasing=False)
    expected = resize(small, (64, 64), order=1, mode="edge", anti_aliasing=False)
    result = corrupt(make_smooth_image(64), ROWS[:1], "downsample_bilinear", severity, SURVEY)[0, 0].numpy()
    np.testing.assert_allclose(result, expected, atol=1e-5)


# The detector, and what is in front of it


@pytest.mark.parametrize("severity", get_severities("bad_pixels"))
def test_half_the_bad_pixels_are_hot_and_half_dead_apart_in_each_band(severity: float) -> None:
    result, fraction = counts("bad_pixels", severity), get_parameter("bad_pixels", severity)
    for value in (155.0, -100.0):
        broken = np.isclose(result, value, atol=1e-3)
        assert stats.binomtest(int(broken.sum()), broken.size, fraction / 2).pvalue > 1e-3
        together = int((broken[:, 0] & broken[:, 1]).sum())
        assert stats.binomtest(together, broken[:, 0].size, (fraction / 2) ** 2).pvalue > 1e-3
    assert set(np.unique(np.round(result))) <= {-100.0, 0.0, 155.0}


def test_a_cosmic_ray_is_one_straight_streak_in_one_band_as_long_as_drawn() -> None:
    survey, rows, size = Survey(37.0, 0.524), torch.arange(40), 96
    black = torch.zeros(40, 3, size, size)
    x, y, angle, stretch, band, peak = uniform(make_key("corrupt", "cosmic_rays", 1.0), rows, 6).unbind(1)
    lengths = (corruptions.STREAK_LENGTH_ARCSEC[0] * 8**stretch / 0.524).numpy()
    is_inside = (torch.stack([x, y]) * size - size / 2).abs().amax(0).numpy() + lengths / 2 < size / 2 - 1
    result = corrupt(black, rows, "cosmic_rays", 1.0, survey).double().numpy()
    assert is_inside.sum() > 20
    for galaxy in np.flatnonzero(is_inside):
        light = result[galaxy]
        assert np.flatnonzero(light.any((1, 2))).tolist() == [int(3 * band[galaxy])]
        total = light.sum() / (0.5 + 0.5 * float(peak[galaxy]))
        assert total == pytest.approx(lengths[galaxy] + np.pi / 3, rel=0.1)  # a cone's light at both ends
        rows_, columns = np.nonzero(light.sum(0))
        axis = np.rad2deg(np.arctan2(*np.linalg.eigh(np.cov(columns, rows_))[1][::-1, 1])) % 180
        if lengths[galaxy] > 8:
            assert abs((axis - 180 * float(angle[galaxy]) + 90) % 180 - 90) < 6


def test_as_many_cosmic_rays_as_said_brighten_and_never_darken() -> None:
    result = [counts("cosmic_rays", severity) for severity in get_severities("cosmic_rays")]
    assert all(added.min() > -1e-4 for added in result)
    lit = [(added > 1.0).mean() for added in result]
    assert lit[4] / lit[1] == pytest.approx(8, rel=0.5)


def test_saturation_cuts_off_at_the_full_well_and_keeps_the_rest() -> None:
    for severity in get_severities("saturation"):
        well = get_parameter("saturation", severity) / 255
        expected = np.minimum(IMAGES.numpy(), np.float32(well))
        np.testing.assert_allclose(corrupt(IMAGES, ROWS, "saturation", severity, SURVEY), expected, rtol=1e-6)


def test_each_severity_of_band_loss_blackens_its_own_band_alone() -> None:
    for severity in get_severities("band_loss"):
        expected = IMAGES.clone()
        expected[:, int(get_parameter("band_loss", severity))] = 0.0
        assert torch.equal(corrupt(IMAGES, ROWS, "band_loss", severity, SURVEY), expected)


def test_gain_errors_are_log_normal_one_for_each_band_of_each_galaxy() -> None:
    flat, rows = torch.full((500, 3, 2, 2), 0.1), torch.arange(500)
    gains = np.log(corrupt(flat, rows, "gain_error", 3.0, SURVEY).numpy() / 0.1)
    np.testing.assert_allclose(gains, gains[:, :, :1, :1].repeat(2, 2).repeat(2, 3), atol=1e-6)
    assert stats.kstest(gains[:, :, 0, 0].ravel() / get_parameter("gain_error", 3.0), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(gains[:, :, 0, 0].T) - np.eye(3)).max() < 0.15


@pytest.mark.parametrize("severity", get_severities("star"))
def test_a_star_is_round_saturated_in_the_ring_and_of_the_seeing(severity: float) -> None:
    black, rows, peak = torch.zeros(12, 3, 65, 65), torch.arange(12), get_parameter("star", severity)
    result, offset = corrupt(black, rows, "star", severity, Survey(37.0, 1.03))[:, 1].numpy(), np.arange(65) - 32.0
    centres = np.array([ndimage.center_of_mass(light) for light in result]) - 32.0
    assert (
        np.abs(np.hypot(*centres.T) / 65 - np.mean(STAR_DISTANCE_RANGE)) < np.ptp(STAR_DISTANCE_RANGE) / 2 + 0.02
    ).all()
    assert np.ptp(np.arctan2(*centres.T)) > np.pi
    seeing = np.hypot(1.3 / 1.03, 1.0)  # and a pixel
    for light, (y, x) in zip(result, centres, strict=True):
        bright = np.hypot(offset - x, offset[:, None] - y)[light > 0.5 * min(peak, 1.0)]
        half = seeing / 2 * np.sqrt(((2 * max(peak, 1.0)) ** 0.4 - 1) / (2**0.4 - 1))  # where the profile is half
        assert bright.max(initial=0.0) < half + 0.5
        assert len(bright) == pytest.approx(np.pi * half**2, abs=2 * np.pi * half * 0.5 + 1)
