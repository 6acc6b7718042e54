"""Cross-validation in one sweep: every fold is the test set of a run, from one split.csv, and one report pools them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.data_files import write_file
from helpers.tiers import num_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from galaxyhpc.config.schema import DataConfig, ModelConfig, RunConfig
from galaxyhpc.config.sweep import load_sweep
from galaxyhpc.data import DataError
from galaxyhpc.data.dataset import divide_before_conversion, load_split
from galaxyhpc.data.galaxies import prepare
from galaxyhpc.data.sources.source import Columns
from galaxyhpc.data.split import make_split_table, select_fold
from galaxyhpc.evaluation.results import read_predictions
from galaxyhpc.launch import __main__ as launch
from galaxyhpc.report import build
from galaxyhpc.storage.sweep_dir import find_runs

FOLDS = range(5)


@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.sampled_from([0.0, 67.0]), st.sampled_from(["drop", "keep"]))
@settings(max_examples=num_examples(20), deadline=None)
def test_folds_keep_groups_whole_and_classes_in_proportion_for_any_galaxies(
    state: int, seed: int, link: float, duplicates: str
) -> None:
    rng = np.random.default_rng(state)
    labels, ra = rng.integers(0, 4, 600), rng.uniform(0, 40, 600)
    dec, digests = rng.uniform(0, 0.3, 600), rng.integers(0, 3000, 600)
    config = DataConfig(split_seed=seed, link_arcsec=link, conflicting_duplicates=duplicates)
    table = make_split_table(config, Columns(labels, ra, dec), digests)
    kept = table[table["split"] != "dropped"]
    assert (kept.groupby("sky_group")[["fold", "half"]].nunique() == 1).all(axis=None)
    assert (table["fold"] >= 0).equals(table["split"] != "dropped")
    largest = kept["sky_group"].value_counts().max()
    shares = pd.crosstab(kept["label"], kept["fold"])
    assert (shares.sub(shares.sum(axis=1) / 5, axis=0).abs() <= 2 * largest).all(axis=None)
    tests = [select_fold(config.model_copy(update={"fold": fold}), table)["split"] == "test" for fold in FOLDS]
    assert (sum(map(np.asarray, tests))[kept.index] == 1).all()
    assert (tests[0] == (table["split"] == "test")).all()  # fold 0 is the split without folds
    pd.testing.assert_frame_equal(table, make_split_table(config, Columns(labels, ra, dec), digests))


def settings_of(path: Path, **changes: object) -> DataConfig:
    return DataConfig(source=str(path), cache=str(path.parent / "cache"), image_size=33, **changes)


def test_a_fold_is_another_run_on_the_same_split_file(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.h5", n=300)
    configs = [settings_of(path, fold=fold) for fold in FOLDS]
    galaxies = prepare(configs[0])
    tables = [load_split(config, galaxies, tmp_path / "sweep") for config in configs]
    text = (tmp_path / "sweep/split.csv").read_text()
    load_split(configs[4], galaxies, tmp_path / "other")
    assert text == (tmp_path / "other/split.csv").read_text() and '"fold"' not in text
    for config, table in divide_before_conversion(configs).items():
        assert table["split"].tolist() == tables[config.fold]["split"].tolist()
    num_tested = sum((table["split"] == "test").astype(int) for table in tables)
    assert (num_tested == (tables[0]["split"] != "dropped")).all()
    runs = [RunConfig(data=config, model=ModelConfig(group="C1")) for config in configs]
    assert len({run.run_id for run in runs}) == 5
    assert runs[0].run_id == RunConfig(data=settings_of(path), model=ModelConfig(group="C1")).run_id


def test_a_fold_of_other_fractions_or_of_too_few_galaxies_is_refused(tmp_path: Path) -> None:
    message = r"fold needs validation_fraction 0.1 and test_fraction 0.2 \(one of five\); got 0.1 and 0.3"
    with pytest.raises(ValueError, match=message):
        DataConfig(fold=1, test_fraction=0.3)
    with pytest.raises(ValueError, match="fold"):
        DataConfig(fold=5)
    labels = np.repeat(np.arange(10, dtype=np.uint8), [13] * 9 + [3])
    config = settings_of(write_file(tmp_path / "a.h5", ans=labels), fold=3)
    divide_before_conversion([config.model_copy(update={"fold": 0})])
    with pytest.raises(DataError, match=r"got no galaxy for .*; expected more galaxies, or data.fold=0"):
        divide_before_conversion([config])
    with pytest.raises(DataError, match=r"got no galaxy for .*; expected more galaxies, or data.fold=0"):
        load_split(config, prepare(config), tmp_path / "sweep")
    assert not (tmp_path / "sweep/split.csv").exists()


SWEEP = """
name: folds
base:
  data: {image_size: 33, demo: {galaxies: 500, size: 32}}
  model: {architecture: cnn, scale: 0.1}
  train: {batch_size: 100, epochs: 1}
  evaluate: {conditions: [clean], attack: {galaxies: 10, population: 4, iterations: 1}}
blocks:
  - grid: {data.fold: [0, 1, 2, 3, 4]}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_a_sweep_over_folds_tests_every_galaxy_once_and_reports_one_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folds.yaml").write_text(SWEEP)
    assert [run.data.fold for run in load_sweep(Path("folds.yaml")).runs] == list(FOLDS)
    assert launch.main(["folds.yaml", "--executor", "debug"]) == 0
    predictions = [read_predictions(run) for run in find_runs(Path("runs/folds"))]
    rows = np.concatenate([read.rows for read in predictions if read is not None])
    table = pd.read_csv("runs/folds/split.csv", comment="#")
    kept = table["row"][table["split"] != "dropped"].tolist()
    assert sorted(rows) == kept and len(kept) > 490
    report = build.aggregate(Path("runs/folds"))
    assert report.missing_runs.empty and sorted(report.results["fold"]) == list(FOLDS)
    (network,) = report.tables.networks.to_dict("records")
    assert (network["label"], network["seeds_done"], network["seeds_planned"]) == ("cnn", 5, 5)
    assert report.results["n"].sum() == report.tables.confusion["count"].sum() == len(kept)
    accuracy = report.results["accuracy"]
    assert network["accuracy_mean"] == pytest.approx(accuracy.mean())
    assert network["ci_low"] <= report.results["correct"].sum() / len(kept) <= network["ci_high"]
    attacked = [len(pd.read_csv(run.path / "attack.csv", comment="#")) for run in find_runs(Path("runs/folds"))]
    assert set(report.tables.attack["n"]) == {sum(attacked)} and min(attacked) > 0  # all folds are one attack
    assert any(note.startswith("Cross-validation: folds 0, 1, 2, 3, 4 of 5") for note in report.notes)
