"""The lock of a run."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from helpers.file_systems import make_environment
from helpers.runs import HOSTNAME, make_run, record_start, write_sweep_plan

from galaxyhpc.runtime import lock
from galaxyhpc.runtime.lock import LAUNCH_LOCK, BusyError, Holder, exclusive_lock, hold_directory, is_busy
from galaxyhpc.runtime.rank import RankInfo
from galaxyhpc.storage.run_dir import RunDir

HOLD = """
import sys, time
from pathlib import Path
from galaxyhpc.runtime.lock import exclusive_lock
from galaxyhpc.runtime.rank import RankInfo
from galaxyhpc.storage.run_dir import RunDir
with exclusive_lock(RunDir(Path(sys.argv[1])), RankInfo()):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_a_second_process_is_refused_while_one_works_and_welcome_when_it_was_killed(
    run: RunDir,
) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert is_busy(run)
        with pytest.raises(BusyError, match="another process works on this run"), exclusive_lock(run, RankInfo()):
            pass
        process.kill()
    assert not is_busy(run)
    with exclusive_lock(run, RankInfo()):
        assert is_busy(run)


def test_an_error_removes_a_directory_that_was_made_for_its_lock_and_nothing_else(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "sweep"
    with pytest.raises(KeyError), hold_directory(directory):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), hold_directory(directory):
        (directory / "plan.csv").touch()
        raise KeyError
    assert sorted(path.name for path in directory.iterdir()) == [LAUNCH_LOCK, "plan.csv"]
    (directory / "plan.csv").unlink()
    with pytest.raises(KeyError), hold_directory(directory):  # that was there before
        raise KeyError
    assert directory.exists()


def test_the_error_names_host_process_and_time_of_the_holder(run: RunDir) -> None:
    named = pytest.raises(BusyError, match=rf"\(host .+, pid {os.getpid()}, since 20.+\); nothing was changed")
    with exclusive_lock(run, RankInfo()), named, exclusive_lock(run, RankInfo()):
        pass
    assert [path.name for path in run.path.iterdir()] == [".lock-0"]


def test_the_ranks_of_a_job_do_not_exclude_each_other(run: RunDir) -> None:
    with exclusive_lock(run, RankInfo(rank=0, world_size=2)), exclusive_lock(run, RankInfo(rank=1, world_size=2)):
        assert is_busy(run)


def test_asking_whether_a_run_is_busy_creates_nothing(run: RunDir) -> None:
    assert not is_busy(run) and list(run.path.iterdir()) == []


def test_a_schedulers_job_waits_for_the_process_before_it_and_a_person_does_not(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    assert lock._lock_timeout() == 0
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert lock._lock_timeout() == 60
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert lock._lock_timeout() == 600
    monkeypatch.setattr(lock, "_lock_timeout", lambda: 0.2)
    with exclusive_lock(run, RankInfo()), pytest.raises(BusyError), exclusive_lock(run, RankInfo()):
        pass
    assert re.search(
        r"works on this run \(host .+, pid \d+, since .+\); waiting up to 0.2 s\n$", capsys.readouterr().out
    )


@pytest.fixture(
    params=[
        pytest.param(errno.ENOLCK, id="ENOLCK"),
        pytest.param(errno.ENOSYS, id="ENOSYS", marks=pytest.mark.slow),
        pytest.param(errno.EOPNOTSUPP, id="EOPNOTSUPP", marks=pytest.mark.slow),
    ]
)
def no_flock(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of processes for which no file system has flock."""
    return make_environment(tmp_path_factory.mktemp("no_flock"), request.param)


@pytest.mark.compiler
def test_without_flock_one_process_holds_a_run_until_it_ends_in_whatever_way(
    run: RunDir, no_flock: dict[str, str]
) -> None:
    (run.path / ".lock-0").touch()  # left by a process that had flock
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=no_flock) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert is_busy(run)
        second = subprocess.run(command, capture_output=True, text=True, env=no_flock)
        assert f"pid {process.pid}, since" in second.stderr and "BusyError" in second.stderr
        with pytest.raises(BusyError), exclusive_lock(run, RankInfo()):  # this process has flock
            pass
        process.kill()
    assert (run.path / ".lock-0.holder").exists() and not is_busy(run)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=no_flock) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        process.kill()


@pytest.mark.compiler
@pytest.mark.parametrize("verb", ["status", "cancel"])
def test_without_flock_a_look_at_a_sweep_does_not_fail(verb: str, tmp_path: Path, no_flock: dict[str, str]) -> None:
    run = make_run(tmp_path)
    record_start(run, "99", host=HOSTNAME)
    for name in (".lock-0", "../.launch.lock"):
        (run.path / name).touch()
    command = [sys.executable, "-m", "galaxyhpc", verb, str(write_sweep_plan(run))]
    answer = subprocess.run(command, capture_output=True, text=True, env=no_flock)
    assert (answer.returncode, answer.stderr) == (0, "") and "lost" in answer.stdout


@pytest.mark.compiler
@pytest.mark.slow
def test_without_flock_galaxies_are_written_and_read(tmp_path: Path, no_flock: dict[str, str]) -> None:
    script = "from galaxyhpc.data import simulate; from galaxyhpc.data.sources import hdf5; "
    script += "from pathlib import Path; path = Path('g.h5'); "
    script += "from galaxyhpc.config.schema import DataConfig; "
    script += "simulate.write_galaxies(path, 100, 64, 0); print(hdf5.open_hdf5(path, DataConfig()))"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=no_flock, check=True)


def write_holder(run: RunDir, **fields: Any) -> Holder:
    """Leave the lock of a process of another host, without flock."""
    values = {"host": "elsewhere", "pid": 1, "time": 1.8e9, "uid": os.getuid(), "job": "7_1", "job_start": "0"}
    holder = Holder(**values | fields)
    (run.path / ".lock-0").touch()
    (run.path / ".lock-0.holder").write_text(json.dumps(asdict(holder)))
    return holder


def test_the_lock_of_another_host_ends_with_its_slurm_job(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write_holder(run)
    assert is_busy(run) and is_busy(run, {"7_1"}) and not is_busy(run, {"7_2"})
    for queue, is_refused in ((None, True), ({"7_1": None}, True), ({}, False)):
        write_holder(run)
        monkeypatch.setattr(lock.slurm, "get_queue", lambda queue=queue: queue)
        with (
            pytest.raises(BusyError, match="fsck --unlock") if is_refused else nullcontext(),
            exclusive_lock(run, RankInfo()),
        ):
            assert not is_refused


@pytest.mark.parametrize("fields", [{"job": ""}, {"uid": os.getuid() + 1}], ids=["no job", "another user's"])
def test_slurm_does_not_answer_for_a_process_outside_of_this_users_jobs(run: RunDir, fields: dict[str, Any]) -> None:
    write_holder(run, **fields)
    assert is_busy(run, {})


def test_a_job_that_slurm_started_again_takes_the_lock_of_its_earlier_start(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_holder(run)
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert is_busy(run)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with exclusive_lock(run, RankInfo()):
        assert is_busy(run)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 5000, '{"host": 1}'])
def test_a_damaged_name_of_a_holder_counts_as_a_holder(text: str, run: RunDir) -> None:
    write_holder(run)
    (run.path / ".lock-0.holder").write_text(text)
    assert is_busy(run) and "unknown process" in str(lock.find_holder(run.path / ".lock-0"))


def test_unlocking_removes_what_another_host_left_and_nothing_of_a_process_at_work(run: RunDir) -> None:
    path = run.path / ".lock-0"
    holder = write_holder(run)
    with pytest.raises(BusyError, match=r"job 7_1, .* is in Slurm's queue; cancel it first"):
        lock.unlock(path, {"7_1"})
    assert lock.unlock(path, None) == holder and lock.unlock(path, None) is None and not is_busy(run)
    with lock.hold(path), pytest.raises(BusyError, match="running here; stop it first"):
        lock.unlock(path, None)


def test_a_process_that_was_unlocked_by_mistake_does_not_end_the_lock_of_its_successor(run: RunDir) -> None:
    """As after the crash of an NFS client, whose flock its server keeps for ever."""
    path = run.path / ".lock-0"
    with lock.hold(path):
        write_holder(run, has_flock=True)
        assert is_busy(run, {})
        assert lock.unlock(path, None) is not None
        with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            holder = lock.find_holder(path)
            assert holder is not None and holder.pid == other.pid
            other.kill()
