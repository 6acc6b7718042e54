"""What all tests share: two at a time, Slurm tests first and where a Slurm answers, child processes of one thread."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torchvision_operators.sitecustomize as operators
from xdist.scheduler import LoadFileScheduling

HERE = Path(__file__).parent
OURS = HERE / "slurm" / "cluster"

os.environ["OMP_NUM_THREADS"] = "1"  # several processes at a time on few cores
# whatever the tests start may import torchvision, too
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (os.path.dirname(operators.__file__), os.environ.get("PYTHONPATH")))
)
# where the tests run in the background Ctrl-C is ignored, and every process they start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


@functools.cache
def slurm_answers() -> bool:
    """Whether a controller answers; without SLURM_CONF our own cluster is tried, if it is up."""
    if "SLURM_CONF" not in os.environ:
        told = subprocess.run([OURS, "env"], capture_output=True, text=True).stdout
        if told:
            os.environ["SLURM_CONF"] = told.strip().partition("=")[2]
    try:
        answer = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "is UP" in answer.stdout


class WholeFiles(LoadFileScheduling):
    """Shares files out whole; those on Slurm go one after the other in one process, for they share its nodes."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file.partition("slurm/")[0] if "slurm/" in file else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WholeFiles:
    return WholeFiles(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE / "slurm" in item.path.parents:
            item.add_marker("slurm")


@functools.cache
def give_way() -> None:
    """Leave the cores to the Slurm tests, which wait for more."""
    os.nice(10)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if not item.get_closest_marker("slurm"):
        give_way()
    elif not slurm_answers():
        reason = "no Slurm answers; tests/slurm/cluster up starts one"
        if os.environ.get("GALAXYHPC_REQUIRE_SLURM") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
