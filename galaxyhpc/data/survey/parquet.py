"""Parquet with a galaxy per row: its image (HuggingFace's structs, bytes, nested lists), or the name of its file.

A file is divided between its row groups, or inside those that are larger than a unit. Of its columns, only those of
image, id, ra and dec are read, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.images.galaxy_image import ImageError
from galaxyhpc.data.sources import tables
from galaxyhpc.data.sources.parquet import FILE_TYPE, to_array
from galaxyhpc.data.sources.source import make_error
from galaxyhpc.data.sources.unlabelled import choose_directory
from galaxyhpc.data.survey.hats import find_root, read_position_columns
from galaxyhpc.data.survey.table_rows import make_galaxies, read_files
from galaxyhpc.data.survey.unit import (
    CHUNK_BYTES,
    CHUNK_GALAXIES,
    KEYS,
    NUM_THREADS,
    CheckColumns,
    ColumnNames,
    Encoded,
    Unit,
    UnitGalaxies,
    divide_rows,
    make_units,
)
from galaxyhpc.storage.files import sanitize

BUFFER_BYTES = 2**20  # read at once; without a buffer, pyarrow holds the column of a whole row group


class ImageColumn(NamedTuple):
    """The column that holds the images of a parquet file."""

    name: str
    form: str  # "struct", "bytes", "pixels" or "files", their names
    fields: tuple[str, ...] = ()  # of a struct: "bytes", "path"


def find_units(paths: list[Path], config: DataConfig, galaxies_per_unit: int, check: CheckColumns) -> Iterator[Unit]:
    """Yield the units of parquet files, from their footers.

    Raises
    ------
    DataError
        If a footer is damaged, or a file has no images.
    """

    checked: list[Any] = []  # schemas, most often one

    def find(path: Path) -> list[Unit] | DataError:
        try:
            with tables.translate_table_errors(path, FILE_TYPE), open_file(path) as file:
                if not any(file.metadata.schema.equals(schema) for schema in checked):
                    check(path, sort_columns(file.schema_arrow))
                    choose_columns(path, file.schema_arrow, config)
                    checked.append(file.metadata.schema)
                counts = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            return make_units(path, "parquet", divide_rows(counts, galaxies_per_unit))
        except DataError as error:
            return error

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = list(pool.map(find, paths))
    if errors := [result for result in results if isinstance(result, DataError)]:
        others = f" ({len(errors) - 1} more of {len(paths)} files cannot be used)" if len(errors) > 1 else ""
        raise DataError(f"{errors[0]}{others}")
    for result in results:
        yield from result  # type: ignore[misc]


def open_file(path: Path) -> Any:
    """Return an open pyarrow.parquet.ParquetFile."""
    return tables.import_parquet(path).ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)


def choose_columns(path: Path, schema: Any, config: DataConfig) -> tuple[ImageColumn, dict[str, str]]:
    """Return the column of images, and those of id, ra and dec by key, where they exist.

    A column whose type is that of images is preferred to one with names of files.

    Raises
    ------
    DataError
    """
    names, requested = schema.names, config.columns.file
    by_lower_case = {name.lower(): name for name in reversed(names)}
    common = [by_lower_case[name] for name in tables.COMMON_NAMES["file"] if name in by_lower_case]
    candidates = [requested] if requested and requested in names else common
    images = [image for name in candidates if (image := _describe_images(name, schema.field(name).type))]
    if not images:
        listed = ", ".join(f"{name} ({schema.field(name).type})"[:80] for name in candidates) or ", ".join(names)
        expected = (
            "one with images (bytes of files, {bytes, path}, nested lists of pixels) or with the names of their files"
        )
        raise make_error(path, "columns", listed or "none", f"{expected}: name it, --columns file=NAME")
    columns = tables.match_columns(path, names, config.columns)
    for key, name in read_position_columns(path).items():
        if name in names and getattr(config.columns, key) not in ("", *names):
            columns[key] = name
    known = {key: name for key, name in columns.items() if key in ("id", "ra", "dec")}
    return min(images, key=lambda image: image.form == "files"), known


def sort_columns(schema: Any) -> ColumnNames:
    """Return the names that each key can have."""
    simple = [field.name for field in schema if not is_nested_or_binary(field.type)]
    return dict.fromkeys(KEYS, simple) | {"file": schema.names}


def is_nested_or_binary(kind: Any) -> bool:
    """Whether a column of this type of pyarrow holds neither texts nor numbers."""
    from pyarrow import BaseExtensionType, types

    tests = (types.is_nested, types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    return isinstance(kind, BaseExtensionType) or any(test(kind) for test in tests)


def _describe_images(name: str, kind: Any) -> ImageColumn | None:
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if isinstance(kind, pyarrow.FixedShapeTensorType):
        return ImageColumn(name, "pixels")
    if isinstance(kind, pyarrow.BaseExtensionType):
        kind = kind.storage_type
    if types.is_struct(kind):
        parts = {part.name: _describe_images(name, part.type) for part in kind}
        forms = (("bytes", "bytes"), ("path", "files"))
        fields = tuple(field for field, form in forms if (part := parts.get(field)) and part.form == form)
        return ImageColumn(name, "struct", fields) if fields else None
    if types.is_nested(kind):
        return ImageColumn(name, "pixels") if types.is_nested(getattr(kind, "value_type", None)) else None
    if types.is_binary(kind) or types.is_large_binary(kind):
        return ImageColumn(name, "bytes")
    return ImageColumn(name, "files") if types.is_string(kind) or types.is_large_string(kind) else None


def read_unit(unit: Unit, config: DataConfig) -> Iterator[UnitGalaxies]:
    """Yield the galaxies of a unit, a few at a time.

    Raises
    ------
    DataError
    """
    path = Path(unit.source)
    with tables.translate_table_errors(path, FILE_TYPE), open_file(path) as file:
        image, columns = choose_columns(path, file.schema_arrow, config)
        directory = choose_directory(find_root(path) / path.name, config)  # of a HATS catalogue, beside its properties
        for first, batch in _iterate_batches(file, unit, image, columns):
            rows = np.arange(first, first + len(batch))
            encoded, names = _get_images(batch.column(image.name), image, directory, unit.source, rows)
            table = batch.select(list(columns.values())).to_pandas(integer_object_nulls=True)
            yield make_galaxies(unit.source, rows, table, columns, encoded, names)


def _iterate_batches(file: Any, unit: Unit, image: ImageColumn, columns: dict[str, str]) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a unit in batches, and the number of the first of each."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum([group.num_rows for group in groups])])
    inside = [n for n in range(len(groups)) if starts[n] < unit.stop and starts[n + 1] > unit.first]
    bytes_per_row = max(groups[n].total_byte_size // max(1, groups[n].num_rows) for n in inside)
    length = int(np.clip(CHUNK_BYTES // max(1, bytes_per_row), 1, CHUNK_GALAXIES))
    names = [f"{image.name}.{field}" for field in image.fields] or [image.name]
    names = list(dict.fromkeys([*names, *columns.values()]))
    row = int(starts[inside[0]])
    for batch in file.iter_batches(length, row_groups=inside, columns=names, use_threads=False):
        low, high = max(unit.first - row, 0), min(unit.stop - row, len(batch))
        if low < high:
            yield row + low, batch.slice(low, high - low)
        row += len(batch)
        if row >= unit.stop:
            return


def _get_images(
    values: Any, image: ImageColumn, directory: Path, source: str, rows: NDArray[np.int64]
) -> tuple[list[Encoded], list[str]]:
    """Return the images of these rows, and the names of their files where these are known."""
    contents, names = _get_contents(values, image)
    encoded: list[Encoded] = [
        _make_absent(source, row) if content is None else content
        for content, row in zip(contents, rows.tolist(), strict=True)
    ]
    is_file = [content is None and bool(name) for content, name in zip(contents, names, strict=True)]
    if outside := np.flatnonzero(is_file).tolist():
        files = read_files([names[index] for index in outside], directory, source, rows[outside])
        for index, file in zip(outside, files, strict=True):
            encoded[index] = file
    return encoded, names


def _get_contents(values: Any, image: ImageColumn) -> tuple[list[Any], list[str]]:
    """Return the images inside, None where there is none, and the names of files, empty where there is none."""
    nothing: list[Any]
    nothing, no_names = [None] * len(values), [""] * len(values)
    if image.form == "pixels":
        return _get_pixels(values), no_names
    if image.form == "bytes":
        return values.to_pylist(), no_names
    if image.form == "files":
        return [*nothing], [name or "" for name in values.to_pylist()]
    contents = values.field("bytes").to_pylist() if "bytes" in image.fields else nothing
    names = [name or "" for name in values.field("path").to_pylist()] if "path" in image.fields else no_names
    return contents, names


def _get_pixels(values: Any) -> list[NDArray[Any] | None]:
    import pyarrow

    if isinstance(values, pyarrow.FixedShapeTensorArray):
        return list(values.to_numpy_ndarray())
    if isinstance(values, pyarrow.ExtensionArray):
        values = values.storage
    return [to_array(value) if value.is_valid else None for value in values]


def _make_absent(source: str, row: int) -> ImageError:
    return ImageError(sanitize(f"{source}: got nothing in row {row}; expected an image, or the name of its file"))
