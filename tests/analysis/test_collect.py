"""A collected sweep has every planned run, with its results or the reason why they are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.sweeps import PAIRS, collect_sweep, make_config, make_plan, save_results

from galaxyhpc.analysis.collect import (
    CollectedSweep,
    PlanError,
    RunResults,
    collect_run,
    get_class_names,
    label_networks,
)
from galaxyhpc.storage.run_dir import RunDir, RunDirError
from galaxyhpc.storage.sweep_dir import read_plan


def test_a_complete_run_has_counts_of_every_planned_condition_and_no_reason(tmp_path: Path) -> None:
    run = collect_sweep(tmp_path).runs[0]
    assert run.reason == "" and run.counts is not None
    assert len(run.counts) == len(run.planned_pairs) == len(PAIRS)


def test_a_run_without_results_has_a_reason(tmp_path: Path) -> None:
    assert collect_run(RunDir(tmp_path / "nowhere")).reason == "its directory is missing"
    run = collect_sweep(tmp_path, (None, 16, 4, 4)).runs[0]
    assert (run.reason, run.counts) == ("never submitted", None)


def test_a_partly_evaluated_run_names_its_missing_conditions(tmp_path: Path) -> None:
    run = collect_sweep(tmp_path, (None, 16, 4, 4)).runs[0].run
    save_results(run, 20, PAIRS[:10])
    assert collect_run(run).reason == "partly evaluated, without rotation (39 of 48)"


def test_seeds_of_a_network_share_its_label_and_common_settings_are_left_out(tmp_path: Path) -> None:
    sweep = collect_sweep(tmp_path)
    assert sweep.plan["label"].tolist() == ["C1 steerable_cnn"] * 2 + ["D4 steerable_cnn"] * 2
    assert sweep.shared_settings == "equal fields, 65 px"
    assert [seed for _, seed, _ in sweep.iterate_labelled()] == [0, 1, 0, 1]


def test_settings_without_a_column_in_the_plan_become_part_of_the_label() -> None:
    config = make_config("C4", 0)
    other = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 7})})
    runs = [RunResults(RunDir(Path("a")), config), RunResults(RunDir(Path("b")), other)]
    labels = label_networks(CollectedSweep(make_plan([config, other]), runs)).plan["label"]
    assert labels[1] == "C4 steerable_cnn, train.epochs 7" and labels[0] != labels[1]


def test_the_same_seed_of_a_network_twice_is_refused() -> None:
    config = make_config("C4", 3)
    runs = [RunResults(RunDir(Path(config.run_id)), config)] * 2
    with pytest.raises(PlanError, match="both seed 3 of C4 steerable_cnn; expected one run per seed"):
        label_networks(CollectedSweep(make_plan([config, config]), runs))


def test_a_plan_with_a_duplicate_run_is_refused(tmp_path: Path) -> None:
    config = make_config("C4", 0)
    make_plan([config, config]).to_csv(tmp_path / "plan.csv", index=False)
    with pytest.raises(RunDirError, match=f"plan.csv: run_id: got {config.run_id} twice; expected each run once"):
        read_plan(tmp_path)


def test_runs_of_other_classes_are_refused_in_one_line(tmp_path: Path) -> None:
    configs = [make_config("C4", 0), make_config("C4", 1)]
    data = configs[1].data.model_copy(update={"classes": ("E", "Sp")})
    configs[1] = configs[1].model_copy(update={"data": data})
    runs = [RunResults(RunDir(Path(config.run_id)), config) for config in configs]
    with pytest.raises(PlanError) as error:
        get_class_names(CollectedSweep(make_plan(configs), runs))
    message = str(error.value)
    assert f"{configs[0].run_id} has 10: Disturbed, ..." in message and f"{configs[1].run_id} has 2: E, ..." in message
    assert "\n" not in message and get_class_names(CollectedSweep(make_plan(configs[1:]), runs[1:])) == ("E", "Sp")


def test_results_of_another_number_of_classes_are_not_used(tmp_path: Path) -> None:
    run = collect_sweep(tmp_path).runs[0].run
    config = make_config("C1", 0)
    data = config.data.model_copy(update={"classes": ("E", "Sp")})
    run.config_file.write_text(config.model_copy(update={"data": data}).model_dump_json())
    collected = collect_run(run)
    assert (collected.reason, collected.counts) == ("its results are of 10 classes; expected 2", None)
