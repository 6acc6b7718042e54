"""`galaxyhpc launch` with real processes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers.warm_processes import run_python

from galaxyhpc.runtime.lock import is_busy
from galaxyhpc.storage.checkpoint import list_checkpoints
from galaxyhpc.storage.run_dir import RunDir, read_state
from galaxyhpc.storage.sweep_dir import find_runs

SWEEP = """
name: tiny
base:
  data: {source: demo, image_size: 33, demo: {galaxies: 300, size: 32}}
  model: {scale: 0.1}
  train: {epochs: 2, batch_size: 50}
  evaluate: {conditions: [clean, shot_noise]}
blocks:
  - points: [{model.architecture: cnn}]
  - grid: {model.group: [C2]}
"""


LONG = SWEEP.replace("epochs: 2", "epochs: 300").replace("  - grid: {model.group: [C2]}\n", "")


def launch(folder: Path, *options: str, text: str = SWEEP) -> subprocess.CompletedProcess[str]:
    (folder / "tiny.yaml").write_text(text)
    return run_python("-m", "galaxyhpc.launch", "tiny.yaml", "--executor", "local", *options, cwd=folder)


def start_launch(folder: Path) -> subprocess.Popen[bytes]:
    """Launch a sweep that takes long, in a session of its own as in a terminal."""
    (folder / "tiny.yaml").write_text(LONG)
    command = [sys.executable, "-m", "galaxyhpc.launch", "tiny.yaml", "--executor", "local"]
    with (folder / "output.txt").open("w") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny sweep was launched to its end."""
    folder = tmp_path_factory.mktemp("my galaxies' runs")  # a space and a quote: paths of real people
    result = launch(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_one_command_trains_evaluates_and_reports(done: Path) -> None:
    runs = find_runs(done / "runs" / "tiny")
    assert [read_state(run).name for run in runs] == ["evaluated", "evaluated"]
    report = done / "runs" / "tiny" / "report"
    table = pd.read_csv(report / "results.csv")
    assert len(table) == 2 * 6 and set(table.data) == {"demo"}
    assert pd.read_csv(report / "missing.csv").empty
    assert "2/2 runs complete" in (report / "report.html").read_text()
    assert (report / "contact_sheet.png").exists()
    assert {path.stem for path in report.glob("*.pdf")} == {path.stem for path in report.glob("*.png")}


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_a_second_launch_does_nothing_but_the_report(done: Path) -> None:
    before = {run.path: run.events_file.read_text() for run in find_runs(done / "runs" / "tiny")}
    result = launch(done)
    assert result.returncode == 0 and "2 runs, 2 complete or active" in result.stdout
    assert {run.path: run.events_file.read_text() for run in find_runs(done / "runs" / "tiny")} == before


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_a_new_condition_is_measured_without_training_again(done: Path) -> None:
    result = launch(done, "--set", "evaluate.conditions=[clean, shot_noise, pedestal_noise]")
    assert result.returncode == 0, result.stderr
    for run in find_runs(done / "runs" / "tiny"):
        names = [event["event"] for event in run.read_events()]
        assert names.count("trained") == 1 and run.read_events()[-1]["measured"] == 3


@pytest.mark.slow
def test_a_run_can_be_done_by_hand_from_its_own_directory(done: Path) -> None:
    run = find_runs(done / "runs" / "tiny")[0]
    for name in ("best.pt", "results.csv", "predictions.h5"):
        (run.path / name).unlink()
    for checkpoint in run.checkpoint_dir.iterdir():
        (checkpoint / "MANIFEST.json").unlink()
    result = subprocess.run(["sh", str(run.path / "repro.sh")], cwd="/", capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert read_state(run).name == "evaluated"


def test_status_shows_the_states_and_changes_nothing(done: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in (done / "runs").rglob("*"))
    result = run_python("-m", "galaxyhpc.status", "runs/tiny", cwd=done, COLUMNS="150")
    assert result.returncode == 0 and "2 evaluated" in result.stdout and "2/2" in result.stdout
    assert sorted((path, path.stat().st_mtime_ns) for path in (done / "runs").rglob("*")) == before


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_the_debug_executor_does_all_of_it_in_one_process_and_so_does_a_retry(tmp_path: Path) -> None:
    result = launch(tmp_path, "--executor", "debug", "--set", "train.epochs=1")
    assert result.returncode == 0, result.stderr
    runs = find_runs(tmp_path / "runs" / "tiny")
    assert [read_state(run).name for run in runs] == ["evaluated", "evaluated"]
    assert len({event["pid"] for run in runs for event in run.read_events() if event["event"] == "started"}) == 1
    runs[0].best_file.unlink()
    runs[0].record("failed", why="ValueError: x", cause="error")
    retry = ("runs/tiny", runs[0].run_id, "--executor", "debug")
    result = run_python("-m", "galaxyhpc.retry", *retry, cwd=tmp_path)
    assert result.returncode == 0 and "retried unchanged" in result.stdout, result.stderr
    assert read_state(runs[0]).name == "evaluated" and runs[0].best_file.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_a_second_launch_is_refused_meanwhile_ctrl_c_saves_and_the_same_command_resumes(tmp_path: Path) -> None:
    process = start_launch(tmp_path)
    runs = _wait_for_epochs(tmp_path, process)
    second = launch(tmp_path, text=LONG)
    assert second.returncode == 2 and "another launch of this sweep is running" in second.stderr
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    assert process.wait(timeout=60) == 130, (tmp_path / "output.txt").read_text()
    assert "rerun the same command to resume" in (tmp_path / "output.txt").read_text()
    stopped = [run for run in runs if run.read_metrics()]
    assert stopped and all(read_state(run).name == "stopped" for run in stopped)
    epochs = {run: len(run.read_metrics()) for run in stopped}
    process = start_launch(tmp_path)
    _wait_for_epochs(tmp_path, process, more_than=epochs)
    os.kill(process.pid, signal.SIGINT)  # only the launcher: it tells its processes
    assert process.wait(timeout=60) == 130
    for run in stopped:
        later = [event for event in run.read_events() if event["event"] == "started"][1]
        assert later["step"] > 0


def _wait_for_epochs(
    folder: Path, process: subprocess.Popen[bytes], more_than: dict[RunDir, int] | None = None
) -> list[RunDir]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, (folder / "output.txt").read_text()
        runs = find_runs(folder / "runs" / "tiny") if (folder / "runs" / "tiny" / "plan.csv").exists() else []
        gained = {run for run in runs if len(run.read_metrics()) > (more_than or {}).get(run, 0)}
        if gained and gained >= set(more_than or ()):
            return runs
        time.sleep(0.05)
    raise TimeoutError


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_the_trainings_of_a_killed_launch_save_and_end_and_the_same_command_resumes(tmp_path: Path) -> None:
    process = start_launch(tmp_path)
    runs = [run for run in _wait_for_epochs(tmp_path, process) if run.read_metrics()]
    process.kill()
    process.wait()
    end = time.monotonic() + 120
    while any(read_state(run).name == "running" or is_busy(run) for run in runs) and time.monotonic() < end:
        time.sleep(0.1)
    states = {(read_state(run).name, read_state(run).reason) for run in runs}
    assert states == {("stopped", "the process that started it was killed")}
    assert not any(is_busy(run) for run in runs) and all(list_checkpoints(run) for run in runs)


def test_a_dry_run_shows_points_classes_and_sbatch_files_and_writes_nothing(tmp_path: Path) -> None:
    result = launch(tmp_path, "--dry-run")
    assert result.returncode == 0, result.stderr
    for part in ("cnn-s0-", "C2-steerable_cnn-s0-", "array 1: 2 runs", "#SBATCH --array=0-1", "srun"):
        assert part in result.stdout
    assert not (tmp_path / "runs").exists()


def install_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, ping: str) -> None:
    """Put a Slurm first in PATH that answers nothing but `scontrol ping`."""
    (folder / "bin").mkdir()
    for name, script in {"sbatch": 'test "$1" = --test-only', "squeue": "exit 1", "scontrol": f"echo '{ping}'"}.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


MISTAKES = {
    "an unknown setting": (SWEEP.replace("epochs", "epoch"), [], "tiny.yaml:6: train.epoch"),
    "an absent file": (SWEEP.replace("demo,", "absent.h5,"), [], "no such file"),
    "a wrong override": (SWEEP, ["--set", "train.epochs=none"], "--set: train.epochs"),
    "an absent profile": (SWEEP, ["--profile", "no.yaml"], "no.yaml"),
    "a file where runs should be": (SWEEP, ["--runs", "tiny.yaml"], "tiny.yaml"),
    "slurm where there is none": (SWEEP, ["--executor", "slurm"], "no Slurm answers here"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_users_mistake_is_one_clear_message(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, options, message = MISTAKES[mistake]
    install_slurm(tmp_path, monkeypatch, "")
    result = launch(tmp_path, *options, text=text)
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("best.pt"))


ANSWERS = {
    "a queue that does not answer": ("is UP", "squeue does not answer; nothing was submitted"),
    "a controller that is down": ("is DOWN", "this machine's Slurm does not answer"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_without_evidence_about_the_queue_nothing_is_started(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ping, message = ANSWERS[answer]
    install_slurm(tmp_path, monkeypatch, f"Slurmctld {ping}")
    result = launch(tmp_path, "--executor", "auto")
    assert result.returncode == 2 and message in result.stderr
    assert not list(tmp_path.rglob("events.jsonl"))
