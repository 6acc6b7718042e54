"""Small data files laid out as Galaxy10 DECaLS is published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np


def write_file(
    path: Path, n: int = 120, side: int = 32, seed: int = 0, classes: Sequence[object] = (), **changes: object
) -> Path:
    """Write a small file laid out as published, with other classes if given.

    `changes` replace arrays, None leaves one out.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, object] = {
        "images": rng.integers(0, 256, (n, side, side, 3), np.uint8),
        "ans": np.sort(np.arange(n) % (len(classes) or 10)).astype(np.uint8 if len(classes) < 256 else np.uint16),
        "ra": rng.uniform(0, 360, n),
        "dec": rng.uniform(-30, 80, n),
        "redshift": np.full(n, np.nan),
        "pxscale": np.full(n, 0.262 * 256 / side),
    }
    arrays.update(changes)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            if array is not None:
                is_default = key == "images" and "images" not in changes
                options = {"chunks": (16, 8, 8, 1), "compression": "gzip"} if is_default else {}
                file.create_dataset(key, data=array, **options)
        if len(classes):
            file.attrs["classes"] = classes
    return path


def write_images_with_missing_filter(path: Path, n: int = 120, side: int = 32) -> Path:
    """Write a file laid out as published, whose images are compressed with a filter (Blosc) that is not installed."""
    write_file(path, n=n, side=side, images=None)
    with h5py.File(path, "a") as file:
        pipeline = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        pipeline.set_chunk((n, side, side, 3))
        pipeline.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((n, side, side, 3))
        images = h5py.h5d.create(file.id, b"images", h5py.h5t.NATIVE_UINT8, space, pipeline)
        images.write_direct_chunk((0, 0, 0, 0), bytes(n * side * side * 3), 0)
    return path
