"""A run's directory: files appear whole, events only grow, the state follows from them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from galaxyhpc.config.schema import ModelConfig, RunConfig
from galaxyhpc.storage.events import read_json_lines
from galaxyhpc.storage.files import atomic_write, write_text
from galaxyhpc.storage.run_dir import RunDir, RunDirError, read_state
from galaxyhpc.storage.sweep_dir import find_runs


def test_a_file_that_fails_halfway_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "plan.csv"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_write(path) as aside:
        aside.write_text("ha")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["plan.csv"]


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


def test_lines_that_are_no_events_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'[1]\n\xff\xfe\nnull\n{"event": "started"}\n')
    assert read_json_lines(path) == [{"event": "started"}]
    assert read_json_lines(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize(
    ("events", "name", "why"),
    [
        ([], "planned", "never submitted"),
        ([("submitted", {})], "submitted", ""),
        ([("submitted", {}), ("started", {})], "running", ""),
        ([("started", {}), ("failed", {"why": "NaN"}), ("failed", {"why": "connection closed"})], "failed", "NaN"),
        ([("failed", {"why": "NaN"}), ("started", {}), ("failed", {"why": "disk"})], "failed", "disk"),
        ([("started", {}), ("stopped", {"why": "cancelled"})], "stopped", "cancelled"),
        ([("started", {}), ("trained", {}), ("evaluation submitted", {"job": "9"})], "trained", ""),
        ([("trained", {}), ("evaluated", {})], "evaluated", ""),
    ],
)
def test_the_last_event_that_matters_decides_the_state(
    events: list[tuple[str, dict[str, str]]], name: str, why: str, tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    for event, fields in events:
        run.record(event, **fields)
    assert (read_state(run).name, read_state(run).reason) == (name, why)


def test_config_json_gives_back_the_same_settings(tmp_path: Path) -> None:
    config = RunConfig(model=ModelConfig(group="D4"), seed=3)
    run = RunDir(tmp_path / config.run_id)
    write_text(run.config_file, config.model_dump_json())
    assert run.load_config() == config and run.load_config().run_id == run.run_id


def test_runs_are_found_by_a_sweeps_plan_or_by_their_own_directory(tmp_path: Path) -> None:
    write_text(tmp_path / "plan.csv", "run_id,arch\nb,cnn\na,cnn\n")
    write_text(tmp_path / "a" / "config.json", "{}")
    assert [run.run_id for run in find_runs(tmp_path)] == ["b", "a"]
    assert [run.run_id for run in find_runs(tmp_path / "a")] == ["a"]
    with pytest.raises(RunDirError, match=r"got neither config\.json nor plan\.csv"):
        find_runs(tmp_path / "nowhere")


def test_a_job_quicker_than_the_note_of_its_submission_is_not_waiting(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.record("started", job="12_3.0")
    run.record("failed", why="no disk")
    run.record("submitted", job="12_3")
    assert read_state(run).name == "failed"
    run.record("submitted", job="13_0")
    assert read_state(run).name == "submitted"
