"""The division of galaxies into train, validation and test: arrays in, a table out; no files.

Galaxies that share sky or pixels stay together: connected components of galaxies nearer than `link_arcsec`, or with
identical pixels, are divided, and not galaxies. Of the 17,736 published ones 236 pairs of frames overlap, and 59
pairs are the same galaxy under two labels. These have a canonical split, which the default settings use.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.canonical_split import NUM_GALAXIES, SPLIT_FILE, divide_by_fold, load_galaxy10_split
from galaxyhpc.data.sources.source import Columns
from galaxyhpc.data.split_file import DROPPED, SPLITS

__all__ = ["DUPLICATE_RADIUS_ARCSEC", "SPLITS", "explain_empty_class", "make_split_table", "select_training_indices"]

DUPLICATE_RADIUS_ARCSEC = 1.0  # two positions nearer than this are one galaxy
SPLIT_SETTINGS = ("validation_fraction", "test_fraction", "split_seed", "link_arcsec", "conflicting_duplicates")
NO_PAIRS = np.empty((0, 2), np.int64)  # of rows
CANONICAL_COLUMNS = ["sky_group", "fold", "half", "split"]


def make_split_table(
    config: DataConfig, columns: Columns, digests: np.ndarray, near_pairs: np.ndarray = NO_PAIRS
) -> pd.DataFrame:
    """Return one row per galaxy: row, label, ra, dec, sky_group, fold, half, split (one of SPLITS, or dropped).

    `digests` (N,) are of the pixels, `near_pairs` (M, 2) rows of nearly the same images. `split` is that of fold 0,
    which `select_fold` replaces. The published galaxies have their canonical split if the settings are the defaults.
    """
    if columns.groups is None and not list_changed_settings(config) and _are_published(config, columns):
        return tabulate_galaxies(columns).join(load_galaxy10_split()[CANONICAL_COLUMNS])
    return compute_split_table(config, columns, digests, near_pairs)


def _are_published(config: DataConfig, columns: Columns) -> bool:
    """Whether these have the labels, the sky groups and the conflicts of the published galaxies, in their order."""
    if len(columns.labels) != NUM_GALAXIES:
        return False
    canonical = load_galaxy10_split()
    groups, kept = link_galaxies(config, columns, np.arange(NUM_GALAXIES))  # by position alone
    is_kept = canonical["split"] != DROPPED
    pairs = ((columns.labels, canonical["label"]), (groups, canonical["sky_group"]), (kept, is_kept))
    return all(np.array_equal(ours, published) for ours, published in pairs)


def tabulate_galaxies(columns: Columns) -> pd.DataFrame:
    """Return the columns of a split that are known before it is made: row, label, ra, dec."""
    rows = np.arange(len(columns.labels))
    return pd.DataFrame({"row": rows, "label": columns.labels, "ra": columns.ra, "dec": columns.dec})


def compute_split_table(
    config: DataConfig, columns: Columns, digests: np.ndarray, near_pairs: np.ndarray = NO_PAIRS
) -> pd.DataFrame:
    """Return the table of `make_split_table` as computed for any galaxies.

    Five folds exist with the default fractions alone: fold 0 is the test set, and half 0 of fold 1 the validation set.
    Otherwise, and for dropped galaxies, fold and half are -1.
    """
    groups, kept = link_galaxies(config, columns, digests, near_pairs)
    labels, seed, held_out = columns.labels, config.split_seed, (config.validation_fraction, config.test_fraction)
    split, tenths = np.full(len(labels), DROPPED, dtype=object), np.full(len(labels), -1)
    parts = assign_parts(labels[kept], groups[kept], (1.0 - sum(held_out), *held_out), seed)
    split[kept] = np.array(SPLITS, dtype=object)[parts]
    if config.has_folds:
        for name, first, number in (("test", 0, 2), ("validation", 2, 1), ("train", 3, 7)):
            members = split == name
            tenths[members] = first + assign_parts(labels[members], groups[members], (1 / number,) * number, seed)
    folds, halves = tenths // 2, np.where(tenths < 0, -1, tenths % 2)
    return tabulate_galaxies(columns).assign(sky_group=groups, fold=folds, half=halves, split=split)


def link_galaxies(
    config: DataConfig, columns: Columns, digests: np.ndarray, near_pairs: np.ndarray = NO_PAIRS
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sky group of each galaxy, and whether it is kept: (N,) each.

    Without groups of the source's own, galaxies nearer than `link_arcsec` are linked; nearly the same images,
    `near_pairs` (M, 2), are in any case.
    """
    num_galaxies, duplicates = len(columns.labels), find_duplicates(columns, digests)
    if columns.groups is None:
        near = find_close_pairs(columns.ra, columns.dec, config.link_arcsec)
    else:
        near = chain_equal_values(columns.groups)
    groups = label_components(num_galaxies, np.concatenate([duplicates, near, near_pairs]))
    kept = np.ones(num_galaxies, bool)
    if config.conflicting_duplicates == "drop":
        kept = ~find_label_conflicts(columns.labels, label_components(num_galaxies, duplicates))
    return groups, kept


def find_duplicates(columns: Columns, digests: np.ndarray) -> np.ndarray:
    """Return (M, 2) pairs of rows with the same pixels, or positions within DUPLICATE_RADIUS_ARCSEC."""
    same_place = find_close_pairs(columns.ra, columns.dec, DUPLICATE_RADIUS_ARCSEC)
    return np.concatenate([chain_equal_values(digests), same_place])


def select_fold(config: DataConfig, table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `make_split_table` with the split of the fold that a run is tested on."""
    return divide_by_fold(table, config.fold) if config.fold else table


def list_changed_settings(config: DataConfig) -> list[str]:
    """Return the settings of the split that are not the defaults: `data.test_fraction=0.3`."""
    defaults = DataConfig()
    changed = [name for name in SPLIT_SETTINGS if getattr(config, name) != getattr(defaults, name)]
    return [f"data.{name}={getattr(config, name)}" for name in changed]


def describe_origin(config: DataConfig, table: pd.DataFrame, digests: np.ndarray) -> str:
    """Return whether a table is the canonical split or a computed one, and why."""
    if changed := list_changed_settings(config):
        return f"computed, with {', '.join(changed)}"
    if len(table) != NUM_GALAXIES or not table[CANONICAL_COLUMNS].equals(load_galaxy10_split()[CANONICAL_COLUMNS]):
        return "computed, for these are not the galaxies of the published Galaxy10 DECaLS in its order"
    text = f"canonical split {SPLIT_FILE.name}, SHA-256 {hashlib.sha256(SPLIT_FILE.read_bytes()).hexdigest()}"
    groups = table["sky_group"].to_numpy()[chain_equal_values(digests)]
    num_apart = int((groups[:, 0] != groups[:, 1]).sum())  # positions alone decided
    return text + (f"; {num_apart} pairs of images with the same pixels are in two sky groups" if num_apart else "")


def find_empty_class(table: pd.DataFrame) -> tuple[int, str] | None:
    """Return a class without a galaxy in a split, and that split, if there is one."""
    counts = pd.crosstab(table["label"], table["split"]).reindex(columns=SPLITS, fill_value=0)
    return next(((int(label), split) for split in SPLITS for label in counts.index[counts[split] == 0]), None)


def explain_empty_class(config: DataConfig, table: pd.DataFrame, digests: np.ndarray, label: int) -> str:
    """Return why the galaxies of a class cannot be divided, and what helps: the first cause that alone suffices."""
    members = table[table["label"] == label]
    kept, radius = members[members["split"] != DROPPED], DUPLICATE_RADIUS_ARCSEC
    ra, dec = kept["ra"].to_numpy(), kept["dec"].to_numpy()
    places = label_components(len(kept), find_close_pairs(ra, dec, radius))
    fields = label_components(len(kept), find_close_pairs(ra, dec, config.link_arcsec))
    num_groups = kept["sky_group"].nunique()
    causes = (  # how many parts it leaves, what was found, what is expected
        (
            len(kept),
            f"all but {len(kept)} dropped, with the pixels or the position of a galaxy of another label",
            "labels that agree: check labels, positions and images, or set data.conflicting_duplicates=keep",
        ),
        (len(np.unique(digests[kept["row"]])), "of the same pixels", "images that differ"),
        (
            len(np.unique(places)),
            f"within {radius:g} arcsec of each other, at ra {ra.mean() if len(kept) else 0:g}, dec "
            f"{dec.mean() if len(kept) else 0:g}",
            "the position of each, in degrees",
        ),
        (
            max(num_groups, len(np.unique(fields))),
            f"linked by data.link_arcsec ({config.link_arcsec:g})",
            "a smaller data.link_arcsec, or positions in degrees",
        ),
        (
            num_groups,
            "linked by their group, their position, or pixels that are the same or nearly",
            "galaxies that differ, or a column split (data.columns.split)",
        ),
    )
    other = "data.fold=0" if config.fold else "other data.validation_fraction and test_fraction"
    few = "in few groups that cannot be divided", f"more galaxies, or {other}"
    got, expected = next(((got, expected) for parts, got, expected in causes if parts < len(SPLITS)), few)
    return f"its {len(members)} are {got}; expected {expected}"


def find_close_pairs(ra: np.ndarray, dec: np.ndarray, max_separation_arcsec: float) -> np.ndarray:
    """Return the (M, 2) pairs of rows, the lower one first, whose positions (degrees) are that near on the sky.

    Unknown positions (NaN) are near none.
    """
    from astropy import units  # here: every job imports this module, few make a split
    from astropy.coordinates import SkyCoord

    known = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    if len(known) < 2:  # search_around_sky takes no fewer
        return NO_PAIRS
    positions = SkyCoord(ra[known], dec[known], unit="deg")
    first, second, _, _ = positions.search_around_sky(positions, max_separation_arcsec * units.arcsec)
    return np.asarray(known[np.stack([first, second], axis=1)[first < second]])


def chain_equal_values(values: np.ndarray) -> np.ndarray:
    """Return (M, 2) pairs of rows that chain all with equal values, such as digests of pixels."""
    order = np.argsort(values, kind="stable")
    equal = values[order[1:]] == values[order[:-1]]
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


def assign_parts(labels: np.ndarray, groups: np.ndarray, fractions: tuple[float, ...], seed: int) -> np.ndarray:
    """Give every group whole to one of the parts 0, 1, ..., so that each class comes near its fraction in each of them.

    Each group, largest first and otherwise shuffled by `seed`, goes to the part where it lessens the squared
    differences from the expected counts most; the many single galaxies come last and even out what the large
    groups left. A small class is to have one galaxy in each part.
    """
    if len(labels) == 0:
        return np.empty(0, dtype=np.int64)
    groups = np.unique(groups, return_inverse=True)[1]
    counts = np.zeros((groups.max() + 1, labels.max() + 1))  # galaxies of each group in each class
    np.add.at(counts, (groups, labels), 1)
    missing = np.outer(fractions, counts.sum(axis=0))  # galaxies still to come, (parts, classes)
    missing[1:] = np.maximum(missing[1:], 1.0)
    missing[0] = counts.sum(axis=0) - missing[1:].sum(axis=0)
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    part_of_group = np.empty(len(counts), dtype=np.int64)
    for group in order:
        best = int(np.argmax(missing @ counts[group]))
        missing[best] -= counts[group]
        part_of_group[group] = best
    return part_of_group[groups]


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
