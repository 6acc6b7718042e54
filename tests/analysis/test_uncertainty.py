"""Intervals and comparisons come from predictions that agree with the counts of their runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.sweeps import collect_sweep

from galaxyhpc.analysis import summary, uncertainty
from galaxyhpc.analysis.collect import PlanError
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.results import CLEAN


def test_predictions_are_read_by_network_and_seed(tmp_path: Path) -> None:
    networks = uncertainty.load_predictions(collect_sweep(tmp_path)).networks
    assert list(networks) == ["C1 steerable_cnn", "D4 steerable_cnn"]
    network = networks["C1 steerable_cnn"]
    assert network.mean_accuracies[CLEAN] == pytest.approx(0.55)
    assert [network.is_correct(seed).sum() for seed in (0, 1)] == [20, 24]
    assert set(network.consistency.values()) == {1.0}  # the same prediction at every angle


def test_a_network_with_a_damaged_file_has_no_intervals_and_a_note(tmp_path: Path) -> None:
    sweep = collect_sweep(tmp_path)
    run = sweep.runs[1].run
    run.predictions_file.write_bytes(b"damaged")
    predictions = uncertainty.load_predictions(sweep)
    assert list(predictions.networks) == ["D4 steerable_cnn"]
    note = f"C1 steerable_cnn: no intervals, because predictions.h5 of {run.run_id} is missing or damaged."
    assert predictions.notes == [note]
    seed_summary = summary.summarise_seeds(sweep, summary.make_metrics_table(sweep))
    limits = uncertainty.add_intervals(seed_summary, predictions.networks).groupby("label")["ci_low"].count()
    assert limits["C1 steerable_cnn"] == 0 and limits["D4 steerable_cnn"] > 0


def test_predictions_that_disagree_with_the_counts_are_not_used(tmp_path: Path) -> None:
    sweep = collect_sweep(tmp_path)
    sweep.runs[0].run.predictions_file.write_bytes(sweep.runs[2].run.predictions_file.read_bytes())
    assert list(uncertainty.load_predictions(sweep).networks) == ["D4 steerable_cnn"]


def test_runs_on_different_test_galaxies_are_refused(tmp_path: Path) -> None:
    sweep = collect_sweep(tmp_path)
    logits = results.load(sweep.runs[3].run)
    assert logits is not None
    logits.rows[0] = 4000
    results.save(sweep.runs[3].run, logits)
    with pytest.raises(PlanError, match="different test galaxies; expected one split"):
        uncertainty.load_predictions(sweep)


def test_a_pair_is_compared_on_the_galaxies_that_only_one_classifies_correctly(tmp_path: Path) -> None:
    (pair,) = uncertainty.compare_networks(uncertainty.load_predictions(collect_sweep(tmp_path)).networks).to_dict(
        "records"
    )
    assert (pair["a"], pair["b"], pair["seeds"]) == ("C1 steerable_cnn", "D4 steerable_cnn", 2)
    assert (pair["only_a"], pair["only_b"]) == (0, np.mean([16, 12]))
    assert pair["difference"] == pytest.approx(-0.35) and pair["significant"]


def test_the_hardest_galaxies_are_those_that_most_runs_misclassify(tmp_path: Path) -> None:
    networks = uncertainty.load_predictions(collect_sweep(tmp_path)).networks
    hardest = uncertainty.find_hardest_galaxies(networks.values(), max_galaxies=20)
    assert hardest["row"].tolist() == list(range(20))
    assert hardest["fraction_wrong"].tolist() == [1.0] * 4 + [0.5] * 12 + [0.25] * 4
    assert (hardest["predicted"] == (hardest["truth"] + 1) % 10).all()
