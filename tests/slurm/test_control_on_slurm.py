"""Cancel, status and retry on a real Slurm: one run, all runs, and retries by failure type."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from helpers.slurm import Desk, desk, queue

from galaxyhpc import cancel, retry
from galaxyhpc.status import __main__ as status
from galaxyhpc.storage.events import RecordedState, RunState
from galaxyhpc.storage.run_dir import RunDir, read_state

SWEEP = """\
  evaluate.conditions: [clean]
blocks: [points: [{model.architecture: cnn, train.epochs: 1}]]
seeds: 3
"""


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Desk]:
    """A desk whose jobs wait while the file `gate` exists; at the end, all its jobs are cancelled."""
    path = tmp_path / "a desk"
    yield desk(path, control=SWEEP)
    if left := [job for job, _, _ in queue(path)]:
        subprocess.run(["scancel", *left], check=True)


def control(ours: Desk, verb: ModuleType, *more: str) -> str:
    return ours.command(verb.main, "my runs/control", *more)


def queued_jobs(ours: Desk, run: RunDir) -> set[str]:
    """Return the ids of a run's jobs in the queue."""
    submitted = {str(event["job"]) for event in run.read_events() if event["event"].endswith("submitted")}
    return submitted & {job for job, _, _ in queue(ours.path)}


def test_one_run_is_cancelled_then_all_then_they_are_retried_by_failure_type(ours: Desk) -> None:
    gate = ours.path / "gate"
    gate.touch()
    wait = f"resources.setup=['while [ -e \"{gate}\" ]; do sleep 0.1; done']"
    ours.launch("control", "--set", wait, "--max-parallel", "1")
    first, second, third = ours.runs("control")
    ours.wait(lambda: "RUNNING" in {state for _, state, _ in queue(ours.path)}, "a job that runs")
    shown = control(ours, status)
    assert "1 starting, 2 waiting" in shown or ("2 waiting" in shown and "1 starting" in shown), shown

    output = control(ours, cancel, "s1-")
    assert second.run_id in output and first.run_id not in output
    ours.wait(lambda: not queued_jobs(ours, second), "the run's jobs gone")
    assert read_state(second) == RecordedState(RunState.STOPPED, "cancelled")
    assert len(queued_jobs(ours, first)) == len(queued_jobs(ours, third)) == 2, ours.evidence()

    control(ours, cancel)
    ours.wait_for_jobs()  # the report's too
    assert {read_state(run) for run in (first, second, third)} == {RecordedState(RunState.STOPPED, "cancelled")}

    gate.unlink()
    first.record("failed", why="OutOfMemoryError: as if", cause="memory", rank=0, trace="")
    second.record("failed", why="ValueError: as if", cause="error", rank=0, trace="")
    output = control(ours, retry, "--failed")
    assert f"{first.run_id}: retried, out of memory: micro-batch 32 -> 16" in output
    assert f"{second.run_id}: skipped: error: ValueError: as if" in output
    assert "nothing was submitted" in control(ours, retry, "s0-")
    ours.wait(lambda: read_state(first).name == "evaluated", "the retried run")
    assert [read_state(run).name for run in (first, second, third)] == ["evaluated", "failed", "stopped"], (
        ours.evidence()
    )
    assert control(ours, status, "--logs", "s0-").count("_log.out:") == 1
    assert "ValueError: as if" in control(ours, status, "--why", "s1-")
