"""A part: the predictions of one unit, a parquet file that appears whole and says what it was made of.

Its metadata name the input with its fingerprint, the weights and the settings. A part is done if all of them match and
its rows are those of the unit. One that is damaged, or of an input that changed, is made again; one of other weights or
settings is refused, because it may be somebody's result.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from galaxyhpc.config.schema import flatten
from galaxyhpc.data.survey.unit import Unit
from galaxyhpc.prediction.survey import SurveyError
from galaxyhpc.storage.files import atomic_write

PREFIX = "galaxyhpc."  # of the keys
INPUT, WEIGHTS, SETTINGS, NUM_ROWS = (f"{PREFIX}{name}" for name in ("input", "weights", "settings", "rows"))
MAX_LISTED_DIFFERENCES = 3
Metadata = dict[str, str]


class PartError(ValueError):
    """A part that cannot be read, or has other rows than its unit."""


def make_metadata(unit: Unit, identity: dict[str, Any]) -> Metadata:
    """Return what a part of this unit has to say of itself, besides its number of rows."""
    settings = {name: value for name, value in identity.items() if name != "weights"}
    return {INPUT: _dump(unit._asdict()), WEIGHTS: _dump(identity["weights"]), SETTINGS: _dump(settings)}


def _dump(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def write_part(path: Path, tables: Iterable[pa.Table], metadata: Metadata, num_rows: int | None) -> int:
    """Write the tables of a unit as one file: aside, to the disk, and then under its name; return its rows.

    The same rows are the same bytes, however they were divided into tables. `num_rows` are those of the plan, where it
    knows them.

    Raises
    ------
    PartError
        The number of rows is not that of the plan.
    OSError
    """
    chunks = list(tables)
    count = sum(map(len, chunks))
    if count == 0 or (num_rows is not None and count != num_rows):
        expected = "one or more" if num_rows is None else f"{num_rows:,}, as planned"
        raise PartError(f"{path}: got {count:,} galaxies; expected {expected}")
    table = pa.concat_tables(chunks).combine_chunks()
    texts = {**(table.schema.metadata or {}), **metadata, NUM_ROWS: str(count)}
    with atomic_write(path) as aside:
        options = {"compression": "zstd", "write_page_checksum": True}
        parquet.write_table(table.replace_schema_metadata(texts), aside, **options)
    return count


def read_metadata(path: Path) -> Metadata:
    """Read what a part says of itself, without its rows.

    Raises
    ------
    PartError
        It cannot be read, or has other rows than it says.
    """
    try:
        footer = parquet.read_metadata(path)
        pairs = {key.decode(): value.decode() for key, value in (footer.metadata or {}).items() if _is_own(key)}
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise PartError(f"{path}: got {' '.join(str(error).split())[:200]}; expected a part") from None
    if pairs.get(NUM_ROWS) != str(footer.num_rows) or not {INPUT, WEIGHTS, SETTINGS} <= pairs.keys():
        raise PartError(f"{path}: got {footer.num_rows} rows; expected {pairs.get(NUM_ROWS)}, and what they are of")
    return pairs


def count_errors(path: Path) -> int:
    """Return the number of galaxies of a part that have an error in place of a class, from its footer."""
    footer = parquet.read_metadata(path)
    column = footer.schema.names.index("error")
    groups = (footer.row_group(number).column(column) for number in range(footer.num_row_groups))
    return sum(group.num_values - group.statistics.null_count for group in groups)


def _is_own(key: bytes) -> bool:
    return key.startswith(PREFIX.encode())


def is_done(path: Path, expected: Metadata) -> bool:
    """Whether a part exists and matches its unit; False where it has to be made again.

    Raises
    ------
    SurveyError
        It was made with other weights or settings.
    """
    try:
        metadata = read_metadata(path) if path.exists() else {}
    except PartError:
        return False
    for key, noun in ((WEIGHTS, "weights"), (SETTINGS, "settings")):
        if key in metadata and metadata[key] != expected[key]:
            difference = describe_difference(json.loads(metadata[key]), json.loads(expected[key]))
            raise SurveyError(
                f"{path}: made with other {noun}: {difference}; expected another --output, or --overwrite"
            )
    return expected.items() <= metadata.items()


def describe_difference(old: object, new: object) -> str:
    """Name the values that differ, as `key: got OLD; expected NEW`."""
    pairs_old, pairs_new = flatten(old), flatten(new)
    keys = [key for key in pairs_old | pairs_new if pairs_old.get(key) != pairs_new.get(key)]
    texts = [
        f"{key or 'value'}: got {_shorten(pairs_old.get(key))}; expected {_shorten(pairs_new.get(key))}"
        for key in keys[:MAX_LISTED_DIFFERENCES]
    ]
    more = [f"and {len(keys) - MAX_LISTED_DIFFERENCES} more"] if len(keys) > MAX_LISTED_DIFFERENCES else []
    return ", ".join([*texts, *more])


def _shorten(value: str | None) -> str:
    text = "nothing" if value in (None, "None") else str(value) or "''"
    return text if len(text) <= 40 else f"{text[:12]}..."
