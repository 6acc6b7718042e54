"""Checkpoints are verified when they are loaded, and damaged ones move to quarantine."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.warm_processes import start_python

from galaxyhpc.storage import checkpoint, files
from galaxyhpc.storage.run_dir import RunDir

STATE = {"model": {"weight": torch.arange(1000.0)}, "progress": {"step": 5}}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "C4-s0-abc")


def test_a_state_comes_back_bit_by_bit(run: RunDir) -> None:
    checkpoint.save(run, 5, 2, STATE)
    state = checkpoint.load_latest(run)
    assert state is not None and torch.equal(state["model"]["weight"], STATE["model"]["weight"])
    manifest = json.loads((run.checkpoint_dir / "step_00000005" / "MANIFEST.json").read_text())
    assert (manifest["step"], manifest["world_size"], manifest["run_id"]) == (5, 2, run.run_id)
    assert manifest["sha256"] == files.sha256(run.checkpoint_dir / "step_00000005" / "state.pt")


def test_the_newest_two_are_kept(run: RunDir) -> None:
    for step in (3, 10, 200):
        checkpoint.save(run, step, 1, STATE)
    assert [path.name for path in checkpoint.list_checkpoints(run)] == ["step_00000010", "step_00000200"]


def test_without_checkpoints_there_is_nothing_to_load(run: RunDir) -> None:
    assert checkpoint.load_latest(run) is None and checkpoint.quarantine_damaged(run) == []


def _flip(path: Path) -> None:
    content = bytearray((path / "state.pt").read_bytes())
    content[700] ^= 4
    (path / "state.pt").write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit flipped": _flip,
    "truncated": lambda path: os.truncate(path / "state.pt", 900),
    "empty": lambda path: os.truncate(path / "state.pt", 0),
    "state missing": lambda path: (path / "state.pt").unlink(),
    "manifest missing": lambda path: (path / "MANIFEST.json").unlink(),
    "manifest torn": lambda path: os.truncate(path / "MANIFEST.json", 20),
    "manifest is a list": lambda path: (path / "MANIFEST.json").write_text("[]"),
    "manifest empty": lambda path: os.truncate(path / "MANIFEST.json", 0),
    "manifest binary": lambda path: (path / "MANIFEST.json").write_bytes(bytes(range(256))),
    "manifest nested": lambda path: (path / "MANIFEST.json").write_text("[" * 200_000),
    "manifest with words for numbers": lambda path: (path / "MANIFEST.json").write_text(
        '{"run_id": "C4-s0-abc", "bytes": "many", "sha256": []}'
    ),
    "a file in its place": lambda path: (shutil.rmtree(path), path.write_text("")),
    "state a directory": lambda path: ((path / "state.pt").unlink(), (path / "state.pt").mkdir()),
    "of another run": lambda path: (path / "MANIFEST.json").write_text(
        (path / "MANIFEST.json").read_text().replace("C4-s0-abc", "C8-s0-abc")
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_one_is_quarantined_and_the_previous_one_loaded(damage: str, run: RunDir) -> None:
    checkpoint.save(run, 1, 1, STATE)
    newest = checkpoint.save(run, 2, 1, {"progress": {"step": 2}})
    DAMAGES[damage](newest)
    assert checkpoint.load_latest(run) is not None
    (line,) = checkpoint.quarantine_damaged(run)
    assert line.startswith("checkpoint step_00000002 is damaged (") and len(line.splitlines()) == 1
    assert [path.name for path in checkpoint.list_checkpoints(run)] == ["step_00000001"]
    assert len(list((run.checkpoint_dir / "quarantine").iterdir())) == 1
    state = checkpoint.load_latest(run)
    assert state is not None and state["progress"]["step"] == 5


def test_when_all_are_damaged_a_run_starts_afresh(run: RunDir) -> None:
    for step in (1, 2):
        _flip(checkpoint.save(run, step, 1, STATE))
    assert len(checkpoint.quarantine_damaged(run)) == 2 and checkpoint.load_latest(run) is None


def test_a_process_killed_while_it_saves_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from galaxyhpc.storage import checkpoint; from galaxyhpc.storage.run_dir import RunDir\n"
        "run = RunDir(Path(sys.argv[1])); state = {'weight': torch.rand(2_000_000)}; step = int(sys.argv[2])\n"
        "while True: step += 1; checkpoint.save(run, step, 1, state)"
    )
    for attempt in range(4):
        before = {path.name for path in checkpoint.list_checkpoints(run)}
        process = start_python("-c", code, str(run.path), str(attempt * 10_000))
        while {path.name for path in checkpoint.list_checkpoints(run)} <= before:
            time.sleep(0.002)
        time.sleep(0.011 * attempt)
        process.kill()
        process.wait()
        assert checkpoint.quarantine_damaged(run) == [] and checkpoint.load_latest(run) is not None
    checkpoint.save(run, 10**6, 1, STATE)
    assert list(run.checkpoint_dir.glob(".step_*")) == []  # what the killed ones left is gone


def test_a_disk_that_is_full_leaves_the_older_checkpoints_and_nothing_half_written(run: RunDir) -> None:
    checkpoint.save(run, 3, 1, STATE)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))  # the kernel refuses to write more than that
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(run, 4, 1, STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in run.checkpoint_dir.iterdir()] == ["step_00000003"]
    assert checkpoint.load_latest(run) is not None
