"""The pages of runs as JSON; report.js draws a page when it is opened, so a thousand of them load at no cost.

Entries that all runs share (settings, versions, images, the list of conditions) are written once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from galaxyhpc.analysis.misclassified import Misclassification
from galaxyhpc.config.conditions import describe_severity, get_severities, is_condition
from galaxyhpc.config.schema import flatten
from galaxyhpc.evaluation.metrics import METRICS
from galaxyhpc.evaluation.results import Pair, to_dense
from galaxyhpc.report.page import make_data_uri, round_for_json
from galaxyhpc.storage.events import describe_events
from galaxyhpc.storage.files import sanitize
from galaxyhpc.storage.run_dir import RunDir

JSON_PRECISION = 1e-4
MAX_MATRIX_CLASSES = 40  # a run with more has a list of pairs instead of the matrix
MAX_CONFUSED_PAIRS = 100  # in that list
PAGE_METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "nll", "ece")
MAX_EVENTS = 60  # of a run's history
MAX_TRACEBACK_LINES = 25
CURVE_COLUMNS = ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy")


def make_run_pages(
    runs: pd.DataFrame,
    training: pd.DataFrame,
    run_details: Sequence[RunDetails],
    jpegs: Mapping[int, bytes],
    class_names: Sequence[str],
    galaxy_names: Mapping[int, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return JSON by the id of its script element: `shared`, and `run-data-RUN_ID` for each run.

    Parameters
    ----------
    runs, training : of `Tables`
    run_details : in any order
    jpegs : images by row of the data file
    class_names : in the order of the labels
    galaxy_names : by row of the data file
    """
    details = {run.run_id: run for run in run_details}
    settings = _find_shared_entries(run.settings for run in run_details)
    provenance = _find_shared_entries(run.provenance for run in run_details)
    pairs = list(dict.fromkeys(pair for run in run_details for pair in _get_pairs(run)))
    rows = sorted({galaxy.row for run in run_details for galaxy in run.misclassified} & galaxy_names.keys())
    curves = _collect_curves(training)
    shared = {
        "runs": runs["run_id"].tolist(),
        "classes": list(class_names),
        "unit": JSON_PRECISION,
        "pairs": [[name, severity, format_physical_severity(name, severity)] for name, severity in pairs],
        "settings": settings,
        "provenance": provenance,
        "images": {row: make_data_uri("jpeg", jpeg) for row, jpeg in jpegs.items()},
        "names": {row: galaxy_names[row] for row in rows},
    }
    pages: dict[str, Any] = {"shared": shared}
    for run in runs.to_dict("records"):
        fold = f", fold {run['fold']}" if runs["fold"].nunique() > 1 else ""
        page = {"label": run["label"] + fold, "seed": run["seed"], "reason": run["reason"]}
        page |= {"curves": curves.get(run["run_id"], {})}
        if run["run_id"] in details:
            page |= _pack_run(details[run["run_id"]], pairs, settings, provenance)
        pages[f"run-data-{run['run_id']}"] = page
    return pages


def _get_pairs(details: RunDetails) -> list[Pair]:
    return list(
        zip(details.metrics_table["condition"].tolist(), details.metrics_table["severity"].tolist(), strict=True)
    )


def _quantize(values: pd.Series[Any]) -> list[int | None]:
    """Return numbers in units of JSON_PRECISION, the shortest JSON; None where they are not finite."""
    return [None if value is None else round(value) for value in round_for_json(values / JSON_PRECISION, 0)]


def _find_shared_entries(mappings: Iterable[dict[str, str]]) -> dict[str, str]:
    """Return the entries that all mappings have."""
    first, *others = list(mappings) or [{}]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def format_physical_severity(name: str, severity: float) -> str:
    """Describe a severity in its physical unit; empty for clean galaxies and severities that no longer exist."""
    is_known = name != "clean" and is_condition(name) and severity in get_severities(name)
    return describe_severity(name, severity) if is_known else ""


def _collect_curves(training: pd.DataFrame) -> dict[str, Any]:
    """Return the learning curves of each run, by run_id and column."""
    if training.empty:
        return {}
    columns = {"epoch": training["epoch"].tolist()} | {name: _quantize(training[name]) for name in CURVE_COLUMNS}
    indices = training.groupby("run_id", sort=False).indices
    return {
        str(run_id): {name: [values[i] for i in run_indices] for name, values in columns.items()}
        for run_id, run_indices in indices.items()
    }


def _pack_run(
    details: RunDetails, pairs: Sequence[Pair], settings: Mapping[str, str], provenance: Mapping[str, str]
) -> dict[str, Any]:
    """Return the JSON of a run: what it does not share with all runs; its metrics in the order of `pairs`."""
    index = {pair: n for n, pair in enumerate(_get_pairs(details))}
    indices = [index.get(pair, -1) for pair in pairs]
    metrics = [[*_quantize(details.metrics_table[name]), None] for name in PAGE_METRICS]  # index -1: not measured
    return {
        "settings": {key: value for key, value in details.settings.items() if key not in settings},
        "provenance": {key: value for key, value in details.provenance.items() if key not in provenance},
        "events": [[event.time_utc, event.text, *filter(None, [event.traceback])] for event in details.events],
        "metrics": [[values[n] for n in indices] for values in metrics] if index else [],
        "confusion": [] if details.confusion is None else _pack_confusion(details.confusion),
        "misclassified": [[g.row, g.truth, g.predicted, g.error_fraction] for g in details.misclassified],
    }


def _pack_confusion(confusion: NDArray[np.int64]) -> list[Any]:
    """Return a confusion matrix row by row, or [truth, predicted, galaxies] of the most confused pairs."""
    if len(confusion) <= MAX_MATRIX_CLASSES:
        return list(confusion.ravel().tolist())
    errors = confusion * ~np.eye(len(confusion), dtype=bool)
    truth, predicted = np.nonzero(errors)
    order = np.argsort(-errors[truth, predicted], kind="stable")[:MAX_CONFUSED_PAIRS]
    return list(np.stack([truth, predicted, errors[truth, predicted]], axis=1)[order].tolist())


@dataclass(frozen=True)
class HistoryEvent:
    """An event of a run as text, with the traceback of a failure."""

    time_utc: str  # 2026-01-02 03:04:05; empty if unknown
    text: str
    traceback: str = ""


@dataclass(frozen=True, eq=False)
class RunDetails:
    """The contents of one run's directory."""

    run_id: str
    settings: dict[str, str]  # dotted name -> value
    provenance: dict[str, str]
    events: tuple[HistoryEvent, ...]
    metrics_table: pd.DataFrame  # condition, severity, METRICS
    confusion: NDArray[np.int64] | None  # (K, K) counts on clean galaxies; rows are the truth
    misclassified: tuple[Misclassification, ...]  # those wrong under most conditions first


def read_details(
    run: RunDir, counts: pd.DataFrame | None, misclassified: tuple[Misclassification, ...] = ()
) -> RunDetails:
    """Read a run's directory; `counts`, with their METRICS, and `misclassified` are read already."""
    table = pd.DataFrame(columns=["condition", "severity", *METRICS])
    confusion = None
    if counts is not None:
        table = counts[["condition", "severity", *METRICS]].reset_index(drop=True)
        clean = counts.loc[counts["condition"] == "clean", "confusion"]
        confusion = to_dense(clean.iloc[0]) if len(clean) else None
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
    """Read a JSON file of settings as dotted names and values; empty if the file is missing or damaged."""
    try:
        settings = json.loads((run.path / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: sanitize(value) for key, value in flatten(settings).items()} if isinstance(settings, dict) else {}


def _list_recent_events(events: Sequence[dict[str, Any]]) -> Iterator[HistoryEvent]:
    """Yield the events as text, successive epochs as one; of more than MAX_EVENTS only the first and last."""
    history = list(_describe_events(events))
    num_left_out = len(history) - MAX_EVENTS
    if num_left_out <= 0:
        yield from history
        return
    yield from history[: MAX_EVENTS // 3]
    yield HistoryEvent("", f"{num_left_out} more events")
    yield from history[MAX_EVENTS // 3 + num_left_out :]


def _describe_events(events: Sequence[dict[str, Any]]) -> Iterator[HistoryEvent]:
    last_failure = next((event for event in reversed(events) if event["event"] == "failed"), None)
    for line in describe_events(events, time.gmtime):
        is_last_failure = line.event is last_failure
        trace = str(line.event.get("trace", "")).splitlines()[-MAX_TRACEBACK_LINES:] if is_last_failure else []
        yield HistoryEvent(line.time, line.text, "\n".join(trace))
