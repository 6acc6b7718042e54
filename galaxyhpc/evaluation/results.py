"""Result files of one run: predictions.h5 (logits of every galaxy) and results.csv (counts).

results.csv is computed from predictions.h5 and written last: the conditions it lists are complete. Both hold the
hashes of the weights and of the data; each is used only as far as it agrees with the other. A corrupt file is treated
as absent, which costs a new evaluation and nothing else.

    results.csv     one row per (condition, severity); confusion is K x K integers for K classes, row by row, rows are
                    the truth; bins is 15 x (galaxies, correct, sum of confidences); both separated by spaces;
                    temperature and SCALED_COLUMNS, of logits divided by it, are empty until it is fitted. Of more
                    than MAX_DENSE_CLASSES classes, confusion is `truth:predicted:galaxies` of the cells that are not 0
                    and of the last cell.
    predictions.h5  rows (n,), labels (n,), groups (n,), condition (C,), severity (C,), logits (C, n, K) and
                    predicted (C, n), which a bootstrap over 1,000 runs reads instead of the logits; all with
                    checksums; and the attribute temperature, once it is fitted
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array

from galaxyhpc.evaluation.metrics import NUM_BINS, Counts, compute_counts
from galaxyhpc.storage.files import atomic_write, write_text
from galaxyhpc.storage.run_dir import RunDir

SCHEMA = 1
MAX_DENSE_CLASSES = 32  # of which every cell of the confusion is stored: 1,000 classes have a million
Pair = tuple[str, float]  # a condition and its severity
CLEAN: Pair = ("clean", 0.0)

log = logging.getLogger(__name__)

Labels = NDArray[np.uint8 | np.uint16]
Complain = Callable[[str], None]  # receives a line about a file that is ignored

RAW_COLUMNS = ("nll_sum", "brier_sum", "bins")
SCALED_COLUMNS = ("nll_scaled_sum", "brier_scaled_sum", "bins_scaled")
COLUMNS = (
    *("run_id", "condition", "severity", "n", "correct", "nll_sum", "brier_sum", "confusion", "bins"),
    *("weights", "fingerprint", "generated", "temperature", *SCALED_COLUMNS),
)
_SHARED_FIELDS = ("rows", "labels", "groups", "weights", "fingerprint", "generated")
_READ_ERRORS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError),
)


@dataclass(frozen=True, eq=False)
class RunLogits:
    """Logits of a run for its n test galaxies under each condition."""

    rows: NDArray[np.int32]  # (n,) row of the galaxy in the data file
    labels: Labels  # (n,) truth, 0 to K - 1
    groups: NDArray[np.int32]  # (n,) sky group; frames of one group overlap
    logits: dict[Pair, NDArray[np.float32]]  # (n, K) each
    weights: str  # SHA-256 of best.pt
    fingerprint: str  # of the data
    generated: bool  # demo galaxies
    temperature: float | None = None  # from temperature scaling (`calibration`); None until it is fitted


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted classes of a run for its n test galaxies under each condition; the other fields as in RunLogits."""

    rows: NDArray[np.int32]
    labels: Labels
    groups: NDArray[np.int32]
    predicted: dict[Pair, Labels]  # (n,) each
    weights: str
    fingerprint: str
    generated: bool
    temperature: float | None


def save(run: RunDir, run_logits: RunLogits) -> None:
    """Write both files of a run, replacing earlier ones."""
    previous = read_counts(run)
    if previous is not None and not _is_same_source(previous, run_logits):
        run.results_file.unlink(missing_ok=True)  # if killed below, these counts would belong to other weights
    with atomic_write(run.predictions_file) as temporary:
        _write_predictions(temporary, run, run_logits)
    write_text(run.results_file, _make_table(run, run_logits).to_csv(index=False))


def load(
    run: RunDir, weights: str | None = None, fingerprint: str | None = None, complain: Complain = log.warning
) -> RunLogits | None:
    """Read the results of an earlier evaluation, only pairs on which both files agree; None if there are none.

    Results of other weights or of other data than `weights` and `fingerprint`, where given, are ignored.
    """
    table, stored = read_counts(run, complain), _read_predictions_file(run, "logits", complain)
    if table is None or stored is None or read_predictions(run, complain) is None:
        return None
    shared_fields, logits = stored
    run_logits = RunLogits(**shared_fields, logits=logits)
    if not _is_same_source(table, run_logits):
        complain(f"{run.results_file}: does not match predictions.h5")
        return None
    if weights not in (None, run_logits.weights) or fingerprint not in (None, run_logits.fingerprint):
        complain(f"{run.results_file}: made with other weights or other galaxies")
        return None
    consistent = {pair: logits[pair] for pair in _find_consistent_pairs(run, table, run_logits, complain)}
    return RunLogits(**shared_fields, logits=consistent) if consistent else None


def read_counts(run: RunDir, complain: Complain = log.warning) -> pd.DataFrame | None:
    """Read results.csv alone, with confusion as (K, K) and bins as (15, 3) arrays; None if absent or corrupt.

    Confusions of more than MAX_DENSE_CLASSES classes are sparse: see `to_dense`. The temperature and
    SCALED_COLUMNS are nan where no temperature was fitted yet.
    """
    if not run.results_file.exists():
        return None
    try:
        return _read_results_file(run)
    except _READ_ERRORS as error:
        complain(_describe_corrupt(run.results_file, error))
        return None


def read_predictions(run: RunDir, complain: Complain = log.warning) -> Predictions | None:
    """Read predictions.h5 without its logits; None if absent or corrupt."""
    stored = _read_predictions_file(run, "predicted", complain)
    return None if stored is None else Predictions(**stored[0], predicted=stored[1])


def to_counts(table: pd.DataFrame, is_scaled: bool = False) -> Counts:
    """Stack the rows of `read_counts`, of one run or many, into Counts with a leading axis.

    If `is_scaled`, of the logits divided by the temperature: another nll, brier and ece, nan without a temperature.
    """
    nll_sum, brier_sum, bins = SCALED_COLUMNS if is_scaled else RAW_COLUMNS
    return Counts(
        n=table["n"].to_numpy(),
        correct=table["correct"].to_numpy(),
        nll_sum=table[nll_sum].to_numpy(),
        brier_sum=table[brier_sum].to_numpy(),
        confusion=_stack_confusions(table["confusion"]),
        bins=np.concatenate([np.empty((0, 3)), *table[bins]]).reshape(-1, NUM_BINS, 3),
    )


def to_dense(confusion: NDArray[np.int64] | coo_array) -> NDArray[np.int64]:
    """Return the (K, K) counts of a row of `read_counts`."""
    counts: NDArray[np.int64] = confusion if isinstance(confusion, np.ndarray) else confusion.toarray()
    return counts


def _stack_confusions(confusions: pd.Series[Any]) -> NDArray[np.int64]:
    """Return (rows, K, K) counts; without rows, of no classes."""
    return np.stack([to_dense(confusion) for confusion in confusions]) if len(confusions) else np.empty((0, 0, 0), int)


def get_label_dtype(num_classes: int) -> type[np.unsignedinteger[Any]]:
    """Return the type of stored labels and predictions: one byte for up to 256 classes."""
    return np.uint8 if num_classes <= 256 else np.uint16


def _describe_corrupt(path: Path, error: BaseException) -> str:
    return f"{path}: ignored: corrupt: {' '.join(str(error).split())[:200]}"


def _is_same_source(table: pd.DataFrame, run_logits: RunLogits) -> bool:
    first = table.iloc[0]
    return bool(first["weights"] == run_logits.weights and first["fingerprint"] == run_logits.fingerprint)


def _find_consistent_pairs(run: RunDir, table: pd.DataFrame, run_logits: RunLogits, complain: Complain) -> list[Pair]:
    """Return the pairs whose row in `table` follows from their logits, to the digits written."""
    expected = _make_table(run, run_logits).set_index(["condition", "severity"])
    pairs, stored = [], table.set_index(["condition", "severity"])
    for pair in stored.index.intersection(expected.index):
        if _has_same_counts(stored.loc[pair], expected.loc[pair]):
            pairs.append(pair)
        else:
            complain(f"{run.results_file}: {pair[0]} {pair[1]:g} does not follow from predictions.h5")
    return pairs


def _has_same_counts(stored_row: pd.Series[Any], expected_row: pd.Series[Any]) -> bool:
    """Whether two rows hold the same counts; scaled ones too, if both have a temperature."""
    numbers, arrays = ["n", "correct", "nll_sum", "brier_sum"], ["bins"]
    if not pd.isna([stored_row["temperature"], expected_row["temperature"]]).any():
        numbers, arrays = [*numbers, "temperature", *SCALED_COLUMNS[:2]], [*arrays, SCALED_COLUMNS[2]]
    if _format_confusion(to_dense(stored_row["confusion"])) != expected_row["confusion"]:
        return False
    return np.allclose(stored_row[numbers].to_numpy(float), expected_row[numbers].to_numpy(float), rtol=1e-9) and all(
        np.allclose(stored_row[name].ravel(), _parse_numbers([expected_row[name]])[0], rtol=1e-9) for name in arrays
    )


def _make_table(run: RunDir, run_logits: RunLogits) -> pd.DataFrame:
    """Return results.csv as a table of text and numbers, as it is written."""
    rows = []
    for (condition, severity), logits in run_logits.logits.items():
        counts = compute_counts(logits, run_logits.labels)
        row = {"run_id": run.run_id, "condition": condition, "severity": float(severity)}
        row |= {"n": int(counts.n), "correct": int(counts.correct), "confusion": _format_confusion(counts.confusion)}
        row |= _format_sums(counts, RAW_COLUMNS)
        if run_logits.temperature is not None:
            row |= _format_sums(compute_counts(logits, run_logits.labels, run_logits.temperature), SCALED_COLUMNS)
            row["temperature"] = repr(run_logits.temperature)
        rows.append(row)
    source = {name: getattr(run_logits, name) for name in ("weights", "fingerprint", "generated")}
    return pd.DataFrame(rows).assign(**source).reindex(columns=list(COLUMNS))


def _format_sums(counts: Counts, columns: tuple[str, str, str]) -> dict[str, str]:
    return dict(zip(columns, map(_format_numbers, (counts.nll_sum, counts.brier_sum, counts.bins)), strict=True))


def _format_confusion(confusion: NDArray[np.int64]) -> str:
    """Write a (K, K) confusion as results.csv holds it."""
    if len(confusion) <= MAX_DENSE_CLASSES:
        return _format_numbers(confusion)
    is_written = confusion > 0
    is_written[-1, -1] = True  # which tells the number of classes
    cells = zip(*np.nonzero(is_written), confusion[is_written], strict=True)
    return " ".join(f"{truth}:{predicted}:{count}" for truth, predicted, count in cells)


def _parse_confusions(texts: tuple[str, ...]) -> list[NDArray[np.int64]] | list[coo_array]:
    """Return each text's (K, K) counts.

    Raises
    ------
    ValueError
        If they are not of one number of classes, or a count is negative or stands twice.
    """
    if ":" not in texts[0]:
        numbers = _parse_numbers(texts, np.int64)
        num_classes = math.isqrt(numbers.shape[1])
        if (numbers < 0).any():
            raise ValueError("negative counts")
        return list(numbers.reshape(-1, num_classes, num_classes))
    cells = [np.array(text.replace(":", " ").split(), np.int64).reshape(-1, 3).T for text in texts]
    (num_classes,) = {int(truth[-1]) + 1 for truth, _, _ in cells}
    for truth, predicted, count in cells:
        indices = truth * num_classes + predicted
        if (predicted >= num_classes).any() or (count < 0).any() or (np.diff(indices) <= 0).any() or indices[0] < 0:
            raise ValueError("cells out of order")
    shape = (num_classes, num_classes)
    return [coo_array((count, (truth, predicted)), shape) for truth, predicted, count in cells]


def _format_numbers(numbers: NDArray[Any]) -> str:
    return " ".join(f"{number:.12g}" for number in numbers.ravel())


def _read_results_file(run: RunDir) -> pd.DataFrame:
    """Read results.csv and validate each row (by hand: pandas and csv take longer per file)."""
    header, *rows = (line.split(",") for line in run.results_file.read_text("utf-8").rstrip("\n").split("\n"))
    if tuple(header) != COLUMNS or not rows:
        raise ValueError(f"got {len(rows)} rows of {', '.join(header)}; expected {', '.join(COLUMNS)}")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    if set(columns["run_id"]) != {run.run_id}:
        raise ValueError(f"results of run {columns['run_id'][0]}")
    has_one_source = all(
        len(set(columns[name])) == 1 for name in ("weights", "fingerprint", "generated", "temperature")
    )
    if len(set(zip(columns["condition"], columns["severity"], strict=True))) < len(rows) or not has_one_source:
        raise ValueError("duplicate conditions, or rows of several weights")
    return pd.DataFrame(columns | _parse_columns(columns))


def _parse_columns(columns: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Convert columns of text to numbers and arrays, and check that these are consistent."""
    n, correct = (np.array(columns[name], dtype=np.int64) for name in ("n", "correct"))
    confusions = _parse_confusions(columns["confusion"])
    if [confusion.sum() for confusion in confusions] != n.tolist():
        raise ValueError("inconsistent counts")
    if [confusion.diagonal().sum() for confusion in confusions] != correct.tolist():
        raise ValueError("inconsistent counts")
    generated = [{"True": True, "False": False}[text] for text in columns["generated"]]
    parsed = {"n": n, "correct": correct, "confusion": confusions, "generated": generated}
    parsed["severity"] = np.array(columns["severity"], dtype=np.float64)
    return parsed | _parse_sums(columns, RAW_COLUMNS, n, correct) | _parse_scaled(columns, n, correct)


def _parse_scaled(
    columns: dict[str, tuple[str, ...]], n: NDArray[np.int64], correct: NDArray[np.int64]
) -> dict[str, Any]:
    """Parse the temperature and SCALED_COLUMNS; nan where they are empty."""
    if not any("".join(columns[name]) for name in ("temperature", *SCALED_COLUMNS)):
        bins = list(np.full((len(n), NUM_BINS, 3), np.nan))
        missing = np.full(len(n), np.nan)
        return {"temperature": missing, SCALED_COLUMNS[0]: missing, SCALED_COLUMNS[1]: missing, SCALED_COLUMNS[2]: bins}
    temperature = float(columns["temperature"][0])
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature}")
    return {"temperature": np.full(len(n), temperature)} | _parse_sums(columns, SCALED_COLUMNS, n, correct)


def _parse_sums(
    columns: dict[str, tuple[str, ...]], names: tuple[str, str, str], n: NDArray[np.int64], correct: NDArray[np.int64]
) -> dict[str, Any]:
    """Parse two columns of sums and one of bins."""
    sums = np.array([columns[name] for name in names[:2]], dtype=np.float64)
    bins = _parse_numbers(columns[names[2]]).reshape(-1, NUM_BINS, 3)
    if not ((bins[..., 0].sum(1) == n) & (bins[..., 1].sum(1) == correct)).all():
        raise ValueError("inconsistent counts")
    if not (np.isfinite(sums).all() and np.isfinite(bins).all()):
        raise ValueError("non-finite sums")
    return dict(zip(names, (*sums, list(bins)), strict=True))


def _parse_numbers(texts: Any, dtype: type = np.float64) -> NDArray[Any]:
    """Parse texts of equally many numbers each into an array (texts, numbers)."""
    if not all(text.strip() for text in texts):
        raise ValueError("missing numbers")
    return np.loadtxt(list(texts), dtype=dtype, ndmin=2, comments=None)


def _write_predictions(path: Path, run: RunDir, run_logits: RunLogits) -> None:
    logits = np.stack(list(run_logits.logits.values())).astype(np.float32)
    dtype = get_label_dtype(logits.shape[-1])
    arrays = {
        "rows": run_logits.rows.astype(np.int32),
        "labels": run_logits.labels.astype(dtype),
        "groups": run_logits.groups.astype(np.int32),
        "condition": np.array([name for name, _ in run_logits.logits], dtype="S"),
        "severity": np.array([severity for _, severity in run_logits.logits], dtype=np.float64),
        "logits": logits,
        "predicted": logits.argmax(-1).astype(dtype),
    }
    with h5py.File(path, "w", libver="v110", locking=False) as file:  # v110 has checksums of metadata too
        file.attrs.update(schema=SCHEMA, run_id=run.run_id, weights=run_logits.weights)
        file.attrs.update(fingerprint=run_logits.fingerprint, generated=run_logits.generated)
        if run_logits.temperature is not None:
            file.attrs["temperature"] = run_logits.temperature
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=array.shape, fletcher32=True)


def _read_predictions_file(
    run: RunDir, array_name: str, complain: Complain
) -> tuple[dict[str, Any], dict[Pair, NDArray[Any]]] | None:
    """Read the fields that all pairs share, and one array by pair; None if absent or corrupt."""
    if not run.predictions_file.exists():
        return None
    try:  # written atomically, so that it needs no lock, which some cluster file systems refuse
        with h5py.File(run.predictions_file, "r", locking=False) as file:
            return _parse_predictions(file, run, array_name)
    except _READ_ERRORS as error:
        complain(_describe_corrupt(run.predictions_file, error))
        return None


def _parse_predictions(
    file: h5py.File, run: RunDir, array_name: str
) -> tuple[dict[str, Any], dict[Pair, NDArray[Any]]]:
    if file.attrs["schema"] != SCHEMA or file.attrs["run_id"] != run.run_id:
        raise ValueError(f"schema {file.attrs['schema']} of run {file.attrs['run_id']}")
    fields = {key: _read_array(file[key]) if key in file else file.attrs[key] for key in _SHARED_FIELDS}
    fields |= {"generated": bool(fields["generated"]), "weights": str(fields["weights"])}
    fields["temperature"] = _read_temperature(file)
    names, severities = np.char.decode(_read_array(file["condition"])), _read_array(file["severity"])
    values, n = _read_array(file[array_name]), len(fields["rows"])
    shapes = {*(fields[name].shape for name in ("rows", "labels", "groups")), values[0].shape[:1]}
    has_shape = shapes == {(n,)} and values.ndim == {"logits": 3, "predicted": 2}[array_name]
    num_classes = file["logits"].shape[-1]
    if not has_shape or fields["labels"].max() >= num_classes:
        raise ValueError(f"arrays of {values.shape} for {n} galaxies of {num_classes} classes")
    if array_name == "predicted" and values.max() >= num_classes:
        raise ValueError(f"predicted: got class {values.max()} of {num_classes}")
    return fields, dict(zip(zip(names.tolist(), severities.tolist(), strict=True), values, strict=True))


def _read_temperature(file: h5py.File) -> float | None:
    if "temperature" not in file.attrs:
        return None
    temperature = float(file.attrs["temperature"])
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature}")
    return temperature


def _read_array(dataset: h5py.Dataset) -> NDArray[Any]:
    """Read an array, once its bytes are known to be in the file: without its chunks its size in memory is arbitrary."""
    if dataset.id.get_storage_size() < dataset.nbytes:
        raise ValueError(f"{dataset.name}: got {dataset.id.get_storage_size()} bytes; expected {dataset.nbytes}")
    array: NDArray[Any] = dataset[:]
    return array
