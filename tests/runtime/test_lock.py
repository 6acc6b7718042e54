"""The lock of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from galaxyhpc.runtime import lock
from galaxyhpc.runtime.lock import BusyError, exclusive_lock, is_busy
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


def test_the_error_names_the_job_host_and_process_that_started_last(run: RunDir) -> None:
    run.record("started", job="7.0", pid=11)
    run.record("started", job="8.0", pid=12)
    named = pytest.raises(BusyError, match=r"\(job 8\.0, host .+, pid 12\); nothing was changed")
    with exclusive_lock(run, RankInfo()), named, exclusive_lock(run, RankInfo()):
        pass


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
    assert capsys.readouterr().out.endswith(
        "another process works on this run (it has just started); waiting up to 0.2 s\n"
    )
