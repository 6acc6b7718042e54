"""Summaries are means over the seeds of a network; what is not measured is nan and counted as missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.sweeps import NUM_GALAXIES, PAIRS, collect_sweep

from galaxyhpc.analysis import summary
from galaxyhpc.config.conditions import ROTATION_MEAN


def get_clean(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["condition"] == "clean"].set_index("label")


def test_mean_and_spread_are_over_the_seeds_of_each_network(tmp_path: Path) -> None:
    sweep = collect_sweep(tmp_path)
    clean = get_clean(summary.summarise_seeds(sweep, summary.make_metrics_table(sweep)))
    assert clean["accuracy_mean"].tolist() == pytest.approx([0.55, 0.9])
    assert clean["accuracy_std"].tolist() == pytest.approx([np.std([0.5, 0.6], ddof=1), 0.0])
    assert clean["seeds_done"].tolist() == clean["seeds_planned"].tolist() == [2, 2]


def test_every_planned_condition_has_a_row_even_without_results(tmp_path: Path) -> None:
    sweep = collect_sweep(tmp_path, (None, None, 4, 4))
    table = summary.summarise_seeds(sweep, summary.make_metrics_table(sweep))
    assert (table["label"].value_counts() == len(PAIRS) + 1).all()  # and the mean over angles
    missing = table[table["label"] == "C1 steerable_cnn"]
    assert missing["accuracy_mean"].isna().all() and (missing["seeds_done"] == 0).all()


def test_rotation_mean_is_the_mean_over_all_angles(tmp_path: Path) -> None:
    sweep = collect_sweep(tmp_path)
    table = summary.summarise_seeds(sweep, summary.make_metrics_table(sweep))
    mean = table[table["condition"] == ROTATION_MEAN[0]].set_index("label")["accuracy_mean"]
    assert mean.tolist() == pytest.approx([0.55, 0.9])


def test_seeds_that_are_incomplete_are_not_counted_as_done(tmp_path: Path) -> None:
    sweep = collect_sweep(tmp_path, (20, None, 4, 4))
    networks = summary.make_network_table(sweep, summary.summarise_seeds(sweep, summary.make_metrics_table(sweep)))
    assert networks["seeds_done"].tolist() == [1, 2] and networks["seeds_planned"].tolist() == [2, 2]
    assert networks["pareto_parameters"].tolist() == [False, True]  # as many parameters, less accurate


def test_confusion_counts_are_summed_over_seeds(tmp_path: Path) -> None:
    confusion = summary.make_confusion_table(summary.make_metrics_table(collect_sweep(tmp_path)))
    per_network = confusion.groupby("label")["count"].sum()
    assert set(per_network) == {2 * NUM_GALAXIES}
    wrong = confusion[confusion["truth"] != confusion["predicted"]].groupby("label")["count"].sum()
    assert wrong.to_dict() == {"C1 steerable_cnn": 36, "D4 steerable_cnn": 8}


def test_a_network_is_relative_to_the_cnn_of_its_own_settings_or_to_the_only_one() -> None:
    columns = ["label", "arch", "settings", "image_size", "width", "scale"]
    rows = [
        ("cnn a", "cnn", "a"),
        ("cnn b", "cnn", "b"),
        ("C4 a", "steerable_cnn", "a"),
        ("C4 c", "steerable_cnn", "c"),
    ]
    networks = pd.DataFrame([(*row, 65, "fields", 1.0) for row in rows], columns=columns)
    references = summary.find_reference_networks(networks)
    assert references == {"cnn a": "cnn a", "cnn b": "cnn b", "C4 a": "cnn a"}
    assert summary.find_reference_networks(networks.drop(index=1))["C4 c"] == "cnn a"
