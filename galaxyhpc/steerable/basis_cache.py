"""Filter bases on the disk: what e2cnn takes seconds to sample is read back in milliseconds.

A file's name is the hash of what was asked for and of who sampled it, so that nothing ever has to be invalidated. A
file that cannot be read, or not be written, is no error: the basis is sampled then.
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

FORMAT_VERSION = 1  # raised when the arrays change their meaning

ArrayPair = tuple[np.ndarray, np.ndarray]  # filters, std


def load_or_sample(basis_key: dict[str, Any], sample: Callable[[], ArrayPair]) -> ArrayPair:
    """Return the two arrays of what is asked for, read-only, from the disk where they are."""
    recipe = json.dumps({"format": FORMAT_VERSION, "e2cnn": version("e2cnn"), **basis_key}, sort_keys=True)
    path = get_cache_directory() / f"basis-{hashlib.sha256(recipe.encode()).hexdigest()[:32]}.npz"
    arrays = _read_arrays(path)
    if arrays is None:
        arrays = sample()
        with suppress(OSError), atomic_write(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, filters=arrays[0], std=arrays[1])
    for array in arrays:
        array.flags.writeable = False
    return arrays


def _read_arrays(path: Path) -> ArrayPair | None:
    """Read a file; None where it is absent or damaged, which the archive's checksums tell."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["filters"], file["std"]
    except Exception:  # what is not ours may raise anything
        return None
