"""Result files of one run: predictions.h5 (logits of every galaxy) and results.csv (counts).

results.csv is computed from predictions.h5 and written last: the conditions it lists are complete. Both hold the
hashes of the weights and of the data; each is used only as far as it agrees with the other. A corrupt file is treated
as absent, which costs a new evaluation and nothing else. The formats are those of `counts_file` and `predictions_file`.
"""

from __future__ import annotations

import logging

import pandas as pd

from galaxyhpc.evaluation.results.counts_file import (
    COLUMNS,
    MAX_DENSE_CLASSES,
    SCALED_COLUMNS,
    has_same_counts,
    make_counts_table,
    read_counts_file,
    to_counts,
    to_dense,
)
from galaxyhpc.evaluation.results.predictions_file import (
    CLEAN,
    READ_ERRORS,
    Complain,
    Labels,
    Pair,
    Predictions,
    RunLogits,
    describe_corrupt,
    get_label_dtype,
    read_predictions_file,
    write_predictions,
)
from galaxyhpc.storage.files import atomic_write, write_text
from galaxyhpc.storage.run_dir import RunDir

__all__ = [
    "CLEAN",
    "COLUMNS",
    "MAX_DENSE_CLASSES",
    "SCALED_COLUMNS",
    "Labels",
    "Pair",
    "Predictions",
    "RunLogits",
    "get_label_dtype",
    "load",
    "read_counts",
    "read_predictions",
    "save",
    "to_counts",
    "to_dense",
]

log = logging.getLogger(__name__)


def save(run: RunDir, run_logits: RunLogits) -> None:
    """Write both files of a run, replacing earlier ones."""
    previous = read_counts(run)
    if previous is not None and not _is_same_source(previous, run_logits):
        run.results_file.unlink(missing_ok=True)  # if killed below, these counts would belong to other weights
    with atomic_write(run.predictions_file) as temporary:
        write_predictions(temporary, run, run_logits)
    write_text(run.results_file, make_counts_table(run, run_logits).to_csv(index=False))


def load(
    run: RunDir, weights: str | None = None, fingerprint: str | None = None, complain: Complain = log.warning
) -> RunLogits | None:
    """Read the results of an earlier evaluation, only pairs on which both files agree; None if there are none.

    Results of other weights or of other data than `weights` and `fingerprint`, where given, are ignored.
    """
    table, stored = read_counts(run, complain), read_predictions_file(run, "logits", complain)
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
        return read_counts_file(run)
    except READ_ERRORS as error:
        complain(describe_corrupt(run.results_file, error))
        return None


def read_predictions(run: RunDir, complain: Complain = log.warning) -> Predictions | None:
    """Read predictions.h5 without its logits; None if absent or corrupt."""
    stored = read_predictions_file(run, "predicted", complain)
    return None if stored is None else Predictions(**stored[0], predicted=stored[1])


def _is_same_source(table: pd.DataFrame, run_logits: RunLogits) -> bool:
    first = table.iloc[0]
    return bool(first["weights"] == run_logits.weights and first["fingerprint"] == run_logits.fingerprint)


def _find_consistent_pairs(run: RunDir, table: pd.DataFrame, run_logits: RunLogits, complain: Complain) -> list[Pair]:
    """Return the pairs whose row in `table` follows from their logits, to the digits written."""
    expected = make_counts_table(run, run_logits).set_index(["condition", "severity"])
    pairs, stored = [], table.set_index(["condition", "severity"])
    for pair in stored.index.intersection(expected.index):
        if has_same_counts(stored.loc[pair], expected.loc[pair]):
            pairs.append(pair)
        else:
            complain(f"{run.results_file}: {pair[0]} {pair[1]:g} does not follow from predictions.h5")
    return pairs
