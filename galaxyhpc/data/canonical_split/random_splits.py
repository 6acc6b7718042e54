"""How much random splits leak: test galaxies whose sky, or whose very galaxy, is among the training galaxies."""

from __future__ import annotations

import numpy as np
import pandas as pd

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.split import DUPLICATE_RADIUS_ARCSEC, find_close_pairs


def count_leaks(
    labels: np.ndarray,
    ra: np.ndarray,
    dec: np.ndarray,
    num_splits: int = 100,
    test_fraction: float = 0.1,
    is_stratified: bool = False,
) -> pd.DataFrame:
    """Count, for random divisions of N galaxies into training and test, the test galaxies with a training galaxy near.

    Parameters
    ----------
    labels, ra, dec : (N,) arrays; degrees
    num_splits : number of divisions, by scikit-learn's `train_test_split` with the random states 0, 1, 2, ...
    is_stratified : whether every class is divided in the same proportion

    Returns
    -------
    one row per division: test (number of test galaxies), neighbour (those with a training galaxy within the side of an
    image, 67 arcsec), same_galaxy (within 1 arcsec), other_label (within 1 arcsec, and under another label)
    """
    from sklearn.model_selection import train_test_split  # here: it takes a second to import

    neighbours = find_close_pairs(ra, dec, DataConfig().link_arcsec)
    twins = find_close_pairs(ra, dec, DUPLICATE_RADIUS_ARCSEC)
    pairs = {"neighbour": neighbours, "same_galaxy": twins}
    pairs["other_label"] = twins[labels[twins[:, 0]] != labels[twins[:, 1]]]
    rows, counts = np.arange(len(labels)), []
    for state in range(num_splits):
        strata = labels if is_stratified else None
        test = train_test_split(rows, test_size=test_fraction, random_state=state, stratify=strata)[1]
        leaks = {name: len(_find_torn_rows(np.isin(rows, test), links)) for name, links in pairs.items()}
        counts.append({"test": len(test), **leaks})
    return pd.DataFrame(counts)


def _find_torn_rows(is_test: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the test rows of the (M, 2) pairs whose other row is a training one."""
    torn = pairs[is_test[pairs[:, 0]] != is_test[pairs[:, 1]]]
    return np.unique(torn[is_test[torn]])
