"""The pages of runs as JSON that report.js draws when one is opened: a thousand of them cost a reader nothing before.

What all runs share (settings, versions, pictures, the list of conditions) is written once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from galaxyhpc.analysis.misclassified import Mistake
from galaxyhpc.config.conditions import described, is_condition, severities
from galaxyhpc.config.schema import flat
from galaxyhpc.data.galaxy10 import CLASSES
from galaxyhpc.evaluation.metrics import METRICS
from galaxyhpc.evaluation.results import Pair
from galaxyhpc.report.page import data_uri, rounded
from galaxyhpc.storage.events import in_words
from galaxyhpc.storage.files import readable
from galaxyhpc.storage.run_dir import RunDir

UNIT = 1e-4
MEASURED = ("accuracy", "balanced_accuracy", "nll", "ece")
CURVES = ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy")


def run_pages(
    runs: pd.DataFrame, training: pd.DataFrame, of_runs: Sequence[Details], jpegs: Mapping[int, bytes]
) -> dict[str, Any]:
    """Return JSON by the id of the element it belongs into: `shared`, and `of-RUN_ID` for each run.

    Parameters
    ----------
    runs, training : of `Tables`
    of_runs : in any order
    jpegs : pictures by row of the data file
    """
    found = {of.run_id: of for of in of_runs}
    settings, provenance = _common(of.settings for of in of_runs), _common(of.provenance for of in of_runs)
    pairs = list(dict.fromkeys(pair for of in of_runs for pair in _pairs(of)))
    curves = _curves(training)
    shared = {
        "runs": runs["run_id"].tolist(),
        "classes": CLASSES,
        "unit": UNIT,
        "pairs": [[name, severity, physical(name, severity)] for name, severity in pairs],
        "settings": settings,
        "provenance": provenance,
        "pictures": {row: data_uri("jpeg", data) for row, data in jpegs.items()},
    }
    pages: dict[str, Any] = {"shared": shared}
    for run in runs.to_dict("records"):
        page = {"label": run["label"], "seed": run["seed"], "reason": run["reason"]}
        page |= {"curves": curves.get(run["run_id"], {})}
        if run["run_id"] in found:
            page |= _packed(found[run["run_id"]], pairs, settings, provenance)
        pages[f"of-{run['run_id']}"] = page
    return pages


def _pairs(of: Details) -> list[Pair]:
    return list(zip(of.measured["condition"].tolist(), of.measured["severity"].tolist(), strict=True))


def _whole(values: pd.Series[Any]) -> list[int | None]:
    """Return numbers in units of UNIT, which is the shortest JSON; None where they are not finite."""
    return [None if value is None else round(value) for value in rounded(values / UNIT, 0)]


def _common(several: Iterable[dict[str, str]]) -> dict[str, str]:
    """Return the entries that all have."""
    first, *others = list(several) or [{}]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def physical(name: str, severity: float) -> str:
    """Say how severe a condition is in its own unit; nothing of clean galaxies or a severity of before."""
    known = name != "clean" and is_condition(name) and severity in severities(name)
    return described(name, severity) if known else ""


def _curves(training: pd.DataFrame) -> dict[str, Any]:
    """Return the curves of each run."""
    if training.empty:
        return {}
    columns = {"epoch": training["epoch"].tolist()} | {name: _whole(training[name]) for name in CURVES}
    places = training.groupby("run_id", sort=False).indices
    return {
        str(run_id): {name: [values[i] for i in rows] for name, values in columns.items()}
        for run_id, rows in places.items()
    }


def _packed(
    of: Details, pairs: Sequence[Pair], settings: Mapping[str, str], provenance: Mapping[str, str]
) -> dict[str, Any]:
    place = {pair: row for row, pair in enumerate(_pairs(of))}
    rows = [place.get(pair, -1) for pair in pairs]
    measured = {name: [*_whole(of.measured[name]), None] for name in MEASURED}
    return {
        "settings": {key: value for key, value in of.settings.items() if key not in settings},
        "provenance": {key: value for key, value in of.provenance.items() if key not in provenance},
        "events": [[event.when, event.words, *filter(None, [event.trace])] for event in of.events],
        "measured": [[values[row] for row in rows] for values in measured.values()] if place else [],
        "confusion": [] if of.confusion is None else np.asarray(of.confusion).ravel().tolist(),
        "mistakes": [[mistake.row, mistake.truth, mistake.predicted, mistake.wrong] for mistake in of.mistakes],
    }


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
