"""predictions.h5: the logits of every test galaxy of a run, and the classes that follow.

rows (n,), labels (n,), groups (n,), condition (C,), severity (C,), logits (C, n, K) and predicted (C, n), which a
bootstrap over 1,000 runs reads instead of the logits; all with checksums; and the attribute temperature, once it
is fitted
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from galaxyhpc.storage.run_dir import RunDir

SCHEMA = 1
Pair = tuple[str, float]  # a condition and its severity
CLEAN: Pair = ("clean", 0.0)
Labels = NDArray[np.uint8 | np.uint16]
Complain = Callable[[str], None]  # receives a line about a file that is ignored

_SHARED_FIELDS = ("rows", "labels", "groups", "weights", "fingerprint", "generated")
READ_ERRORS = (
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


def get_label_dtype(num_classes: int) -> type[np.unsignedinteger[Any]]:
    """Return the type of stored labels and predictions: one byte for up to 256 classes."""
    return np.uint8 if num_classes <= 256 else np.uint16


def describe_corrupt(path: Path, error: BaseException) -> str:
    return f"{path}: ignored: corrupt: {' '.join(str(error).split())[:200]}"


def write_predictions(path: Path, run: RunDir, run_logits: RunLogits) -> None:
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


def read_predictions_file(
    run: RunDir, array_name: str, complain: Complain
) -> tuple[dict[str, Any], dict[Pair, NDArray[Any]]] | None:
    """Read the fields that all pairs share, and one array by pair; None if absent or corrupt."""
    if not run.predictions_file.exists():
        return None
    try:  # written atomically, so that it needs no lock, which some cluster file systems refuse
        with h5py.File(run.predictions_file, "r", locking=False) as file:
            return _parse_predictions(file, run, array_name)
    except READ_ERRORS as error:
        complain(describe_corrupt(run.predictions_file, error))
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
