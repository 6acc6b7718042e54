"""Tar archives with images, which are read in place; the row of an image is its number among the images.

Headers of plain members, nearly all, are read here: `tarfile`, which reads the others, takes fifteen times as long and
takes a damaged header for the end of the archive.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.images.image_files import IMAGE_ENDINGS
from galaxyhpc.data.sources.source import make_error
from galaxyhpc.data.sources.tables import translate_table_errors
from galaxyhpc.data.survey.unit import (
    CHUNK_GALAXIES,
    NUM_THREADS,
    CheckColumns,
    Encoded,
    Unit,
    UnitGalaxies,
    divide_rows,
    make_units,
)

TAR_TYPE = "a tar archive"
BLOCK_BYTES = 512
PLAIN_TYPES = (b"0", b"\0")


class Member(NamedTuple):
    """A member of an archive."""

    name: str  # empty unless it is a plain file
    start: int  # first byte of its content
    size: int  # bytes
    stop: int  # byte of the next header


def find_units(paths: list[Path], config: DataConfig, galaxies_per_unit: int, check: CheckColumns) -> Iterator[Unit]:
    """Yield the units of archives, whose images are counted by their headers.

    Raises
    ------
    DataError
    """

    def find(path: Path) -> list[Unit]:
        check(path, {})
        count = sum(1 for _ in iterate_images(path))
        if not count:
            raise make_error(path, "members", "no images", ", ".join(f"*{ending}" for ending in IMAGE_ENDINGS))
        return make_units(path, "tar", divide_rows([count], galaxies_per_unit))

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for units in pool.map(find, paths):
            yield from units


def iterate_images(path: Path) -> Iterator[Member]:
    """Yield the images of an archive, none of which is read.

    Raises
    ------
    DataError
        If the archive is damaged or has no end.
    """
    with translate_table_errors(path, TAR_TYPE), path.open("rb") as file:
        offset = 0
        while any(header := os.pread(file.fileno(), BLOCK_BYTES, offset)):
            member = _parse_plain(header, offset) or _parse_any(file, offset)
            offset = member.stop
            if member.name.lower().endswith(IMAGE_ENDINGS) and not os.path.basename(member.name).startswith("."):
                yield member
        if len(header) < BLOCK_BYTES:
            raise tarfile.ReadError(f"no end at byte {offset}")


def _parse_plain(header: bytes, offset: int) -> Member | None:
    """Return the member of a header, None if that is not of a plain file or says more than fits in a block."""
    if header[257:262] != b"ustar" or header[156:157] not in PLAIN_TYPES or not header[124:135].strip(b" \0").isdigit():
        return None
    size, start = int(header[124:135].strip(b" \0"), 8), offset + BLOCK_BYTES
    name, prefix = (header[part].partition(b"\0")[0].decode(errors="replace") for part in (np.s_[:100], np.s_[345:500]))
    return Member(f"{prefix}/{name}" if prefix else name, start, size, start - size // -BLOCK_BYTES * BLOCK_BYTES)


def _parse_any(file: BinaryIO, offset: int) -> Member:
    """Return the member whose headers begin here: a file with a long name, a directory, a link.

    Raises
    ------
    tarfile.ReadError
    """
    file.seek(offset)
    with tarfile.TarFile(fileobj=file) as archive:
        member = archive.next()
        if member is None:
            raise tarfile.ReadError(f"bad header at byte {offset}")
        name = member.name if member.type in tarfile.REGULAR_TYPES else ""
        return Member(name, member.offset_data, member.size, archive.offset)


def read_unit(unit: Unit, config: DataConfig) -> Iterator[UnitGalaxies]:
    """Yield the galaxies of a unit, a few at a time.

    Raises
    ------
    DataError
    """
    members = islice(iterate_images(Path(unit.source)), unit.first, unit.stop)
    with open(unit.source, "rb") as file:
        for first in range(unit.first, unit.stop, CHUNK_GALAXIES):
            chunk = list(islice(members, CHUNK_GALAXIES))
            encoded: list[Encoded] = [os.pread(file.fileno(), member.size, member.start) for member in chunk]
            unknown = np.full(len(chunk), np.nan)
            rows = np.arange(first, first + len(chunk))
            yield UnitGalaxies(rows, [member.name for member in chunk], unknown, unknown, encoded)
