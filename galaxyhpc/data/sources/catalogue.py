"""A catalogue with a row per galaxy that names its image file, and a folder with a subfolder of images per class."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.images.image_files import IMAGE_ENDINGS, ImageError, read_image
from galaxyhpc.data.sources import tables
from galaxyhpc.data.sources.labels import SPLIT_NAMES, Locate, make_labels, parse_splits
from galaxyhpc.data.sources.source import (
    MAX_BLANK_FRACTION,
    Columns,
    Source,
    check_class_counts,
    check_positions_differ,
    make_error,
)

NUM_TRIAL_IMAGES = 20  # read before a launch, evenly spaced
MAX_LISTED = 3  # files in a message


def open_catalogue(path: Path, config: DataConfig) -> Source:
    """Open a CSV, ECSV or FITS table whose rows name image files.

    Raises
    ------
    DataError
    """
    table = tables.read_table(path)
    columns = tables.find_columns(path, [str(name) for name in table.columns], config.columns)
    return make_catalogue_source(path, table, columns, config, partial(tables.locate_row, path))


def make_catalogue_source(
    path: Path, table: pd.DataFrame, columns: dict[str, str], config: DataConfig, locate: Locate
) -> Source:
    """Return the source of a table whose column `file` names image files.

    Raises
    ------
    DataError
    """
    if "file" not in columns:
        listed = ", ".join(map(str, table.columns))
        expected = "one with the name of each image file: name it in data.columns.file"
        raise make_error(path, "columns", listed, expected)
    kept, classes, parsed = parse_columns(path, table, columns, config, locate)
    names = tables.to_texts(table[columns["file"]])
    for row in kept[names[kept] == ""]:
        raise make_error(path, columns["file"], f"nothing in {locate(int(row))}", "the name of an image file")
    root = os.path.expanduser(config.images) if config.images else str(path.parent)
    files = [os.path.join(root, name) for name in names[kept].tolist()]  # a Path each would take seconds
    if parsed.ids is None:
        parsed = Columns(**parsed.as_dict() | {"ids": names[kept]})

    def describe_place(index: int) -> str:
        return f" ({path.name}, {locate(int(kept[index]))})"

    kind = "catalogue of image files"
    return _make_image_source(path, kind, classes, parsed, files, config, describe_place, len(names))


def parse_columns(
    path: Path, table: pd.DataFrame, columns: dict[str, str], config: DataConfig, locate: Locate
) -> tuple[np.ndarray, tuple[str, ...], Columns]:
    """Return the rows of the table that are in use, the names of the classes, and the columns of these rows.

    Raises
    ------
    DataError
    """
    texts = {key: tables.to_texts(table[columns[key]]) for key in ("label", "id", "group", "split") if key in columns}
    labels, classes = make_labels(path, columns["label"], texts["label"], config.classes, locate)
    kept = np.flatnonzero(labels >= 0)
    check_class_counts(path, columns["label"], labels[kept], classes, lambda index: locate(int(kept[index])))
    ra, dec = tables.read_positions(path, table, columns)
    splits = redshift = None
    if "redshift" in columns:
        redshift = tables.to_numbers(path, columns["redshift"], table[columns["redshift"]], -1.0, 20.0, "")[kept]
    if "split" in columns:
        splits = parse_splits(path, columns["split"], texts["split"][kept], lambda index: locate(int(kept[index])))
    parsed = Columns(
        labels=labels[kept],
        ra=ra[kept],
        dec=dec[kept],
        ids=texts["id"][kept] if "id" in columns else None,
        given_splits=splits,
        groups=_number_groups(texts["group"][kept]) if "group" in columns else None,
        redshift=redshift,
    )
    check_positions_differ(path, parsed.ra, parsed.dec)
    return kept, classes, parsed


def _number_groups(texts: np.ndarray) -> np.ndarray:
    """Return a number for each group; a galaxy without one is a group of its own."""
    own = np.array([text or f"\0{row}" for row, text in enumerate(texts.tolist())])
    return np.unique(own, return_inverse=True)[1].astype(np.int64)


def open_folder(path: Path, config: DataConfig) -> Source:
    """Open a directory with a subdirectory of images per class, or one with such directories in train, test, ...

    Raises
    ------
    DataError
    """
    subdirectories = _list_directory(path, is_directory=True)
    has_splits = bool(subdirectories) and all(name.lower() in SPLIT_NAMES for name in subdirectories)
    parents = [path / name for name in subdirectories] if has_splits else [path]
    files: list[Path] = []
    for parent in parents:
        for name in _list_directory(parent, is_directory=True):
            files += [parent / name / file for file in _list_directory(parent / name, is_directory=False)]
    if not files:
        raise make_error(path, "directory", "no subdirectory with images", "one subdirectory of images per class")
    texts = np.array([file.parent.name for file in files])
    labels, classes = make_labels(path, "subdirectories", texts, config.classes, lambda i: str(files[i]))
    kept = np.flatnonzero(labels >= 0)
    check_class_counts(path, "subdirectories", labels[kept], classes, lambda index: str(files[kept[index]]))
    unknown, splits = np.full(len(kept), np.nan), None
    if has_splits:
        names = np.array([files[row].parents[1].name for row in kept])
        splits = parse_splits(path, "subdirectories", names, lambda i: str(files[kept[i]]))
    ids = np.array([str(files[row].relative_to(path)) for row in kept])
    columns = Columns(labels[kept], unknown, unknown, ids=ids, given_splits=splits)
    used = [str(files[row]) for row in kept]
    return _make_image_source(path, "folder per class", classes, columns, used, config, lambda i: "", len(files))


def _list_directory(path: Path, *, is_directory: bool) -> list[str]:
    """Return the sorted names of subdirectories, or of image files, that are not hidden."""
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.is_dir() is is_directory and entry.name[0] != "."]
    except OSError as error:
        raise DataError(f"{path}: got {error.strerror}; expected a directory of images") from error
    return sorted(name for name in names if is_directory or name.lower().endswith(IMAGE_ENDINGS))


def _make_image_source(
    path: Path,
    kind: str,
    classes: tuple[str, ...],
    columns: Columns,
    files: list[str],
    config: DataConfig,
    describe_place: Locate,
    num_rows: int,
) -> Source:
    filled_pixels: dict[str, int] = {}

    def read(index: int) -> np.ndarray:
        try:
            image = read_image(Path(files[index]), files[index], config)
        except ImageError as error:
            raise DataError(f"{error}{describe_place(index)}") from error
        if image.num_filled:
            filled_pixels[files[index]] = image.num_filled
        return image.pixels

    def read_images() -> Iterator[np.ndarray]:
        return map(read, range(len(files)))

    def check_images() -> None:
        _check_files_exist(path, files, describe_place)
        trial = np.unique(np.linspace(0, len(files) - 1, NUM_TRIAL_IMAGES).astype(int))
        check_not_blank(path, [read(int(index)) for index in trial])

    return Source(
        path,
        kind,
        classes,
        columns,
        read_images,
        check_images,
        field_arcsec=np.nan if config.field_arcsec is None else config.field_arcsec,
        num_left_out=num_rows - len(files),
        filled_pixels=filled_pixels,
    )


def check_not_blank(path: Path, images: list[np.ndarray]) -> None:
    """Refuse images of which too many show nothing.

    Raises
    ------
    DataError
    """
    num_blank = sum(bool(image.min() == image.max()) for image in images)
    if num_blank > MAX_BLANK_FRACTION * len(images):
        got = f"{num_blank} of {len(images)} read as a trial with one value in all pixels"
        raise make_error(path, "images", got, "galaxies")


def _check_files_exist(path: Path, files: list[str], describe_place: Locate) -> None:
    """Compare the names with those in their directories: looking up each file takes minutes on a shared file system."""
    indices_by_directory: dict[str, list[int]] = defaultdict(list)
    for index, file in enumerate(files):
        indices_by_directory[os.path.dirname(file)].append(index)
    absent: list[int] = []
    for directory, indices in indices_by_directory.items():
        try:
            names = set(os.listdir(directory))
        except OSError:
            names = set()
        absent += [index for index in indices if os.path.basename(files[index]) not in names]
    if absent:
        listed = ", ".join(f"{files[index]}{describe_place(index)}" for index in sorted(absent)[:MAX_LISTED])
        got = f"{len(absent)} of {len(files)} that do not exist, such as {listed}"
        expected = "names relative to data.images, or else to the catalogue's directory"
        raise make_error(path, "image files", got, expected)
