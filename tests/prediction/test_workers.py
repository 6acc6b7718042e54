"""Workers give results in order, are never far ahead, and neither hang nor outlive the process that started them."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from galaxyhpc.prediction.workers import ITEMS_PER_WORKER, WorkerError, Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Two, that compute the number of bits of a number."""
    started = Workers(int.bit_length, 2)
    yield started
    started.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_results_come_in_the_order_of_the_items(num_workers: int) -> None:
    started = Workers(int.bit_length, num_workers)
    assert list(started.map(range(50))) == [number.bit_length() for number in range(50)]
    assert list(started.map([])) == []
    assert len(started.list_pids()) <= num_workers
    started.close()


def test_items_are_never_read_far_ahead_of_results(workers: Workers) -> None:
    items = count()
    results = workers.map(items)
    for _ in range(5):
        next(results)
    assert next(items) <= 5 + 2 * ITEMS_PER_WORKER


def test_a_failure_in_a_worker_is_raised_here_and_others_go_on(workers: Workers) -> None:
    with pytest.raises(TypeError):
        list(workers.map([1, "two", 3]))
    assert list(workers.map([4, 5])) == [3, 3]


def test_a_killed_worker_is_an_error_after_which_others_start(workers: Workers) -> None:
    results = workers.map(count())
    next(results)
    os.kill(workers.list_pids()[0], signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"^worker process: got one that was killed; .* use fewer workers$"):
        list(results)
    assert list(workers.map([4, 5])) == [3, 3]


def test_a_task_may_hold_what_it_needs() -> None:
    started = Workers(operator.itemgetter(1), 1)
    assert list(started.map(["ab", "cd"])) == ["b", "d"]
    started.close()


SCRIPT = """
from itertools import count
from galaxyhpc.prediction.workers import Workers
if __name__ == "__main__":
    started = Workers(int.bit_length, 2)
    for number in started.map(count()):
        print(*started.list_pids(), flush=True)
"""

SHORT_SCRIPT = """
from galaxyhpc.prediction.workers import Workers
if __name__ == "__main__":
    print(*Workers(int.bit_length, 1).map([1, 2, 4]))
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_parent_and_live_through_the_signal_to_stop(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT, encoding="utf-8")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers: list[int] = []
        while len(workers) < 2:
            workers = [int(pid) for pid in process.stdout.readline().split()]
        for pid in workers:
            os.kill(pid, signal.SIGUSR2)
        for _ in range(10_000):
            assert process.stdout.readline()
        process.kill()
    deadline = time.monotonic() + 60
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(is_running, workers))


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_workers_import_nothing_from_the_users_directory(tmp_path: Path) -> None:
    (tmp_path / "selectors.py").write_text("raise SystemExit('the user's own')", encoding="utf-8")
    script = tmp_path / "bin" / "run.py"  # where a console script lies, elsewhere
    script.parent.mkdir()
    script.write_text(SHORT_SCRIPT, encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("1 2 3\n", "")
