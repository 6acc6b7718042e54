"""Directories from which sweeps are launched on a real Slurm."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from galaxyhpc.launch import __main__ as launch
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import find_runs

PROJECT = Path(__file__).parents[2]


DEADLINE = 300.0  # s, for each condition that is waited for
CONDITIONS = "  evaluate.conditions: [clean, shot_noise, cosmic_rays+flip]\n"
MEASURED = 1 + 5 + 2  # rows of results, over their severities
TINY = """\
base:
  data: {image_size: 33, demo: {galaxies: 300, size: 32}}
  model: {scale: 0.1}
  train: {epochs: 2, batch_size: 32}
  resources: {tasks_per_node: 1, time_minutes: 30}
"""


@dataclass(frozen=True)
class Desk:
    """A working directory: sweep files in it, runs in `my runs`."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables as after `activate`: the scripts of the jobs find this Python; they draw no figures."""
        variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        variables["GALAXYHPC_TEST_WITHOUT_FIGURES"] = "1"
        return variables if sys.prefix == sys.base_prefix else {**variables, "VIRTUAL_ENV": sys.prefix}

    def call(self, *command: str | Path, status: int = 0) -> str:
        """Run a command in this directory and return its output."""
        answer = subprocess.run(command, cwd=self.path, env=self.environment, capture_output=True, text=True)
        assert answer.returncode == status, f"{command}: {answer.returncode}\n{answer.stdout}\n{answer.stderr}"
        return answer.stdout if status == 0 else answer.stdout + answer.stderr

    def launch(self, name: str, *more: str) -> str:
        """Launch the sweep NAME.yaml and return the output."""
        options = ("--executor", "slurm", "--runs", "my runs", "--set", f"data.cache={self.path.parent / 'a cache'}")
        return self.command(launch.main, f"{name}.yaml", *options, *more)

    def command(self, main: Callable[[list[str]], int], *arguments: str) -> str:
        """Run a command in this process, which has already loaded torch, and return its output."""
        output, variables = io.StringIO(), patch.dict(os.environ, self.environment)
        with chdir(self.path), variables, redirect_stdout(output), redirect_stderr(output):
            status = main([*arguments])
        assert status == 0, output.getvalue()
        return output.getvalue()

    def sbatch(self, *arguments: str | Path) -> str:
        """Submit a script and return the job id."""
        return self.call("sbatch", "--parsable", *arguments).strip()

    def runs(self, sweep: str) -> list[RunDir]:
        return find_runs(self.path / "my runs" / sweep)

    def report(self, sweep: str, table: str) -> list[dict[str, str]]:
        with (self.path / "my runs" / sweep / "report" / f"{table}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def wait(self, is_reached: Callable[[], bool], condition: str) -> None:
        """Wait until a condition is reached; after the deadline, fail with the queue and the ends of all logs."""
        deadline = time.monotonic() + DEADLINE
        while not is_reached():
            if time.monotonic() > deadline:
                pytest.fail(f"not reached in {DEADLINE:.0f} s: {condition}\n{self.evidence()}", pytrace=False)
            time.sleep(0.1)

    def wait_for_jobs(self) -> None:
        """Wait until no job submitted from this directory is left."""
        self.wait(lambda: not queue(self.path), "an empty queue")

    def evidence(self) -> str:
        """Return the queue and the ends of all logs."""
        logs = [f"{log}:\n{log.read_text()[-1500:]}" for log in sorted(self.path.rglob("*.out"))]
        return "\n".join([*map(str, queue(self.path, "all")), *logs])


def queue(path: Path, states: str = "PENDING,RUNNING,COMPLETING") -> list[tuple[str, str, str]]:
    """Return (id, state, name) of the jobs submitted at or below a directory."""
    command = ["squeue", "--noheader", "--array", f"--states={states}", "--format=%i|%T|%j|%Z"]
    rows = (line.split("|", 3) for line in subprocess.check_output(command, text=True, errors="replace").splitlines())
    return [(job, state, name) for job, state, name, directory in rows if Path(directory).is_relative_to(path)]


def started(run: RunDir) -> list[dict[str, Any]]:
    """Return the `started` events of a run."""
    return [event for event in run.read_events() if event["event"] == "started"]


def desk(path: Path, **sweeps: str) -> Desk:
    """Make a working directory with the scripts of slurm/ and these sweep files."""
    path.mkdir()
    (path / "slurm").symlink_to(PROJECT / "slurm")
    for name, text in sweeps.items():
        (path / f"{name}.yaml").write_text(TINY + text)
    return Desk(path)
