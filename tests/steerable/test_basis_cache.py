"""Filter bases are sampled once per machine: kept on the disk, never trusted when damaged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.warm_processes import run_python

from galaxyhpc.steerable import basis_cache

BUILD = """
import sys
from galaxyhpc.steerable import groups
sampled = groups.get_basis("D4", 3)
print("e2cnn" in sys.modules, float(sampled.filters.sum()), sampled.filters.shape, sampled.filters.flags.writeable)
"""


def build(home: Path) -> list[str]:
    process = run_python("-c", BUILD, XDG_CACHE_HOME=str(home))
    assert process.returncode == 0, process.stderr
    return process.stdout.split(maxsplit=1)


def test_what_was_sampled_once_is_read_back_without_e2cnn_and_is_the_same(tmp_path: Path) -> None:
    sampled, first = build(tmp_path)
    (cached,) = (tmp_path / "galaxyhpc").iterdir()
    read, second = build(tmp_path)
    assert (sampled, read) == ("True", "False") and first == second and first.endswith("False\n")
    cached.write_bytes(cached.read_bytes()[:-200])
    assert build(tmp_path) == [sampled, first]
    assert build(tmp_path) == [read, first]  # mended


def test_where_nothing_can_be_written_a_basis_is_sampled_each_time(tmp_path: Path) -> None:
    (tmp_path / "galaxyhpc").write_text("a file where the directory should be")
    assert build(tmp_path)[0] == build(tmp_path)[0] == "True"


def arrays(value: float) -> basis_cache.ArrayPair:
    return np.full((2, 3), value, np.float32), np.ones(2, np.float32)


def test_another_question_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number in (1.0, 2.0, 3.0):
        basis_cache.load_or_sample({"group": number}, lambda number=number: arrays(number))
    assert len(list((tmp_path / "galaxyhpc").iterdir())) == 3
    assert basis_cache.load_or_sample({"group": 2.0}, lambda: arrays(9.0))[0].max() == 2.0


def test_many_that_ask_at_once_all_get_whole_arrays_and_leave_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda _: basis_cache.load_or_sample({"a": 1}, lambda: arrays(4.0))[0].sum(), range(40)))
    assert set(sums) == {24.0}
    assert len(list((tmp_path / "galaxyhpc").iterdir())) == 1
