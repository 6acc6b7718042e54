"""events.jsonl: one JSON line per event of a run, the state that follows from them, and their description in words.

The file only grows; torn lines are skipped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Any

from galaxyhpc.storage.files import sanitize

JsonDict = dict[str, Any]

MAX_VALUE_CHARS = 160
HIDDEN_EVENT_FIELDS = ("event", "time", "host", "trace", "token")  # left out of descriptions


def read_json_lines(path: Path) -> list[JsonDict]:
    """Read a file of JSON lines, skipping torn ones; an absent file has none."""
    return parse_json_lines(path.read_text(encoding="utf-8", errors="replace").split("\n")) if path.is_file() else []


def parse_json_lines(lines: list[str]) -> list[JsonDict]:
    """Parse lines of JSON, skipping torn and empty lines and records that this program does not write."""
    try:
        values = json.loads(f"[{','.join(filter(None, lines))}]")  # all at once: several times as fast as one by one
    except (ValueError, RecursionError):
        values = [value for line in lines for value in _parse_line(line)]
    return [record for value in values if (record := _validate(value)) is not None]


def _parse_line(line: str) -> list[Any]:
    try:
        return [json.loads(line)]
    except (ValueError, RecursionError):
        return []


_TEXT_FIELDS = ("event", "host", "job", "executor", "token", "why", "cause", "trace", "device", "nodes")
_NUMBER_FIELDS = (
    "time",
    "epoch",
    "step",
    "world",
    "pid",
    "rank",
    "seconds",
    "images",
    "micro_batch",
    "validation_accuracy",
    "validation_balanced_accuracy",
)
_FIELD_TYPES = dict.fromkeys(_TEXT_FIELDS, str) | dict.fromkeys(_NUMBER_FIELDS, (int, float)) | {"exclude": list}


def _validate(record: Any) -> JsonDict | None:
    """Return a record with printable texts; None where a known field has the wrong type or is out of range."""
    if not isinstance(record, dict):
        return None
    for name, value in record.items():
        if name in _FIELD_TYPES and not isinstance(value, _FIELD_TYPES[name]):
            return None
        if name in _NUMBER_FIELDS and not -1e15 < value < 1e15:  # nor NaN
            return None
    return {name: sanitize(value) if isinstance(value, str) else value for name, value in record.items()}


class RunState(StrEnum):
    """The state of a run: the first eight follow from its events alone, the others take Slurm's queue."""

    PLANNED = "planned"
    SUBMITTED = "submitted"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"
    TRAINED = "trained"
    EVALUATED = "evaluated"
    PREDICTED = "predicted"  # of a survey's task: it found no more unit
    WAITING = "waiting"  # its job is in the queue
    STARTING = "starting"  # its job runs and has not recorded a start
    EVALUATING = "evaluating"
    LOST = "lost"  # submitted or running by its events, but its job or process is gone


@dataclass(frozen=True)
class RecordedState:
    """The state that a run's events give, and the reason where there is one."""

    name: RunState
    reason: str = ""


_STATE_AFTER_EVENT = {
    "submitted": RunState.SUBMITTED,
    "started": RunState.RUNNING,
    "stopped": RunState.STOPPED,
    "cancelled": RunState.STOPPED,
    "retried": RunState.STOPPED,
    "failed": RunState.FAILED,
    "trained": RunState.TRAINED,
    "evaluating": RunState.TRAINED,
    "evaluated": RunState.EVALUATED,
    "predicted": RunState.PREDICTED,
}


def derive_state(events: Sequence[JsonDict]) -> RecordedState:
    """Derive the state from events, oldest first: the last one that changes it decides.

    A killed process leaves no event, so `running` means "no end is recorded". Of several processes that fail together
    the first gives the reason, unless it only lost the connection to another one.
    """
    current, cause, is_trained = RecordedState(RunState.PLANNED, "never submitted"), "", False
    started_jobs: set[str] = set()
    for event in events:
        state = _STATE_AFTER_EVENT.get(event["event"])
        is_trained = is_trained or state == RunState.TRAINED
        if event["event"] == "evaluation submitted" and is_trained:
            state = RunState.TRAINED  # evaluated again, after a failure or a stop
        if event["event"] in ("cancelled", "retried") and current.name == RunState.EVALUATED:
            continue  # the run finished first
        if event["event"] == "stopped" and current == RecordedState(RunState.STOPPED, "cancelled"):
            continue  # it stopped because it was cancelled
        if state == RunState.RUNNING:
            started_jobs.add(str(event.get("job", "")).rpartition(".")[0])  # without the number of the start
        if state == RunState.SUBMITTED and str(event.get("job")) in started_jobs:
            continue  # the job started before its submission was recorded
        if state is not None and not (state == current.name == RunState.FAILED and cause != "connection"):
            current, cause = RecordedState(state, str(event.get("why", ""))), str(event.get("cause", ""))
    return current


@dataclass(frozen=True)
class EventLine:
    """One line of a run's history: an event, or the last of several epochs in a row."""

    event: JsonDict
    time: str  # YYYY-MM-DD HH:MM:SS; empty where the event's time is not a date
    text: str


def describe_events(
    events: Sequence[JsonDict], to_time: Callable[[float], time.struct_time] = time.localtime
) -> Iterator[EventLine]:
    """Describe events in words, epochs in a row counted in one line; `to_time` is time.localtime or time.gmtime."""
    for is_epoch, group in groupby(events, key=lambda event: event["event"] == "epoch"):
        members = list(group)
        if is_epoch:
            text = f"{len(members)} epoch{'s' * (len(members) > 1)} done"
            yield EventLine(members[-1], format_time(members[-1], to_time), text)
            continue
        for event in members:
            yield EventLine(event, format_time(event, to_time), f"{event['event']}{format_event(event)}")


def format_time(event: JsonDict, to_time: Callable[[float], time.struct_time] = time.localtime) -> str:
    """Format an event's time as YYYY-MM-DD HH:MM:SS; empty where it is not a date."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", to_time(float(event["time"])))
    except (KeyError, TypeError, ValueError, OverflowError, OSError):  # no time, or no such year
        return ""


def format_event(event: JsonDict) -> str:
    """Format an event's fields, `: step 40, world 1`, with the host of a start or a failure."""
    fields = [
        f"{name} {_shorten(value)}"
        for name, value in event.items()
        if name not in HIDDEN_EVENT_FIELDS and value not in ("", [], None)
    ]
    host = f" on {event['host']}" if event["event"] in ("started", "failed") and "host" in event else ""
    return f"{host}: {', '.join(fields)}" if fields else host


def _shorten(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[: MAX_VALUE_CHARS - 3]}..."
