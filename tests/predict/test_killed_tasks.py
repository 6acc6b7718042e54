"""Tasks that are killed at any time leave parts as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from helpers.classifiers import read_ids, read_parts, write_run, write_shards

from galaxyhpc.predict.__main__ import main
from galaxyhpc.prediction.survey import SurveyDir
from galaxyhpc.storage.run_dir import RunDir

pytestmark = pytest.mark.slow  # loads torch in three processes


def kill_soon(survey: SurveyDir, number: int) -> None:
    """Kill the process of a task at random, but not before it has written a part."""
    task = RunDir(survey.path / f"task-{number}")
    end = time.monotonic() + 120
    while not (written := [event for event in task.read_events() if event["event"] == "unit"]):
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(random.uniform(0, 3 * written[0]["seconds"]))
    (pid,) = [event["pid"] for event in task.read_events() if event["event"] == "started"]
    os.kill(pid, signal.SIGKILL)


def test_killed_tasks_lose_and_repeat_no_galaxy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, output = write_run(tmp_path / "runs" / "sweep"), tmp_path / "out"
    ids = write_shards(tmp_path / "shards", 20, 100)
    command = [str(run.path), "--input", str(tmp_path / "shards"), "--output", str(output)]
    killers = [threading.Thread(target=kill_soon, args=(SurveyDir(output), number)) for number in range(2)]
    for killer in killers:
        killer.start()
    status = main([*command, "--executor", "local", "--max-parallel", "2"])
    for killer in killers:
        killer.join()
    printed = capsys.readouterr().out
    assert status == 1 and "left; rerun the same command to resume" in printed, printed
    num_done = len(list((output / "parts").glob("*.parquet")))
    assert 2 <= num_done < 20
    assert main([*command, "--executor", "debug"]) == 0
    assert f"20 units, {num_done} done" in capsys.readouterr().out
    assert sorted(read_ids(output)) == ids
    assert main([*command[:-1], str(tmp_path / "unbroken"), "--executor", "debug"]) == 0
    assert read_parts(output) == read_parts(tmp_path / "unbroken")
    assert not list((output / "claims").iterdir()) and not list((output / "attempts").iterdir())
