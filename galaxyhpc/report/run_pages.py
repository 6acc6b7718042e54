"""The pages of runs as JSON that report.js draws when one is opened: a thousand of them cost a reader nothing before.

What all runs share (settings, versions, pictures, the list of conditions) is written once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from galaxyhpc.config.conditions import described, is_condition, severities
from galaxyhpc.data.galaxy10 import CLASSES
from galaxyhpc.details import Details
from galaxyhpc.evaluation.results import Pair
from galaxyhpc.report.page import data_uri, rounded

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
