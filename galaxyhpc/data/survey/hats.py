"""HATS catalogues, in which a parquet file holds the rows of a HEALPix pixel (hats.readthedocs.io, IVOA note of 2025).

    catalogue/  hats.properties  partition_info.csv  dataset/Norder=K/Dir=D/Npix=P.parquet (or Npix=P/*.parquet)

K is the order, P the number of the pixel in it (nested), and D = P // 10000 * 10000. A collection is a directory with
such catalogues, of which `collection.properties` names the main one.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path

import pandas as pd

from galaxyhpc.data import DataError
from galaxyhpc.data.sources.source import make_error

PARTITION_INFO = "partition_info.csv"
COLLECTION = "collection.properties"
THUMBNAIL = "data_thumbnail.parquet"  # a few rows of the partitions once more
PIXELS_PER_DIRECTORY = 10_000


def is_hats(path: Path) -> bool:
    """Whether a directory is a HATS catalogue or a collection of such."""
    has_pixels = any(name.startswith("Norder=") for parent in (path, path / "dataset") for name in _list_names(parent))
    return has_pixels or (path / COLLECTION).is_file()


def format_partition(order: int, pixel: int) -> str:
    """Return the path of a pixel's partition below `dataset`, without an ending."""
    return f"Norder={order}/Dir={pixel // PIXELS_PER_DIRECTORY * PIXELS_PER_DIRECTORY}/Npix={pixel}"


def find_root(path: Path) -> Path:
    """Return the directory of the catalogue that a parquet file is a partition of, or else the file's own."""
    parents = path.parents
    number = next((n for n, parent in enumerate(parents) if parent.name.startswith("Norder=")), None)
    if number is None:
        return path.parent
    root = parents[number + 1]
    return root.parent if root.name == "dataset" else root


def list_partitions(path: Path) -> list[Path]:
    """Return the parquet files of a catalogue, in the order of its pixels: those that it lists, or else that it has.

    Raises
    ------
    DataError
        If a listed partition does not exist, or one exists that is not listed.
    """
    catalogue = _find_catalogue(path)
    root = catalogue / "dataset" if (catalogue / "dataset").is_dir() else catalogue
    files_by_pixel = _find_pixels(root)
    if not files_by_pixel:
        raise make_error(path, "dataset", "no partition", "Norder=K/Dir=D/Npix=P.parquet")
    info = catalogue / PARTITION_INFO
    if info.is_file():
        _check_listed(info, files_by_pixel)
    return [file for pixel in sorted(files_by_pixel) for file in files_by_pixel[pixel]]


def _list_names(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _find_catalogue(path: Path) -> Path:
    """Return the main catalogue of a collection, or the catalogue itself."""
    collection = path / COLLECTION
    if not collection.is_file():
        return path
    name = _read_properties(collection).get("hats_primary_table_url", "")
    if not name or not (path / name).is_dir():
        got = f"hats_primary_table_url = {name or 'nothing'}"
        raise make_error(collection, "main catalogue", got, "the name of a directory in that of the collection")
    return path / name


@lru_cache(maxsize=16)
def _read_properties(path: Path) -> dict[str, str]:
    """Return the properties of a file, or nothing where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = [re.split(r"\s*[=:]\s*", line.strip(), maxsplit=1) for line in lines if not line.strip().startswith("#")]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def read_position_columns(path: Path) -> dict[str, str]:
    """Return the names that the catalogue of a partition gives its columns of ra and dec, by key, if it is of one."""
    properties = _read_properties(find_root(path) / "hats.properties")
    names = {key: properties.get(f"hats_col_{key}", "") for key in ("ra", "dec")}
    return names if all(names.values()) else {}


def _find_pixels(root: Path) -> dict[tuple[int, int], list[Path]]:
    """Return the files of each pixel (order, number)."""
    files: dict[tuple[int, int], list[Path]] = {}
    for order in filter(re.compile(r"Norder=\d+$").match, _list_names(root)):
        for directory in filter(re.compile(r"Dir=\d+$").match, _list_names(root / order)):
            for name in _list_names(parent := root / order / directory):
                if pixel := re.match(r"Npix=(\d+)(\.|$)", name):
                    members = [parent / name / file for file in _list_names(parent / name)] or [parent / name]
                    visible = [file for file in members if file.name[0] not in "._"]
                    files[int(order.partition("=")[2]), int(pixel[1])] = visible
    return files


def _check_listed(info: Path, files_by_pixel: dict[tuple[int, int], list[Path]]) -> None:
    try:
        table = pd.read_csv(info)
        listed = set(zip(table["Norder"].astype(int), table["Npix"].astype(int), strict=True))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{info}: got {' '.join(str(error).split())}; expected columns Norder and Npix") from error
    if absent := sorted(listed - files_by_pixel.keys()):
        order, pixel = absent[0]
        got = f"{len(absent)} of {len(listed)} partitions that do not exist, such as {format_partition(order, pixel)}"
        raise make_error(info, "partitions", got, "the whole catalogue: download the rest")
    if others := sorted(files_by_pixel.keys() - listed):
        got = f"no partition Norder={others[0][0]}, Npix={others[0][1]}, which exists"
        raise make_error(info, "partitions", got, "each of the catalogue")
