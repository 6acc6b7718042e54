"""What surrounds the work of a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from galaxyhpc import lifecycle
from galaxyhpc.lifecycle import BusyError, Place, Stop, alone, carry_out, find_place, is_busy, stopping_on_signals
from galaxyhpc.rundir import RunDir, state


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_work_that_is_done_ends_well(run: RunDir) -> None:
    assert carry_out(str(run.path), lambda run, stop: True) == "done"


def test_an_error_is_recorded_with_its_reason_and_flies(run: RunDir) -> None:
    def work(run: RunDir, stop: Stop) -> bool:
        raise ArithmeticError("the loss is nan")

    with pytest.raises(ArithmeticError):
        carry_out(str(run.path), work)
    assert (state(run).name, state(run).why) == ("failed", "ArithmeticError: the loss is nan")


@pytest.mark.parametrize(
    ("number", "why"), [(signal.SIGTERM, "asked to leave"), (signal.SIGUSR2, "asked to make room")]
)
def test_a_signal_is_noted_and_the_work_decides_when_to_stop(number: int, why: str, run: RunDir) -> None:
    def work(run: RunDir, stop: Stop) -> bool:
        os.kill(os.getpid(), number)
        assert stop.wanted  # and this process still runs
        return False

    with pytest.raises(SystemExit) as caught:
        carry_out(str(run.path), work)
    assert caught.value.code == lifecycle.STOPPED
    assert (state(run).name, state(run).why) == ("stopped", why)


def test_the_handlers_of_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopping_on_signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_process_is_refused_while_one_works_and_welcome_when_it_was_killed(
    run: RunDir,
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from galaxyhpc.lifecycle import Place, alone; "
        "from galaxyhpc.rundir import RunDir\n"
        "with alone(RunDir(Path(sys.argv[1])), Place()): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert is_busy(run)
        with pytest.raises(BusyError, match="another process works on this run"), alone(run, Place()):
            pass
        process.kill()
    assert not is_busy(run)
    with alone(run, Place()):
        assert is_busy(run)


def test_a_process_by_hand_is_alone_and_one_of_torchruns_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (find_place().rank, find_place().world) == (0, 1)
    told = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "GROUP_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert find_place() == Place(3, 8, 1, 4, job="x.0")
