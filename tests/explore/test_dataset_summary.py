"""Summary of a dataset: known pairs and known brightness are recovered."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers.data_files import write_file

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.galaxies import prepare
from galaxyhpc.data.split import make_split_table
from galaxyhpc.explore.dataset_summary import (
    DatasetSummary,
    compute_class_percentiles,
    compute_separation_arcsec,
    count_by_split,
    find_pairs,
    measure_photometry,
    select_examples,
    summarize_dataset,
)

RA = np.array([10.0, 10.0, 200.0, 200.0, 359.99999, 0.00001, 90.0, 90.0])
DEC = np.array([0.0, 0.0, 60.0, 60.0 + 30 / 3600, 5.0, 5.0, -20.0, -20.0 + 68 / 3600])
LABELS = np.array([1, 2, 3, 3, 4, 4, 5, 5])
DIGESTS = np.array([b"a", b"a", b"b", b"c", b"d", b"e", b"f", b"g"])


def test_planted_duplicates_conflicts_and_overlaps_are_found_and_nothing_else() -> None:
    pairs = find_pairs(LABELS, RA, DEC, DIGESTS, 67.0)
    result = {(pair.first, pair.second): pair for pair in pairs.itertuples()}
    assert list(result) == [(0, 1), (4, 5), (2, 3)]  # the nearest first; rows 6 and 7 are 68 arcsec apart
    assert [result[0, 1].same_pixels, result[0, 1].same_place, result[0, 1].conflict] == [True, True, True]
    assert [result[4, 5].same_pixels, result[4, 5].same_place, result[4, 5].conflict] == [False, True, False]
    assert [result[2, 3].duplicate, result[2, 3].conflict] == [False, False]
    assert result[2, 3].arcsec == pytest.approx(30.0, abs=1e-6)


def test_identical_pixels_far_apart_are_duplicates() -> None:
    pairs = find_pairs(LABELS, RA, DEC, np.where(np.arange(8) == 7, b"b", DIGESTS), 67.0)
    assert (2, 7) in set(zip(pairs["first"][pairs["duplicate"]], pairs["second"][pairs["duplicate"]], strict=True))


def test_separations_are_the_angles_between_directions() -> None:
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 200), np.degrees(np.arcsin(rng.uniform(-1, 1, 200)))
    first, second = rng.integers(0, 200, (2, 300))
    alpha, delta = np.radians(ra), np.radians(dec)
    at = np.stack([np.cos(delta) * np.cos(alpha), np.cos(delta) * np.sin(alpha), np.sin(delta)], 1)
    across, along = np.linalg.norm(np.cross(at[first], at[second]), axis=1), (at[first] * at[second]).sum(1)
    angles = 3600 * np.degrees(np.arctan2(across, along))
    assert compute_separation_arcsec(ra, dec, first, second) == pytest.approx(angles, abs=1e-5)


def test_brightness_and_noise_are_those_put_in() -> None:
    rng = np.random.default_rng(0)
    size, sky, sigma = 64, 60.0, 5.0
    images = rng.normal(sky, sigma, (3, 3, size, size))
    for row, light in enumerate((0.0, 40.0, 120.0)):
        images[row, :, 24:40, 24:40] += light
    light = measure_photometry(np.clip(images, 0, 255).round().astype(np.uint8))
    assert light["background"].to_numpy() == pytest.approx(sky, abs=1.0)
    assert light["scatter"].to_numpy() == pytest.approx(sigma / np.sqrt(3), rel=0.2)  # of the mean of three colours
    assert light["brightness"].to_numpy() == pytest.approx([60, 100, 180], abs=1.0)
    assert light["snr"].to_numpy() == pytest.approx(
        [0, 40 * np.sqrt(3) / sigma, 120 * np.sqrt(3) / sigma], rel=0.2, abs=0.5
    )


def test_light_is_the_same_from_a_mapped_file_in_slices(tmp_path, monkeypatch) -> None:
    images = np.random.default_rng(1).integers(0, 256, (50, 3, 16, 16), np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    whole, slice_lengths = measure_photometry(images), []
    monkeypatch.setattr("galaxyhpc.explore.dataset_summary.SLICE_BYTES", 7 * 3 * 4 * 16**2)
    pd.testing.assert_frame_equal(measure_photometry(mapped, slice_lengths.append), whole)
    assert slice_lengths == [7] * 7 + [1]


def test_a_border_without_scatter_has_no_signal_to_noise() -> None:
    assert np.isnan(measure_photometry(np.full((1, 3, 32, 32), 9, np.uint8))["snr"]).all()


def test_spread_counts_what_is_missing() -> None:
    values = np.array([np.nan, 1.0, 2.0, 3.0, np.nan])
    result = compute_class_percentiles(values, np.array([0, 1, 1, 1, 1]), 3)
    assert result.loc[1, ["known", "missing", "median"]].tolist() == [3, 1, 2]
    assert result.loc[0, "known"] == 0 and np.isnan(result.loc[0, "median"])
    assert result.loc[2, ["known", "missing"]].tolist() == [0, 0]


def test_examples_are_of_their_class_each_once() -> None:
    labels = np.repeat(np.arange(10), [3, 20, 8, 9, 5, 5, 5, 5, 5, 40])
    chosen = select_examples(labels, range(10), 8)
    assert all((labels[rows] == label).all() and len(set(rows)) == len(rows) for label, rows in chosen.items())
    assert [len(rows) for rows in chosen.values()] == [3, 8, 8, 8, 5, 5, 5, 5, 5, 8]


def summarize(tmp_path, **changes: object) -> DatasetSummary:
    path = write_file(tmp_path / "a.h5", **changes)
    config = DataConfig(source=str(path), cache=str(tmp_path / "cache"), image_size=32)
    return summarize_dataset(path, prepare(config), config, lambda done: None)


def test_a_file_is_told_as_it_is(tmp_path) -> None:
    summary = summarize(tmp_path, redshift=np.where(np.arange(120) < 100, 0.1, np.nan))
    assert summary.layout.shape == (120, 32, 32, 3)
    assert (summary.layout.chunks, summary.layout.compression) == ((16, 8, 8, 1), "gzip")
    assert summary.layout.has_pixel_scale
    assert summary.class_counts.tolist() == [12] * 10
    assert int(np.isnan(summary.redshift).sum()) == 20
    galaxies = summary.galaxies
    launched = make_split_table(summary.config, galaxies.columns, galaxies.digests)
    pd.testing.assert_frame_equal(summary.split, launched)
    assert count_by_split(summary.split, 10).to_numpy().sum() == 120
    assert summary.rejection == ""


def test_a_class_that_no_split_can_share_is_named(tmp_path) -> None:
    ra = np.where(np.arange(120) < 12, 1.0, np.arange(120))  # all of class 0 at one place
    summary = summarize(tmp_path, ra=ra, dec=np.zeros(120))
    assert summary.rejection.startswith("class 0 (Disturbed): got no galaxy for validation, since its 12 are within")


def test_measurements_may_be_absent_but_not_of_another_shape(tmp_path) -> None:
    assert np.isnan(summarize(tmp_path, redshift=None).redshift).all()
    with pytest.raises(DataError, match=r"redshift: got shape \(7,\); expected \(120,\)"):
        summarize(tmp_path, redshift=np.zeros(7))


def test_nearly_identical_images_are_duplicates_and_no_conflict() -> None:
    pairs = find_pairs(LABELS, np.full(8, np.nan), np.full(8, np.nan), np.arange(8), 67.0, np.array([[6, 1], [2, 3]]))
    assert pairs[["first", "second"]].to_numpy().tolist() == [[1, 6], [2, 3]]
    assert pairs["duplicate"].all() and pairs["near_pixels"].all() and not pairs["conflict"].any()
