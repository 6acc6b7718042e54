"""The same small galaxies as each kind of input of a survey, and what is read of it."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from helpers import sources
from helpers.sources import Sample

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.images.image_files import GalaxyImage
from galaxyhpc.data.survey.units import Unit, decode_image, find_units, read_unit


def write_tensors(path: Path, sample: Sample) -> Path:
    """Write images as pyarrow's tensors of a fixed shape."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    images = pyarrow.FixedShapeTensorArray.from_numpy_ndarray(sample.images)
    parquet.write_table(pyarrow.table({"image": images, "ra": sample.ra, "dec": sample.dec}), path, row_group_size=50)
    return path


def write_tar(path: Path, sample: Sample, tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    """Write an archive of the image files, with a directory and texts between them."""
    sources.write_images(path.parent / "images", sample)
    (path.parent / "images" / "g001.txt").write_text("a text")
    with tarfile.open(path, "w", format=tar_format) as archive:
        archive.add(path.parent / "images", "images")
    return path


def write_hats(
    root: Path, sample: Sample, rows_of_pixels: dict[tuple[int, int], slice], suffix: str = ".parquet"
) -> Path:
    """Write a HATS catalogue whose partitions hold these rows; a suffix / makes a directory of each."""
    for (order, pixel), rows in rows_of_pixels.items():
        name = f"Npix={pixel}" + ("/part0.parquet" if suffix == "/" else suffix)
        path = root / "dataset" / f"Norder={order}" / f"Dir={pixel // 10_000 * 10_000}" / name
        sources.write_parquet(path, sample, "struct", rows)
    (root / "hats.properties").write_text("obs_collection=sample\n")
    table = pd.DataFrame(list(rows_of_pixels), columns=["Norder", "Npix"])
    table.to_csv(root / "partition_info.csv", index=False)
    sources.write_parquet(root / "dataset" / "data_thumbnail.parquet", sample, "struct", slice(5))
    return root


def read_all(units: list[Unit], **config: Any) -> pd.DataFrame:
    """Return source, row, id, position and pixels of all galaxies, or why there are none."""
    columns, settings = [], DataConfig(**config)
    for unit in units:
        for galaxies in read_unit(unit, settings):
            images = [decode_image(encoded, settings, True) for encoded in galaxies.encoded]
            columns.append(
                pd.DataFrame(
                    {
                        "unit": unit.number,
                        "source": unit.source,
                        "row": galaxies.rows,
                        "id": galaxies.ids,
                        "ra": galaxies.ra,
                        "dec": galaxies.dec,
                        "image": [image.pixels if isinstance(image, GalaxyImage) else str(image) for image in images],
                    }
                )
            )
    return pd.concat(columns, ignore_index=True)


def find_and_read(*inputs: Path, galaxies_per_unit: int = 20_000, **config: Any) -> pd.DataFrame:
    return read_all(find_units([str(path) for path in inputs], DataConfig(**config), galaxies_per_unit), **config)


def stack(table: pd.DataFrame) -> np.ndarray:
    """Return (N, S, S, 3) images."""
    return np.stack(table["image"].tolist())
