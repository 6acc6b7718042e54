"""Intervals and comparisons come from predictions that agree with the counts of their runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.sweeps import collect_sweep, make_config, make_plan, save_results

from galaxyhpc.analysis import summary, uncertainty
from galaxyhpc.analysis.collect import CollectedSweep, PlanError, collect_run, label_networks
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.results import CLEAN
from galaxyhpc.storage.run_dir import RunDir


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


def collect_folds(directory: Path, num_wrong: dict[tuple[int, int], int]) -> CollectedSweep:
    """Make the runs of a network for two seeds and two folds, with these errors by seed and fold, if any."""
    configs = [make_config("C1", seed, fold) for fold in (1, 0) for seed in (0, 1)]
    runs = [RunDir(directory / config.run_id) for config in configs]
    for run, config in zip(runs, configs, strict=True):
        run.path.mkdir(parents=True)
        run.config_file.write_text(config.model_dump_json())
        if (wrong := num_wrong.get((config.seed, config.data.fold))) is not None:
            save_results(run, wrong, first_row=40 * config.data.fold)
    return label_networks(CollectedSweep(make_plan(configs), [collect_run(run) for run in runs]))


def test_the_folds_of_a_seed_are_one_set_of_predictions(tmp_path: Path) -> None:
    sweep = collect_folds(tmp_path, {(0, 0): 20, (0, 1): 0, (1, 0): 10, (1, 1): 2})
    loaded = uncertainty.load_predictions(sweep)
    (network,) = loaded.networks.values()
    assert network.rows.tolist() == list(range(80)) and loaded.notes == []
    assert [network.is_correct(seed).sum() for seed in (0, 1)] == [60, 68]
    assert network.mean_accuracies[CLEAN] == pytest.approx(128 / 160)
    assert len(loaded.misclassified) == 4  # of each run


def test_a_network_whose_folds_are_not_all_measured_has_a_mean_but_no_intervals(tmp_path: Path) -> None:
    sweep = collect_folds(tmp_path, {(0, 0): 20, (0, 1): 0, (1, 0): 10})
    loaded = uncertainty.load_predictions(sweep)
    assert loaded.networks == {}
    assert loaded.notes == ["C1 steerable_cnn: no intervals, because a seed of it lacks results of one of 2 folds."]
    means = summary.summarise_seeds(sweep, summary.make_metrics_table(sweep))
    assert means["accuracy_mean"].iloc[0] == pytest.approx(1 - 30 / 120) and means["seeds_planned"].iloc[0] == 4
    assert {"recall_low", "recall_high"} <= set(uncertainty.make_recall_interval_table({}))


def test_two_runs_of_one_seed_and_fold_are_refused(tmp_path: Path) -> None:
    sweep = collect_folds(tmp_path, {})
    doubled = CollectedSweep(make_plan([run.config for run in sweep.runs[:1] * 2 if run.config]), sweep.runs[:1] * 2)
    with pytest.raises(PlanError, match="are both seed 0 of C1 steerable_cnn"):
        label_networks(doubled)
