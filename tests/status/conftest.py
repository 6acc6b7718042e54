"""Slurm's commands as scripts that answer what a test says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.runs import FakeSlurm, install_fake_slurm

from galaxyhpc.runtime import slurm


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    yield install_fake_slurm(tmp_path, monkeypatch)
    slurm._ping.cache_clear()
