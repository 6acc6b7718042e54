"""events.jsonl: what happened to a run, one JSON line each, and the state that follows from it.

The file only grows; torn lines are skipped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galaxyhpc.storage.files import sanitize


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, skipping torn ones; an absent file has none."""
    return parse_json_lines(path.read_text(encoding="utf-8", errors="replace").split("\n")) if path.is_file() else []


def parse_json_lines(lines: list[str]) -> list[dict[str, Any]]:
    """Parse lines of JSON, skipping what is torn, empty, or nothing that this program writes."""
    try:
        found = json.loads(f"[{','.join(filter(None, lines))}]")  # at once is several times as fast as one by one
    except (ValueError, RecursionError):
        found = [value for line in lines for value in _parse_line(line)]
    return [sound for value in found if (sound := _validate(value)) is not None]


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
)
_FIELD_TYPES = dict.fromkeys(_TEXT_FIELDS, str) | dict.fromkeys(_NUMBER_FIELDS, (int, float)) | {"exclude": list}


def _validate(record: Any) -> dict[str, Any] | None:
    """Return a line whose known fields are of their kinds, texts made readable; None where one is not."""
    if not isinstance(record, dict):
        return None
    for name, value in record.items():
        if name in _FIELD_TYPES and not isinstance(value, _FIELD_TYPES[name]):
            return None
        if name in _NUMBER_FIELDS and not -1e15 < value < 1e15:  # nor NaN
            return None
    return {name: sanitize(value) if isinstance(value, str) else value for name, value in record.items()}


@dataclass(frozen=True)
class RunState:
    """What a run's own records say: a name and, where there is one, the reason."""

    name: str  # planned, submitted, running, stopped, failed, trained, evaluated
    reason: str = ""


_STATE_AFTER_EVENT = {
    "submitted": "submitted",
    "started": "running",
    "stopped": "stopped",
    "cancelled": "stopped",
    "retried": "stopped",
    "failed": "failed",
    "trained": "trained",
    "evaluating": "trained",
    "evaluated": "evaluated",
}


def derive_state(events: list[dict[str, Any]]) -> RunState:
    """See `state`."""
    found, begun, cause, trained = RunState("planned", "never submitted"), set(), "", False
    for event in events:
        name = _STATE_AFTER_EVENT.get(event["event"])
        trained = trained or name == "trained"
        if event["event"] == "evaluation submitted" and trained:
            name = "trained"  # measured anew, after a failure or a stop
        if event["event"] in ("cancelled", "retried") and found.name == "evaluated":
            continue  # it was quicker
        if event["event"] == "stopped" and found == RunState("stopped", "cancelled"):
            continue  # which is why
        if name == "running":
            begun.add(str(event.get("job", "")).rpartition(".")[0])  # without the number of the start
        if name == "submitted" and str(event.get("job")) in begun:
            continue  # the job was quicker than the note of its submission
        if name is not None and not (name == found.name == "failed" and cause != "connection"):
            found, cause = RunState(name, str(event.get("why", ""))), str(event.get("cause", ""))
    return found


JsonDict = dict[str, Any]


HIDDEN_EVENT_FIELDS = ("event", "time", "host", "trace", "token")  # not worth a word in a line of history


def format_event(event: JsonDict) -> str:
    """Say what belongs to an event: `: step 40, world 1`, with the host where that matters."""
    said = [
        f"{name} {_shorten(value)}"
        for name, value in event.items()
        if name not in HIDDEN_EVENT_FIELDS and value not in ("", [], None)
    ]
    host = f" on {event['host']}" if event["event"] in ("started", "failed") and "host" in event else ""
    return f"{host}: {', '.join(said)}" if said else host


def _shorten(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 160 else f"{text[:157]}..."
