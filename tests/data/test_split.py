"""The division of galaxies: what belongs together stays together, and every class comes near its fractions."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.tiers import num_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.sources.source import Columns
from galaxyhpc.data.split import (
    NO_PAIRS,
    SPLITS,
    chain_equal_values,
    explain_empty_class,
    find_close_pairs,
    find_label_conflicts,
    label_components,
    make_split_table,
)


def separation(ra_1: np.ndarray, dec_1: np.ndarray, ra_2: np.ndarray, dec_2: np.ndarray) -> np.ndarray:
    """Vincenty's formula, in arcsec: accurate at every distance, and not the one that is tested."""
    a1, d1, a2, d2 = (np.radians(angle) for angle in (ra_1, dec_1, ra_2, dec_2))
    y = np.hypot(
        np.cos(d2) * np.sin(a2 - a1),
        np.cos(d1) * np.sin(d2) - np.sin(d1) * np.cos(d2) * np.cos(a2 - a1),
    )
    x = np.sin(d1) * np.sin(d2) + np.cos(d1) * np.cos(d2) * np.cos(a2 - a1)
    return np.degrees(np.arctan2(y, x)) * 3600.0


@st.composite
def skies(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, positions and digests of galaxies crowded at RA 0/360, at a pole or elsewhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, classes = draw(st.integers(20, 300)), draw(st.integers(1, 10))
    ra, dec = draw(st.sampled_from([(0.0, 0.0), (180.0, 90.0), (0.0, -89.99), (123.0, 45.0)]))
    spread = draw(st.sampled_from([100.0, 600.0, 5000.0])) / 3600.0  # degrees
    dec = np.clip(dec + rng.uniform(-spread, spread, n), -90, 90)
    ra = (ra + rng.uniform(-spread, spread, n) / np.cos(np.radians(np.minimum(np.abs(dec), 89.9)))) % 360.0
    pixels = rng.integers(0, draw(st.sampled_from([n, 100 * n])), n)  # some are identical, or hardly any
    return rng.integers(0, classes, n), ra, dec, np.char.mod("%064d", pixels).astype("S64")


@given(skies(), st.sampled_from(["drop", "keep"]), st.sampled_from([0.0, 30.0, 67.0]), st.integers(0, 9))
@settings(max_examples=num_examples(120), deadline=None)
def test_galaxies_that_share_sky_or_pixels_are_never_divided(sky, duplicates, link, seed):
    labels, ra, dec, digests = sky
    config = DataConfig(conflicting_duplicates=duplicates, link_arcsec=link, split_seed=seed)
    table = make_split_table(config, Columns(labels, ra, dec), digests)
    kept = np.flatnonzero(table["split"] != "dropped")
    i, j = (kept[k] for k in np.triu_indices(len(kept), 1))
    linked = (separation(ra[i], dec[i], ra[j], dec[j]) < link - 1e-3) | (digests[i] == digests[j])
    split, group = table["split"].to_numpy(), table["sky_group"].to_numpy()
    assert (split[i] == split[j])[linked].all()
    assert (group[i] == group[j])[linked].all()
    assert (split[i] == split[j])[group[i] == group[j]].all()


@given(skies(), st.sampled_from([(0.1, 0.2), (0.05, 0.3), (0.25, 0.1), (0.45, 0.45)]), st.integers(0, 9))
@settings(max_examples=num_examples(200), deadline=None)
def test_each_class_has_its_fraction_in_each_split_within_a_galaxy_or_a_component(sky, fractions, seed):
    labels, ra, dec, digests = sky
    config = DataConfig(validation_fraction=fractions[0], test_fraction=fractions[1], split_seed=seed)
    table = make_split_table(config, Columns(labels, ra, dec), digests)
    kept = table[table["split"] != "dropped"]
    for label, members in kept.groupby("label"):
        largest = kept["sky_group"].value_counts().max()
        for split, fraction in zip(SPLITS, (1 - sum(fractions), *fractions), strict=True):
            count = (members["split"] == split).sum()
            rare = min(fractions) * len(members) < 1  # one everywhere comes first
            assert rare or abs(count - fraction * len(members)) <= largest, (label, split)


def test_without_neighbours_every_class_is_divided_to_the_galaxy():
    labels = np.repeat(np.arange(10), 70)
    table = make_split_table(DataConfig(), Columns(labels, np.linspace(0, 359, 700), np.zeros(700)), np.arange(700))
    assert (table.groupby(["label", "split"]).size().unstack()[list(SPLITS)] == [49, 7, 14]).all(axis=None)


@pytest.mark.parametrize("count", [3, 4, 5, 7])
def test_a_rare_class_has_a_galaxy_in_every_split(count):
    labels = np.repeat(np.arange(10), [100] * 9 + [count])
    columns = Columns(labels, np.linspace(0, 359, len(labels)), np.zeros(len(labels)))
    table = make_split_table(DataConfig(), columns, np.arange(len(labels)))
    assert set(table["split"][labels == 9]) == set(SPLITS)


def test_the_split_follows_from_its_seed():
    labels, places, digests = np.repeat(np.arange(10), 30), np.linspace(0, 359, 300), np.arange(300)
    columns = Columns(labels, places, places / 10)
    tables = [make_split_table(DataConfig(split_seed=seed), columns, digests) for seed in (3, 3, 4)]
    assert tables[0].equals(tables[1])
    assert (tables[0]["split"] != tables[2]["split"]).any()


@pytest.mark.parametrize(
    ("ra", "dec", "arcsec"),
    [
        ([359.999, 0.001], [0.0, 0.0], 7.2),
        ([10.0, 190.0], [89.999, 89.999], 7.2),
        ([10.0, 10.0], [-0.001, 0.001], 7.2),
        ([0.0, 0.004], [60.0, 60.0], 7.2),
    ],
)
def test_a_separation_is_measured_on_the_sphere(ra, dec, arcsec):
    assert len(find_close_pairs(np.array(ra), np.array(dec), arcsec + 0.001)) == 1
    assert len(find_close_pairs(np.array(ra), np.array(dec), arcsec - 0.001)) == 0


def test_neighbours_of_neighbours_belong_together():
    steps = np.arange(5) * 60 / 3600  # a chain of 60 arcsec steps, its ends 240 apart
    assert len(set(label_components(5, find_close_pairs(np.full(5, 20.0), steps, 67.0)))) == 1


def test_identical_pixels_are_linked_wherever_they_lie():
    pairs = chain_equal_values(np.array([b"x", b"y", b"x", b"z", b"x"]))
    assert label_components(5, pairs).tolist() == [0, 1, 0, 2, 0]


def test_a_group_conflicts_when_its_labels_differ():
    assert find_label_conflicts(np.array([1, 1, 2, 3]), np.array([0, 0, 1, 1])).tolist() == [False, False, True, True]


def duplicates() -> tuple[Columns, np.ndarray]:
    """60 lone galaxies, but 0 and 59 have the same pixels, 1 and 58 are 0.5" apart, 3 and 4 (one class) too."""
    labels, ra = np.repeat(np.arange(10), 6), np.linspace(0, 300, 60)
    digests = np.arange(60)
    digests[59], ra[58], ra[4] = digests[0], ra[1] + 0.5 / 3600, ra[3] + 0.5 / 3600
    return Columns(labels, ra, np.zeros(60)), digests


def test_conflicting_duplicates_are_dropped_and_agreeing_ones_kept():
    table = make_split_table(DataConfig(), *duplicates())
    assert table.index[table["split"] == "dropped"].tolist() == [0, 1, 58, 59]
    assert table["split"][3] == table["split"][4]


def test_conflicting_duplicates_can_be_kept_but_are_never_divided():
    table = make_split_table(DataConfig(conflicting_duplicates="keep", link_arcsec=0.0), *duplicates())
    split = table["split"]
    assert "dropped" not in set(split)
    assert (split[0], split[1], split[3]) == (split[59], split[58], split[4])


@pytest.mark.parametrize("link", ["own group", "nearly the same pixels"])
def test_a_class_linked_by_its_group_or_its_pixels_is_not_told_to_move_on_the_sky(link):
    labels, rows, unknown = np.arange(60) % 2, np.arange(60), np.full(60, np.nan)
    groups = np.where(labels == 1, 99, rows) if link == "own group" else None
    pairs = NO_PAIRS if groups is not None else np.stack([rows[1:-2:2], rows[3::2]], axis=1)  # all of class 1
    table = make_split_table(DataConfig(), Columns(labels, unknown, unknown, groups=groups), rows, pairs)
    reason = explain_empty_class(DataConfig(), table, rows, label=1)
    assert reason == (
        "its 30 are linked by their group, their position, or pixels that are the same or nearly; "
        "expected galaxies that differ, or a column split (data.columns.split)"
    )
