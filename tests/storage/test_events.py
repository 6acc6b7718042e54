"""Events of a run: parsing, the state that follows from them, and their description."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from galaxyhpc.storage.events import (
    EventLine,
    RunState,
    derive_state,
    describe_events,
    format_event,
    parse_json_lines,
    read_json_lines,
)
from galaxyhpc.storage.run_dir import RunDir, read_state


def test_lines_that_are_no_events_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'[1]\n\xff\xfe\nnull\n{"event": "started"}\n')
    assert read_json_lines(path) == [{"event": "started"}]
    assert read_json_lines(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("line", ['{"time": "noon"}', '{"time": 1e300}', '{"seconds": NaN}', '{"exclude": "a"}'])
def test_a_record_with_a_field_of_another_type_or_range_is_skipped(line: str) -> None:
    assert parse_json_lines([line, '{"epoch": 1}']) == [{"epoch": 1}]


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


def test_a_job_quicker_than_the_note_of_its_submission_is_not_waiting(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.record("started", job="12_3.0")
    run.record("failed", why="no disk")
    run.record("submitted", job="12_3")
    assert read_state(run).name == "failed"
    run.record("submitted", job="13_0")
    assert read_state(run).name == "submitted"


def test_a_run_that_is_cancelled_stays_so_when_its_process_stops_and_one_that_finished_first_is_evaluated() -> None:
    cancelled = [{"event": "started"}, {"event": "cancelled", "why": "cancelled"}, {"event": "stopped", "why": "x"}]
    assert derive_state(cancelled).reason == "cancelled"
    assert derive_state([{"event": "evaluated"}, {"event": "cancelled"}]).name is RunState.EVALUATED


def test_a_lost_connection_is_not_the_reason_where_another_process_failed() -> None:
    lost = {"event": "failed", "why": "connection closed", "cause": "connection"}
    failed = {"event": "failed", "why": "NaN", "cause": "error"}
    assert derive_state([lost, failed]).reason == derive_state([failed, lost]).reason == "NaN"


def test_a_state_is_written_and_compared_as_its_word() -> None:
    assert f"{RunState.FAILED}" == RunState.FAILED == "failed" and RunState("failed") is RunState.FAILED


def test_events_are_described_with_their_time_and_epochs_in_a_row_are_counted() -> None:
    started = {"event": "started", "time": 0.0, "host": "node1", "step": 0, "job": "", "token": "t"}
    epochs = [{"event": "epoch", "time": float(n), "epoch": n} for n in (1, 2, 3)]
    stopped = {"event": "stopped", "time": 1e18, "host": "node1", "why": "cancelled"}
    lines = list(describe_events([started, *epochs, stopped, epochs[0]], time.gmtime))
    assert lines == [
        EventLine(started, "1970-01-01 00:00:00", "started on node1: step 0"),
        EventLine(epochs[-1], "1970-01-01 00:00:03", "3 epochs done"),
        EventLine(stopped, "", "stopped: why cancelled"),
        EventLine(epochs[0], "1970-01-01 00:00:01", "1 epoch done"),
    ]


def test_times_are_local_where_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    try:
        (line,) = describe_events([{"event": "trained", "time": 0}])
    finally:
        monkeypatch.undo()
        time.tzset()
    assert line.time == "1970-01-01 02:00:00"


def test_a_long_field_is_shortened_to_one_line() -> None:
    text = format_event({"event": "failed", "why": "out of\n  memory " * 100})
    assert text.startswith(": why out of memory out of") and text.endswith("...") and len(text) == len(": why ") + 160
