"""A survey's predictions as a HATS catalogue, which LSDB opens, searches and cross-matches (hats.readthedocs.io).

Rows with a position are divided among HEALPix pixels, each the largest that holds no more rows than a partition may,
and sorted by `_healpix_29`, the nested number of their pixel of order 29. The parts are read twice, to count and to
divide; between these passes, the rows of a partition lie in a file of their own. So neither the memory nor the number
of open files grows with the survey, but the disk has to hold the catalogue twice.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from astropy import units
from astropy.io import fits
from numpy.typing import NDArray
from pyarrow import parquet

from galaxyhpc import __version__
from galaxyhpc.data.survey.hats import PARTITION_INFO, format_partition
from galaxyhpc.storage.files import check_output, fsync, sanitize

COLUMN, ORDER = "_healpix_29", 29
COUNT_ORDER = 10  # of the pixels that rows are counted in, 3.4 arcmin wide, and of the smallest partitions
SKYMAP_ORDER = 8
MAX_ROWS = 1_000_000  # of a partition, as in LSDB's catalogues
PARTITION_BYTES = 2**28  # of a partition in memory, about
BATCH_ROWS = 2**16  # of a part that are read at once
SPILL_BYTES = 2**26  # of rows that are held before they are divided
ROWS_PER_GROUP = 100_000
LARGE_COLUMNS = ("embedding",)  # which readers load only if they ask for it


class HatsError(ValueError):
    """Predictions that cannot be a HATS catalogue."""


def write_hats_catalogue(
    parts: Sequence[Path], output: Path, name: str, max_rows: int = MAX_ROWS, spill_bytes: int = SPILL_BYTES
) -> int:
    """Write the catalogue as a directory that appears whole; return the number of rows left out, of unknown position.

    Parameters
    ----------
    parts : parquet files of one schema, with columns ra and dec in degrees
    name : of the catalogue, such as `predictions`

    Raises
    ------
    HatsError
        If no row has a position, or astropy-healpix is not installed.
    OutputExistsError
    """
    check_output(output, False)
    counts, num_rows = _count(parts), sum(int(parquet.read_metadata(part).num_rows) for part in parts)
    num_placed = int(counts.sum())
    if not num_placed:
        raise HatsError(
            sanitize(f"{output}: got {num_rows} galaxies without a position; expected ra and dec in the input")
        )
    max_rows = min(max_rows, PARTITION_BYTES // _measure_row(parts))
    orders = choose_orders(counts, max_rows)
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(f".{output.name}.aside")  # one process writes a catalogue
    shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
    try:
        schema = _spill(parts, orders, aside / "spill", spill_bytes)
        metadata = [_write_partition(aside, key, schema) for key in _list_spilled(aside / "spill")]
        shutil.rmtree(aside / "spill")
        _write_summary(aside, schema, metadata)
        _write_skymap(aside / "skymap.fits", counts)
        _write_properties(aside, schema, name, [item.num_rows for item in metadata])
        fsync(aside)
        os.rename(aside, output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    fsync(output.parent)
    return num_rows - num_placed


def compute_pixels(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the nested HEALPix numbers of order 29 at these positions in degrees.

    Raises
    ------
    HatsError
        If astropy-healpix is not installed.
    """
    try:
        from astropy_healpix import lonlat_to_healpix
    except ImportError as error:
        advice = "it, which numbers the pixels of a HATS catalogue: `pip install galaxyhpc[survey]`"
        raise HatsError(f"got no astropy-healpix; expected {advice}") from error
    return np.asarray(lonlat_to_healpix(ra * units.deg, dec * units.deg, 2**ORDER, order="nested"), np.int64)


def choose_orders(counts: NDArray[np.int64], max_rows: int) -> NDArray[np.int8]:
    """Return the order of the partition that each pixel of a map of counts is in.

    That is the lowest whose pixel has no more than `max_rows`; or that of the map, where even its pixels have more.
    """
    highest = _get_order(counts)
    orders = np.full(len(counts), highest, np.int8)
    for order in range(highest - 1, -1, -1):
        children = 4 ** (highest - order)
        is_small = counts.reshape(-1, children).sum(1) <= max_rows
        orders[np.repeat(is_small, children)] = order
    return orders


def _get_order(pixel_map: NDArray[Any]) -> int:
    """Return the order of a map of the whole sky, which has 12 pixels of order 0."""
    return (len(pixel_map) // 12).bit_length() // 2


def _iterate_tables(parts: Sequence[Path], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of the parts that have a position, with their pixels; `columns` of all by default."""
    for part in parts:
        with parquet.ParquetFile(part) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
                ra, dec = (table[key].to_numpy().astype(np.float64) for key in ("ra", "dec"))
                is_known = np.isfinite(ra) & np.isfinite(dec)
                pixels = pa.array(compute_pixels(ra[is_known], dec[is_known]))
                yield table.filter(pa.array(is_known)).add_column(0, pa.field(COLUMN, pa.int64(), False), pixels)


def _count(parts: Sequence[Path]) -> NDArray[np.int64]:
    """Return the number of rows in each pixel of COUNT_ORDER."""
    counts = np.zeros(12 * 4**COUNT_ORDER, np.int64)
    for table in _iterate_tables(parts, ["ra", "dec"]):
        pixels, numbers = np.unique(_coarsen(table[COLUMN].to_numpy(), COUNT_ORDER), return_counts=True)
        counts[pixels] += numbers
    return counts


def _measure_row(parts: Sequence[Path]) -> int:
    """Return the bytes of a row in memory, from the first that there are."""
    table = next(table for table in _iterate_tables(parts) if len(table))
    return max(1, int(table.nbytes) // len(table))


def _coarsen(pixels: NDArray[np.int64], order: NDArray[np.int8] | int) -> NDArray[np.int64]:
    """Return the pixels of an order that these of order 29 are in."""
    return pixels >> (2 * (ORDER - np.asarray(order, np.int64)))


def _spill(parts: Sequence[Path], orders: NDArray[np.int8], directory: Path, spill_bytes: int) -> pa.Schema:
    """Divide the rows among files, one for each partition; return their schema."""
    directory.mkdir(parents=True)
    held: list[pa.Table] = []
    for table in _iterate_tables(parts):
        held.append(table)
        if sum(item.nbytes for item in held) > spill_bytes:
            _divide(pa.concat_tables(held), orders, directory)
            held = [table.slice(0, 0)]
    _divide(pa.concat_tables(held), orders, directory)
    return held[0].schema


def _divide(table: pa.Table, orders: NDArray[np.int8], directory: Path) -> None:
    """Append rows to the files of their partitions, in the order in which they come."""
    pixels = table[COLUMN].to_numpy()
    order = orders[_coarsen(pixels, _get_order(orders))]
    keys = np.stack([order, _coarsen(pixels, order)])
    indices = np.lexsort(keys)
    table, keys = table.take(pa.array(indices)), keys[:, indices]
    edges = np.flatnonzero(np.r_[True, (keys[:, 1:] != keys[:, :-1]).any(0), True]) if len(table) else np.zeros(0, int)
    for start, stop in pairwise(edges.tolist()):
        with (directory / f"{keys[0, start]}_{keys[1, start]}").open("ab") as file:
            for batch in table.slice(start, stop - start).to_batches():
                file.write(batch.serialize())


def _list_spilled(directory: Path) -> list[tuple[int, int]]:
    """Return the order and the pixel of each partition, sorted along the sky."""
    keys = [tuple(map(int, name.split("_"))) for name in os.listdir(directory)]
    return sorted(((order, pixel) for order, pixel in keys), key=lambda key: (key[1] << 2 * (ORDER - key[0]), key[0]))


def _write_partition(directory: Path, key: tuple[int, int], schema: pa.Schema) -> Any:
    """Write the rows of a partition, sorted, and return the metadata of its file."""
    order, pixel = key
    spilled = directory / "spill" / f"{order}_{pixel}"
    with pa.memory_map(str(spilled)) as file:
        batches = []
        while file.tell() < file.size():
            batches.append(pa.ipc.read_record_batch(pa.ipc.read_message(file), schema))
    table = pa.Table.from_batches(batches, schema)
    table = table.take(pa.array(np.argsort(table[COLUMN].to_numpy(), kind="stable")))  # equal ones stay in order
    name = f"{format_partition(order, pixel)}.parquet"
    path = directory / "dataset" / name
    metadata: list[Any] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(
        table,
        path,
        compression="zstd",
        row_group_size=ROWS_PER_GROUP,
        metadata_collector=metadata,
        write_page_index=True,
    )
    fsync(path)
    spilled.unlink()
    metadata[0].set_file_path(name)
    return metadata[0]


def _write_summary(directory: Path, schema: pa.Schema, metadata: list[Any]) -> None:
    """Write the list of partitions, the schema, and the metadata of all files."""
    names = [item.row_group(0).column(0).file_path for item in metadata]
    pixels = [(name.split("/")[0].partition("=")[2], name.rpartition("=")[2].partition(".")[0]) for name in names]
    lines = ["Norder,Npix", *(",".join(pair) for pair in sorted(pixels, key=lambda pair: (int(pair[0]), int(pair[1]))))]
    (directory / PARTITION_INFO).write_text("\n".join(lines) + "\n", encoding="utf-8")
    parquet.write_metadata(schema, directory / "dataset" / "_common_metadata")
    parquet.write_metadata(schema, directory / "dataset" / "_metadata", metadata_collector=metadata)


def _write_skymap(path: Path, counts: NDArray[np.int64]) -> None:
    """Write the number of rows in each pixel of SKYMAP_ORDER (IVOA MOC 2.0 and HEALPix's conventions for FITS)."""
    values = counts.reshape(12 * 4**SKYMAP_ORDER, -1).sum(1)
    table = fits.BinTableHDU.from_columns([fits.Column("VALUE", "K", array=values)])
    table.header.update(
        PIXTYPE="HEALPIX",
        ORDERING="NESTED",
        INDXSCHM="IMPLICIT",
        NSIDE=2**SKYMAP_ORDER,
        ORDER=SKYMAP_ORDER,
        COORDSYS="C",
        FIRSTPIX=0,
        LASTPIX=len(values) - 1,
    )
    table.writeto(path)


def _write_properties(directory: Path, schema: pa.Schema, name: str, num_rows: list[int]) -> None:
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    default = [column for column in schema.names if column not in LARGE_COLUMNS]
    if any(re.search("[ ,;]", column) for column in default):  # which divide the list: then readers load all columns
        default = []
    properties = {
        "obs_collection": name,
        "dataproduct_type": "object",
        "hats_nrows": sum(num_rows),
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        **({"hats_cols_default": " ".join(default)} if default else {}),
        "hats_col_healpix": COLUMN,
        "hats_col_healpix_order": ORDER,
        "hats_npix_suffix": ".parquet",
        "hats_skymap_order": SKYMAP_ORDER,
        "hats_max_rows": max(num_rows),
        "hats_builder": f"galaxyhpc {__version__}",
        "hats_creation_date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MUTC"),
        "hats_estsize": size // 1024,
        "hats_version": "v1.0",
    }
    lines = ["#HATS catalog", *(f"{key}={value}" for key, value in properties.items())]
    (directory / "hats.properties").write_text("\n".join(lines) + "\n", encoding="utf-8")
