"""Galaxies are divided as their source says, by group, by sky position or at random, and the file says by which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import sources
from helpers.sources import make_sample

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.dataset import load_split, open_dataset
from galaxyhpc.data.galaxies import prepare
from galaxyhpc.data.given_split import divide
from galaxyhpc.data.sources.source import Columns
from galaxyhpc.data.split_file import read_flaw_of_division, read_split_header, read_split_labels, read_split_table
from galaxyhpc.fsck import check_split

N = 300
LABELS = np.arange(N) % 3
UNKNOWN = np.full(N, np.nan)
PARTS = np.where(np.arange(N) < 200, "train", "test")
DIGESTS = np.arange(N)


def settings(**changes: object) -> DataConfig:
    return DataConfig(classes=("E", "S0", "Sp"), **changes)


def test_a_given_split_is_kept_and_its_validation_galaxies_are_taken_from_training_by_group() -> None:
    groups = np.arange(N) // 6
    columns = Columns(LABELS, UNKNOWN, UNKNOWN, given_splits=PARTS, groups=groups)
    table = divide(settings(), columns, DIGESTS)
    assert np.array_equal(table["split"] == "test", PARTS == "test")
    assert (table["split"] == "validation").sum() == pytest.approx(20, abs=6)
    train = table[table["split"] != "test"]
    assert (train.groupby(groups[train["row"]])["split"].nunique() == 1).all()
    assert (table["fold"] == -1).all()


def test_a_whole_given_split_is_not_changed() -> None:
    parts = np.where(np.arange(N) % 10 < 2, "validation", PARTS)
    table = divide(settings(), Columns(LABELS, UNKNOWN, UNKNOWN, given_splits=parts), DIGESTS)
    assert np.array_equal(table["split"], parts)


@pytest.mark.parametrize(("duplicates", "dropped"), [("drop", [0, 4]), ("keep", [])])
def test_of_a_galaxy_in_two_given_parts_the_copy_in_the_test_set_is_kept(duplicates: str, dropped: list[int]) -> None:
    parts = np.where(np.arange(N) % 10 < 2, "validation", PARTS)
    digests = DIGESTS.copy()
    digests[0], digests[4] = 205, 10  # validation and test; train and validation
    labels = LABELS.copy()
    labels[[0, 4]] = labels[[205, 10]]
    config = settings(conflicting_duplicates=duplicates)
    table = divide(config, Columns(labels, UNKNOWN, UNKNOWN, given_splits=parts), digests)
    assert np.flatnonzero(table["split"] == "dropped").tolist() == dropped


def test_duplicates_are_refused_as_asked_with_their_names() -> None:
    digests = DIGESTS.copy()
    digests[3] = 201
    ids = np.array([f"g{row}.png" for row in range(N)])
    columns = Columns(LABELS, UNKNOWN, UNKNOWN, ids=ids, given_splits=PARTS)
    message = r"another part of the split: row 3 \(g3.png\), row 201 \(g201.png\); expected none"
    with pytest.raises(DataError, match=message):
        divide(settings(conflicting_duplicates="refuse"), columns, digests)
    digests[3] = 4
    with pytest.raises(DataError, match=r"of another label: row 3 \(g3.png\), row 4 \(g4.png\)"):
        divide(settings(conflicting_duplicates="refuse"), columns, digests)
    assert len(divide(settings(conflicting_duplicates="refuse"), columns, DIGESTS)) == N


def test_a_fold_is_refused_where_the_source_gives_the_split() -> None:
    with pytest.raises(DataError, match=r"data.fold: got 2; expected 0, .* data.columns.split='' to divide"):
        divide(settings(fold=2), Columns(LABELS, UNKNOWN, UNKNOWN, given_splits=PARTS), DIGESTS)


def test_groups_are_never_divided_and_neither_are_identical_images() -> None:
    groups, digests = np.random.default_rng(0).integers(0, 100, N), DIGESTS.copy()
    digests[:20] = 7
    columns = Columns(np.zeros(N, np.int64), UNKNOWN, UNKNOWN, groups=groups)
    table = divide(settings(), columns, digests)
    assert (table.groupby(groups)["split"].nunique() == 1).all()
    assert table["split"][:20].nunique() == 1
    assert set(table["split"]) == {"train", "validation", "test"}


@pytest.mark.parametrize(
    ("columns", "division"),
    [
        ({"split": [*["train"] * 80, *["test"] * 40]}, "by column split; validation taken from its training galaxies"),
        ({"split": [*["Val", "TEST", "training"] * 40]}, "by column split"),
        ({"group": [f"cluster {row // 4}" for row in range(120)]}, "by column group"),
        ({}, "by sky position"),
        ({"ra": [*[""] * 7, *range(113)]}, "by sky position; 7 galaxies without one at random"),
        ({"ra": [""] * 120, "dec": [""] * 120}, "at random: the source has neither positions nor groups"),
    ],
)
def test_the_file_says_by_what_galaxies_are_divided(
    tmp_path: Path, columns: dict[str, list[str]], division: str
) -> None:
    order = np.random.default_rng(1).permutation(120)  # all classes in every part
    sample = make_sample()
    sample = type(sample)(sample.images, sample.labels[order], sample.ra, sample.dec)
    source = sources.write_catalogue(tmp_path / "source", sample, **columns)
    config = settings(source=str(source), cache=str(tmp_path / "cache"), image_size=20)
    galaxies, table = open_dataset(config, tmp_path / "sweep")
    header = read_split_header(tmp_path / "sweep/split.csv")
    assert header["divided"].startswith(division)
    assert bool(read_flaw_of_division(tmp_path / "sweep/split.csv")) == division.startswith("at random")
    assert check_split(tmp_path / "sweep", []).errors == ()
    pd.testing.assert_frame_equal(load_split(config, galaxies, tmp_path / "sweep"), table)


def test_names_of_galaxies_survive_the_file_whatever_they_are(tmp_path: Path) -> None:
    sample = make_sample()
    ids = ["# a", "b, c", 'd "e"', "f\ng", "NA", "007", "é#1", *(f"g{row}" for row in range(113))]
    source = sources.write_catalogue(tmp_path / "source", sample, id=ids)
    config = settings(source=str(source), cache=str(tmp_path / "cache"), image_size=20)
    load_split(config, prepare(config), tmp_path)
    table = read_split_table(tmp_path / "split.csv")
    assert table["id"].tolist() == [name.replace("\n", " ") for name in ids]
    assert len(list(read_split_labels(tmp_path / "split.csv"))) == 120
