"""A sweep in a directory with a hostile name, launched from inside a job of a real Slurm."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from helpers.slurm import desk, queue, started

from galaxyhpc.status import __main__ as status
from galaxyhpc.storage.run_dir import read_state
from galaxyhpc.storage.sweep_dir import find_runs

# all characters but those that launch refuses: % and \, which Slurm interprets in the names of logs
NAME = 'it\'s "my" $HOME `date` ünïcode • 日本 #1; a:b, <c> & (x) {y} [z] * ? ! | ~ =-x'
TINY = "  evaluate.conditions: [clean]\nblocks: [{points: [{model.architecture: cnn, train.epochs: 1}]}]\n"


def launch(runs: str) -> list[str]:
    command = [sys.executable, "-m", "galaxyhpc.launch", "tiny.yaml", "--executor", "slurm", "--runs", runs]
    return [*command, "--set", "resources.memory_gb=1"]


def test_a_sweep_launched_inside_a_job_from_a_directory_of_any_name_is_trained_and_reported(tmp_path: Path) -> None:
    """The launching job has memory per CPU and the new one memory per node: srun refuses both at once."""
    ours = desk(tmp_path / NAME, tiny=TINY)
    inside = ("--ntasks=3", "--mem-per-cpu=10", "--output=launch.out")
    ours.call("sbatch", "--wait", *inside, "--wrap", shlex.join(launch(NAME)))
    ours.wait_for_jobs()
    directory = ours.path / NAME / "tiny"
    (run,) = find_runs(directory)
    assert read_state(run).name == "evaluated", ours.evidence()
    assert [event["world"] for event in started(run)] == [1]
    assert (directory / "report" / "summary.csv").read_text().count("\n") >= 2, ours.evidence()
    assert len(list((directory / "log").glob("*_log.out"))) >= 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME]
    assert "evaluated" in ours.command(status.main, str(directory))
    run.config_file.unlink()  # so that repro.sh ends as soon as it has found the directory
    assert f"{run.path}: got neither config.json" in ours.call("sh", run.path / "repro.sh", status=2)


@pytest.mark.parametrize("name", ["100%j", "back\\slash"])
def test_a_directory_whose_name_slurm_misreads_is_refused_before_anything_is_submitted(
    name: str, tmp_path: Path
) -> None:
    ours = desk(tmp_path / "desk", tiny=TINY)
    ours.call(*launch(name), status=2)
    assert not queue(ours.path, "all") and not (ours.path / name).exists()
