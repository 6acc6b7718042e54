"""Fewer labels: nested and stratified, the same for every network and seed, and nothing else changes.

pytest -n0 tests/test_label_fraction.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.tiers import num_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from galaxyhpc.config.schema import DataConfig, DemoConfig, ModelConfig, RunConfig
from galaxyhpc.config.sweep import load_sweep
from galaxyhpc.data.dataset import load_split, open_dataset
from galaxyhpc.data.split import select_training_indices
from galaxyhpc.launch import __main__ as launch
from galaxyhpc.launch.galaxy_checks import COMMON_DATA_SETTINGS
from galaxyhpc.report import build
from galaxyhpc.runtime.distributed import Process
from galaxyhpc.runtime.rank import RankInfo
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import find_runs
from galaxyhpc.training.trainer import TrainingError, set_up

SWEEPS = Path(__file__).parents[2] / "sweeps"
FRACTIONS = st.floats(1e-4, 1.0)


def select_used(table: pd.DataFrame, fraction: float, seed: int = 0) -> np.ndarray:
    return select_training_indices(table, DataConfig(label_fraction=fraction, split_seed=seed))


def make_split(counts: list[int], seed: int = 0) -> pd.DataFrame:
    """A split of classes of these sizes, in no order."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    split = np.random.default_rng(seed + 1).choice(["train", "validation", "test", "dropped"], len(labels))
    return pd.DataFrame({"row": np.arange(len(labels)), "label": labels, "split": split})


@given(st.lists(st.integers(0, 60), min_size=1, max_size=10), FRACTIONS, FRACTIONS, st.integers(0, 9))
@settings(max_examples=num_examples(100), deadline=None)
def test_a_smaller_fraction_is_part_of_a_larger_one_and_every_class_keeps_its_share(counts, fraction, other, seed):
    table = make_split(counts, seed)
    small, large = (select_used(table, used_fraction, seed) for used_fraction in sorted((fraction, other)))
    assert set(small) <= set(large) and (np.diff(large) > 0).all()
    assert (table.split[large] == "train").all()
    for label, members in table[table.split == "train"].groupby("label"):
        used = (table.label[large] == label).sum()
        assert used >= 1 and abs(used - max(1, max(fraction, other) * len(members))) <= 0.5


def test_all_labels_are_all_training_galaxies_in_their_order() -> None:
    table = make_split([50, 3, 0, 20])
    assert select_used(table, 1.0).tolist() == table.row[table.split == "train"].tolist()


def test_a_galaxy_is_used_depending_on_the_split_seed_and_its_index_alone() -> None:
    table = make_split([400] * 10)
    used = set(select_used(table, 0.1))
    assert used == set(select_used(table.sample(frac=1.0, random_state=0), 0.1))
    assert len(used & set(select_used(table, 0.1, seed=1))) < 0.3 * len(used)
    fewer = table.drop(index=next(iter(used)))
    assert len(used - set(select_used(fewer, 0.1))) == 1


def test_the_galaxies_in_use_are_no_contiguous_part_of_the_file() -> None:
    """Galaxy10 is sorted by class, and within a class in an unknown order."""
    used = select_used(pd.DataFrame({"row": np.arange(10_000), "label": 0, "split": "train"}), 0.05)
    assert len(used) == 500 and abs(used.mean() - 5000) < 4 * 10_000 / np.sqrt(12 * 500)


def run_config(**data: object) -> RunConfig:
    return RunConfig(data=DataConfig.model_validate(data), model=ModelConfig(group="C4"))


def test_a_run_on_all_labels_is_the_run_that_it_was_before() -> None:
    assert run_config().get_identity()["data"]["label_fraction"] == 1.0
    assert run_config(label_fraction=0.5).get_identity()["data"]["label_fraction"] == 0.5
    assert run_config(label_fraction=1.0).run_id == run_config().run_id != run_config(label_fraction=0.99).run_id


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01])
def test_a_fraction_is_more_than_none_and_at_most_all(fraction: float) -> None:
    with pytest.raises(ValueError, match="label_fraction"):
        DataConfig(label_fraction=fraction)


def tiny(cache: Path, **changes: object) -> RunConfig:
    return run_config(cache=str(cache), image_size=33, demo=DemoConfig(galaxies=300, size=32), **changes)


def test_all_fractions_share_one_split(tmp_path: Path) -> None:
    full, part = tiny(tmp_path).data, tiny(tmp_path, label_fraction=0.1).data
    galaxies, table = open_dataset(full, tmp_path / "sweep")
    text = (tmp_path / "sweep" / "split.csv").read_text()
    assert load_split(part, galaxies, tmp_path / "sweep").equals(table)
    assert "label_fraction" not in text and text == (tmp_path / "sweep" / "split.csv").read_text()
    assert "label_fraction" not in COMMON_DATA_SETTINGS


def test_too_few_galaxies_for_the_processes_are_refused_before_the_first_step(tmp_path: Path) -> None:
    config = tiny(tmp_path, label_fraction=0.01)  # one of each class
    process = Process(RankInfo(world_size=6), torch.device("cpu"))
    message = r": got 0\.01, which leaves 10 training galaxies; expected 2 or more for each of 6 processes"
    with pytest.raises(TrainingError, match=message):
        set_up(RunDir(tmp_path / "sweep" / config.run_id), config, process)


TINY = """
name: tiny
base:
  data: {image_size: 33, demo: {galaxies: 300, size: 32}}
  model: {architecture: cnn, scale: 0.1}
  train: {batch_size: 50, class_weights: balanced}
  evaluate: {conditions: [clean]}
blocks:
  - zip: {data.label_fraction: [0.05, 1.0], train.epochs: [4, 1]}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_two_fractions_of_a_sweep_are_trained_on_their_galaxies_and_reported_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    assert launch.main(["tiny.yaml", "--executor", "debug"]) == 0
    images = [[e["images"] for e in run.read_events() if e["event"] == "epoch"] for run in find_runs(Path("runs/tiny"))]
    used = len(select_used(pd.read_csv("runs/tiny/split.csv", comment="#"), 0.05))
    assert 10 <= used < 20 and images == [[used] * 4, [200]]  # all in one batch; four batches of 50
    report = build.aggregate(Path("runs/tiny"))
    assert report.missing_runs.empty
    labels = set(report.summary.label)
    assert len(labels) == 2 and "cnn, data.label_fraction 0.05, train.epochs 4" in labels
    assert len(set(report.results.n)) == 1  # of the same test galaxies


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXY10_H5", "/somewhere/Galaxy10_DECals.h5")


def test_the_sweep_of_fractions_takes_as_many_steps_with_each(sample: None) -> None:
    runs = load_sweep(SWEEPS / "label_fraction.yaml").runs
    training = 0.7 * 17_618  # published galaxies without conflicting duplicates
    steps = {}
    for run in runs:
        count = int(training * run.data.label_fraction)
        steps[run.data.label_fraction] = run.train.epochs * (count // min(count, run.train.batch_size))
    assert list(steps) == [0.01, 0.05, 0.1, 0.25, 1.0]
    assert max(steps.values()) <= 1.02 * min(steps.values())
    assert len({run.run_id for run in runs}) == len(runs) == 4 * 5 * 3


def test_the_sweep_at_equal_parameters_is_that_of_all_groups_but_for_the_width(sample: None) -> None:
    equal, all_groups = (load_sweep(SWEEPS / f"{name}.yaml").runs for name in ("equal_parameters", "all_groups"))
    assert {run.model.width for run in equal} == {"parameters"}
    as_fields = [run.model.model_copy(update={"width": "fields"}) for run in equal]
    assert [run.model_copy(update={"model": m}) for run, m in zip(equal, as_fields, strict=True)] == list(all_groups)
