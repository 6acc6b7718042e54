"""The columns of a survey's predictions, one row per galaxy.

| column           | type     | value                                                                              |
|------------------|----------|------------------------------------------------------------------------------------|
| id               | string   | name of the galaxy in its source; null where it has none                           |
| ra, dec          | float64  | degrees; null where unknown                                                        |
| source, row      | string,  | file, and row in it from 0                                                         |
|                  | int64    |                                                                                    |
| class, name      | int16,   | most probable class: its label and its name                                        |
|                  | string   |                                                                                    |
| probability      | float32  | that of `class`                                                                    |
| p_NAME           | float32  | of every class, calibrated by temperature scaling; of several runs the mean        |
| entropy          | float32  | of these probabilities, in nats, 0 to log K for K classes                          |
| margin           | float32  | difference of the two largest probabilities, 0 to 1                                |
| disagreement     | float32  | several runs only: mutual information of class and run, in nats, 0 to log K        |
| typicality       | float32  | see `evaluation.typicality`; null where it was not calibrated                      |
| blank            | bool     | nothing is visible: the class means nothing                                        |
| empty_band       | bool     | one or two bands show nothing                                                      |
| saturated        | bool     | white where the galaxy should be                                                   |
| upsampled        | bool     | the image is smaller than those of the training                                    |
| num_filled       | int32    | pixels without a value, taken as sky                                               |
| run_id           | string   | the runs, separated by spaces                                                      |
| trained_on       | string   | `real galaxies` or `GENERATED galaxies`                                            |
| error            | string   | reason why there is no prediction; null where there is one                         |
| embedding        | float16  | if asked for: list of fixed size, pooled features inside the first run's network   |

A probability column starts with raw_ where a run has no temperature; then entropy, margin and disagreement are not
calibrated either. All from `class` to `num_filled`, and the embedding, are null where there is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import entr

from galaxyhpc.config.class_names import get_probability_columns
from galaxyhpc.evaluation.calibration import softmax
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.storage.files import sanitize

if TYPE_CHECKING:
    from galaxyhpc.evaluation.typicality import Typicality
    from galaxyhpc.prediction.pipeline import PredictedBatch

UNITS = {"ra": "deg", "dec": "deg", "entropy": "nat", "disagreement": "nat"}  # metadata `unit` of a field
NOT_FINITE = "got logits that are not finite; expected numbers: the weights may be damaged"
FLAGS = {
    "blank": "nothing is visible",
    "empty_band": "one or two bands show nothing",
    "saturated": "white where a galaxy is not",
    "upsampled": "smaller than the images of the training",
}


class RunsDifferError(ValueError):
    """Runs whose predictions cannot be averaged."""


def check_same_classes(classifiers: Sequence[Classifier]) -> None:
    """Refuse runs whose classes differ, in name or order.

    Raises
    ------
    RunsDifferError
    """
    first, *others = classifiers
    expected = first.config.data.class_names
    for other in others:
        if (names := other.config.data.class_names) != expected:
            differing = [pair for pair in zip(names, expected, strict=False) if pair[0] != pair[1]]
            example = f", such as {differing[0][0]!r}, not {differing[0][1]!r}" if differing else ""
            got = f"got {len(names)} classes{example}; expected the {len(expected)} of {first.run.path}, in their order"
            raise RunsDifferError(sanitize(f"{other.run.path}: {got}: predict with each of these runs on its own"))


def compute_entropy(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy in nats over the last axis, given (..., K) probabilities."""
    return np.asarray(entr(probabilities).sum(-1))


def compute_disagreement(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mutual information in nats of class and run, (n,), given (runs, n, K) probabilities.

    H(mean over runs of p) - mean over runs of H(p): 0 where all runs agree, at most log K. It is the part of the
    entropy that comes from not knowing the network (Houlsby et al. 2011, arXiv:1112.5745, equation 2; for ensembles
    Lakshminarayanan et al. 2017, arXiv:1612.01474).
    """
    information = compute_entropy(probabilities.mean(0)) - compute_entropy(probabilities).mean(0)
    return np.asarray(np.maximum(information, 0.0))  # of equal runs, rounding may be below 0


def compute_probabilities(logits: NDArray[np.float32], classifiers: Sequence[Classifier]) -> NDArray[np.float64]:
    """Return the probabilities of (runs, n, K) logits, each run's with its own temperature; NaN stays NaN."""
    pairs = zip(logits, classifiers, strict=True)
    return np.stack([softmax(values, classifier.temperature or 1.0) for values, classifier in pairs])


def make_table(
    batch: PredictedBatch,
    classifiers: Sequence[Classifier],
    typicality: Typicality | None = None,
    with_embeddings: bool = False,
) -> pa.Table:
    """Return the predictions of a batch as a table with the columns above.

    Parameters
    ----------
    typicality : of the first run, whose features the batch then has
    with_embeddings : whether to keep the features of the batch
    """
    errors = _list_errors(batch)
    has_error = np.array([error is not None for error in errors], dtype=bool)
    columns: dict[str, pa.Array] = {
        "id": pa.array([name or None for name in batch.ids], pa.string()),
        "ra": pa.array(batch.ra, pa.float64(), from_pandas=True),  # NaN is null
        "dec": pa.array(batch.dec, pa.float64(), from_pandas=True),
        "source": pa.array(batch.sources, pa.string()),
        "row": pa.array(batch.rows, pa.int64()),
    }
    columns |= _make_class_columns(batch.logits, classifiers, has_error)
    columns["typicality"] = _make_typicality_column(batch.features, typicality, has_error)
    columns |= _make_flag_columns(batch, has_error)
    columns |= _make_origin_columns(classifiers, len(has_error))
    columns["error"] = pa.array(errors, pa.string())
    if with_embeddings:
        columns["embedding"] = make_embedding_column(batch.features, has_error)
    fields = [_make_field(name, values.type) for name, values in columns.items()]
    return pa.table(list(columns.values()), schema=pa.schema(fields))


def _list_errors(batch: PredictedBatch) -> list[str | None]:
    """Return why a galaxy has no prediction, None where it has one."""
    is_finite: NDArray[np.bool_] = np.asarray(np.isfinite(batch.logits).all(axis=(0, 2)))
    pairs = zip(batch.errors, is_finite, strict=True)
    return [error or (None if finite else NOT_FINITE) for error, finite in pairs]


def _make_field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, metadata={"unit": UNITS[name]} if name in UNITS else None)


def _make_class_columns(
    logits: NDArray[np.float32], classifiers: Sequence[Classifier], has_error: NDArray[np.bool_]
) -> dict[str, pa.Array]:
    """Return the class, the probabilities and what is computed of them."""
    by_run = compute_probabilities(np.where(has_error[:, None], 0.0, logits), classifiers)
    mean, names = by_run.mean(0), np.array(classifiers[0].config.data.class_names, dtype=object)
    labels, ordered = mean.argmax(1), np.sort(mean, axis=1)
    is_calibrated = all(classifier.temperature for classifier in classifiers)
    raw = "" if is_calibrated else "raw_"
    floats = {f"{raw}probability": ordered[:, -1]}
    floats |= dict(zip(get_probability_columns(names.tolist(), is_calibrated), mean.T, strict=True))
    floats |= {"entropy": compute_entropy(mean), "margin": ordered[:, -1] - ordered[:, -2]}
    floats |= {"disagreement": compute_disagreement(by_run)} if len(classifiers) > 1 else {}
    columns = {
        "class": pa.array(labels, pa.int16(), mask=has_error),
        "name": pa.array(names[labels], pa.string(), mask=has_error),
    }
    return columns | {name: pa.array(values.astype(np.float32), mask=has_error) for name, values in floats.items()}


def _make_typicality_column(
    features: NDArray[np.float16] | None, typicality: Typicality | None, has_error: NDArray[np.bool_]
) -> pa.Array:
    if typicality is None or features is None:
        return pa.nulls(len(has_error), pa.float32())
    values = np.zeros(len(has_error), np.float32)
    values[~has_error] = typicality.compute(features[~has_error])
    return pa.array(values, pa.float32(), mask=has_error)


def _make_flag_columns(batch: PredictedBatch, has_error: NDArray[np.bool_]) -> dict[str, pa.Array]:
    flaws = np.array(batch.flaws, dtype=object)
    is_blank = flaws == "blank"
    flags = (is_blank, (flaws != "") & ~is_blank, batch.saturated, batch.upsampled)
    columns = {name: pa.array(values.astype(bool), mask=has_error) for name, values in zip(FLAGS, flags, strict=True)}
    return columns | {"num_filled": pa.array(batch.num_filled, pa.int32(), mask=has_error)}


def _make_origin_columns(classifiers: Sequence[Classifier], count: int) -> dict[str, pa.Array]:
    run_ids = " ".join(classifier.run.run_id for classifier in classifiers)
    generated = any(classifier.generated for classifier in classifiers)
    values = {"run_id": run_ids, "trained_on": "GENERATED galaxies" if generated else "real galaxies"}
    return {name: pa.array([text] * count, pa.string()) for name, text in values.items()}


def make_embedding_column(features: NDArray[np.float16] | None, has_error: NDArray[np.bool_]) -> pa.Array:
    """Return (n, F) features as lists of fixed size, null where there is an error."""
    if features is None:
        raise ValueError("embedding: got no features; expected those of the network")
    values = pa.array(features.astype(np.float16).ravel(), pa.float16())
    return pa.FixedSizeListArray.from_arrays(values, features.shape[1], mask=pa.array(has_error))
