"""The status of a run from its records and one answer of Slurm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.runs import FakeSlurm, make_run, record_event, record_start, record_submission, write_sweep_plan

from galaxyhpc import cancel
from galaxyhpc.runtime.lock import hold
from galaxyhpc.status.__main__ import main
from galaxyhpc.status.run_status import RunStatus, query_status
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import get_report_records


def test_a_run_is_not_lost_without_evidence(tmp_path: Path, answers: FakeSlurm) -> None:
    """Held by a process, too young, of another user's, or with an id that was used twice."""
    held, young, strange = (make_run(tmp_path / "s", seed) for seed in range(3))
    sweep = write_sweep_plan(held, young, strange)
    for run in (held, strange):
        record_submission(run, "7", "mine")
    young.record("submitted", job="7", executor="slurm", token="mine")
    answers(["7|RUNNING|None|node1|theirs"])
    with hold(held.path / ".lock-0"):
        states = {status.run: status.state for status in query_status([held, young, strange])[0]}
    assert states == {held: "submitted", young: "submitted", strange: "lost"}
    os.chown(strange.events_file, 12345, -1)
    assert query_status([strange])[0][0].state == "submitted"
    assert sweep.is_dir()


def test_a_launch_killed_before_it_recorded_the_job_left_a_token_to_find_it(tmp_path: Path, answers: FakeSlurm) -> None:
    run = make_run(tmp_path)
    record_event(run, "submitting", token="abc")
    answers(["7_0|PENDING|Resources||abc"])
    assert query_status([run])[0][0].state == "waiting"
    answers([])
    assert query_status([run])[0][0].state == "planned"


def query(run: RunDir) -> RunStatus:
    return query_status([run])[0][0]


def write_log(run: RunDir, job: str, text: str) -> None:
    write_text(run.sweep_dir / "log" / f"{job}_0_log.out", text)


def test_a_job_that_failed_before_python_recorded_anything_is_a_failure_with_the_end_of_its_log(
    tmp_path: Path, answers: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once: Slurm says that it is over."""
    run = make_run(tmp_path / "s")
    for event in ("submitting", "submitted"):
        run.record(event, job="7_0", executor="slurm", token="t")
    log = "execve(): sh: No such file or directory\nsrun: error: node1: task 0: Exited with exit code 2\n"
    write_log(run, "7_0", log)
    answers([], ended=["7_0|FAILED"])
    status = query(run)
    reason = "its job 7_0 ended before Python recorded anything; its log ends: execve(): sh: No such file or directory"
    assert (status.state, status.reason, status.note) == ("failed", reason, "no record")
    assert main([str(run.path), "--why"]) == 0
    output = capsys.readouterr().out
    assert reason in output and "Exited with exit code 2" in output and "next: fix what its log names" in output
    answers([])
    assert query(run).state == "submitted", "without evidence"


def test_a_failure_that_slurm_has_forgotten_is_told_by_the_log_alone(tmp_path: Path, answers: FakeSlurm) -> None:
    run, other = make_run(tmp_path / "s"), make_run(tmp_path / "s", 1)
    record_submission(run, "7_0")
    record_submission(other, "7_1")
    write_log(run, "7_0", "resources.setup: module load x: got exit status 1; expected 0\n")
    answers([])
    assert query(run).reason.endswith("its log ends: resources.setup: module load x: got exit status 1; expected 0")
    assert query(other).state == "lost"
    answers([], ended=["7_1|FAILED"])
    assert f"it left no log in {run.sweep_dir / 'log'}" in query(other).reason


def test_the_final_state_of_slurm_is_told_of_a_run_that_had_begun(tmp_path: Path, answers: FakeSlurm) -> None:
    run = make_run(tmp_path / "s")
    record_submission(run, "7_0")
    record_start(run, "7_0")
    write_log(run, "7_0", "step 7\n")
    answers([], ended=["7_0|OUT_OF_MEMORY"])
    assert (query(run).state, query(run).final_state) == ("lost", "OUT_OF_MEMORY")
    assert query(run).reason == "its job 7_0 is no longer in Slurm's queue (OUT_OF_MEMORY)"


def test_an_evaluation_and_a_canary_that_died_silently_are_named(tmp_path: Path, answers: FakeSlurm) -> None:
    trained, waited = make_run(tmp_path / "s"), make_run(tmp_path / "s", 1)
    record_submission(trained, "7_0")
    record_event(trained, "evaluation submitted", job="8_0", executor="slurm", token="t")
    record_event(trained, "trained", job="7_0.0")
    record_event(waited, "submitted", job="7_1", executor="slurm", token="t", canary="6")
    write_log(trained, "8_0", "No module named torch\n")
    write_log(waited, "6", "No module named torch\n")
    answers([], ended=["8_0|FAILED", "7_1|CANCELLED", "6|COMPLETED"])
    assert query(waited).reason == "its job 7_1 is no longer in Slurm's queue (CANCELLED)"
    answers([], ended=["8_0|FAILED", "7_1|CANCELLED", "6|FAILED"])
    assert query(trained).reason.startswith("its evaluation job 8_0 ended before Python recorded anything; its log")
    assert query(waited).state == "lost"
    assert "it waited for the canary, job 6, which failed; its log ends: No module named torch" in query(waited).reason


def test_a_report_that_its_job_did_not_write_is_told_until_it_is_written(
    tmp_path: Path, answers: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "s")
    sweep, report = write_sweep_plan(run), get_report_records(tmp_path / "s")
    record_submission(run, "7")
    record_event(run, "evaluated", job="8.0")

    def show() -> str:
        assert main([str(sweep)]) == 0
        return capsys.readouterr().out

    report.path.mkdir()
    record_submission(report, "9")
    answers(["9|PENDING|Dependency||t"])
    assert "\nreport " not in show()
    answers([], ended=["9|FAILED"])
    write_log(report, "9", "No space left on device\n")
    text = " ".join(show().split())
    assert "report failed: its job 9 ended before Python recorded anything; its log ends: No space left" in text
    assert f"next: galaxyhpc aggregate {sweep}" in text
    record_event(report, "assigned", job="9.0")
    record_event(report, "failed", why="MemoryError: x", cause="memory")
    assert "report failed: MemoryError: x" in show()
    write_text(report.path / "results.csv", "")
    assert "\nreport " not in show()
    (report.path / "results.csv").unlink()
    assert "\nreport failed" in show()
    answers(["9|PENDING|Dependency||t"])
    (sweep / "log" / "9_submission.sh").touch()
    assert cancel.main([str(sweep)]) == 0
    answers([], ended=["9|CANCELLED"])
    capsys.readouterr()
    assert "\nreport " not in show(), "somebody did not want it"


def test_a_job_that_is_held_does_not_only_wait(
    tmp_path: Path, answers: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "s")
    record_submission(run, "7_0")
    for reason, advice in {"Priority": "next: wait", "JobHeldAdmin": "next: its job is held and does not"}.items():
        answers([f"7_0|PENDING|{reason}||t"])
        assert main([str(run.path), "--why"]) == 0
        assert advice in capsys.readouterr().out
