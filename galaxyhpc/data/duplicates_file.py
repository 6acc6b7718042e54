"""The file SWEEP/duplicates.csv: pairs of the same or nearly the same images, and what a split does with them.

Where all positions are known, these tell which galaxies are the same, and there is no such file.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from galaxyhpc.data.split import chain_equal_values
from galaxyhpc.data.split_file import DROPPED

DUPLICATES_FILE_NAME = "duplicates.csv"


def list_duplicates(
    table: pd.DataFrame, digests: np.ndarray, near_pairs: np.ndarray, near_correlations: np.ndarray
) -> pd.DataFrame:
    """Return a row per pair: row, id, label and split of both, the correlation of their detail, and the action.

    table : that of `divide`
    near_pairs, near_correlations : (M, 2) and (M,), see `near_duplicates`; identical images have the correlation 1
    action : linked (in one split), dropped (one or both), or divided (kept in two splits, as the source gives them)
    """
    identical = chain_equal_values(digests)
    pairs = np.concatenate([identical, near_pairs])
    correlations = np.concatenate([np.ones(len(identical)), near_correlations]).round(3)
    names = [name for name in ("row", "id", "label", "split") if name in table]
    first, second = (table[names].iloc[pairs[:, side]].reset_index(drop=True) for side in (0, 1))
    is_dropped = (first["split"] == DROPPED) | (second["split"] == DROPPED)
    is_linked = first["split"] == second["split"]
    action = np.where(is_dropped, "dropped", np.where(is_linked, "linked", "divided"))
    listed = first.join(second.add_prefix("other_")).assign(correlation=correlations, action=action)
    return listed.sort_values("correlation", ascending=False, kind="stable", ignore_index=True)


def describe_duplicates(duplicates: pd.DataFrame) -> str:
    """Return the number of pairs by what was done with them."""
    counts = duplicates["action"].value_counts()
    actions = ", ".join(f"{count} {action}" for action, count in sorted(counts.items()))
    num_same = int((duplicates["correlation"] == 1).sum())
    kinds = f"{num_same} pairs of the same and {len(duplicates) - num_same} of nearly the same images"
    return f"{kinds}: {actions}; see {DUPLICATES_FILE_NAME}"
