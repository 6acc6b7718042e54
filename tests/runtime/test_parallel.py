"""Work of many equal parts is shared by processes and comes back in order."""

from __future__ import annotations

import os

import pytest

from galaxyhpc.runtime import parallel


def square(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def test_what_processes_make_comes_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "count_cores", lambda: 2)
    found = parallel.parallel_map(square, range(40), "squares")
    assert [value for value, _ in found] == [number**2 for number in range(40)]
    assert os.getpid() not in {process for _, process in found}


def test_what_is_too_little_for_two_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "count_cores", lambda: 2)
    assert parallel.parallel_map(square, range(40), "squares", min_per_process=21) == [
        (n**2, os.getpid()) for n in range(40)
    ]


def test_a_mistake_in_a_process_is_told_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "count_cores", lambda: 2)
    with pytest.raises(TypeError):
        parallel.parallel_map(square, [1, "two"], "squares")
