"""Slurm checks a sweep before anything is submitted."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from galaxyhpc.config.schema import DataConfig, DemoConfig, ModelConfig, ResourcesConfig, RunConfig
from galaxyhpc.launch import preflight
from galaxyhpc.runtime import slurm


def run(seed: int, cache: Path, **resources: object) -> RunConfig:
    data = DataConfig(image_size=33, cache=str(cache), demo=DemoConfig(galaxies=300, size=32))
    model = ModelConfig(architecture="cnn", scale=0.1)
    return RunConfig(model=model, data=data, seed=seed, resources=ResourcesConfig(**resources))


def jobs() -> str:
    return subprocess.run(["squeue", "--me", "--noheader"], capture_output=True, text=True, check=True).stdout


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    slurm._ping.cache_clear()


def test_each_class_is_refused_in_slurms_own_words_all_at_once(tmp_path: Path) -> None:
    runs = [run(0, tmp_path), run(1, tmp_path, partition="nowhere"), run(2, tmp_path, partition="nowhere")]
    runs += [run(3, tmp_path, memory_gb=9000.0), run(4, tmp_path, gpus_per_node=9, tasks_per_node=9)]
    with pytest.raises(preflight.PreflightError) as caught:
        preflight.check_sweep(runs, tmp_path / "my sweep", "slurm")
    messages = {problem.location: problem.message for problem in caught.value.problems}
    assert len(messages) == 3 and not (tmp_path / "my sweep").exists()
    assert "nvalid partition" in messages["sbatch for 2 runs, partition nowhere"]
    assert "not available" in messages["sbatch for 1 runs, memory_gb 9000.0"]


def test_the_expected_start_of_each_class_is_slurms_and_nothing_is_submitted(tmp_path: Path) -> None:
    runs = [run(0, tmp_path), run(1, tmp_path), run(2, tmp_path, partition="low")]
    before = {line.split()[0] for line in jobs().splitlines()}
    starts = preflight.check_sweep(runs, tmp_path / "my sweep", "slurm").start_times
    assert set(starts) == {run.resources.resolved for run in runs}
    assert all(time.time() - 60 < start < time.time() + 24 * 3600 for start in starts.values())
    assert {line.split()[0] for line in jobs().splitlines()} <= before


def test_without_the_slurm_executor_slurm_is_not_queried(tmp_path: Path) -> None:
    assert preflight.check_sweep([run(0, tmp_path, partition="nowhere")], tmp_path / "sweep", "local").start_times == {}
