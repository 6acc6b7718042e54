"""A job: signals, time limits, requeueing, crash loops and recorded failures."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from galaxyhpc.report.build import AggregateError
from galaxyhpc.runtime import job
from galaxyhpc.runtime.child_python import PARENT_VARIABLE, is_parent_gone, name_parent, read_start_ticks
from galaxyhpc.runtime.job import StopSignal, catch_stop_signals, run_job
from galaxyhpc.runtime.rank import RankInfo
from galaxyhpc.storage.run_dir import RunDir, RunDirError, read_state
from galaxyhpc.storage.sweep_dir import get_report_records
from jobs.report import ReportJob


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_a_finished_target_is_done(run: RunDir) -> None:
    assert run_job(str(run.path), lambda run, stop: True) == "done"


def test_an_error_is_recorded_with_its_reason_and_raised(run: RunDir) -> None:
    def work(run: RunDir, stop: StopSignal) -> bool:
        raise ArithmeticError("the loss is nan")

    with pytest.raises(ArithmeticError):
        run_job(str(run.path), work)
    assert (read_state(run).name, read_state(run).reason) == ("failed", "ArithmeticError: the loss is nan")


@pytest.mark.parametrize(
    ("number", "why"), [(signal.SIGTERM, "cancelled"), (signal.SIGUSR2, "preempted or at its time limit")]
)
def test_a_signal_sets_a_flag_and_the_target_decides_when_to_stop(number: int, why: str, run: RunDir) -> None:
    def work(run: RunDir, stop: StopSignal) -> bool:
        os.kill(os.getpid(), number)
        assert stop.is_requested  # and this process still runs
        return False

    with pytest.raises(SystemExit) as caught:
        run_job(str(run.path), work)
    assert caught.value.code == job.EXIT_INCOMPLETE
    assert (read_state(run).name, read_state(run).reason) == ("stopped", why)


def test_a_job_stops_when_the_process_that_started_it_was_killed(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(run: RunDir, stop: StopSignal) -> bool:
        parent.kill()
        parent.wait()
        end = time.monotonic() + 10
        while not stop.is_requested and time.monotonic() < end:
            time.sleep(0.01)
        return False

    monkeypatch.setattr(job, "PARENT_POLL_SECONDS", 0.02)
    with subprocess.Popen(["sleep", "60"]) as parent:
        monkeypatch.setenv(PARENT_VARIABLE, f"{parent.pid}:{read_start_ticks(parent.pid)}")
        with pytest.raises(SystemExit):
            run_job(str(run.path), work)
    assert (read_state(run).name, read_state(run).reason) == ("stopped", "the process that started it was killed")


def test_a_parent_is_not_confused_with_a_later_process_of_the_same_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    assert not is_parent_gone()
    for name, value in name_parent().items():
        monkeypatch.setenv(name, value)
    assert not is_parent_gone()
    monkeypatch.setenv(PARENT_VARIABLE, f"{os.getpid()}:{read_start_ticks(os.getpid()) - 1}")
    assert is_parent_gone()


def test_the_previous_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with catch_stop_signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set shell scripts that stand for Slurm's commands, and put this process into one of its jobs."""
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def install(**answers: str) -> None:
        for name, script in answers.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)

    return install


def ending(seconds: float) -> str:
    return f"date --date=@{time.time() + seconds:.0f} +%Y-%m-%dT%H:%M:%S"


def test_a_job_stops_when_its_time_ends_sooner_than_it_needs_to_save(
    run: RunDir, fake_slurm: Callable[..., None]
) -> None:
    fake_slurm(squeue=ending(100), scontrol=f"echo \"$@\" >> '{run.path}/calls'")

    def work(run: RunDir, stop: StopSignal) -> bool:
        assert not stop.is_time_limit_near(50) and stop.is_time_limit_near(150)
        return False

    with pytest.raises(SystemExit):
        run_job(str(run.path), work)
    assert (run.path / "calls").read_text() == "requeue 7\n"
    assert read_state(run).reason == "preempted or at its time limit"


def test_a_time_limit_that_was_raised_counts(run: RunDir, fake_slurm: Callable[..., None]) -> None:
    fake_slurm(squeue=ending(1000))
    stop = StopSignal(job_id="7", end_time=time.time() + 100)
    assert not stop.is_time_limit_near(150) and stop.is_time_limit_near(1050)


@pytest.mark.parametrize(
    ("answer", "requeued"),
    [
        ("RUNNING Reason=None", True),
        ("COMPLETING Reason=TimeLimit", True),
        ("COMPLETING Reason=None", False),
        ("CANCELLED Reason=None", False),
    ],
)
def test_after_a_term_a_job_is_requeued_only_where_slurm_means_it_to_run(
    answer: str, requeued: bool, run: RunDir, fake_slurm: Callable[..., None]
) -> None:
    fake_slurm(squeue="exit 1", scontrol=f"echo \"$@\" >> '{run.path}/calls'; echo 'JobId=7 JobState={answer}'")

    def work(run: RunDir, stop: StopSignal) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    with pytest.raises(SystemExit):
        run_job(str(run.path), work)
    assert ("requeue 7" in (run.path / "calls").read_text()) is requeued


def test_a_controller_that_is_busy_is_asked_again_and_one_that_requeued_by_itself_is_not_an_error(
    run: RunDir, fake_slurm: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "REQUEUE_RETRY_SECONDS", (0.1,))
    count = f"echo x >> '{run.path}/calls'"
    fake_slurm(
        scontrol=f"{count}; [ $(wc -l < '{run.path}/calls') = 2 ] || {{ echo 'Unable to contact' >&2; exit 1; }}"
    )
    job.requeue(RankInfo())
    fake_slurm(scontrol="echo 'Job is pending execution' >&2; exit 1")
    job.requeue(RankInfo())
    fake_slurm(scontrol="echo 'Access denied' >&2; exit 1")
    with pytest.raises(RuntimeError, match="requeue 7: Access denied"):
        job.requeue(RankInfo())


@pytest.mark.parametrize(
    ("scontrol", "cause"),
    [
        (None, "scontrol is not found in the job: add it to PATH in resources.setup"),
        ("echo 'Access denied' >&2; exit 1", "scontrol requeue 7: Access denied"),
    ],
)
def test_a_job_that_cannot_be_requeued_says_so_in_the_records_of_its_run(
    scontrol: str | None,
    cause: str,
    run: RunDir,
    fake_slurm: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "REQUEUE_RETRY_SECONDS", ())
    fake_slurm(squeue="exit 1", **({"scontrol": scontrol} if scontrol else {}))
    if scontrol is None:
        monkeypatch.setenv("PATH", os.environ["PATH"].split(os.pathsep)[0])  # as in a container

    def work(run: RunDir, stop: StopSignal) -> bool:
        os.kill(os.getpid(), signal.SIGUSR2)
        return False

    with pytest.raises(SystemExit) as stopped:
        run_job(str(run.path), work)
    assert stopped.value.code == job.EXIT_INCOMPLETE
    assert read_state(run).reason == f"preempted or at its time limit, and not requeued: {cause}"


def test_a_job_that_is_started_again_and_again_without_progress_is_ended_and_a_new_one_is_not(
    run: RunDir, fake_slurm: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITIT_FOLDER", str(run.path))
    for start in range(3):
        job.check_crash_loop(run, RankInfo(job_attempt=f"7.{start}"))
    (run.checkpoint_dir / "step_00000004").mkdir(parents=True)
    for start in range(3, 6):
        job.check_crash_loop(run, RankInfo(job_attempt=f"7.{start}"))
    with pytest.raises(job.NoProgressError, match=r"job 7 was started 3 times .* no more than step_00000004"):
        job.check_crash_loop(run, RankInfo(job_attempt="7.6"))
    job.check_crash_loop(run, RankInfo(job_attempt="8.0"))
    monkeypatch.delenv("SUBMITIT_FOLDER")
    for _ in range(9):
        job.check_crash_loop(run, RankInfo(job_attempt="8.0"))  # not submitted by us: slurm/eval.sh has many runs


ERRORS = {
    "memory": 'raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can\'t allocate memory")',
    "disk": "raise OSError(28, 'No space left on device')",
    "connection": "raise RuntimeError('[/pytorch/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:2')",
    "error": "raise ValueError('a size that does not fit')",
}


@pytest.mark.parametrize("cause", ERRORS)
def test_a_failure_is_recorded_with_its_type_and_traceback(cause: str, run: RunDir) -> None:
    def work(run: RunDir, stop: StopSignal) -> bool:
        exec(ERRORS[cause])
        return True

    with pytest.raises((RuntimeError, OSError, ValueError)):
        run_job(str(run.path), work)
    event = run.read_events()[-1]
    assert event["cause"] == cause and "Traceback" in event["trace"] and event["why"] in event["trace"]


def test_a_stale_error_of_an_earlier_start_and_the_leftover_of_a_killed_write_are_removed(
    run: RunDir, fake_slurm: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITIT_FOLDER", str(run.path))
    stale = [run.path / "7_0_result.pkl", run.path / "7_0_result.pkl.save_tmp"]
    for path in stale:
        path.touch()
    assert run_job(str(run.path), lambda run, stop: not any(path.exists() for path in stale)) == "done"


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (RunDirError("a:\n  b\x1b[2J"), ["a: b?[2J"]),
        (FileNotFoundError(2, "No such file", "x"), ["[Errno 2] No such file: 'x'"]),
        (KeyError("x"), ["KeyError: 'x'"]),
    ],
)
def test_our_errors_and_the_systems_are_printed_in_one_line_and_others_with_their_traceback(
    error: Exception, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    job.print_error(error)
    assert capsys.readouterr().err.splitlines() == lines


def test_a_report_that_cannot_be_written_is_recorded_beside_it(tmp_path: Path) -> None:
    with pytest.raises(AggregateError):
        ReportJob(str(tmp_path))()
    assigned, failed = get_report_records(tmp_path).read_events()
    assert (assigned["event"], failed["event"], failed["cause"]) == ("assigned", "failed", "error")
    assert "plan.csv" in failed["why"] and "Traceback" in failed["trace"]
