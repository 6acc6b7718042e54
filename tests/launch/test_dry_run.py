"""What a launch would do, shown before it does it."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path

import pytest

from galaxyhpc.analysis import run_cost
from galaxyhpc.analysis.run_cost import RunTimeEstimate
from galaxyhpc.config.schema import DataConfig, DemoConfig, ModelConfig, RequestedResources, RunConfig
from galaxyhpc.launch import dry_run, preflight
from galaxyhpc.launch.preflight import CheckedSweep
from galaxyhpc.runtime.console import LOG_WIDTH, make_console
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

AUTO = RequestedResources(time_minutes="auto", memory_gb="auto")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "small"


@pytest.fixture(scope="module")
def checked(sweep: Path) -> CheckedSweep:
    """Two light runs and one heavy one, resolved without any record of earlier runs."""
    data = DataConfig(image_size=65, cache=str(sweep / "cache"), demo=DemoConfig(galaxies=10_000, size=32))
    light, heavy = ModelConfig(architecture="cnn", scale=0.1), ModelConfig(group="C2")
    models = ((light, 0), (light, 1), (heavy, 0))
    configs = [RunConfig(model=model, data=data, seed=seed, resources=AUTO) for model, seed in models]
    return preflight.check_sweep(configs, sweep)


def shown(sweep: Path, checked: CheckedSweep, parallel: int | None, capsys: pytest.CaptureFixture[str]) -> str:
    console = make_console()
    console.file = out = io.StringIO()
    dry_run.show_plan(console, sweep, checked, parallel)
    return out.getvalue() + capsys.readouterr().out


def test_points_classes_total_source_and_end_are_shown(
    sweep: Path, checked: CheckedSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(sweep, checked, None, capsys)
    assert all(config.run_id in text for config in checked.configs)
    assert "predicted times: a rough built-in estimate, because no run is recorded yet" in text
    assert "assuming all runs at once, starting now" in text
    assert text.count("CPU-h") == 3  # two classes and their sum
    assert text.endswith("nothing was submitted\n")
    assert max(map(len, text.split("#!/bin/bash")[0].splitlines())) <= LOG_WIDTH


@pytest.mark.parametrize(("count", "text"), [(4_321, "0.00432 M"), (43_210_000, "43.2 M"), (4_321_000_000, "4,321 M")])
def test_small_and_large_networks_show_their_multiply_adds(
    count: int, text: str, sweep: Path, checked: CheckedSweep
) -> None:
    networks = {name: replace(network, multiply_adds=count) for name, network in checked.networks.items()}
    table = dry_run.make_runs_table(sweep, replace(checked, networks=networks))
    assert {row[4] for row in table.rows} == {text}


def test_the_biggest_class_comes_first_in_the_table_and_in_the_queue(
    sweep: Path, checked: CheckedSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    pending_runs = {RunDir(sweep / config.run_id): config.resources.resolved for config in checked.configs}
    first, second = dry_run.make_resource_classes(pending_runs, checked)
    assert (len(first.runs), len(second.runs)) == (1, 2) and first.device_hours > second.device_hours
    text = shown(sweep, checked, 2, capsys)
    assert text.index("array 1: 1 run") < text.index("array 2: 2 runs")
    assert "2 runs at a time, the longest first" in text


def test_the_start_that_slurm_expects_is_taken(
    sweep: Path, checked: CheckedSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = {config.resources.resolved: time.mktime((2031, 5, 6, 7, 8, 0, 0, 0, -1)) for config in checked.configs}
    text = shown(sweep, replace(checked, start_times=starts), None, capsys)
    assert "2031-05-06" in text and "the start that sbatch --test-only expects" in text


def test_what_is_trained_costs_only_its_evaluation_and_no_array(
    sweep: Path, checked: CheckedSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    config = checked.configs[-1]
    write_text(RunDir(sweep / config.run_id).best_file, "")
    (only,) = dry_run.make_resource_classes({RunDir(sweep / config.run_id): config.resources.resolved}, checked)
    assert [run.training_seconds for run in only.predictions] == [0.0] and only.device_hours > 0
    assert "array 2" not in shown(sweep, checked, None, capsys)


@pytest.mark.parametrize(
    ("seconds", "slots", "end"),
    [([3.0, 2.0, 2.0], None, 3.0), ([3.0, 2.0, 2.0], 2, 4.0), ([1.0] * 7, 3, 3.0), ([], 2, 0.0)],
)
def test_the_longest_run_starts_first_in_the_first_free_slot(
    seconds: list[float], slots: int | None, end: float
) -> None:
    assert run_cost.compute_makespan(seconds, slots) == end


def test_gpu_hours_count_all_gpus_in_training_and_one_in_evaluation() -> None:
    resources = RequestedResources(gpus_per_node=4, tasks_per_node=4).resolved
    assert dry_run.ResourceClass(resources, [], [RunTimeEstimate(3600.0, 1800.0)] * 2).device_hours == 2 * (4 + 0.5)
