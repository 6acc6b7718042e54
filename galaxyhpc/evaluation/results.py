"""The tables on disk of one run: predictions.h5 (logits of every galaxy) and results.csv (counts).

results.csv follows from predictions.h5 and is written last: what it lists is complete. Each repeats the hash
of the weights and of the data and is believed only where it agrees with the other. A damaged file counts as
absent, which costs a recomputation and nothing else.

    results.csv     one row per (condition, severity); confusion is 10 x 10 integers, row by row, rows are the
                    truth; bins is 15 x (galaxies, correct, sum of confidences); both separated by spaces;
                    the SCALED columns are of logits divided by the temperature: empty until it is known, and
                    absent in files of before
    predictions.h5  rows (n,), labels (n,), groups (n,), condition (K,), severity (K,), logits (K, n, 10) and
                    predicted (K, n), which spares a bootstrap over 1,000 runs the logits; all with checksums;
                    and, as an attribute, the temperature, once all is measured (files of before have none)
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from galaxyhpc.evaluation.metrics import BINS, CLASSES, Counts, count
from galaxyhpc.storage.files import atomic_write, write_text
from galaxyhpc.storage.run_dir import RunDir

SCHEMA = 1
Pair = tuple[str, float]  # a condition and its severity
CLEAN: Pair = ("clean", 0.0)

log = logging.getLogger(__name__)

_BEFORE = (
    *("run_id", "condition", "severity", "n", "correct", "nll_sum", "brier_sum", "confusion", "bins"),
    *("weights", "fingerprint", "generated"),
)
RAW = ("nll_sum", "brier_sum", "bins")
SCALED = ("nll_scaled_sum", "brier_scaled_sum", "bins_scaled")
COLUMNS = (*_BEFORE, "temperature", *SCALED)
_COMMON = ["rows", "labels", "groups", "weights", "fingerprint", "generated"]
_DAMAGE: tuple[type[Exception], ...] = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
_DAMAGE += (RuntimeError, MemoryError)


@dataclass(frozen=True, eq=False)
class Measured:
    """What a run said about n test galaxies under each condition."""

    rows: NDArray[np.int32]  # (n,) row of the galaxy in the data file
    labels: NDArray[np.uint8]  # (n,) truth, 0 to 9
    groups: NDArray[np.int32]  # (n,) sky group; frames of one group overlap
    logits: dict[Pair, NDArray[np.float32]]  # (n, 10) each
    weights: str  # SHA-256 of best.pt
    fingerprint: str  # of the data
    generated: bool  # demo galaxies
    temperature: float | None = None  # that the logits are divided by (`calibration`), once it is found


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predicted classes alone; the other fields are those of `Measured`."""

    rows: NDArray[np.int32]
    labels: NDArray[np.uint8]
    groups: NDArray[np.int32]
    predicted: dict[Pair, NDArray[np.uint8]]  # (n,) each
    weights: str
    fingerprint: str
    generated: bool
    temperature: float | None


def save(run: RunDir, measured: Measured) -> None:
    """Write both files of a run, replacing what was there."""
    before = read_counts(run)
    if before is not None and not _same_source(before, measured):
        run.results_file.unlink(missing_ok=True)  # killed below, it would pass for the counts of other weights
    with atomic_write(run.predictions_file) as aside:
        _write_predictions(aside, run, measured)
    write_text(run.results_file, _table(run, measured).to_csv(index=False))


def load(run: RunDir, weights: str | None = None, fingerprint: str | None = None) -> Measured | None:
    """Read what was measured already, or None; only pairs on which both files agree.

    With `weights` or `fingerprint` given, results of other weights or other galaxies count as none.
    """
    table, found = read_counts(run), _read(run, "logits")
    if table is None or found is None or read_predictions(run) is None:
        return None
    common, logits = found
    measured = Measured(**common, logits=logits)
    if not _same_source(table, measured):
        log.warning("%s: not made from predictions.h5 beside it; measuring afresh", run.results_file)
        return None
    if weights not in (None, measured.weights) or fingerprint not in (None, measured.fingerprint):
        log.warning("%s: of other weights or other galaxies; measuring afresh", run.results_file)
        return None
    kept = {pair: logits[pair] for pair in _agreeing(run, table, measured)}
    return Measured(**common, logits=kept) if kept else None


def read_counts(run: RunDir) -> pd.DataFrame | None:
    """Read results.csv alone, with confusion as (10, 10) and bins as (15, 3) arrays; None if not there.

    Where no temperature was known yet, it and all SCALED counts are nan.
    """
    if not run.results_file.exists():
        return None
    try:
        return _parse(run)
    except _DAMAGE as error:
        _damaged(run.results_file, error)
        return None


def read_predictions(run: RunDir) -> Predictions | None:
    """Read predictions.h5 without its logits; None if not there."""
    found = _read(run, "predicted")
    return None if found is None else Predictions(**found[0], predicted=found[1])


def counts(table: pd.DataFrame, scaled: bool = False) -> Counts:
    """Stack the rows of `read_counts`, of one run or many, into Counts with a leading axis.

    With `scaled` those of the logits divided by the temperature, which give another nll, brier and ece, or nan.
    """
    nll_sum, brier_sum, bins = SCALED if scaled else RAW
    plain = {"n": table["n"].to_numpy(), "correct": table["correct"].to_numpy()}
    sums = {"nll_sum": table[nll_sum].to_numpy(), "brier_sum": table[brier_sum].to_numpy()}
    confusion = np.concatenate([np.empty((0, CLASSES), np.int64), *table["confusion"]]).reshape(-1, CLASSES, CLASSES)
    of_bins = np.concatenate([np.empty((0, 3)), *table[bins]]).reshape(-1, BINS, 3)
    return Counts(**plain, **sums, confusion=confusion, bins=of_bins)


def _damaged(path: Path, error: BaseException) -> None:
    log.warning("%s: damaged, taken for absent: %s", path, " ".join(str(error).split())[:200])


def _same_source(table: pd.DataFrame, measured: Measured) -> bool:
    first = table.iloc[0]
    return bool(first["weights"] == measured.weights and first["fingerprint"] == measured.fingerprint)


def _agreeing(run: RunDir, table: pd.DataFrame, measured: Measured) -> list[Pair]:
    """Pairs whose row is what their logits give, to the digits written."""
    again = _table(run, measured).set_index(["condition", "severity"])
    kept, written = [], table.set_index(["condition", "severity"])
    for pair in written.index.intersection(again.index):
        if _same_counts(written.loc[pair], again.loc[pair]):
            kept.append(pair)
        else:
            log.warning("%s: %s %g does not follow from predictions.h5", run.results_file, *pair)
    return kept


def _same_counts(written: pd.Series[Any], again: pd.Series[Any]) -> bool:
    """Whether two rows say the same; the scaled counts, where both have a temperature."""
    numbers, arrays = ["n", "correct", "nll_sum", "brier_sum"], ["confusion", "bins"]
    if not pd.isna([written["temperature"], again["temperature"]]).any():
        numbers, arrays = [*numbers, "temperature", *SCALED[:2]], [*arrays, SCALED[2]]
    return np.allclose(written[numbers].to_numpy(float), again[numbers].to_numpy(float), rtol=1e-9) and all(
        np.allclose(written[name].ravel(), _numbers([again[name]])[0], rtol=1e-9) for name in arrays
    )


def _table(run: RunDir, measured: Measured) -> pd.DataFrame:
    """Results.csv as it will stand on disk."""
    rows = []
    for (condition, severity), logits in measured.logits.items():
        c = count(logits, measured.labels)
        row = {"run_id": run.run_id, "condition": condition, "severity": float(severity)}
        row |= {"n": int(c.n), "correct": int(c.correct), "confusion": _text(c.confusion)}
        row |= dict(zip(RAW, map(_text, (c.nll_sum, c.brier_sum, c.bins)), strict=True))
        if measured.temperature is not None:
            c = count(logits, measured.labels, measured.temperature)
            row |= dict(zip(SCALED, map(_text, (c.nll_sum, c.brier_sum, c.bins)), strict=True))
            row["temperature"] = repr(measured.temperature)
        rows.append(row)
    source = {name: getattr(measured, name) for name in ("weights", "fingerprint", "generated")}
    return pd.DataFrame(rows).assign(**source).reindex(columns=list(COLUMNS))


def _text(numbers: NDArray[Any]) -> str:
    return " ".join(f"{number:.12g}" for number in numbers.ravel())


def _parse(run: RunDir) -> pd.DataFrame:
    """Read results.csv and check that each row is possible (by hand: pandas and csv take longer per file)."""
    header, *rows = (line.split(",") for line in run.results_file.read_text("utf-8").rstrip("\n").split("\n"))
    if tuple(header) not in (COLUMNS, _BEFORE) or not rows:
        raise ValueError(f"{len(rows)} rows of {', '.join(header)}; wanted are {', '.join(COLUMNS)}")
    column = dict.fromkeys(COLUMNS, ("",) * len(rows)) | dict(zip(header, zip(*rows, strict=True), strict=True))
    if set(column["run_id"]) != {run.run_id}:
        raise ValueError(f"it is of run {column['run_id'][0]}")
    one_source = all(len(set(column[name])) == 1 for name in ("weights", "fingerprint", "generated", "temperature"))
    if len(set(zip(column["condition"], column["severity"], strict=True))) < len(rows) or not one_source:
        raise ValueError("a condition stands twice, or the rows are of several weights")
    return pd.DataFrame(column | _checked(column))


def _checked(column: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Turn columns of text into numbers and arrays that do not contradict one another."""
    n, correct = (np.array(column[name], dtype=np.int64) for name in ("n", "correct"))
    confusion = _numbers(column["confusion"], np.int64).reshape(-1, CLASSES, CLASSES)
    whole = (confusion.sum((1, 2)) == n) & (np.trace(confusion, axis1=1, axis2=2) == correct)
    if not whole.all() or not ((confusion >= 0) & (confusion <= n[:, None, None])).all():
        raise ValueError("the counts contradict one another")
    generated = [{"True": True, "False": False}[text] for text in column["generated"]]
    plain = {"n": n, "correct": correct, "confusion": list(confusion), "generated": generated}
    plain["severity"] = np.array(column["severity"], dtype=np.float64)
    return plain | _sums(column, RAW, n, correct) | _scaled(column, n, correct)


def _scaled(column: dict[str, tuple[str, ...]], n: NDArray[np.int64], correct: NDArray[np.int64]) -> dict[str, Any]:
    """The temperature and the counts after scaling; nan where there are none."""
    nothing = np.full(len(n), np.nan)
    if not any("".join(column[name]) for name in ("temperature", *SCALED)):
        bins = list(np.full((len(n), BINS, 3), np.nan))
        return {"temperature": nothing, SCALED[0]: nothing, SCALED[1]: nothing, SCALED[2]: bins}
    temperature = float(column["temperature"][0])
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature}")
    return {"temperature": np.full(len(n), temperature)} | _sums(column, SCALED, n, correct)


def _sums(
    column: dict[str, tuple[str, ...]], names: tuple[str, str, str], n: NDArray[np.int64], correct: NDArray[np.int64]
) -> dict[str, Any]:
    """Read two columns of sums and one of bins."""
    sums = np.array([column[name] for name in names[:2]], dtype=np.float64)
    bins = _numbers(column[names[2]]).reshape(-1, BINS, 3)
    if not ((bins[..., 0].sum(1) == n) & (bins[..., 1].sum(1) == correct)).all():
        raise ValueError("the counts contradict one another")
    if not (np.isfinite(sums).all() and np.isfinite(bins).all()):
        raise ValueError("sums that are none")
    return dict(zip(names, (*sums, list(bins)), strict=True))


def _numbers(texts: Any, dtype: type = np.float64) -> NDArray[Any]:
    """Parse texts of equally many numbers into (texts, numbers)."""
    if not all(text.strip() for text in texts):
        raise ValueError("numbers are missing")
    return np.loadtxt(list(texts), dtype=dtype, ndmin=2, comments=None)


def _write_predictions(path: Path, run: RunDir, measured: Measured) -> None:
    logits = np.stack(list(measured.logits.values())).astype(np.float32)
    arrays = {
        "rows": measured.rows.astype(np.int32),
        "labels": measured.labels.astype(np.uint8),
        "groups": measured.groups.astype(np.int32),
        "condition": np.array([name for name, _ in measured.logits], dtype="S"),
        "severity": np.array([severity for _, severity in measured.logits], dtype=np.float64),
        "logits": logits,
        "predicted": logits.argmax(-1).astype(np.uint8),
    }
    with h5py.File(path, "w", libver="v110", locking=False) as file:  # v110 has checksums of metadata too
        file.attrs.update(schema=SCHEMA, run_id=run.run_id, weights=measured.weights)
        file.attrs.update(fingerprint=measured.fingerprint, generated=measured.generated)
        if measured.temperature is not None:
            file.attrs["temperature"] = measured.temperature
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=array.shape, fletcher32=True)


def _read(run: RunDir, name: str) -> tuple[dict[str, Any], dict[Pair, NDArray[Any]]] | None:
    """Read what all pairs share, and one dataset pair by pair."""
    if not run.predictions_file.exists():
        return None
    try:  # the file appears whole, so that it needs no lock, which some cluster file systems refuse
        with h5py.File(run.predictions_file, "r", locking=False) as file:
            return _contents(file, run, name)
    except _DAMAGE as error:
        _damaged(run.predictions_file, error)
        return None


def _contents(file: h5py.File, run: RunDir, name: str) -> tuple[dict[str, Any], dict[Pair, NDArray[Any]]]:
    if file.attrs["schema"] != SCHEMA or file.attrs["run_id"] != run.run_id:
        raise ValueError(f"schema {file.attrs['schema']} of run {file.attrs['run_id']}")
    common = {key: _whole(file[key]) if key in file else file.attrs[key] for key in _COMMON}
    common |= {"generated": bool(common["generated"]), "weights": str(common["weights"])}
    common["temperature"] = _temperature(file)
    names, severities, values = np.char.decode(_whole(file["condition"])), _whole(file["severity"]), _whole(file[name])
    n = len(common["rows"])
    shapes = {common["rows"].shape, common["labels"].shape, common["groups"].shape, values[0].shape[:1]}
    if shapes != {(n,)} or values.ndim != {"logits": 3, "predicted": 2}[name] or common["labels"].max() >= CLASSES:
        raise ValueError(f"arrays of {values.shape} for {n} galaxies")
    return common, dict(zip(zip(names.tolist(), severities.tolist(), strict=True), values, strict=True))


def _temperature(file: h5py.File) -> float | None:
    if "temperature" not in file.attrs:
        return None
    found = float(file.attrs["temperature"])
    if not 0.0 < found < math.inf:
        raise ValueError(f"temperature {found}")
    return found


def _whole(data: h5py.Dataset) -> NDArray[Any]:
    """Read an array that is in the file as a whole: one without its chunks may have any size in memory."""
    if data.id.get_storage_size() < data.nbytes:
        raise ValueError(f"{data.name}: {data.id.get_storage_size()} bytes for {data.nbytes}")
    found: NDArray[Any] = data[:]
    return found
