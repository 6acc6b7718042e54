"""A parallel map returns its results in order."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from galaxyhpc.runtime import parallel


def square(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def test_results_of_several_processes_are_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "count_cores", lambda: 2)
    results = parallel.parallel_map(square, range(40), "squares")
    assert [value for value, _ in results] == [number**2 for number in range(40)]
    assert os.getpid() not in {process for _, process in results}


def test_too_few_items_for_two_processes_stay_in_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "count_cores", lambda: 2)
    assert parallel.parallel_map(square, range(40), "squares", min_per_process=21) == [
        (n**2, os.getpid()) for n in range(40)
    ]


def test_an_error_in_a_process_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "count_cores", lambda: 2)
    with pytest.raises(TypeError):
        parallel.parallel_map(square, [1, "two"], "squares")


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= parallel.count_cores() <= len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert parallel.count_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # joblib's own limit, as in scikit-learn
    assert parallel.count_cores() == 1


PARENT = """
import sys, time
from pathlib import Path
from galaxyhpc.runtime import parallel

def work(number):
    print(f"{parallel.os.getpid()}\\n", end="", flush=True)  # in one piece
    time.sleep(60)

parallel.count_cores = lambda: 2
parallel.parallel_map(work, [1, 2], "sleep")
"""


def test_no_worker_outlives_a_parent_that_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [int(process.stdout.readline()) != process.pid for _ in range(2)] == [True, True]
        process.kill()
        start = time.monotonic()
        process.stdout.read()  # ends when no worker holds the pipe any more
    assert time.monotonic() - start < 30  # not when the work is done
