"""The same small galaxies as each kind of source: HDF5, a catalogue, a folder per class, parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from helpers.data_files import write_file
from PIL import Image

CLASSES = ("E", "S0", "Sp")


@dataclass(frozen=True, eq=False)
class Sample:
    """Galaxies in memory."""

    images: np.ndarray  # (N, S, S, 3) uint8
    labels: np.ndarray  # (N,)
    ra: np.ndarray
    dec: np.ndarray

    @property
    def names(self) -> list[str]:
        return [f"g{row:03}.png" for row in range(len(self.labels))]

    @property
    def table(self) -> pd.DataFrame:
        """The columns file, label, ra and dec."""
        labels = [CLASSES[label] for label in self.labels]
        return pd.DataFrame({"file": self.names, "label": labels, "ra": self.ra, "dec": self.dec})


def make_sample(n: int = 120, side: int = 20, seed: int = 0) -> Sample:
    """Return galaxies of three classes, in the order of their labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, side, side, 3), np.uint8)
    return Sample(images, np.sort(np.arange(n) % len(CLASSES)), rng.uniform(0, 360, n), rng.uniform(-30, 80, n))


def encode(image: np.ndarray, image_format: str = "PNG", **options: Any) -> bytes:
    """Return an array as the bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, image_format, **options)
    return file.getvalue()


def write_images(directory: Path, sample: Sample) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, image in zip(sample.names, sample.images, strict=True):
        (directory / name).write_bytes(encode(image))


def write_hdf5(path: Path, sample: Sample) -> Path:
    columns = {"ans": sample.labels, "ra": sample.ra, "dec": sample.dec}
    return write_file(
        path, n=len(sample.labels), side=20, classes=list(CLASSES), images=sample.images, pxscale=None, **columns
    )


def write_catalogue(directory: Path, sample: Sample, name: str = "catalogue.csv", **columns: Sequence[object]) -> Path:
    """Write the images and a catalogue of them; `columns` are added, or replace others."""
    write_images(directory, sample)
    return write_table(directory / name, sample.table.assign(**columns))


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Write a table in the format that the ending of its name tells."""
    if path.name.endswith(".csv"):
        table.to_csv(path, index=False)
    elif path.name.endswith(".parquet"):
        table.to_parquet(path)
    else:
        from astropy.table import Table

        columns = {name: np.array(table[name].tolist()) for name in table}
        Table(columns).write(path, format="ascii.ecsv" if path.suffix == ".ecsv" else "fits", overwrite=True)
    return path


def write_folder(directory: Path, sample: Sample) -> Path:
    for label, name, image in zip(sample.labels, sample.names, sample.images, strict=True):
        (directory / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        (directory / CLASSES[label] / name).write_bytes(encode(image))
    return directory


def make_parquet_images(sample: Sample, kind: str) -> list[Any]:
    """Return the images as `struct`, `bytes` or `lists`."""
    if kind == "lists":
        return [image.tolist() for image in sample.images]
    contents = [encode(image) for image in sample.images]
    if kind == "bytes":
        return list(contents)
    return [{"bytes": content, "path": name} for content, name in zip(contents, sample.names, strict=True)]


def write_parquet(path: Path, sample: Sample, kind: str, rows: slice = slice(None), **columns: Any) -> Path:
    """Write images inside a file of parquet, with the names of classes as HuggingFace writes them."""
    import pyarrow
    from pyarrow import parquet

    values = {"image": make_parquet_images(sample, kind), "label": sample.labels, "ra": sample.ra, "dec": sample.dec}
    table = pyarrow.table({name: pyarrow.array(value[rows]) for name, value in (values | columns).items()})
    info = {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path, row_group_size=50)
    return path
