"""Variables of the user's shell on a real Slurm: none changes what is asked, and jobs start where none is passed on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from helpers.slurm import desk, queue

from galaxyhpc import cancel
from galaxyhpc.status import __main__ as status
from galaxyhpc.storage.run_dir import read_state

SWEEP = """\
  evaluate.conditions: [clean]
seeds: 2
blocks: [points: [{model.architecture: cnn, train.epochs: 1}]]
"""
FILTERS = """
SQUEUE_STATES=RUNNING SQUEUE_PARTITION=high SQUEUE_ACCOUNT=nobody SQUEUE_QOS=none SQUEUE_NAMES=other
SQUEUE_LICENSES=none SQUEUE_USERS=nobody SQUEUE_FORMAT=%i SCANCEL_STATE=RUNNING SCANCEL_NAME=other
SCANCEL_PARTITION=high SLURM_TIME_FORMAT=%s SLURM_LABELIO=1 SLURM_TIMELIMIT=1 SLURM_EXPORT_ENV=NONE
"""
OVERRIDES = """
SBATCH_EXPORT=NONE SBATCH_ARRAY_INX=5 SBATCH_OUTPUT=elsewhere SBATCH_SIGNAL=USR1@9 SBATCH_NO_REQUEUE=1
SBATCH_OPEN_MODE=truncate SBATCH_JOB_NAME=other SBATCH_IGNORE_PBS=1 SBATCH_WAIT=1 SBATCH_TIMELIMIT=1
SBATCH_EXCLUSIVE=1 SBATCH_MEM_PER_CPU=1
"""


def test_variables_of_the_shell_neither_hide_jobs_nor_change_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site's policy, here a wrapper, passes no environment on to jobs."""
    ours, gate = desk(tmp_path / "a desk", tiny=SWEEP), tmp_path / "gate"
    policy = tmp_path / "bin" / "sbatch"
    policy.parent.mkdir()
    policy.write_text(f'#!/bin/sh\nexec {shutil.which("sbatch")} --export=NONE "$@"\n')
    policy.chmod(0o755)
    gate.touch()
    environment = ours.environment
    for assignment in (FILTERS + OVERRIDES).split():
        monkeypatch.setenv(*assignment.split("="))
    monkeypatch.setenv("SBATCH_PARTITION", "low")  # this one is followed
    monkeypatch.setenv("PATH", f"{policy.parent}:{environment['PATH']}")
    wait = ("--set", f"resources.setup=['while [ -e {gate} ]; do sleep 0.1; done']", "--max-parallel", "1")
    assert "ignored: SBATCH_ARRAY_INX, SBATCH_EXCLUSIVE, SBATCH_EXPORT" in ours.launch("tiny", *wait)
    assert "2 complete or active" in ours.launch("tiny", *wait)
    first, second = ours.runs("tiny")
    assert "2 waiting" in (shown := ours.command(status.main, "my runs/tiny")) or "1 waiting" in shown, shown
    assert f"{second.run_id}: cancelled: " in ours.command(cancel.main, "my runs/tiny", "s1-")
    for assignment in FILTERS.split():
        monkeypatch.delenv(assignment.partition("=")[0])
    assert len(queue(ours.path)) == 3, "training, evaluation and report"
    job = first.read_events()[1]["job"]
    shown = ours.call("scontrol", "show", "job", str(job))
    for setting in ("Partition=low", "TimeLimit=00:30:00", "Requeue=1", "JobName=tiny-train"):
        assert setting in shown, shown
    gate.unlink()
    ours.wait_for_jobs()
    assert read_state(first).name == "evaluated", ours.evidence()
    assert [row["seeds_done"] for row in ours.report("tiny", "summary")] == ["1"]
    for assignment in OVERRIDES.split()[1:]:
        monkeypatch.delenv(assignment.partition("=")[0])
    (ours.path / ".venv").symlink_to(sys.prefix)
    first.results_file.unlink()
    ours.sbatch("slurm/eval.sh", "my runs/tiny")
    ours.wait_for_jobs()
    assert first.results_file.exists(), ours.evidence()
