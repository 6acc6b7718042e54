"""A cache of filter bases on the disk: e2cnn takes seconds to sample one, reading it takes milliseconds.

A file's name is the hash of the request and of the version of e2cnn, so that nothing has to be invalidated. A file that
cannot be read or written is no error: the basis is sampled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from galaxyhpc.runtime.native import get_cache_directory
from galaxyhpc.storage.files import atomic_write

FORMAT_VERSION = 1  # raised when the arrays change

ArrayPair = tuple[np.ndarray, np.ndarray]  # filters, std


def load_or_sample(basis_key: dict[str, Any], sample: Callable[[], ArrayPair]) -> ArrayPair:
    """Return the two arrays for a key, read-only, from the disk where they are cached."""
    key = json.dumps({"format": FORMAT_VERSION, "e2cnn": version("e2cnn"), **basis_key}, sort_keys=True)
    path = get_cache_directory() / f"basis-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    arrays = _read_arrays(path)
    if arrays is None:
        arrays = sample()
        with suppress(OSError), atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, filters=arrays[0], std=arrays[1])
    for array in arrays:
        array.flags.writeable = False
    return arrays


def _read_arrays(path: Path) -> ArrayPair | None:
    """Read a file; None where it is absent or damaged, by the archive's checksums."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["filters"], file["std"]
    except Exception:  # a damaged file may raise anything
        return None
