"""A survey predicted on a real Slurm: jobs are killed at random, or requeued at their time limit: each galaxy once."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.classifiers import read_ids, read_parts, write_run, write_shards
from helpers.slurm import Desk, queue, started

from galaxyhpc import cancel, fsck
from galaxyhpc.predict import __main__ as predict
from galaxyhpc.status import __main__ as status
from galaxyhpc.status import run_status
from galaxyhpc.storage.events import RunState
from galaxyhpc.storage.run_dir import RunDir, read_state

NUM_SHARDS, NUM_GALAXIES = 30, 200  # in each


@pytest.fixture(scope="module")
def ours(place: Path) -> Desk:
    path = place / "a survey"
    path.mkdir()
    return Desk(path)


def count_parts(task: RunDir) -> int:
    return sum(event["event"] == "unit" for event in task.read_events())


def send(ours: Desk, task: RunDir, number: int) -> None:
    """Send a signal to the process of a task at random, but not before it has written a part."""
    before = count_parts(task)
    ours.wait(lambda: count_parts(task) > before, f"{task.run_id} at work")
    time.sleep(random.uniform(0, 1))
    os.kill(started(task)[-1]["pid"], number)


def set_limit(job: str, minutes: int) -> None:
    subprocess.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"], check=True)


def run_out_of_time(ours: Desk, task: RunDir) -> None:
    """Let a task wait until Slurm, which looks every 30 s, signals it 90 s before a new time limit, and requeues it."""
    send(ours, task, signal.SIGSTOP)
    job, start = started(task)[-1]["job"].rpartition(".")[0], started(task)[-1]["time"]
    set_limit(job, math.ceil((time.time() - start + 45) / 60))
    ours.wait(lambda: (job, "PENDING") in [row[:2] for row in queue(ours.path)], "the end of the time limit")
    set_limit(job, 60)


def test_jobs_that_are_killed_or_at_their_time_limit_lose_and_repeat_no_galaxy(
    ours: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(ours.path / "runs" / "sweep")
    ids = write_shards(ours.path / "shards", NUM_SHARDS, NUM_GALAXIES)
    command = [str(run.path), "--input", "shards/*.parquet", "--output"]
    slurm = ("--executor", "slurm", "--max-parallel", "2")
    printed = ours.command(predict.main, *command, "out", *slurm)
    assert "30 units, 0 done" in printed and "2 jobs submitted" in printed, printed
    tasks = [RunDir(ours.path / "out" / f"task-{number}") for number in range(2)]
    send(ours, tasks[1], signal.SIGKILL)
    run_out_of_time(ours, tasks[0])
    assert tasks[0].read_events()[-1]["why"] == "preempted or at its time limit", ours.evidence()
    ours.wait(lambda: len(started(tasks[0])) == 2, "the requeued job")
    send(ours, tasks[0], signal.SIGKILL)
    assert len(list((ours.path / "out" / "parts").glob("*.parquet"))) < NUM_SHARDS
    ours.wait_for_jobs()
    assert sorted(read_ids(ours.path / "out")) == ids, ours.evidence()
    monkeypatch.setattr(run_status, "GRACE_SECONDS", 0)  # on one machine clocks and files agree
    shown = ours.command(status.main, "out")
    assert "units: 30 of 30 done" in shown and "2 lost" in shown and "next: nothing if all units are done" in shown
    assert "1 valid, 0 damaged" in ours.command(fsck.main, "out")
    ours.command(predict.main, *command, "unbroken", "--executor", "debug")
    assert read_parts(ours.path / "out") == read_parts(ours.path / "unbroken")


def test_a_prediction_is_cancelled_with_its_report_and_resumed_by_two_processes(ours: Desk) -> None:
    run = write_run(ours.path / "others" / "sweep")
    ids = write_shards(ours.path / "few", 8, 200)
    gate = ours.path / "gate"
    gate.touch()
    setup = f"""setup: ['while [ -e "{gate}" ]; do sleep 0.1; done']"""
    (ours.path / "gate.yaml").write_text(f"{setup}\ntasks_per_node: 2\n")
    command = [str(run.path), "--input", "few", "--output", "shared", "--profile", "gate.yaml"]
    assert "1 job submitted" in ours.command(predict.main, *command, "--max-parallel", "1")
    assert "all jobs are queued or at work" in ours.command(predict.main, *command, "--max-parallel", "1")
    assert "units: 0 of 8 done" in ours.command(status.main, "shared")
    ours.command(cancel.main, "shared")
    ours.wait_for_jobs()
    assert "stopped" in ours.command(status.main, "shared")
    gate.unlink()
    assert "1 job submitted" in ours.command(predict.main, *command, "--max-parallel", "1")
    ours.wait_for_jobs()
    assert "units: 8 of 8 done" in ours.command(status.main, "shared"), ours.evidence()
    assert sorted(read_ids(ours.path / "shared")) == ids
    assert read_state(RunDir(ours.path / "shared" / "task-0")).name == RunState.PREDICTED, ours.evidence()
    assert (ours.path / "shared" / "report.html").is_file()
