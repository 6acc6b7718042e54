"""A sweep in a directory with a hostile name, through a real Slurm."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from test_sweep_on_slurm import Desk, desk, queue

from galaxyhpc.rundir import runs_of, state

# everything but what launch refuses: % and \, which Slurm reads as its own signs in the names of logs
NAME = 'it\'s "my" $HOME `date` ünïcode • 日本 #1; a:b, <c> & (x) {y} [z] * ? ! | ~ =-x'
TINY = "  evaluate.conditions: [clean]\nblocks: [{points: [{model.architecture: cnn}]}]\n"


def launch(ours: Desk, runs: str, status: int = 0) -> str:
    command = (sys.executable, "-m", "galaxyhpc.launch", "tiny.yaml", "--executor", "slurm", "--runs", runs)
    return ours.call(*command, "--set", "resources.tasks_per_node=1", "--set", "train.epochs=1", status=status)


def test_a_sweep_in_a_directory_of_any_name_is_trained_measured_and_reported(tmp_path: Path) -> None:
    ours = desk(tmp_path / NAME, tiny=TINY)
    launch(ours, NAME)
    ours.wait_for_jobs()
    directory = ours.path / NAME / "tiny"
    (run,) = runs_of(directory)
    assert state(run).name == "evaluated", ours.evidence()
    assert (directory / "report" / "summary.csv").read_text().count("\n") >= 2, ours.evidence()
    assert len(list((directory / "log").glob("*_log.out"))) >= 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME]
    assert "evaluated" in ours.call(sys.executable, "-m", "galaxyhpc.status", directory)
    ours.call("sh", run.path / "repro.sh")


@pytest.mark.parametrize("name", ["100%j", "back\\slash"])
def test_a_directory_whose_name_slurm_misreads_is_refused_before_anything_is_submitted(
    name: str, tmp_path: Path
) -> None:
    ours = desk(tmp_path / "desk", tiny=TINY)
    launch(ours, name, status=2)
    assert not queue(ours.path, "all") and not (ours.path / name).exists()
