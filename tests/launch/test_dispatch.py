"""Launching again after jobs ended silently. Slurm's commands are scripts here; tests/slurm has the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.runs import FakeSlurm, install_fake_slurm, make_run, record_submission, write_sweep_plan

from galaxyhpc.launch.dispatch import LaunchError, choose_executor, dispatch
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import get_report_records


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    yield install_fake_slurm(tmp_path, monkeypatch)
    slurm._ping.cache_clear()


def launch_again(run: RunDir) -> int:
    """Submit the run; relaunched, it is among the pending ones."""
    return dispatch(make_console(), run.sweep_dir, {run: run.load_config().resources.resolved}, "slurm", None)


def test_launching_again_records_and_prints_why_the_last_job_ended(
    tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "s")
    write_sweep_plan(run)
    record_submission(run, "7")
    write_text(run.sweep_dir / "log" / "7_0_log.out", "nosuch: command not found\n")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    fake_slurm([], ended=["7|FAILED"])
    assert launch_again(run) == 0
    reason = "its job 7 ended before Python recorded anything; its log ends: nosuch: command not found"
    output = capsys.readouterr().out
    assert f"{run.run_id}: submitted again; {reason}" in output and "ignored: SBATCH_TIMELIMIT" in output
    events = run.read_events()
    assert [event["event"] for event in events][2:] == ["failed", "submitting", "submitted", *events_of_evaluation()]
    assert events[2]["why"] == reason
    assert [event["event"] for event in get_report_records(run.sweep_dir).read_events()] == ["submitted"]


def events_of_evaluation() -> list[str]:
    return ["submitting", "evaluation submitted"]


@pytest.mark.parametrize("executor", ["auto", "slurm"])
@pytest.mark.parametrize("name", ["SLURM_CLUSTERS", "SBATCH_CLUSTERS"])
def test_a_variable_that_sends_jobs_to_another_cluster_is_refused(
    name: str, executor: str, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "far")
    fake_slurm([])
    with pytest.raises(LaunchError, match=f"got {name}=far in the environment; expected it unset"):
        choose_executor(executor)
