"""The pages of runs as JSON that report.js draws when one is opened: a thousand of them cost a reader nothing before.

What all runs share (settings, versions, pictures, the list of conditions) is written once.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from galaxyhpc.conditions import described, is_condition, severities
from galaxyhpc.details import METRICS, Details
from galaxyhpc.galaxy10 import CLASSES
from galaxyhpc.page import rounded

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
    pairs = pd.concat([of.measured[["condition", "severity"]] for of in of_runs]) if of_runs else _nothing()
    pairs = pairs.drop_duplicates(ignore_index=True)
    curves = dict(list(training.groupby("run_id"))) if len(training) else {}
    shared = {
        "runs": runs["run_id"].tolist(),
        "classes": CLASSES,
        "metrics": METRICS,
        "pairs": [[name, severity, physical(name, severity)] for name, severity in pairs.to_numpy().tolist()],
        "settings": settings,
        "provenance": provenance,
        "pictures": {row: f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" for row, data in jpegs.items()},
    }
    pages: dict[str, Any] = {"shared": shared}
    for run in runs.to_dict("records"):
        page = {"label": run["label"], "seed": run["seed"], "reason": run["reason"], "curves": _curves(curves, run)}
        if run["run_id"] in found:
            page |= _packed(found[run["run_id"]], pairs, settings, provenance)
        pages[f"of-{run['run_id']}"] = page
    return pages


def _nothing() -> pd.DataFrame:
    return pd.DataFrame(columns=["condition", "severity"])


def _common(several: Iterable[dict[str, str]]) -> dict[str, str]:
    """Return the entries that all have."""
    first, *others = list(several) or [{}]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def physical(name: str, severity: float) -> str:
    """Say how severe a condition is in its own unit; nothing of clean galaxies or a severity of before."""
    known = name != "clean" and is_condition(name) and severity in severities(name)
    return described(name, severity) if known else ""


def _curves(curves: Mapping[Any, pd.DataFrame], run: Mapping[Any, Any]) -> dict[str, Any]:
    of_run = curves.get(run["run_id"])
    if of_run is None:
        return {}
    return {"epoch": of_run["epoch"].tolist()} | {name: rounded(of_run[name], 4) for name in CURVES}


def _packed(
    of: Details, pairs: pd.DataFrame, settings: Mapping[str, str], provenance: Mapping[str, str]
) -> dict[str, Any]:
    measured = pairs.merge(of.measured, on=["condition", "severity"], how="left")
    return {
        "settings": {key: value for key, value in of.settings.items() if key not in settings},
        "provenance": {key: value for key, value in of.provenance.items() if key not in provenance},
        "events": [[event.when, event.words, *filter(None, [event.trace])] for event in of.events],
        "measured": [rounded(measured[name], 4) for name in METRICS] if len(of.measured) else [],
        "confusion": [] if of.confusion is None else np.asarray(of.confusion).ravel().tolist(),
        "mistakes": [[mistake.row, mistake.truth, mistake.predicted, mistake.wrong] for mistake in of.mistakes],
    }
