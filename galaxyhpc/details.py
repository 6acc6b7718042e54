"""What the page of one run shows: its settings, provenance, history, measurements and hardest galaxies.

All of it comes from the run's own directory; what is damaged or absent is left empty, for a page is no check.
Times are in UTC, so that the same run gives the same page everywhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from galaxyhpc.analysis.misclassified import Mistake
from galaxyhpc.config.schema import flat
from galaxyhpc.evaluation.metrics import METRICS
from galaxyhpc.storage.events import in_words
from galaxyhpc.storage.files import readable
from galaxyhpc.storage.run_dir import RunDir

MOST_EVENTS = 60
TRACE_LINES = 25


@dataclass(frozen=True)
class Event:
    """What happened to a run, in words; `trace` is what a failure printed."""

    when: str  # UTC
    words: str
    trace: str = ""


@dataclass(frozen=True, eq=False)
class Details:
    """What one run's directory says."""

    run_id: str
    settings: dict[str, str]  # dotted name: value
    provenance: dict[str, str]
    events: tuple[Event, ...]
    measured: pd.DataFrame  # condition, severity, METRICS
    confusion: NDArray[np.int64] | None  # (10, 10), rows are the truth; clean galaxies
    mistakes: tuple[Mistake, ...]  # the worst first


def read(run: RunDir, counts: pd.DataFrame | None, wrong: tuple[Mistake, ...] = ()) -> Details:
    """Read a run's directory; whoever reports has its counts, with their METRICS, and its `mistakes` already."""
    table = pd.DataFrame(columns=["condition", "severity", *METRICS])
    confusion = None
    if counts is not None:
        table = counts[["condition", "severity", *METRICS]].reset_index(drop=True)
        clean = counts.loc[counts["condition"] == "clean", "confusion"]
        confusion = np.asarray(clean.iloc[0]) if len(clean) else None
    return Details(
        run_id=run.run_id,
        settings=_object(run, "config.json"),
        provenance=_object(run, "provenance.json"),
        events=tuple(_events(run.events())),
        measured=table,
        confusion=confusion,
        mistakes=wrong,
    )


def _object(run: RunDir, name: str) -> dict[str, str]:
    """Read a file of settings as dotted names and values; an absent or damaged one has none."""
    try:
        found = json.loads((run.path / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: readable(value) for key, value in flat(found).items()} if isinstance(found, dict) else {}


def _events(events: Sequence[dict[str, Any]]) -> Iterator[Event]:
    """Tell the events in words, epochs counted; of very many the first few and the last."""
    told = list(_told(events))
    left = len(told) - MOST_EVENTS
    if left <= 0:
        yield from told
        return
    yield from told[: MOST_EVENTS // 3]
    yield Event("", f"{left} more events")
    yield from told[MOST_EVENTS // 3 + left :]


def _told(events: Sequence[dict[str, Any]]) -> Iterator[Event]:
    last_failure = next((event for event in reversed(events) if event["event"] == "failed"), None)
    for epochs, together in groupby(events, key=lambda event: event["event"] == "epoch"):
        some = list(together)
        if epochs:
            yield Event(_when(some[-1]), f"{len(some)} epoch{'s' * (len(some) > 1)} done")
            continue
        for event in some:
            trace = str(event.get("trace", "")).splitlines()[-TRACE_LINES:] if event is last_failure else []
            yield Event(_when(event), f"{event['event']}{in_words(event)}", "\n".join(trace))


def _when(event: dict[str, Any]) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event["time"]))
    except (ValueError, OverflowError, OSError):  # no such year
        return ""
