"""results.csv: counts of a run under each condition, one row per (condition, severity).

confusion is K x K integers for K classes, row by row, rows are the truth; bins is 15 x (galaxies, correct, sum of
confidences); both separated by spaces; temperature and SCALED_COLUMNS, of logits divided by it, are empty until it
is fitted. Of more than MAX_DENSE_CLASSES classes, confusion is `truth:predicted:galaxies` of the cells that are
not 0 and of the last cell.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array

from galaxyhpc.evaluation.metrics import NUM_BINS, Counts, compute_counts
from galaxyhpc.evaluation.results.predictions_file import RunLogits
from galaxyhpc.storage.run_dir import RunDir

MAX_DENSE_CLASSES = 32  # of which every cell of the confusion is stored: 1,000 classes have a million
RAW_COLUMNS = ("nll_sum", "brier_sum", "bins")
SCALED_COLUMNS = ("nll_scaled_sum", "brier_scaled_sum", "bins_scaled")
COLUMNS = (
    *("run_id", "condition", "severity", "n", "correct", "nll_sum", "brier_sum", "confusion", "bins"),
    *("weights", "fingerprint", "generated", "temperature", *SCALED_COLUMNS),
)


def to_dense(confusion: NDArray[np.int64] | coo_array) -> NDArray[np.int64]:
    """Return the (K, K) counts of a row of `read_counts`."""
    counts: NDArray[np.int64] = confusion if isinstance(confusion, np.ndarray) else confusion.toarray()
    return counts


def _stack_confusions(confusions: pd.Series[Any]) -> NDArray[np.int64]:
    """Return (rows, K, K) counts; without rows, of no classes."""
    return np.stack([to_dense(confusion) for confusion in confusions]) if len(confusions) else np.empty((0, 0, 0), int)


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


def make_counts_table(run: RunDir, run_logits: RunLogits) -> pd.DataFrame:
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


def has_same_counts(stored_row: pd.Series[Any], expected_row: pd.Series[Any]) -> bool:
    """Whether two rows hold the same counts; scaled ones too, if both have a temperature."""
    numbers, arrays = ["n", "correct", "nll_sum", "brier_sum"], ["bins"]
    if not pd.isna([stored_row["temperature"], expected_row["temperature"]]).any():
        numbers, arrays = [*numbers, "temperature", *SCALED_COLUMNS[:2]], [*arrays, SCALED_COLUMNS[2]]
    if _format_confusion(to_dense(stored_row["confusion"])) != expected_row["confusion"]:
        return False
    return np.allclose(stored_row[numbers].to_numpy(float), expected_row[numbers].to_numpy(float), rtol=1e-9) and all(
        np.allclose(stored_row[name].ravel(), _parse_numbers([expected_row[name]])[0], rtol=1e-9) for name in arrays
    )


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


def read_counts_file(run: RunDir) -> pd.DataFrame:
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
