"""Parquet with images inside, as the data sets of HuggingFace are: one file, or a directory of shards.

An image is a struct {bytes, path}, the bytes of an image file, or nested lists of pixels.
Shards named after a split, such as train-00000-of-00004.parquet, are that split.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.images.galaxy_image import describe_flaw
from galaxyhpc.data.images.image_files import GalaxyImage, ImageError, convert_pixels, read_image
from galaxyhpc.data.sources import tables
from galaxyhpc.data.sources.catalogue import check_not_blank, make_catalogue_source, parse_columns
from galaxyhpc.data.sources.labels import SPLIT_NAMES
from galaxyhpc.data.sources.source import Source, make_error

ROWS_AT_ONCE = 32  # whose images are in memory
NUM_TRIAL_IMAGES = 10  # read before a launch, of the first and of the last shard
FILE_TYPE = "a parquet file"
SPLIT_COLUMN = "split of the shard"  # made from the names of the files
PATH_COLUMN = "path of the image"  # a part of the struct


@dataclass(frozen=True, eq=False)
class Shards:
    """Parquet files with the same columns, whose rows are counted through."""

    paths: list[Path]
    starts: np.ndarray  # first row of each, and the number of all

    def find(self, row: int) -> int:
        """Return the number of the shard that holds a row."""
        return int(np.searchsorted(self.starts, row, "right")) - 1

    def locate(self, row: int) -> str:
        """Return where a row stands."""
        number = self.find(row)
        return f"row {row - self.starts[number]} of {self.paths[number].name}"


def find_shards(path: Path) -> list[Path]:
    """Return the parquet files of a directory, but for hidden ones, in the order of their names; or the file itself."""
    if not path.is_dir():
        return [path]
    shards = []
    for root, directories, names in os.walk(path):
        directories[:] = [name for name in directories if name[0] != "."]
        shards += [Path(root, name) for name in names if name[0] != "." and name.endswith(tables.PARQUET_ENDINGS)]
    return sorted(shards)


def open_parquet(path: Path, config: DataConfig) -> Source:
    """Open a parquet file or a directory of shards, whose images are inside or in files that it names.

    Raises
    ------
    DataError
    """
    paths = find_shards(path)
    shards, schema = read_headers(paths)
    columns = tables.find_columns(path, schema.names, config.columns)
    if "file" not in columns:
        expected = "one with the images, or with the names of their files: name it in data.columns.file"
        raise make_error(path, "columns", ", ".join(schema.names), expected)
    table = read_columns(shards, columns, schema)
    if columns["file"] in table:
        return make_catalogue_source(path, table, columns, config, shards.locate)
    return _make_parquet_source(path, shards, table, columns, config)


def read_headers(paths: list[Path]) -> tuple[Shards, Any]:
    """Return the shards and the schema of the first.

    Raises
    ------
    DataError
    """
    schemas, counts = zip(*(_read_header(shard) for shard in paths), strict=True)
    return Shards(paths, np.concatenate([[0], np.cumsum(counts)])), schemas[0]


def _read_header(shard: Path) -> tuple[Any, int]:
    """Return the schema of a file and the number of its rows."""
    parquet = tables.import_parquet(shard)
    with tables.translate_table_errors(shard, FILE_TYPE), parquet.ParquetFile(shard) as file:
        return file.schema_arrow, file.metadata.num_rows


def read_columns(shards: Shards, columns: dict[str, str], schema: Any) -> pd.DataFrame:
    """Return all columns but that of images inside; those may bring PATH_COLUMN.

    Raises
    ------
    DataError
    """
    import pyarrow

    parquet, kind = tables.import_parquet(shards.paths[0]), schema.field(columns["file"]).type
    names = [name for key, name in columns.items() if key != "file"]
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        names.append(columns["file"])
    if has_path := pyarrow.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        names.append(f"{columns['file']}.path")
    parts = []
    for shard in shards.paths:
        with tables.translate_table_errors(shard, FILE_TYPE), parquet.ParquetFile(shard) as file:
            part = file.read(columns=names)
            if has_path:
                paths = part.column(columns["file"]).combine_chunks().field("path")
                part = part.drop_columns([columns["file"]]).append_column(PATH_COLUMN, paths)
            parts.append(part.to_pandas(integer_object_nulls=True))
    table: pd.DataFrame = pd.concat(parts, ignore_index=True)
    if label := columns.get("label"):
        table[label] = _name_labels(table[label], label, schema)
    if splits := _find_splits(shards):
        table[SPLIT_COLUMN] = np.repeat(splits, np.diff(shards.starts))
    return table


def _name_labels(labels: pd.Series[Any], column: str, schema: Any) -> pd.Series[Any]:
    """Replace the numbers of classes by the names that HuggingFace's ClassLabel has in the metadata of the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return labels
    return labels.map(dict(enumerate(names))).fillna("")


def _find_splits(shards: Shards) -> list[str]:
    """Return the split of each shard by the name of its file or directory; nothing unless train and test are there."""
    splits = []
    for path in shards.paths:
        names = [*re.findall("^[a-z]+", path.name.lower()), path.parent.name.lower()]
        splits.append(next((SPLIT_NAMES[name] for name in names if name in SPLIT_NAMES), ""))
    return splits if "" not in splits and {"train", "test"} <= set(splits) else []


def _make_parquet_source(
    path: Path, shards: Shards, table: pd.DataFrame, columns: dict[str, str], config: DataConfig
) -> Source:
    if "split" not in columns and config.columns.split is None and SPLIT_COLUMN in table:
        columns = columns | {"split": SPLIT_COLUMN}
    if "id" not in columns and config.columns.id is None and PATH_COLUMN in table:
        columns = columns | {"id": PATH_COLUMN}
    kept, classes, parsed = parse_columns(path, table, columns, config, shards.locate)
    read = partial(_read_pixels, shards, columns["file"], config)

    def check_images() -> None:
        trial = [rows[:NUM_TRIAL_IMAGES] for rows in _divide(kept, shards) if len(rows)]
        check_not_blank(path, list(read(np.unique(np.concatenate([trial[0], trial[-1]])))))

    return Source(
        path,
        "parquet with images",
        classes,
        parsed,
        partial(read, kept),
        check_images,
        field_arcsec=np.nan if config.field_arcsec is None else config.field_arcsec,
        num_left_out=len(table) - len(kept),
    )


def _divide(rows: np.ndarray, shards: Shards) -> list[np.ndarray]:
    """Divide ascending rows among the shards."""
    return np.split(rows, np.searchsorted(rows, shards.starts[1:-1]))


def _read_pixels(shards: Shards, column: str, config: DataConfig, rows: np.ndarray) -> Iterator[np.ndarray]:
    for image in read_images(shards, column, config, rows):
        if isinstance(image, ImageError):
            raise DataError(str(image)) from image
        yield image.pixels


def read_images(
    shards: Shards, column: str, config: DataConfig, rows: np.ndarray
) -> Iterator[GalaxyImage | ImageError]:
    """Yield the images of these rows, in ascending order, or the reason why one cannot be used.

    A few of them are in memory at a time.

    Raises
    ------
    DataError
        If a file is damaged.
    """
    for number, members in enumerate(_divide(rows, shards)):
        shard, missing = shards.paths[number], set(members.tolist())
        parquet, start = tables.import_parquet(shard), int(shards.starts[number])
        with tables.translate_table_errors(shard, FILE_TYPE), parquet.ParquetFile(shard) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
                if not missing:
                    break
                for row, value in enumerate(batch.column(0), start):
                    if row in missing:
                        missing.remove(row)
                        try:
                            yield _read_image(value, shard, f"{shard}: row {row - shards.starts[number]}", config)
                        except ImageError as error:
                            yield error
                start += len(batch)


def _read_image(value: Any, shard: Path, place: str, config: DataConfig) -> GalaxyImage:
    """Return the image of a value of pyarrow.

    Raises
    ------
    ImageError
    """
    import pyarrow

    kind = value.type
    if pyarrow.types.is_struct(kind):
        content, name = (_get_field(value, key) for key in ("bytes", "path"))
        if content is None and name:
            root = Path(config.images).expanduser() if config.images else shard.parent
            return read_image(root / name, str(root / name), config)
    elif pyarrow.types.is_nested(kind):
        pixels = convert_pixels(to_array(value), place, config.crop)
        return GalaxyImage(pixels, describe_flaw(pixels))
    else:
        content = value.as_py()
    if not isinstance(content, bytes):
        raise ImageError(f"{place}: got {kind} and no image; expected bytes of an image file, or pixels")
    return read_image(io.BytesIO(content), place, config)


def _get_field(value: Any, key: str) -> Any:
    return value[key].as_py() if value.type.get_field_index(key) >= 0 else None


def to_array(value: Any) -> np.ndarray:
    """Return nested lists as an array; an empty one where their lengths differ."""
    shape: list[int] = []
    values = value.values
    while hasattr(values, "flatten") and hasattr(values.type, "value_type"):
        shape.append(len(values) // max(1, int(np.prod(shape))))
        values = values.flatten()
    shape.append(len(values) // max(1, int(np.prod(shape))))
    array = values.to_numpy(zero_copy_only=False)
    return array.reshape(shape) if array.size == np.prod(shape) else np.empty((0, 0))
