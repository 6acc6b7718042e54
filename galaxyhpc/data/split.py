"""The division of galaxies into train, validation and test: arrays in, a table out; no files.

Galaxies that share sky or pixels stay together: connected components of galaxies nearer than `link_arcsec`, or with
identical pixels, are divided, and not galaxies. Of the 17,736 published ones 236 pairs of frames overlap, and 59
pairs are the same galaxy under two labels.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.split_file import DROPPED, SPLITS

__all__ = ["DUPLICATE_RADIUS_ARCSEC", "SPLITS", "make_split_table", "select_training_indices"]

DUPLICATE_RADIUS_ARCSEC = 1.0  # two positions nearer than this are one galaxy


def make_split_table(
    config: DataConfig, labels: np.ndarray, ra: np.ndarray, dec: np.ndarray, digests: np.ndarray
) -> pd.DataFrame:
    """Return one row per galaxy: row, label, ra, dec, sky_group, split (one of SPLITS, or dropped).

    `labels`, `ra`, `dec` (degrees) and `digests` (of the pixels) are (N,) arrays.
    """
    duplicates = np.concatenate([find_identical_images(digests), find_close_pairs(ra, dec, DUPLICATE_RADIUS_ARCSEC)])
    links = np.concatenate([duplicates, find_close_pairs(ra, dec, config.link_arcsec)])
    groups = label_components(len(labels), links)
    kept = np.ones(len(labels), bool)
    if config.conflicting_duplicates == "drop":
        kept = ~find_label_conflicts(labels, label_components(len(labels), duplicates))
    held_out = (config.validation_fraction, config.test_fraction)
    split = np.full(len(labels), DROPPED, dtype=object)
    split[kept] = assign_splits(labels[kept], groups[kept], (1.0 - sum(held_out), *held_out), config.split_seed)
    return pd.DataFrame(
        {
            "row": np.arange(len(labels)),
            "label": labels,
            "ra": ra,
            "dec": dec,
            "sky_group": groups,
            "split": split,
        }
    )


def find_close_pairs(ra: np.ndarray, dec: np.ndarray, max_separation_arcsec: float) -> np.ndarray:
    """Return the (M, 2) pairs of rows, the lower one first, whose positions (degrees) are that near on the sky."""
    from astropy import units  # here: every job imports this module, few make a split
    from astropy.coordinates import SkyCoord

    positions = SkyCoord(ra, dec, unit="deg")
    first, second, _, _ = positions.search_around_sky(positions, max_separation_arcsec * units.arcsec)
    return np.asarray(np.stack([first, second], axis=1)[first < second])


def find_identical_images(digests: np.ndarray) -> np.ndarray:
    """Return (M, 2) pairs of rows that chain all images with equal digests."""
    order = np.argsort(digests, kind="stable")
    equal = digests[order[1:]] == digests[order[:-1]]
    return np.stack([order[:-1][equal], order[1:][equal]], axis=1)


def label_components(num_galaxies: int, pairs: np.ndarray) -> np.ndarray:
    """Return the (num_galaxies,) connected component of each row, given (M, 2) pairs of linked rows."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(num_galaxies, num_galaxies))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def find_label_conflicts(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return an (N,) mask of the rows whose group carries more than one label."""
    frame = pd.DataFrame({"label": labels, "group": groups})
    return np.asarray(frame.groupby("group")["label"].transform("nunique") > 1)


def assign_splits(labels: np.ndarray, groups: np.ndarray, fractions: tuple[float, ...], seed: int) -> np.ndarray:
    """Give every group whole to one of SPLITS, so that each class comes near its fraction in each of them.

    Each group, largest first and otherwise shuffled by `seed`, goes to the split where it lessens the squared
    differences from the expected counts most; the many single galaxies come last and even out what the large
    groups left. A small class is to have one galaxy in each split.
    """
    if len(labels) == 0:
        return np.empty(0, dtype=object)
    groups = np.unique(groups, return_inverse=True)[1]
    counts = np.zeros((groups.max() + 1, labels.max() + 1))  # galaxies of each group in each class
    np.add.at(counts, (groups, labels), 1)
    missing = np.outer(fractions, counts.sum(axis=0))  # galaxies still to come, (splits, classes)
    missing[1:] = np.maximum(missing[1:], 1.0)
    missing[0] = counts.sum(axis=0) - missing[1:].sum(axis=0)
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    split_of_group = np.empty(len(counts), dtype=object)
    for group in order:
        best = int(np.argmax(missing @ counts[group]))
        missing[best] -= counts[group]
        split_of_group[group] = SPLITS[best]
    return np.asarray(split_of_group[groups])


def select_training_indices(split: pd.DataFrame, config: DataConfig) -> np.ndarray:
    """Return the (n,) indices of the training galaxies in use: `label_fraction` of each class, and at least one.

    The order within a class is drawn from (split_seed, row) alone: the galaxies of a small fraction are among
    those of a larger one, and the same for every network and seed.
    """
    import torch  # here: a launch imports this module, and submitting takes no time

    from galaxyhpc.runtime.rng import make_key, uniform

    train = split[split["split"] == "train"]
    indices = train["row"].to_numpy()
    draws = uniform(make_key("labels", config.split_seed), torch.tensor(indices), 1)[:, 0].numpy()
    draws_by_class = pd.Series(draws).groupby(train["label"].to_numpy())
    num_used = np.maximum(np.rint(config.label_fraction * draws_by_class.transform("size")), 1)
    return np.asarray(indices[draws_by_class.rank(method="first") <= num_used])
