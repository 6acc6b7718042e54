"""The dataset of a run: its galaxies, and the split that a sweep shares.

The split does not depend on the image size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.duplicates_file import DUPLICATES_FILE_NAME, describe_duplicates, list_duplicates
from galaxyhpc.data.galaxies import Galaxies, check_classes, get_source_path, open_converted, prepare, read_columns
from galaxyhpc.data.given_split import describe_division, describe_dropped, describe_split_origin, divide
from galaxyhpc.data.sources.open_source import open_source
from galaxyhpc.data.sources.source import Columns
from galaxyhpc.data.split import SPLIT_SETTINGS, explain_empty_class, find_empty_class, select_fold
from galaxyhpc.data.split_file import (
    DROPPED,
    SPLIT_FILE_NAME,
    SPLITS,
    format_split_file,
    read_split_header,
    read_split_table,
)
from galaxyhpc.runtime.lock import hold
from galaxyhpc.storage.files import write_text

MAX_DROPPED_FRACTION = 0.1  # of galaxies with conflicting labels; 118 of the 17,736 published have them


def open_dataset(config: DataConfig, sweep_dir: Path) -> tuple[Galaxies, pd.DataFrame]:
    """Open the galaxies and the split of a sweep, each made first where it does not exist yet.

    Raises
    ------
    DataError
    """
    galaxies = prepare(config)
    return galaxies, load_split(config, galaxies, sweep_dir)


def load_split(config: DataConfig, galaxies: Galaxies, sweep_dir: Path) -> pd.DataFrame:
    """Return the split of a run (see `make_split_table`) from its sweep's split.csv, made by the first caller.

    Raises
    ------
    DataError
        If the sweep's split was made from other galaxies or with other settings.
    """
    path = sweep_dir / SPLIT_FILE_NAME
    sweep_dir.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with hold(sweep_dir / ".split.lock", timeout=None):
            if not path.exists():
                _write_split(path, config, galaxies)
    table = select_fold(config, _read_split(path, config, galaxies))
    if config.fold:  # another fold than the one that the file was made for
        check_divisible(config, table, galaxies.digests)
    return table


def format_split_settings(config: DataConfig) -> str:
    """Return the settings that decide a split as JSON, as the header of split.csv holds them."""
    return json.dumps(config.model_dump(mode="json", include=set(SPLIT_SETTINGS)))


def _write_split(path: Path, config: DataConfig, galaxies: Galaxies) -> None:
    """Write duplicates.csv, where there are any among galaxies without positions, and split.csv."""
    near = (galaxies.near_pairs, galaxies.near_correlations)
    table = divide(config, galaxies.columns, galaxies.digests, galaxies.near_pairs)
    check_divisible(config, select_fold(config, table), galaxies.digests)
    header = _make_split_header(config, galaxies, table)
    if near[0] is not None and near[1] is not None:
        duplicates = list_duplicates(table, galaxies.digests, near[0], near[1])
        if len(duplicates):
            write_text(path.with_name(DUPLICATES_FILE_NAME), duplicates.to_csv(index=False))
            header.append(f"duplicates: {describe_duplicates(duplicates)}")
    write_text(path, format_split_file(header, table))


def _make_split_header(config: DataConfig, galaxies: Galaxies, table: pd.DataFrame) -> list[str]:
    columns = galaxies.columns
    counts = table["split"].value_counts()
    group_sizes = table["sky_group"].value_counts()
    header = [
        f"fingerprint: {galaxies.fingerprint}",
        f"source: {config.source}",
        f"settings: {format_split_settings(config)}",
        f"origin: {describe_split_origin(config, columns, table, galaxies.digests)}",
        f"divided: {describe_division(columns)}",
        "counts: " + ", ".join(f"{name} {counts.get(name, 0)}" for name in (*SPLITS, DROPPED)),
        f"dropped: {describe_dropped(config, columns, table)}",
        f"sky groups: {len(group_sizes)}, the largest of {group_sizes.max()}; a group is never divided",
    ]
    if (table["fold"] >= 0).any():
        header.append("folds: the test set of data.fold=k is fold k, its validation set half 0 of fold (k + 1) % 5")
    if galaxies.num_grey == len(table):
        header.append("grey: all images, so that `predict` takes grey ones")
    if galaxies.num_filled:
        header.append(f"filled: {galaxies.num_filled} images had pixels without a value, which were taken as sky")
    if galaxies.generated:
        header.append("generated: these galaxies are GENERATED; nothing about real ones follows from them")
    return header


def check_divisible(config: DataConfig, table: pd.DataFrame, digests: np.ndarray) -> None:
    """Refuse a division (see `make_split_table`) that no sweep can use.

    Raises
    ------
    DataError
    """
    num_dropped = int((table["split"] == DROPPED).sum())
    if num_dropped > MAX_DROPPED_FRACTION * len(table):
        raise DataError(
            f"{config.source}: got {num_dropped} of {len(table)} galaxies dropped, with the pixels or the position of "
            "one of another label or, where the source gives the split, with nearly the pixels of one in another part; "
            "expected few: check labels, positions, images and split, or set data.conflicting_duplicates=keep"
        )
    if empty := find_empty_class(table):
        label, split = empty
        reason = explain_empty_class(config, table, digests, label)
        raise DataError(
            f"{config.source}: class {label} ({config.class_names[label]}): got no galaxy for {split}, since {reason}"
        )


def divide_before_conversion(configs: Sequence[DataConfig]) -> dict[DataConfig, pd.DataFrame]:
    """Return the divisions that jobs will make of the same galaxies, and check them; one slice of the pixels is read.

    Until a file is converted, no two images are known to be the same, or nearly. The settings may differ in fold and
    image size.

    Raises
    ------
    DataError
    """
    first = configs[0]
    if (galaxies := open_converted(first)) is not None:
        check_classes(first, galaxies.classes)
        columns, digests, near_pairs = galaxies.columns, galaxies.digests, galaxies.near_pairs
    else:
        columns, near_pairs = _check_images_and_read_columns(first), None
        digests = np.arange(len(columns.labels))
    table = divide(first, columns, digests, near_pairs)
    divisions = {config: select_fold(config, table) for config in configs}
    for config, division in divisions.items():
        check_divisible(config, division, digests)
    return divisions


def _check_images_and_read_columns(config: DataConfig) -> Columns:
    if config.source == "demo":
        check_classes(config, GALAXY10_CLASSES)
        return read_columns(config)
    source = open_source(get_source_path(config), config)
    check_classes(config, source.classes)
    source.check_images()
    return source.columns


def _read_split(path: Path, config: DataConfig, galaxies: Galaxies) -> pd.DataFrame:
    header = read_split_header(path)
    fingerprint, settings = header.get("fingerprint", "unknown"), header.get("settings", "unknown")
    expected_settings = format_split_settings(config)
    if (fingerprint, settings) != (galaxies.fingerprint, expected_settings):
        raise DataError(
            f"{path}: made from galaxies {fingerprint[:12]} ({header.get('source', 'unknown')}) with {settings}; "
            f"got galaxies {galaxies.fingerprint[:12]} ({config.source}) with {expected_settings}; expected one "
            "split for all runs of a sweep: restore that file and those settings, launch into another "
            f"directory (--runs), or remove {path.parent} and all its runs"
        )
    table = read_split_table(path)
    if (
        not np.array_equal(table["label"], galaxies.labels)
        or not np.array_equal(table["row"], np.arange(len(table)))
        or not table["split"].isin((*SPLITS, DROPPED)).all()
    ):
        raise DataError(f"{path}: got rows that do not match its fingerprint; expected the file as written")
    return table
