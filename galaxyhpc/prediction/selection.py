"""Selection of the galaxies that an expression of their columns is true for, as a CSV or FITS table.

Parts are read one after the other, a batch of rows at a time, and only rows that are selected are kept. A FITS table
needs its number of rows and the lengths of its texts first, so that the parts are read twice. Embeddings stay in the
parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv, dataset

from galaxyhpc.prediction.expression import SelectionError, parse_expression
from galaxyhpc.prediction.survey import SurveyDir
from galaxyhpc.storage.files import atomic_write, sanitize

BATCH_ROWS = 16_384
FORMATS = (".csv", ".fits")
FITS_NULL = -1  # of whole numbers, which are not negative in these columns
FITS_FORMATS = {"bool": "L", "int16": "I", "int32": "J", "int64": "K", "float": "E", "double": "D"}


class Selection(NamedTuple):
    """Numbers of a selection."""

    num_selected: int
    num_galaxies: int  # in the parts
    num_units: int  # in the plan
    num_missing: int  # units without a part


def select(directory: Path, expression: str, output: Path) -> Selection:
    """Write the galaxies of a survey's prediction that an expression is true for, by the ending of `output`.

    Raises
    ------
    SelectionError, SurveyError, OSError
    """
    survey = SurveyDir(directory)
    survey.read_settings()  # raises where there is no prediction
    units = {unit.number for unit in survey.read_units()}
    parts = [survey.get_part(number) for number in sorted(survey.list_done() & units)]
    if not parts:
        raise SelectionError(f"{sanitize(str(directory))}: got no part; expected at least one that is done")
    ending = output.suffix.lower()
    if ending not in FORMATS:
        got = f"got {sanitize(output.name)!r}; expected a name that ends in {' or '.join(FORMATS)}"
        raise SelectionError(f"--to: {got}")
    schema = _read_schema(parts[0])
    condition = parse_expression(expression, schema)
    kept = pa.schema([field for field in schema if not pa.types.is_fixed_size_list(field.type)])
    iterate = partial(_iterate_batches, parts, schema, kept, condition)
    if ending == ".csv":
        num_selected = _write_csv(output, kept, iterate())
    else:
        num_selected = _write_fits(output, kept, iterate, expression)
    num_galaxies = sum(dataset.dataset(part, format="parquet").count_rows() for part in parts)
    return Selection(num_selected, num_galaxies, len(units), len(units) - len(parts))


def _read_schema(part: Path) -> pa.Schema:
    try:
        return dataset.dataset(part, format="parquet").schema
    except pa.ArrowException as error:
        raise _make_part_error(part, error) from None


def _make_part_error(part: Path, error: Exception) -> SelectionError:
    got = f"got {' '.join(str(error).split())[:200]}; expected a part of this prediction; the same predict command "
    return SelectionError(sanitize(f"{part}: {got}makes damaged parts again"))


def _iterate_batches(
    parts: Sequence[Path], schema: pa.Schema, kept: pa.Schema, condition: pc.Expression
) -> Iterator[pa.RecordBatch]:
    """Yield the selected rows, in the order of the units."""
    for part in parts:
        try:
            source = dataset.dataset(part, format="parquet")
            if not source.schema.equals(schema):
                raise pa.ArrowInvalid(f"other columns than those of {parts[0].name}")
            columns = {name: pc.field(name) for name in kept.names}
            batches = source.to_batches(
                columns=columns, filter=condition, batch_size=BATCH_ROWS, batch_readahead=1, fragment_readahead=1
            )
            yield from (batch for batch in batches if len(batch))
        except pa.ArrowException as error:
            raise _make_part_error(part, error) from None


def _write_csv(output: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    count = 0
    with atomic_write(output) as aside, csv.CSVWriter(aside, schema) as file:
        for batch in batches:
            file.write_batch(batch)
            count += len(batch)
    return count


def _write_fits(
    output: Path, schema: pa.Schema, iterate: Callable[[], Iterator[pa.RecordBatch]], expression: str
) -> int:
    """Write a binary table as a stream of rows; nulls are NaN, -1 (TNULL), an empty text, and False."""
    from astropy.io import fits

    count, widths = _measure(schema, iterate())
    header = _make_fits_header(schema, widths, count)
    _comment(header, schema, expression)
    row_type = np.dtype([(field.name, _get_fits_dtype(field.type, widths.get(field.name, 1))) for field in schema])
    with atomic_write(output) as aside, fits.StreamingHDU(aside, header) as stream:
        for batch in iterate():
            rows = np.empty(len(batch), row_type)
            for field, column in zip(schema, batch.columns, strict=True):
                rows[field.name] = _to_fits(column)
            stream.write(rows.view(np.uint8))
    return count


def _measure(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> tuple[int, dict[str, int]]:
    """Return the number of rows, and the length of the longest text of each column of texts, at least 1."""
    count, widths = 0, {field.name: 1 for field in schema if field.type == pa.string()}
    for batch in batches:
        count += len(batch)
        for name in widths:
            longest = pc.max(pc.utf8_length(batch.column(name))).as_py()
            widths[name] = max(widths[name], longest or 1)
    return count, widths


def _make_fits_header(schema: pa.Schema, widths: dict[str, int], count: int) -> Any:
    from astropy.io import fits

    columns = []
    for field in schema:
        code = f"{widths[field.name]}A" if field.name in widths else FITS_FORMATS[str(field.type)]
        unit = (field.metadata or {}).get(b"unit", b"").decode()
        null = FITS_NULL if code in ("I", "J", "K") else None
        columns.append(fits.Column(_to_ascii(field.name), code, unit if unit == "deg" else None, null=null))
    header = fits.BinTableHDU.from_columns(columns, nrows=0, name="PREDICTIONS").header
    header["NAXIS2"] = count
    return header


def _comment(header: Any, schema: pa.Schema, expression: str) -> None:
    """Say in the header what was selected."""
    header["COMMENT"] = _to_ascii(f"selected by: {expression}")
    units = {field.name: (field.metadata or {}).get(b"unit", b"").decode() for field in schema}
    nats = [name for name, unit in units.items() if unit == "nat"]
    header["COMMENT"] = f"in nats: {', '.join(nats)}"


def _get_fits_dtype(kind: pa.DataType, width: int) -> str:
    codes = {"bool": "S1", "int16": ">i2", "int32": ">i4", "int64": ">i8", "float": ">f4", "double": ">f8"}
    return codes.get(str(kind), f"S{width}")


def _to_fits(column: pa.Array) -> NDArray[Any]:
    if column.type == pa.string():
        return np.array([_to_ascii(text or "").encode() for text in column.to_pylist()], dtype=bytes)
    if column.type == pa.bool_():
        return np.where(column.fill_null(False).to_numpy(zero_copy_only=False), b"T", b"F")
    filled = column if pa.types.is_floating(column.type) else column.fill_null(FITS_NULL)
    return np.asarray(filled.to_numpy(zero_copy_only=False))  # nulls of floats become NaN


def _to_ascii(text: str) -> str:
    """Replace what FITS has no characters for."""
    return sanitize(text).encode("ascii", "replace").decode().replace("\n", " ").replace("\t", " ")
