"""The conditions: physics, sameness for every network, and references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from galaxyhpc.corruptions import CONDITIONS, EXPOSURE, Survey, corrupt, poisson, rotation, severities
from galaxyhpc.randomness import uniform

SURVEY = Survey(mean=37.0, pixel_scale=0.524)
IMAGES = torch.rand(6, 3, 33, 33, generator=torch.Generator().manual_seed(0))
ROWS = torch.tensor([3, 1, 4, 15, 9, 26])
PAIRS = [(name, severity) for name in CONDITIONS for severity in severities(name)[:4]]


@pytest.mark.parametrize(("condition", "severity"), PAIRS)
def test_every_condition_keeps_shape_and_range_and_leaves_its_input_alone(condition: str, severity: float) -> None:
    before = IMAGES.clone()
    found = corrupt(IMAGES, ROWS, condition, severity, SURVEY)
    assert found.shape == IMAGES.shape and found.dtype == torch.float32
    assert found.min() >= 0.0 and found.max() <= 1.0
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize(("condition", "severity"), PAIRS)
def test_the_pixels_depend_on_the_galaxy_and_not_on_its_batch(condition: str, severity: float) -> None:
    whole = corrupt(IMAGES, ROWS, condition, severity, SURVEY)
    parts = [
        corrupt(image[None], row[None], condition, severity, SURVEY) for image, row in zip(IMAGES, ROWS, strict=True)
    ]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=1e-6)


def test_noise_differs_between_galaxies_and_severities() -> None:
    same = IMAGES[:1].expand(2, -1, -1, -1)
    one, other = corrupt(same, torch.tensor([0, 1]), "shot_noise", 3.0, SURVEY)
    assert not torch.equal(one, other)
    assert not torch.equal(one, corrupt(same[:1], torch.tensor([0]), "shot_noise", 4.0, SURVEY)[0])


@pytest.mark.parametrize("rate", [0.3, 4.0, 112.0])
def test_poisson_counts_follow_the_poisson_distribution(rate: float) -> None:
    uniforms = uniform(1, torch.arange(1), 20000)[0]
    counts = poisson(np.array([1.0, rate]), torch.ones(20000, dtype=torch.int64), uniforms).numpy()
    assert counts.mean() == pytest.approx(rate, abs=5 * (rate / 20000) ** 0.5)
    edges = np.unique(stats.poisson.ppf(np.linspace(0.0, 1.0, 8)[1:-1], rate))
    found = np.histogram(counts, np.concatenate([[-0.5], edges + 0.5, [1e9]]))[0]
    wanted = np.diff(np.concatenate([[0.0], stats.poisson.cdf(edges, rate), [1.0]])) * 20000
    assert stats.chisquare(found, wanted).pvalue > 1e-3


@pytest.mark.parametrize("severity", EXPOSURE)
def test_shot_noise_keeps_the_mean_and_its_variance_grows_as_the_exposure_shrinks(severity: float) -> None:
    flat = torch.full((4, 3, 65, 65), 40 / 255)
    found = corrupt(flat, torch.arange(4), "shot_noise", severity, SURVEY) * 255
    assert found.mean().item() == pytest.approx(40.0, rel=0.02)
    assert found.var().item() == pytest.approx(40.0 / EXPOSURE[severity], rel=0.05)


@pytest.mark.parametrize(("snr", "pedestal"), [(0.75, 12.3), (0.5, 37.0), (0.25, 111.0)])
def test_pedestal_noise_adds_the_studys_counts_to_every_pixel(snr: float, pedestal: float) -> None:
    found = corrupt(torch.full((4, 3, 65, 65), 20 / 255), torch.arange(4), "pedestal_noise", snr, SURVEY) * 255 - 20
    assert found.mean().item() == pytest.approx(pedestal, rel=0.01)
    assert found.std().item() == pytest.approx(pedestal**0.5, rel=0.03)


@pytest.mark.parametrize("angle", [0.0, 90.0, 180.0, 270.0])
def test_quarter_turns_move_pixels_exactly(angle: float) -> None:
    inside = rotation(IMAGES, 0.0, lambda _: ROWS, SURVEY)
    turned = rotation(IMAGES, angle, lambda _: ROWS, SURVEY)
    assert torch.equal(turned, torch.rot90(inside, int(angle // 90), dims=(2, 3)))


@pytest.mark.parametrize("angle", [7.5, 45.0, 97.5, 322.5])
def test_other_turns_agree_with_scipy(angle: float) -> None:
    inside = rotation(IMAGES, 0.0, lambda _: ROWS, SURVEY)
    wanted = ndimage.rotate(inside.numpy(), angle, axes=(3, 2), reshape=False, order=1)
    found = rotation(IMAGES, angle, lambda _: ROWS, SURVEY).numpy()
    y, x = np.mgrid[-16:17, -16:17]
    inner = np.hypot(x, y) < 14  # beyond the edge scipy and torch extrapolate differently
    np.testing.assert_allclose(found[..., inner], wanted[..., inner], atol=1e-4)


def test_the_rotation_curve_goes_round_in_steps_of_seven_and_a_half_degrees() -> None:
    angles = severities("rotation")
    assert len(angles) == 48 and angles[0] == 0.0 and set(np.diff(angles)) == {7.5}
