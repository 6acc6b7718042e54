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

from galaxyhpc.evaluation.metrics import NUM_BINS, NUM_CLASSES, Counts, compute_counts
from galaxyhpc.storage.files import atomic_write, write_text
from galaxyhpc.storage.run_dir import RunDir

SCHEMA = 1
Pair = tuple[str, float]  # a condition and its severity
CLEAN: Pair = ("clean", 0.0)

log = logging.getLogger(__name__)

_OLD_COLUMNS = (
    *("run_id", "condition", "severity", "n", "correct", "nll_sum", "brier_sum", "confusion", "bins"),
    *("weights", "fingerprint", "generated"),
)
RAW_COLUMNS = ("nll_sum", "brier_sum", "bins")
SCALED_COLUMNS = ("nll_scaled_sum", "brier_scaled_sum", "bins_scaled")
COLUMNS = (*_OLD_COLUMNS, "temperature", *SCALED_COLUMNS)
_SHARED_FIELDS = ["rows", "labels", "groups", "weights", "fingerprint", "generated"]
_READ_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
)
_READ_ERRORS += (RuntimeError, MemoryError)


@dataclass(frozen=True, eq=False)
class RunLogits:
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


def save(run: RunDir, run_logits: RunLogits) -> None:
    """Write both files of a run, replacing what was there."""
    before = read_counts(run)
    if before is not None and not _is_same_source(before, run_logits):
        run.results_file.unlink(missing_ok=True)  # killed below, it would pass for the counts of other weights
    with atomic_write(run.predictions_file) as aside:
        _write_predictions(aside, run, run_logits)
    write_text(run.results_file, _make_table(run, run_logits).to_csv(index=False))


def load(run: RunDir, weights: str | None = None, fingerprint: str | None = None) -> RunLogits | None:
    """Read what was measured already, or None; only pairs on which both files agree.

    With `weights` or `fingerprint` given, results of other weights or other galaxies count as none.
    """
    table, found = read_counts(run), _read_predictions_file(run, "logits")
    if table is None or found is None or read_predictions(run) is None:
        return None
    common, logits = found
    measured = RunLogits(**common, logits=logits)
    if not _is_same_source(table, measured):
        log.warning("%s: not made from predictions.h5 beside it; measuring afresh", run.results_file)
        return None
    if weights not in (None, measured.weights) or fingerprint not in (None, measured.fingerprint):
        log.warning("%s: of other weights or other galaxies; measuring afresh", run.results_file)
        return None
    kept = {pair: logits[pair] for pair in _find_consistent_pairs(run, table, measured)}
    return RunLogits(**common, logits=kept) if kept else None


def read_counts(run: RunDir) -> pd.DataFrame | None:
    """Read results.csv alone, with confusion as (10, 10) and bins as (15, 3) arrays; None if not there.

    Where no temperature was known yet, it and all SCALED counts are nan.
    """
    if not run.results_file.exists():
        return None
    try:
        return _read_results_file(run)
    except _READ_ERRORS as error:
        _log_damaged(run.results_file, error)
        return None


def read_predictions(run: RunDir) -> Predictions | None:
    """Read predictions.h5 without its logits; None if not there."""
    found = _read_predictions_file(run, "predicted")
    return None if found is None else Predictions(**found[0], predicted=found[1])


def to_counts(table: pd.DataFrame, is_scaled: bool = False) -> Counts:
    """Stack the rows of `read_counts`, of one run or many, into Counts with a leading axis.

    With `scaled` those of the logits divided by the temperature, which give another nll, brier and ece, or nan.
    """
    nll_sum, brier_sum, bins = SCALED_COLUMNS if is_scaled else RAW_COLUMNS
    plain = {"n": table["n"].to_numpy(), "correct": table["correct"].to_numpy()}
    sums = {"nll_sum": table[nll_sum].to_numpy(), "brier_sum": table[brier_sum].to_numpy()}
    confusion = np.concatenate([np.empty((0, NUM_CLASSES), np.int64), *table["confusion"]]).reshape(
        -1, NUM_CLASSES, NUM_CLASSES
    )
    of_bins = np.concatenate([np.empty((0, 3)), *table[bins]]).reshape(-1, NUM_BINS, 3)
    return Counts(**plain, **sums, confusion=confusion, bins=of_bins)


def _log_damaged(path: Path, error: BaseException) -> None:
    log.warning("%s: damaged, taken for absent: %s", path, " ".join(str(error).split())[:200])


def _is_same_source(table: pd.DataFrame, run_logits: RunLogits) -> bool:
    first = table.iloc[0]
    return bool(first["weights"] == run_logits.weights and first["fingerprint"] == run_logits.fingerprint)


def _find_consistent_pairs(run: RunDir, table: pd.DataFrame, run_logits: RunLogits) -> list[Pair]:
    """Pairs whose row is what their logits give, to the digits written."""
    again = _make_table(run, run_logits).set_index(["condition", "severity"])
    kept, written = [], table.set_index(["condition", "severity"])
    for pair in written.index.intersection(again.index):
        if _has_same_counts(written.loc[pair], again.loc[pair]):
            kept.append(pair)
        else:
            log.warning("%s: %s %g does not follow from predictions.h5", run.results_file, *pair)
    return kept


def _has_same_counts(stored_row: pd.Series[Any], expected_row: pd.Series[Any]) -> bool:
    """Whether two rows say the same; the scaled counts, where both have a temperature."""
    numbers, arrays = ["n", "correct", "nll_sum", "brier_sum"], ["confusion", "bins"]
    if not pd.isna([stored_row["temperature"], expected_row["temperature"]]).any():
        numbers, arrays = [*numbers, "temperature", *SCALED_COLUMNS[:2]], [*arrays, SCALED_COLUMNS[2]]
    return np.allclose(stored_row[numbers].to_numpy(float), expected_row[numbers].to_numpy(float), rtol=1e-9) and all(
        np.allclose(stored_row[name].ravel(), _parse_numbers([expected_row[name]])[0], rtol=1e-9) for name in arrays
    )


def _make_table(run: RunDir, run_logits: RunLogits) -> pd.DataFrame:
    """Results.csv as it will stand on disk."""
    rows = []
    for (condition, severity), logits in run_logits.logits.items():
        c = compute_counts(logits, run_logits.labels)
        row = {"run_id": run.run_id, "condition": condition, "severity": float(severity)}
        row |= {"n": int(c.n), "correct": int(c.correct), "confusion": _format_numbers(c.confusion)}
        row |= dict(zip(RAW_COLUMNS, map(_format_numbers, (c.nll_sum, c.brier_sum, c.bins)), strict=True))
        if run_logits.temperature is not None:
            c = compute_counts(logits, run_logits.labels, run_logits.temperature)
            row |= dict(zip(SCALED_COLUMNS, map(_format_numbers, (c.nll_sum, c.brier_sum, c.bins)), strict=True))
            row["temperature"] = repr(run_logits.temperature)
        rows.append(row)
    source = {name: getattr(run_logits, name) for name in ("weights", "fingerprint", "generated")}
    return pd.DataFrame(rows).assign(**source).reindex(columns=list(COLUMNS))


def _format_numbers(numbers: NDArray[Any]) -> str:
    return " ".join(f"{number:.12g}" for number in numbers.ravel())


def _read_results_file(run: RunDir) -> pd.DataFrame:
    """Read results.csv and check that each row is possible (by hand: pandas and csv take longer per file)."""
    header, *rows = (line.split(",") for line in run.results_file.read_text("utf-8").rstrip("\n").split("\n"))
    if tuple(header) not in (COLUMNS, _OLD_COLUMNS) or not rows:
        raise ValueError(f"{len(rows)} rows of {', '.join(header)}; wanted are {', '.join(COLUMNS)}")
    column = dict.fromkeys(COLUMNS, ("",) * len(rows)) | dict(zip(header, zip(*rows, strict=True), strict=True))
    if set(column["run_id"]) != {run.run_id}:
        raise ValueError(f"it is of run {column['run_id'][0]}")
    one_source = all(len(set(column[name])) == 1 for name in ("weights", "fingerprint", "generated", "temperature"))
    if len(set(zip(column["condition"], column["severity"], strict=True))) < len(rows) or not one_source:
        raise ValueError("a condition stands twice, or the rows are of several weights")
    return pd.DataFrame(column | _parse_columns(column))


def _parse_columns(columns: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Turn columns of text into numbers and arrays that do not contradict one another."""
    n, correct = (np.array(columns[name], dtype=np.int64) for name in ("n", "correct"))
    confusion = _parse_numbers(columns["confusion"], np.int64).reshape(-1, NUM_CLASSES, NUM_CLASSES)
    whole = (confusion.sum((1, 2)) == n) & (np.trace(confusion, axis1=1, axis2=2) == correct)
    if not whole.all() or not ((confusion >= 0) & (confusion <= n[:, None, None])).all():
        raise ValueError("the counts contradict one another")
    generated = [{"True": True, "False": False}[text] for text in columns["generated"]]
    plain = {"n": n, "correct": correct, "confusion": list(confusion), "generated": generated}
    plain["severity"] = np.array(columns["severity"], dtype=np.float64)
    return plain | _parse_sums(columns, RAW_COLUMNS, n, correct) | _parse_scaled(columns, n, correct)


def _parse_scaled(
    columns: dict[str, tuple[str, ...]], n: NDArray[np.int64], correct: NDArray[np.int64]
) -> dict[str, Any]:
    """The temperature and the counts after scaling; nan where there are none."""
    nothing = np.full(len(n), np.nan)
    if not any("".join(columns[name]) for name in ("temperature", *SCALED_COLUMNS)):
        bins = list(np.full((len(n), NUM_BINS, 3), np.nan))
        return {"temperature": nothing, SCALED_COLUMNS[0]: nothing, SCALED_COLUMNS[1]: nothing, SCALED_COLUMNS[2]: bins}
    temperature = float(columns["temperature"][0])
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature}")
    return {"temperature": np.full(len(n), temperature)} | _parse_sums(columns, SCALED_COLUMNS, n, correct)


def _parse_sums(
    columns: dict[str, tuple[str, ...]], names: tuple[str, str, str], n: NDArray[np.int64], correct: NDArray[np.int64]
) -> dict[str, Any]:
    """Read two columns of sums and one of bins."""
    sums = np.array([columns[name] for name in names[:2]], dtype=np.float64)
    bins = _parse_numbers(columns[names[2]]).reshape(-1, NUM_BINS, 3)
    if not ((bins[..., 0].sum(1) == n) & (bins[..., 1].sum(1) == correct)).all():
        raise ValueError("the counts contradict one another")
    if not (np.isfinite(sums).all() and np.isfinite(bins).all()):
        raise ValueError("sums that are none")
    return dict(zip(names, (*sums, list(bins)), strict=True))


def _parse_numbers(texts: Any, dtype: type = np.float64) -> NDArray[Any]:
    """Parse texts of equally many numbers into (texts, numbers)."""
    if not all(text.strip() for text in texts):
        raise ValueError("numbers are missing")
    return np.loadtxt(list(texts), dtype=dtype, ndmin=2, comments=None)


def _write_predictions(path: Path, run: RunDir, run_logits: RunLogits) -> None:
    logits = np.stack(list(run_logits.logits.values())).astype(np.float32)
    arrays = {
        "rows": run_logits.rows.astype(np.int32),
        "labels": run_logits.labels.astype(np.uint8),
        "groups": run_logits.groups.astype(np.int32),
        "condition": np.array([name for name, _ in run_logits.logits], dtype="S"),
        "severity": np.array([severity for _, severity in run_logits.logits], dtype=np.float64),
        "logits": logits,
        "predicted": logits.argmax(-1).astype(np.uint8),
    }
    with h5py.File(path, "w", libver="v110", locking=False) as file:  # v110 has checksums of metadata too
        file.attrs.update(schema=SCHEMA, run_id=run.run_id, weights=run_logits.weights)
        file.attrs.update(fingerprint=run_logits.fingerprint, generated=run_logits.generated)
        if run_logits.temperature is not None:
            file.attrs["temperature"] = run_logits.temperature
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=array.shape, fletcher32=True)


def _read_predictions_file(run: RunDir, array_name: str) -> tuple[dict[str, Any], dict[Pair, NDArray[Any]]] | None:
    """Read what all pairs share, and one dataset pair by pair."""
    if not run.predictions_file.exists():
        return None
    try:  # the file appears whole, so that it needs no lock, which some cluster file systems refuse
        with h5py.File(run.predictions_file, "r", locking=False) as file:
            return _parse_predictions(file, run, array_name)
    except _READ_ERRORS as error:
        _log_damaged(run.predictions_file, error)
        return None


def _parse_predictions(
    file: h5py.File, run: RunDir, array_name: str
) -> tuple[dict[str, Any], dict[Pair, NDArray[Any]]]:
    if file.attrs["schema"] != SCHEMA or file.attrs["run_id"] != run.run_id:
        raise ValueError(f"schema {file.attrs['schema']} of run {file.attrs['run_id']}")
    common = {key: _read_array(file[key]) if key in file else file.attrs[key] for key in _SHARED_FIELDS}
    common |= {"generated": bool(common["generated"]), "weights": str(common["weights"])}
    common["temperature"] = _read_temperature(file)
    names, severities, values = (
        np.char.decode(_read_array(file["condition"])),
        _read_array(file["severity"]),
        _read_array(file[array_name]),
    )
    n = len(common["rows"])
    shapes = {common["rows"].shape, common["labels"].shape, common["groups"].shape, values[0].shape[:1]}
    if (
        shapes != {(n,)}
        or values.ndim != {"logits": 3, "predicted": 2}[array_name]
        or common["labels"].max() >= NUM_CLASSES
    ):
        raise ValueError(f"arrays of {values.shape} for {n} galaxies")
    return common, dict(zip(zip(names.tolist(), severities.tolist(), strict=True), values, strict=True))


def _read_temperature(file: h5py.File) -> float | None:
    if "temperature" not in file.attrs:
        return None
    found = float(file.attrs["temperature"])
    if not 0.0 < found < math.inf:
        raise ValueError(f"temperature {found}")
    return found


def _read_array(data: h5py.Dataset) -> NDArray[Any]:
    """Read an array that is in the file as a whole: one without its chunks may have any size in memory."""
    if data.id.get_storage_size() < data.nbytes:
        raise ValueError(f"{data.name}: {data.id.get_storage_size()} bytes for {data.nbytes}")
    found: NDArray[Any] = data[:]
    return found
