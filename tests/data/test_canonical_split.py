"""The canonical split: leak-free, balanced, the same bytes from the same galaxies, and used for these alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.canonical_split import NUM_GALAXIES, SPLIT_FILE, load_galaxy10_split
from galaxyhpc.data.canonical_split.make import main, make_canonical_table, read_columns
from galaxyhpc.data.canonical_split.random_splits import count_leaks
from galaxyhpc.data.dataset import load_split
from galaxyhpc.data.galaxies import Galaxies
from galaxyhpc.data.sources.source import Columns
from galaxyhpc.data.split import compute_split_table, describe_origin, find_close_pairs, make_split_table
from galaxyhpc.data.split_file import read_split_header

COORDINATES = Path(__file__).parents[3] / "shared/data/galaxy10_decals_coordinates.csv.gz"
CLASS_COUNTS = [1081, 1853, 2645, 2027, 334, 2043, 1829, 2628, 1423, 1873]  # of the published file
ROWS = np.arange(NUM_GALAXIES)


def list_published_files() -> list[Path]:
    """Return the files here that hold labels and positions of all published galaxies."""
    files = [COORDINATES] if COORDINATES.is_file() else []
    real = Path(os.environ.get("GALAXY10_H5", ""))
    if real.is_file():
        with h5py.File(real) as file:
            files += [real] if len(file["ans"]) == NUM_GALAXIES else []
    return files


SOURCES = list_published_files()
needs_galaxies = pytest.mark.skipif(not SOURCES, reason=f"neither {COORDINATES} nor GALAXY10_H5 has all galaxies")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return load_galaxy10_split()


def place_like_published(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and made-up positions with the sky groups and the dropped galaxies of the canonical split."""
    groups, is_dropped = table["sky_group"].to_numpy(), table["split"] == "dropped"
    step = table.groupby(["sky_group", is_dropped]).cumcount() + is_dropped.groupby(table["sky_group"]).transform("max")
    offset = np.where(is_dropped, 0, step) * 50 / 3600  # degrees: the dropped ones of a group first, in one place
    return table["label"].to_numpy(), (groups % 150) * 2.0, groups // 150 - 80.0 + offset


def test_every_galaxy_is_in_one_fold_or_dropped_for_a_reason(table: pd.DataFrame) -> None:
    assert table["row"].tolist() == list(range(NUM_GALAXIES))
    assert np.bincount(table["label"]).tolist() == CLASS_COUNTS
    is_dropped = table["split"] == "dropped"
    assert is_dropped.sum() == 118
    assert set(table["fold"][~is_dropped]) == set(range(5)) and set(table["half"][~is_dropped]) == {0, 1}
    assert (table.loc[is_dropped, ["fold", "half"]] == -1).all(axis=None)
    assert (table["dropped"][~is_dropped] == "").all() and table["dropped"][is_dropped].str.contains("same pos").all()


def test_every_galaxy_is_tested_in_one_fold_and_validated_in_no_more(table: pd.DataFrame) -> None:
    splits = pd.concat([load_galaxy10_split(fold)["split"] for fold in range(5)], axis=1)
    kept = splits[table["split"] != "dropped"]
    assert ((kept == "test").sum(axis=1) == 1).all() and ((kept == "validation").sum(axis=1) <= 1).all()
    assert (splits[table["split"] == "dropped"] == "dropped").all(axis=None)
    with pytest.raises(ValueError, match="fold: got 5; expected 0 to 4"):
        load_galaxy10_split(5)


def test_a_sky_group_is_never_divided(table: pd.DataFrame) -> None:
    kept = table[table["split"] != "dropped"]
    assert (kept["sky_group"].value_counts() > 1).sum() > 150
    assert (kept.groupby("sky_group")[["fold", "half"]].nunique() == 1).all(axis=None)
    for fold in range(5):
        split = load_galaxy10_split(fold).loc[kept.index]
        assert (split.groupby("sky_group")["split"].nunique() == 1).all()


@pytest.mark.parametrize("fold", range(5))
def test_each_class_has_its_fraction_of_every_fold_within_two_galaxies(table: pd.DataFrame, fold: int) -> None:
    split = load_galaxy10_split(fold)
    kept = split[split["split"] != "dropped"]
    counts = pd.crosstab(kept["label"], kept["split"])
    for name, fraction in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert (counts[name] - fraction * counts.sum(axis=1)).abs().max() <= 2


def test_the_published_galaxies_get_it_by_their_positions_whatever_their_pixels_and_others_do_not(
    table: pd.DataFrame,
) -> None:
    labels, ra, dec = place_like_published(table)
    names = ["sky_group", "fold", "half", "split"]
    made = make_split_table(DataConfig(), Columns(labels, ra, dec), ROWS)
    assert made[names].equals(table[names]) and made["ra"].tolist() == ra.tolist()
    digest = hashlib.sha256(SPLIT_FILE.read_bytes()).hexdigest()
    origin = f"canonical split galaxy10_decals_sky67.csv.gz, SHA-256 {digest}"
    assert describe_origin(DataConfig(), made, ROWS) == origin
    same_pixels = np.where(ROWS == 9000, 100, ROWS)  # far apart
    assert make_split_table(DataConfig(), Columns(labels, ra, dec), same_pixels).equals(made)
    assert "; 1 pairs of images with the same pixels" in describe_origin(DataConfig(), made, same_pixels)
    for columns in ((np.where(ROWS == 7, 3, labels), ra, dec), (labels, np.where(ROWS == 7, ra[8], ra), dec)):
        other = make_split_table(DataConfig(), Columns(*columns), ROWS)
        assert not other[names].equals(table[names])
        assert describe_origin(DataConfig(), other, ROWS).startswith("computed, for these are not the galaxies")


@pytest.mark.parametrize("changes", [{}, {"fold": 3}, {"split_seed": 1}, {"test_fraction": 0.3}])
def test_a_sweep_says_whether_its_split_is_canonical(
    table: pd.DataFrame, tmp_path: Path, changes: dict[str, object]
) -> None:
    labels, ra, dec = place_like_published(table)
    config = DataConfig(source="published.h5").model_copy(update=changes)
    galaxies = Galaxies(np.empty(0), labels, (), ra, dec, ROWS, "f" * 64, 40.0, 0.262, False)
    split = load_split(config, galaxies, tmp_path)
    header = read_split_header(tmp_path / "split.csv")
    if changes.keys() <= {"fold"}:
        assert split["split"].tolist() == load_galaxy10_split(config.fold)["split"].tolist()
        assert header["origin"].startswith("canonical split galaxy10_decals_sky67.csv.gz, SHA-256 ")
        assert header["counts"] == "train 12333, validation 1761, test 3524, dropped 118"  # of fold 0
    else:
        ((name, value),) = changes.items()
        assert split["split"].tolist() != table["split"].tolist()
        assert header["origin"] == f"computed, with data.{name}={value}"
        assert ("folds" in header) == (name != "test_fraction")


@pytest.mark.slow
@needs_galaxies
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_file_is_what_its_script_makes_of_the_galaxies_and_what_the_code_computes(
    source: Path, table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(source), str(tmp_path / "again.csv.gz")]) == 0
    is_same = (tmp_path / "again.csv.gz").read_bytes() == SPLIT_FILE.read_bytes()
    assert is_same
    assert hashlib.sha256(SPLIT_FILE.read_bytes()).hexdigest() in capsys.readouterr().out
    labels, ra, dec = read_columns(source)
    made = make_split_table(DataConfig(), Columns(labels, ra, dec), ROWS)
    assert made.equals(compute_split_table(DataConfig(), Columns(labels, ra, dec), ROWS))
    assert describe_origin(DataConfig(), made, ROWS).startswith("canonical split")
    near = find_close_pairs(ra, dec, 67.0)
    fold = table["fold"].to_numpy()[near]
    assert len(near) == 236 and ((fold[:, 0] == fold[:, 1]) | (fold < 0).any(axis=1)).all()


def test_two_tables_of_the_same_galaxies_have_the_same_bytes_from_either_kind_of_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {"label": np.sort(rng.integers(0, 10, 300)), "ra": rng.uniform(0, 360, 300), "dec": np.zeros(300)}
    columns["ra"][299], columns["ra"][2] = columns["ra"][0], columns["ra"][1] + 30 / 3600
    pd.DataFrame(columns).to_csv(tmp_path / "a.csv", index=False, float_format="%.17g")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.update({"ans": columns["label"].astype(np.uint8), "ra": columns["ra"], "dec": columns["dec"]})
        file.create_dataset("images", (300, 32, 32, 3), np.uint8)
        file["pxscale"] = np.full(300, 2.096)
    for name in ("a.csv", "a.h5"):
        assert main([str(tmp_path / name), str(tmp_path / f"{name}.gz")]) == 0
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "a.h5.gz").read_bytes()
    made = make_canonical_table(*read_columns(tmp_path / "a.h5"))
    assert made["dropped"][0] == "same position as row 299 of class 9" and made["fold"][1] == made["fold"][2]
    assert main([str(tmp_path / "absent.h5"), str(tmp_path / "b.gz")]) == 2


def test_random_splits_leak_as_often_as_chance_says() -> None:
    labels, ra = np.repeat(np.arange(10), 200), np.arange(2000) * 0.1
    ra[1::2] = ra[::2] + np.where(np.arange(1000) < 500, 0.5, 50) / 3600  # 500 twins, 500 neighbours
    labels[1:200:2] = 9  # of 100 twins the labels differ
    leaks = count_leaks(labels, ra, np.zeros(2000), num_splits=40)
    assert len(leaks) == 40 and (leaks["test"] == 200).all()
    expected = {"neighbour": 180.0, "same_galaxy": 90.0, "other_label": 18.0}  # 2 x 0.1 x 0.9 of the pairs
    for name, mean in expected.items():
        assert leaks[name].mean() == pytest.approx(mean, abs=4 * np.sqrt(mean / 40))
    stratified = count_leaks(labels, ra, np.zeros(2000), num_splits=2, is_stratified=True)
    assert stratified["test"].tolist() == [200, 200] and not stratified.equals(leaks[:2])


def test_a_split_without_a_close_pair_across_leaks_nothing() -> None:
    labels, places = np.repeat(np.arange(10), 20), np.arange(200.0)
    assert (count_leaks(labels, places, places / 4, num_splits=3).iloc[:, 1:] == 0).all(axis=None)


def test_the_loader_needs_neither_torch_nor_astropy() -> None:
    code = "import sys; from galaxyhpc.data.canonical_split import load_galaxy10_split as load; print(len(load(2)), "
    code += "{'torch', 'astropy', 'scipy', 'h5py', 'pydantic'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "17736 set()\n"
