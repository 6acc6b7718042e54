"""Jobs that end on a real Slurm before Python can record why: status, and the next launch, tell the reason."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.slurm import Desk, desk, queue

from galaxyhpc.launch import slurm_executor
from galaxyhpc.status import __main__ as status
from galaxyhpc.storage.run_dir import read_state

SWEEP = """\
  evaluate.conditions: [clean]
blocks: [points: [{model.architecture: cnn, train.epochs: 1}]]
"""


def show(ours: Desk, *more: str) -> str:
    """Return the output of status as one line."""
    return " ".join(ours.command(status.main, "my runs/tiny", *more).split())


def test_a_setup_line_that_fails_ends_every_job_and_is_named_at_once_and_by_the_next_launch(tmp_path: Path) -> None:
    ours = desk(tmp_path / "desk", tiny=SWEEP)
    failing = ("--set", "resources.setup=['export A=1', 'module load nosuch/1.0', 'export B=2']")
    ours.launch("tiny", *failing)
    ours.wait_for_jobs()
    (run,) = ours.runs("tiny")
    line = "resources.setup: module load nosuch/1.0: got exit status 127; expected 0"
    shown = show(ours)
    assert "1 failed" in shown and "no record" in shown and shown.count(line) == 2, shown  # of the run and the report
    assert "report failed: its job" in shown and "next: galaxyhpc aggregate" in shown
    assert line in show(ours, "--why") and "next: fix what its log names" in show(ours, "--why")
    assert f"{run.run_id}: submitted again; its job" in ours.launch("tiny")
    assert line in show(ours, "--why"), "recorded"
    ours.wait_for_jobs()
    assert read_state(run).name == "evaluated", ours.evidence()
    assert "report" not in show(ours).partition(" ")[2]


def test_a_missing_interpreter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = desk(tmp_path / "desk", tiny=SWEEP)
    monkeypatch.setattr(slurm_executor, "make_python_command", lambda: "sh -c 'exec \"$@\"' sh env /nosuch/bin/python")
    ours.launch("tiny")
    ours.wait_for_jobs()
    assert "1 failed" in show(ours) and "/nosuch/bin/python" in show(ours), ours.evidence()


def test_a_job_whose_log_cannot_be_written_is_told_by_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory of the logs is lost while the job waits."""
    ours = desk(tmp_path / "desk", tiny=SWEEP)
    holding = tmp_path / "bin" / "sbatch"
    holding.parent.mkdir()
    holding.write_text(f'#!/bin/sh\nexec {shutil.which("sbatch")} --hold "$@"\n')
    holding.chmod(0o755)
    monkeypatch.setenv("PATH", f"{holding.parent}:{ours.environment['PATH']}")
    ours.launch("tiny")
    log = ours.path / "my runs" / "tiny" / "log"
    log.rename(log.with_name("log before"))
    log.touch()
    jobs = [job for job, _, _ in queue(ours.path)]
    subprocess.run(["scontrol", "release", *jobs], check=True)
    ours.wait_for_jobs()
    assert "1 failed" in show(ours) and f"it left no log in {log}" in show(ours), ours.evidence()
