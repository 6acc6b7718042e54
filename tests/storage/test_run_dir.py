"""A run's directory: events only grow, and config.json is read with the changes of retries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from galaxyhpc.config.schema import ModelConfig, ResourcesConfig, RunConfig
from galaxyhpc.storage.events import read_json_lines
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import MAX_CONFIG_BYTES, RunDir, RunDirError


def test_events_are_read_back_in_order_with_time_and_host(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.record("submitted", job="7_1")
    run.record("started", step=0)
    first, second = run.read_events()
    assert (first["event"], first["job"], second["step"]) == ("submitted", "7_1", 0)
    assert first["time"] <= second["time"] and first["host"]


def test_a_line_torn_by_a_crash_is_skipped_and_the_next_event_stands_on_its_own(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.record("started")
    with run.events_file.open("a") as file:
        file.write('{"event": "trai')
    run.record("failed", why="disk full")
    assert [event["event"] for event in run.read_events()] == ["started", "failed"]


def test_processes_that_record_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path; from galaxyhpc.storage.run_dir import RunDir; r = RunDir(Path({str(tmp_path)!r}))\n"
    )
    code += "for i in range(100): r.record('started', step=i)"
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(read_json_lines(tmp_path / "events.jsonl")) == 300


def test_config_json_gives_back_the_same_settings(tmp_path: Path) -> None:
    config = RunConfig(model=ModelConfig(group="D4"), seed=3)
    run = RunDir(tmp_path / config.run_id)
    write_text(run.config_file, config.model_dump_json())
    assert run.load_config() == config and run.load_config().run_id == run.run_id


def test_config_json_is_read_with_the_resources_that_retries_changed(tmp_path: Path) -> None:
    config = RunConfig(model=ModelConfig(group="D4"), resources=ResourcesConfig(exclude_nodes=("a",), memory_gb=4.0))
    run = RunDir(tmp_path / config.run_id)
    write_text(run.config_file, config.model_dump_json())
    run.record("retried", why="out of memory", micro_batch=16)
    run.record("retried", why="lost", exclude=["b"])
    run.record("retried", why="lost", exclude=["a", "c"])
    changed = run.load_config()
    assert (changed.resources.micro_batch, changed.resources.exclude_nodes) == (16, ("a", "b", "c"))
    assert changed.resources.memory_gb == 4.0 and changed.get_identity() == config.get_identity()
    assert run.with_retry_changes(changed.resources) == changed.resources


@pytest.mark.parametrize("fields", [{"micro_batch": 1}, {"exclude": ["a\n#SBATCH --x"]}])
def test_a_retry_with_impossible_resources_changes_nothing(fields: dict[str, Any], tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.record("retried", **fields)
    assert run.with_retry_changes(ResourcesConfig(micro_batch=8)) == ResourcesConfig(micro_batch=8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model": {"group": "C4"}, "train": {"epochs": "many"}}', "config.json: train: epochs: Input should be"),
        ("x" * (MAX_CONFIG_BYTES + 1), "config.json: got over 1,000,000 bytes; expected fewer"),
    ],
)
def test_a_config_json_that_launch_did_not_write_is_refused(content: str, message: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.config_file.write_text(content)
    with pytest.raises(RunDirError, match=message):
        run.load_config()


def test_progress_is_the_newest_checkpoint_or_the_size_of_the_results(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.progress == "no checkpoint"
    for step in (4, 12):
        (run.checkpoint_dir / f"step_{step:08d}").mkdir(parents=True)
    assert run.progress == "step_00000012"
    run.best_file.touch()
    run.results_file.write_text("four")
    assert run.progress == "best.pt and 4 bytes of results"
