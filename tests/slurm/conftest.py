"""Fixtures of the tests on a real Slurm."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.slurm import queue


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for all desks; at the end, all their jobs are cancelled."""
    path = tmp_path_factory.mktemp("on slurm")
    yield path
    if left := [job for job, _, _ in queue(path)]:
        subprocess.run(["scancel", *left], check=True)
