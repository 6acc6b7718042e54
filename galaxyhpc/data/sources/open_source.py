"""The choice of a source's reader by what lies at its path, and the state that its converted form belongs to."""

from __future__ import annotations

import os
from pathlib import Path

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.sources.catalogue import open_catalogue, open_folder
from galaxyhpc.data.sources.hdf5 import open_hdf5
from galaxyhpc.data.sources.parquet import find_shards, open_parquet
from galaxyhpc.data.sources.source import Source
from galaxyhpc.data.sources.tables import ASTROPY_FORMATS, CSV_ENDINGS, PARQUET_ENDINGS, has_ending


def open_source(path: Path, config: DataConfig) -> Source:
    """Open the galaxies at a path, without reading pixels.

    Raises
    ------
    DataError
    """
    if has_ending(path, PARQUET_ENDINGS) or (path.is_dir() and find_shards(path)):
        return open_parquet(path, config)
    if path.is_dir():
        return open_folder(path, config)
    if has_ending(path, (*CSV_ENDINGS, *ASTROPY_FORMATS)):
        return open_catalogue(path, config)
    return open_hdf5(path, config)


def describe_state(path: Path, config: DataConfig) -> str:
    """Return a text that differs when the source, or the settings that choose from it, are different ones.

    Of image files only the names count: looking up each of them takes minutes on a shared file system.

    Raises
    ------
    OSError
    """
    names = {"classes", "columns", "images", "crop", "fits", "field_arcsec"}
    changed = config.model_dump_json(include=names, exclude_defaults=True)
    settings = "" if changed == "{}" else changed
    status = path.stat()
    if not path.is_dir():
        return f"{status.st_size} {status.st_mtime_ns} {settings}"
    directories = [Path(root) for root, _, _ in sorted(os.walk(path))]
    states = [(str(item), item.stat().st_size, item.stat().st_mtime_ns) for item in (*directories, *find_shards(path))]
    return f"{states} {settings}"
