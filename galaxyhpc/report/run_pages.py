"""The pages of runs as JSON that report.js draws when one is opened: a thousand of them cost a reader nothing before.

What all runs share (settings, versions, pictures, the list of conditions) is written once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from galaxyhpc.analysis.misclassified import Misclassification
from galaxyhpc.config.conditions import describe_severity, get_severities, is_condition
from galaxyhpc.config.schema import flatten
from galaxyhpc.data.galaxy10 import CLASSES
from galaxyhpc.evaluation.metrics import METRICS
from galaxyhpc.evaluation.results import Pair
from galaxyhpc.report.page import make_data_uri, round_for_json
from galaxyhpc.storage.events import describe_events
from galaxyhpc.storage.files import sanitize
from galaxyhpc.storage.run_dir import RunDir

JSON_PRECISION = 1e-4
PAGE_METRICS = ("accuracy", "balanced_accuracy", "nll", "ece")
CURVE_COLUMNS = ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy")


def make_run_pages(
    runs: pd.DataFrame, training: pd.DataFrame, run_details: Sequence[RunDetails], jpegs: Mapping[int, bytes]
) -> dict[str, Any]:
    """Return JSON by the id of the element it belongs into: `shared`, and `of-RUN_ID` for each run.

    Parameters
    ----------
    runs, training : of `Tables`
    of_runs : in any order
    jpegs : pictures by row of the data file
    """
    found = {of.run_id: of for of in run_details}
    settings, provenance = (
        _find_shared_entries(of.settings for of in run_details),
        _find_shared_entries(of.provenance for of in run_details),
    )
    pairs = list(dict.fromkeys(pair for of in run_details for pair in _get_pairs(of)))
    curves = _collect_curves(training)
    shared = {
        "runs": runs["run_id"].tolist(),
        "classes": CLASSES,
        "unit": JSON_PRECISION,
        "pairs": [[name, severity, format_physical_severity(name, severity)] for name, severity in pairs],
        "settings": settings,
        "provenance": provenance,
        "pictures": {row: make_data_uri("jpeg", data) for row, data in jpegs.items()},
    }
    pages: dict[str, Any] = {"shared": shared}
    for run in runs.to_dict("records"):
        page = {"label": run["label"], "seed": run["seed"], "reason": run["reason"]}
        page |= {"curves": curves.get(run["run_id"], {})}
        if run["run_id"] in found:
            page |= _pack_run(found[run["run_id"]], pairs, settings, provenance)
        pages[f"of-{run['run_id']}"] = page
    return pages


def _get_pairs(details: RunDetails) -> list[Pair]:
    return list(
        zip(details.metrics_table["condition"].tolist(), details.metrics_table["severity"].tolist(), strict=True)
    )


def _quantize(values: pd.Series[Any]) -> list[int | None]:
    """Return numbers in units of UNIT, which is the shortest JSON; None where they are not finite."""
    return [None if value is None else round(value) for value in round_for_json(values / JSON_PRECISION, 0)]


def _find_shared_entries(mappings: Iterable[dict[str, str]]) -> dict[str, str]:
    """Return the entries that all have."""
    first, *others = list(mappings) or [{}]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def format_physical_severity(name: str, severity: float) -> str:
    """Say how severe a condition is in its own unit; nothing of clean galaxies or a severity of before."""
    known = name != "clean" and is_condition(name) and severity in get_severities(name)
    return describe_severity(name, severity) if known else ""


def _collect_curves(training: pd.DataFrame) -> dict[str, Any]:
    """Return the curves of each run."""
    if training.empty:
        return {}
    columns = {"epoch": training["epoch"].tolist()} | {name: _quantize(training[name]) for name in CURVE_COLUMNS}
    places = training.groupby("run_id", sort=False).indices
    return {
        str(run_id): {name: [values[i] for i in rows] for name, values in columns.items()}
        for run_id, rows in places.items()
    }


def _pack_run(
    details: RunDetails, pairs: Sequence[Pair], settings: Mapping[str, str], provenance: Mapping[str, str]
) -> dict[str, Any]:
    place = {pair: row for row, pair in enumerate(_get_pairs(details))}
    rows = [place.get(pair, -1) for pair in pairs]
    measured = {name: [*_quantize(details.metrics_table[name]), None] for name in PAGE_METRICS}
    return {
        "settings": {key: value for key, value in details.settings.items() if key not in settings},
        "provenance": {key: value for key, value in details.provenance.items() if key not in provenance},
        "events": [[event.time_utc, event.text, *filter(None, [event.traceback])] for event in details.events],
        "measured": [[values[row] for row in rows] for values in measured.values()] if place else [],
        "confusion": [] if details.confusion is None else np.asarray(details.confusion).ravel().tolist(),
        "mistakes": [
            [mistake.row, mistake.truth, mistake.predicted, mistake.error_fraction] for mistake in details.misclassified
        ],
    }


MAX_EVENTS = 60
MAX_TRACEBACK_LINES = 25


@dataclass(frozen=True)
class HistoryEvent:
    """What happened to a run, in words; `trace` is what a failure printed."""

    time_utc: str  # UTC
    text: str
    traceback: str = ""


@dataclass(frozen=True, eq=False)
class RunDetails:
    """What one run's directory says."""

    run_id: str
    settings: dict[str, str]  # dotted name: value
    provenance: dict[str, str]
    events: tuple[HistoryEvent, ...]
    metrics_table: pd.DataFrame  # condition, severity, METRICS
    confusion: NDArray[np.int64] | None  # (10, 10), rows are the truth; clean galaxies
    misclassified: tuple[Misclassification, ...]  # the worst first


def read_details(
    run: RunDir, counts: pd.DataFrame | None, misclassified: tuple[Misclassification, ...] = ()
) -> RunDetails:
    """Read a run's directory; whoever reports has its counts, with their METRICS, and its `mistakes` already."""
    table = pd.DataFrame(columns=["condition", "severity", *METRICS])
    confusion = None
    if counts is not None:
        table = counts[["condition", "severity", *METRICS]].reset_index(drop=True)
        clean = counts.loc[counts["condition"] == "clean", "confusion"]
        confusion = np.asarray(clean.iloc[0]) if len(clean) else None
    return RunDetails(
        run_id=run.run_id,
        settings=_read_flat_json(run, "config.json"),
        provenance=_read_flat_json(run, "provenance.json"),
        events=tuple(_list_recent_events(run.read_events())),
        metrics_table=table,
        confusion=confusion,
        misclassified=misclassified,
    )


def _read_flat_json(run: RunDir, name: str) -> dict[str, str]:
    """Read a file of settings as dotted names and values; an absent or damaged one has none."""
    try:
        found = json.loads((run.path / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: sanitize(value) for key, value in flatten(found).items()} if isinstance(found, dict) else {}


def _list_recent_events(events: Sequence[dict[str, Any]]) -> Iterator[HistoryEvent]:
    """Tell the events in words, epochs counted; of very many the first few and the last."""
    told = list(_describe_events(events))
    left = len(told) - MAX_EVENTS
    if left <= 0:
        yield from told
        return
    yield from told[: MAX_EVENTS // 3]
    yield HistoryEvent("", f"{left} more events")
    yield from told[MAX_EVENTS // 3 + left :]


def _describe_events(events: Sequence[dict[str, Any]]) -> Iterator[HistoryEvent]:
    last_failure = next((event for event in reversed(events) if event["event"] == "failed"), None)
    for line in describe_events(events, time.gmtime):
        is_last_failure = line.event is last_failure
        trace = str(line.event.get("trace", "")).splitlines()[-MAX_TRACEBACK_LINES:] if is_last_failure else []
        yield HistoryEvent(line.time, line.text, "\n".join(trace))
