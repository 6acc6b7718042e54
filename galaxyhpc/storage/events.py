"""events.jsonl: what happened to a run, one JSON line each, and the state that follows from it.

The file only grows; torn lines are skipped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galaxyhpc.storage.files import readable


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, skipping torn ones; an absent file has none."""
    return parse_lines(path.read_text(encoding="utf-8", errors="replace").split("\n")) if path.is_file() else []


def parse_lines(lines: list[str]) -> list[dict[str, Any]]:
    """Parse lines of JSON, skipping what is torn, empty, or nothing that this program writes."""
    try:
        found = json.loads(f"[{','.join(filter(None, lines))}]")  # at once is several times as fast as one by one
    except (ValueError, RecursionError):
        found = [value for line in lines for value in _whole(line)]
    return [sound for value in found if (sound := _sound(value)) is not None]


def _whole(line: str) -> list[Any]:
    try:
        return [json.loads(line)]
    except (ValueError, RecursionError):
        return []


_TEXTS = ("event", "host", "job", "executor", "token", "why", "cause", "trace", "device", "nodes")
_NUMBERS = ("time", "epoch", "step", "world", "pid", "rank", "seconds", "images", "micro_batch", "validation_accuracy")
_KINDS = dict.fromkeys(_TEXTS, str) | dict.fromkeys(_NUMBERS, (int, float)) | {"exclude": list}


def _sound(line: Any) -> dict[str, Any] | None:
    """Return a line whose known fields are of their kinds, texts made readable; None where one is not."""
    if not isinstance(line, dict):
        return None
    for name, value in line.items():
        if name in _KINDS and not isinstance(value, _KINDS[name]):
            return None
        if name in _NUMBERS and not -1e15 < value < 1e15:  # nor NaN
            return None
    return {name: readable(value) if isinstance(value, str) else value for name, value in line.items()}


@dataclass(frozen=True)
class State:
    """What a run's own records say: a name and, where there is one, the reason."""

    name: str  # planned, submitted, running, stopped, failed, trained, evaluated
    why: str = ""


_AFTER = {
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


def state_after(events: list[dict[str, Any]]) -> State:
    """See `state`."""
    found, begun, cause, trained = State("planned", "never submitted"), set(), "", False
    for event in events:
        name = _AFTER.get(event["event"])
        trained = trained or name == "trained"
        if event["event"] == "evaluation submitted" and trained:
            name = "trained"  # measured anew, after a failure or a stop
        if event["event"] in ("cancelled", "retried") and found.name == "evaluated":
            continue  # it was quicker
        if event["event"] == "stopped" and found == State("stopped", "cancelled"):
            continue  # which is why
        if name == "running":
            begun.add(str(event.get("job", "")).rpartition(".")[0])  # without the number of the start
        if name == "submitted" and str(event.get("job")) in begun:
            continue  # the job was quicker than the note of its submission
        if name is not None and not (name == found.name == "failed" and cause != "connection"):
            found, cause = State(name, str(event.get("why", ""))), str(event.get("cause", ""))
    return found


Record = dict[str, Any]


QUIET = ("event", "time", "host", "trace", "token")  # not worth a word in a line of history


def in_words(event: Record) -> str:
    """Say what belongs to an event: `: step 40, world 1`, with the host where that matters."""
    said = [
        f"{name} {_short(value)}" for name, value in event.items() if name not in QUIET and value not in ("", [], None)
    ]
    host = f" on {event['host']}" if event["event"] in ("started", "failed") and "host" in event else ""
    return f"{host}: {', '.join(said)}" if said else host


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 160 else f"{text[:157]}..."
