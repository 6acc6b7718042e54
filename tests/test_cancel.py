"""Cancelling runs. Slurm's commands are scripts here; tests/slurm has the real ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.runs import (
    HOSTNAME,
    FakeSlurm,
    install_fake_slurm,
    make_run,
    record_event,
    record_start,
    record_submission,
    write_sweep_plan,
)

from galaxyhpc.cancel import main
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.lock import hold
from galaxyhpc.storage.events import RecordedState, RunState
from galaxyhpc.storage.run_dir import RunDir, read_state


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    yield install_fake_slurm(tmp_path, monkeypatch)
    slurm._ping.cache_clear()


def make_sweep(path: Path) -> list[RunDir]:
    """Three runs of one array: one waits, one runs, one is done."""
    runs = [make_run(path, seed) for seed in range(3)]
    for index, run in enumerate(runs):
        record_submission(run, f"7_{index}")
        record_event(run, "evaluation submitted", job=f"8_{index}", executor="slurm", token="e")
    record_start(runs[1], "7_1")
    for event in ("started", "trained", "evaluated"):
        record_event(runs[2], event, job="7_2.0")
    write_sweep_plan(*runs)
    return runs


QUEUE = [
    *("7_0|PENDING|Priority||t", "7_1|RUNNING|None|node1|t", "8_0|PENDING|Dependency||e", "8_1|PENDING|Dependency||e"),
    *("9|PENDING|Dependency||(null)", "10|PENDING|Priority||(null)", "7_9|RUNNING|None|node2|theirs"),
]


def read_records(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(path.rglob("events.jsonl"))]


def get_calls(calls: Path, command: str) -> list[str]:
    return [line for line in calls.read_text().splitlines() if line.startswith(command)]


def test_a_whole_sweep_leaves_the_queue_with_its_report_in_one_call(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting, running, done = make_sweep(tmp_path / "s")
    for array in (7, 8, 9):  # the report is 9; 10 is of another sweep
        (done.sweep_dir / "log").mkdir(exist_ok=True)
        (done.sweep_dir / "log" / f"{array}_submission.sh").touch()
    calls = fake_slurm(QUEUE)
    assert main([str(done.sweep_dir)]) == 0
    output = capsys.readouterr().out
    assert get_calls(calls, "scancel") == ["scancel 7 8 9"] and len(get_calls(calls, "squeue")) == 1
    assert f"{waiting.run_id}: cancelled: 7_0, 8_0" in output and "unchanged: 1 evaluated" in output
    assert read_state(waiting) == read_state(running) == RecordedState(RunState.STOPPED, "cancelled")
    assert read_state(done).name == "evaluated"


def test_a_point_cancels_its_own_array_tasks_only(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting, running, done = make_sweep(tmp_path / "s")
    calls = fake_slurm(QUEUE)
    assert main([str(done.sweep_dir), "s1-", done.run_id]) == 0
    output = capsys.readouterr().out
    assert get_calls(calls, "scancel") == ["scancel 7_1 8_1"]
    assert f"{running.run_id}: cancelled: 7_1, 8_1" in output
    assert f"{done.run_id}: nothing to cancel: evaluated" in output
    assert [read_state(run).name for run in (waiting, running, done)] == ["submitted", "stopped", "evaluated"]


def test_runs_that_are_not_in_the_queue_are_counted_and_keep_their_state(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = make_sweep(tmp_path / "s")
    calls, before = fake_slurm([]), read_records(tmp_path)
    assert main([str(runs[0].sweep_dir)]) == 0
    output = capsys.readouterr().out
    assert "not queued and not running on this machine, unchanged: 2 lost, 1 evaluated" in output
    assert read_records(tmp_path) == before and get_calls(calls, "scancel") == []


@pytest.mark.parametrize("refusing", ["squeue", "scancel"])
def test_where_slurm_does_not_answer_nothing_changes(
    refusing: str, tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = make_sweep(tmp_path / "s")
    fake_slurm(QUEUE)
    command = tmp_path / "bin" / refusing
    command.write_text("#!/bin/sh\necho 'error: Unable to contact slurm controller' >&2\nexit 1\n")
    before = read_records(tmp_path)
    assert main([str(runs[0].sweep_dir)]) == 2
    error = capsys.readouterr().err
    assert ("does not answer" if refusing == "squeue" else "Unable to contact") in error and error.count("\n") == 1
    assert read_records(tmp_path) == before


def test_a_job_that_ended_by_itself_meanwhile_is_no_error(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    runs = make_sweep(tmp_path / "s")
    fake_slurm(QUEUE)
    text = "#!/bin/sh\necho 'scancel: error: Kill job error on job id 7_1: Invalid job id specified' >&2\nexit 1\n"
    (tmp_path / "bin" / "scancel").write_text(text)
    assert main([str(runs[0].sweep_dir), "s0"]) == 0
    assert read_state(runs[0]).name == "stopped"


HOLD = """\
import signal, sys
from pathlib import Path
from galaxyhpc.runtime.lock import hold
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


@contextmanager
def hold_lock(run: RunDir) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the lock of a run; it exits with 75 on SIGTERM."""
    command = [sys.executable, "-c", HOLD, str(run.path / ".lock-0")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_process_on_this_machine_gets_sigterm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    with hold_lock(run) as process:
        record_start(run, "99", host=HOSTNAME)
        record_event(run, "started", host=HOSTNAME, job="99.0", pid=process.pid)
        assert main([str(write_sweep_plan(run))]) == 0
        assert process.wait(10) == 75
    run.record("stopped", why="preempted")
    assert f"sent SIGTERM to process {process.pid}, which saves and exits" in capsys.readouterr().out
    assert read_state(run) == RecordedState(RunState.STOPPED, "cancelled")


@pytest.mark.parametrize("wrong", ["host", "process"])
def test_no_other_process_gets_a_signal(wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A number of a process means nothing on another machine, nor when another program has it by now."""
    run = make_run(tmp_path)
    with hold_lock(run) as process, subprocess.Popen(["sleep", "60"]) as other:
        host, pid = ("elsewhere", process.pid) if wrong == "host" else (HOSTNAME, other.pid)
        record_event(run, "started", host=host, job="99.0", pid=pid)
        assert main([str(run.path)]) == 0
        assert process.poll() is None and other.poll() is None
        other.kill()
    assert "nothing to cancel: running, by a process that cannot be signalled from here" in capsys.readouterr().out
    assert read_state(run).name == "running"


def test_a_running_launch_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = write_sweep_plan(make_run(tmp_path))
    with hold(sweep / ".launch.lock"):
        assert main([str(sweep)]) == 0
    assert "a launch of this sweep is running" in capsys.readouterr().out


def test_users_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert main([str(write_sweep_plan(make_run(tmp_path, 0), make_run(tmp_path, 1))), "C4"]) == 2
    assert capsys.readouterr().err.count("\n") == 2
