"""Generated galaxies: the published layout, the same bytes for the same seed, and classes like the real ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from galaxyhpc.data import morphology, simulate

Floats = NDArray[np.float64]
N, SIZE, SEED = 400, 40, 7


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "galaxies.h5"
    simulate.write_galaxies(path, N, SIZE, SEED)
    return path


def column(path: Path, name: str) -> NDArray[np.generic]:
    with h5py.File(path) as file:
        return np.asarray(file[name])


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "galaxyhpc.demo", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_a_file_is_laid_out_as_the_published_one_and_says_that_it_was_generated(generated: Path) -> None:
    with h5py.File(generated) as file:
        assert {k: (v.shape, v.dtype) for k, v in file.items()} == {
            "images": ((N, SIZE, SIZE, 3), np.uint8),
            "ans": ((N,), np.uint8),
            **dict.fromkeys(("ra", "dec", "redshift", "pxscale"), ((N,), np.float64)),
        }
        assert (file["images"].compression, file["images"].chunks) == ("gzip", (N, 16, 16, 1))
        assert dict(file.attrs) == {"generated_by": "galaxyhpc.demo", "n": N, "size": SIZE, "seed": SEED}
    assert simulate.is_generated(generated)


def test_columns_hold_plausible_values(generated: Path) -> None:
    ans, ra, dec = (column(generated, name) for name in ("ans", "ra", "dec"))
    redshift, scale = column(generated, "redshift"), column(generated, "pxscale")
    assert np.all(np.diff(ans.astype(int)) >= 0)
    assert ra.min() >= 0 and ra.max() < 360 and dec.min() > -20 and dec.max() < 35
    assert 0 < np.isnan(redshift).mean() < 0.1
    assert np.nanmin(redshift) > 0 and np.nanmax(redshift) < 1
    np.testing.assert_allclose(scale * SIZE, 67.0)


@pytest.mark.parametrize("n", [100, 300, 2000, 17736])
def test_classes_are_as_frequent_as_published_and_none_is_missing(n: int) -> None:
    counts = simulate.compute_class_counts(n)
    assert counts.sum() == n and counts.min() >= 3
    np.testing.assert_allclose(
        counts / n, np.array(simulate.PUBLISHED_CLASS_COUNTS) / 17736, atol=0.06 if n < 300 else 0.02
    )


def test_the_full_number_of_galaxies_has_the_published_counts() -> None:
    assert tuple(simulate.compute_class_counts(17736)) == simulate.PUBLISHED_CLASS_COUNTS


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_galaxies(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        simulate.write_galaxies(tmp_path / name, 100, 32, seed)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "again").read_bytes()
    one, other = column(tmp_path / "one", "images"), column(tmp_path / "other", "images")
    assert not np.any(np.all(one == other, axis=(1, 2, 3)))


def separations(table: simulate.Catalogue) -> Floats:
    """Arcsec between all pairs, (n, n)."""
    ra, dec = np.deg2rad(table.ra), np.deg2rad(table.dec)
    at = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], 1)
    chord = np.linalg.norm(at[:, None] - at[None], axis=2)
    return np.asarray(np.rad2deg(2 * np.arcsin(np.clip(chord / 2, 0, 1))) * 3600)


def test_a_few_percent_of_galaxies_have_a_neighbour_in_their_frame() -> None:
    near = separations(simulate.make_catalogue(2000, 0)) <= 67
    np.fill_diagonal(near, False)
    assert 0.02 < near.any(1).mean() < 0.05


@pytest.mark.parametrize(("n", "pairs"), [(300, 1), (2000, 7), (17736, 59)])
def test_duplicates_under_two_labels_are_as_frequent_as_in_the_real_file(n: int, pairs: int) -> None:
    table = simulate.make_catalogue(n, 0)
    copies = np.flatnonzero(table.shown_indices != np.arange(n))
    originals = table.shown_indices[copies]
    assert len(copies) == pairs and len(set(copies) | set(originals)) == 2 * pairs
    assert np.all(table.labels[copies] != table.labels[originals])
    assert np.all(table.ra[copies] == table.ra[originals]) and np.all(table.dec[copies] == table.dec[originals])


def test_duplicates_are_the_same_pixels_at_the_same_place_in_the_file(generated: Path) -> None:
    images, ans = column(generated, "images"), column(generated, "ans")
    _, first, number = np.unique(images, axis=0, return_inverse=True, return_counts=True)[:3]
    twice = np.flatnonzero(number[first.ravel()] == 2)
    assert len(twice) == 2 and ans[twice[0]] != ans[twice[1]]
    assert column(generated, "ra")[twice[0]] == column(generated, "ra")[twice[1]]


def test_overlapping_frames_show_each_other() -> None:
    seed, label, size = [0, 5], 2, 64
    neighbour = simulate.Neighbour(label=6, seed=[0, 9], x=15.0, y=-10.0)
    alone, with_neighbour = (
        simulate.render_image(label, seed, size),
        simulate.render_image(label, seed, size, [neighbour]),
    )
    change = np.abs(with_neighbour.astype(float) - alone).sum(2)
    row, column_ = np.unravel_index(change.argmax(), change.shape)
    arcsec = (np.array([column_, row]) - (size - 1) / 2) * 67 / size
    np.testing.assert_allclose(arcsec, [15, -10], atol=2.5)


@pytest.mark.parametrize("size", [33, 64, 100, 256])
def test_the_field_is_the_same_at_every_size(size: int) -> None:
    """The half of the galaxy's light lies within as many arcsec, and the sky is as bright, whatever the pixels are."""
    coarse, fine = simulate.render_image(3, 11, 32).mean(2), simulate.render_image(3, 11, size).mean(2)
    assert abs(np.median(coarse) - np.median(fine)) < 3
    assert abs(width(coarse) - width(fine)) < 0.7


def moments(image: Floats) -> tuple[float, float]:
    """Axis lengths in arcsec, longer first, from second moments of the light within 9" of the centre."""
    light = image - np.median(image)
    axis = (np.arange(len(image)) - (len(image) - 1) / 2) * 67 / len(image)
    x, y = np.meshgrid(axis, axis)
    light = np.where((np.hypot(x, y) < 9) & (light > 8), light, 0)
    x, y = x - (light * x).sum() / light.sum(), y - (light * y).sum() / light.sum()
    covariance = [[(light * a * b).sum() / light.sum() for a in (x, y)] for b in (x, y)]
    short, long = np.sqrt(np.linalg.eigvalsh(covariance))
    return float(long), float(short)


def width(image: Floats) -> float:
    return float(np.hypot(*moments(image)))


def sample(label: int, count: int = 24) -> Floats:
    return np.stack([simulate.render_image(label, [SEED, i], 64).astype(float) for i in range(count)])


@pytest.fixture(scope="module")
def classes() -> list[Floats]:
    return [sample(label) for label in range(10)]


def test_elongation_orders_the_classes_as_their_names_say(classes: list[Floats]) -> None:
    ratio = [np.median([s / g for g, s in (moments(image.mean(2)) for image in images)]) for images in classes]
    round_, between, cigar = ratio[2:5]
    assert round_ > between + 0.06 > cigar + 0.15
    assert max(ratio[8:]) < 0.6 < min(ratio[5:8])


def test_bulges_are_red_and_spiral_discs_blue(classes: list[Floats]) -> None:
    y, x = np.indices((64, 64)) - 31.5
    radius = np.hypot(x, y) * 67 / 64
    core, disc = radius < 1.5, (radius > 5) & (radius < 9)
    redness = [images[..., 0] - images[..., 2] for images in classes]
    for label in (5, 6, 7, 9):
        assert np.median(redness[label][:, core].mean(1)) > np.median(redness[label][:, disc].mean(1)) + 10
    assert np.median(redness[9][:, core].mean(1)) > np.median(redness[8][:, core].mean(1)) + 15


def noiseless(label: int, seed: int) -> tuple[Floats, morphology.Grid]:
    """The light in r, (257, 257), without neighbours, atmosphere or noise."""
    axis = np.linspace(-20, 20, 257, dtype=np.float32)
    grid = morphology.Grid(*np.meshgrid(axis, axis), pixel_arcsec=40 / 256)
    return morphology.draw_galaxy(label, seed, grid)[1].astype(float), grid


def asymmetry(label: int, seed: int) -> float:
    """Share of the light that half a turn moves."""
    light, _ = noiseless(label, seed)
    return float(np.abs(light - light[::-1, ::-1]).sum() / light.sum() / 2)


def test_mergers_and_disturbed_galaxies_are_lopsided_and_smooth_ones_are_not() -> None:
    disturbed, merging, smooth = ([asymmetry(label, seed) for seed in range(20)] for label in (0, 1, 2))
    assert min(np.median(disturbed), np.median(merging)) > 2 * np.median(smooth)


def body(ratio: float = 1.0) -> morphology.GalaxyParameters:
    return morphology.GalaxyParameters(flux=100.0, radius=4.0, colour=0.6, axis_ratio=ratio, angle=0.4)


def grid() -> morphology.Grid:
    axis = np.linspace(-40, 40, 401, dtype=np.float32)
    return morphology.Grid(*np.meshgrid(axis, axis), pixel_arcsec=0.2)


@pytest.mark.parametrize("index", [0.7, 1.0, 2.0])
def test_a_sersic_profile_holds_its_flux_and_half_of_it_within_its_radius(index: float) -> None:
    pixels, galaxy = grid(), body(0.6)
    u, v = galaxy.deproject(pixels)
    light = (
        morphology._sersic_profile(morphology._compute_softened_radius(u, v, pixels), galaxy, 1.0, 4.0, index)
        * (0.2 / 0.262) ** 2
    )
    assert light.sum() == pytest.approx(100, rel=0.02)
    assert light[np.hypot(u, v) < 4.0].sum() == pytest.approx(50, rel=0.03)


def test_an_edge_on_disc_and_small_sources_hold_their_flux() -> None:
    lights = [
        morphology._draw_edge_on(np.random.default_rng(seed), grid(), body(0.2), 0.2, 0.0)[1].sum() * (0.2 / 0.262) ** 2
        for seed in range(6)
    ]
    assert max(lights) == pytest.approx(100, rel=0.03) and min(lights) < 97  # some have a dust lane
    one, red = np.array([5.0]), np.array([1.0])
    planes = morphology.draw_sources(grid(), one, -one, 3 * red, red / 2, red).sum((1, 2)) * (0.2 / 0.262) ** 2
    np.testing.assert_allclose(planes, 3 * morphology.compute_band_fluxes(red)[:, 0], rtol=1e-3)


def test_arms_wind_both_ways_and_tight_ones_more_than_loose_ones() -> None:
    windings = {
        label: [morphology._draw_arm_parameters(np.random.default_rng(seed), label).winding for seed in range(60)]
        for label in (6, 7)
    }
    for values in windings.values():
        assert 0.3 < np.mean(np.array(values) > 0) < 0.7
    assert np.min(np.abs(windings[6])) > 0.9 * np.max(np.abs(windings[7]))


def test_arms_follow_a_logarithmic_spiral_of_their_sense() -> None:
    """Where the pattern is densest turns by winding * ln(r2 / r1) between two radii."""
    azimuth = np.linspace(-np.pi, np.pi, 720, endpoint=False, dtype=np.float32)
    for winding in (-3.0, 3.0):
        arms = morphology.SpiralArms(2, winding, 0.8, 0.0, 0.1, 1.0, 0.0)
        inner, outer = (
            np.angle(
                np.sum(
                    np.exp(2j * azimuth) * morphology._compute_arm_pattern(_still(), azimuth, azimuth * 0 + r, arms)[1]
                )
            )
            for r in (1.0, 1.2)
        )
        difference = (outer - inner) / 2 - winding * np.log(1.2)
        assert abs((difference + np.pi / 2) % np.pi - np.pi / 2) < 0.25


def _still() -> np.random.Generator:
    return np.random.default_rng(5)


def test_the_stretch_is_the_surveys_own() -> None:
    """Dark sky is 32 DN; colour is kept: where nothing saturates, DN stand as scaled fluxes do."""
    light = np.full((3, 1, 1), 0.05, np.float32)
    np.testing.assert_allclose(simulate.stretch(light * 0), 255 * np.arcsinh(0.6) / np.sqrt(20), rtol=1e-5)
    scaled = light[:, 0, 0] * [2.2, 3.4, 6.0] + 0.03
    pixel = simulate.stretch(light)[0, 0]
    np.testing.assert_allclose(pixel / pixel[0], scaled / scaled[0], rtol=1e-5)


def test_the_atmosphere_spreads_a_star_to_its_seeing_and_keeps_its_light() -> None:
    star = np.zeros((3, 161, 161), np.float32)
    star[:, 80, 80] = 1
    blurred = simulate._blur(star, 0.1, 1.2)
    assert blurred.sum((1, 2)) == pytest.approx(1, rel=0.05)
    for plane, fwhm in zip(blurred, (1.14, 1.2, 1.32), strict=True):
        assert (plane[80] > plane.max() / 2).sum() * 0.1 == pytest.approx(fwhm, abs=0.15)


def test_images_are_dark_sky_with_a_bright_middle(classes: list[Floats]) -> None:
    images = np.concatenate(classes)
    assert 25 < np.median(images) < 40  # 33 in the real file
    assert 2 < np.median([image[:12, :12].std() for image in images]) < 9
    middle = images[:, 30:34, 30:34].mean((1, 2, 3))
    assert np.percentile(middle, 5) > 80 and np.percentile(middle, 5) < np.percentile(middle, 95) - 50


def test_the_command_writes_the_file_it_was_asked_for(tmp_path: Path) -> None:
    result = command(tmp_path / "new" / "out.h5", "--n", 100, "--size", 33, "--seed", 4)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.h5"]
    assert column(tmp_path / "new" / "out.h5", "images").shape == (100, 33, 33, 3)


@pytest.mark.parametrize(
    ("options", "got", "expected"),
    [
        (["--n", "99"], "99", "100"),
        (["--size", "31"], "31", "32 to 256"),
        (["--size", "257"], "257", "32 to 256"),
        (["--seed", "-1"], "-1", "0 or more"),
    ],
)
def test_nonsense_is_refused_in_one_line_and_nothing_is_written(
    tmp_path: Path, options: list[str], got: str, expected: str
) -> None:
    result = command(tmp_path / "out.h5", *options)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and got in result.stderr and expected in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_not_generated_is_never_overwritten(tmp_path: Path) -> None:
    real = tmp_path / "Galaxy10_DECals.h5"
    with h5py.File(real, "w") as file:
        file["ans"] = np.zeros(3, np.uint8)
    before = real.read_bytes()
    result = command(real, "--n", 100)
    assert result.returncode == 2 and str(real) in result.stderr and result.stderr.count("\n") == 1
    assert real.read_bytes() == before


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(ValueError, match="got 10; expected 0 to 9"):
        simulate.render_image(10, 0, 32)
