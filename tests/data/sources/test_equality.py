"""The same galaxies are the same pixels, labels and digests, whatever source they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import sources
from helpers.data_files import write_file
from helpers.sources import CLASSES, Sample, make_sample

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.galaxies import Galaxies, fill_in_classes, prepare


def convert(tmp_path: Path, source: Path, **changes: Any) -> Galaxies:
    config = DataConfig(source=str(source), cache=str(tmp_path / "cache"), **{"image_size": 20, **changes})
    return prepare(fill_in_classes(config))


def write_shards(directory: Path, sample: Sample) -> Path:
    for number, rows in enumerate([slice(0, 70), slice(70, None)]):
        sources.write_parquet(directory / f"data/train-{number:05}-of-00002.parquet", sample, "struct", rows)
    return directory


WRITERS: dict[str, Callable[[Path, Sample], Path]] = {
    "CSV": lambda path, sample: sources.write_catalogue(path, sample),
    "ECSV": lambda path, sample: sources.write_catalogue(path, sample, "catalogue.ecsv"),
    "FITS": lambda path, sample: sources.write_catalogue(path, sample, "catalogue.fits"),
    "parquet catalogue": lambda path, sample: sources.write_catalogue(path, sample, "catalogue.parquet"),
    "struct": lambda path, sample: sources.write_parquet(path / "a.parquet", sample, "struct"),
    "bytes": lambda path, sample: sources.write_parquet(path / "a.parquet", sample, "bytes"),
    "lists": lambda path, sample: sources.write_parquet(path / "a.parquet", sample, "lists"),
    "shards": write_shards,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_source_gives_the_galaxies_of_the_same_hdf5_file(tmp_path: Path, kind: str) -> None:
    sample = make_sample()
    expected = convert(tmp_path, sources.write_hdf5(tmp_path / "a.h5", sample))
    galaxies = convert(tmp_path, WRITERS[kind](tmp_path / "source", sample))
    assert np.array_equal(galaxies.images, expected.images)
    assert np.array_equal(galaxies.images, sample.images.transpose(0, 3, 1, 2))
    for name in ("labels", "digests", "ra", "dec"):
        assert np.array_equal(getattr(galaxies, name), getattr(expected, name)), name
    assert galaxies.classes == CLASSES
    assert galaxies.mean == expected.mean
    assert galaxies.fingerprint == expected.fingerprint


def test_a_folder_per_class_gives_them_without_positions(tmp_path: Path) -> None:
    sample = make_sample()
    galaxies = convert(tmp_path, sources.write_folder(tmp_path / "folder", sample))
    assert np.array_equal(galaxies.images, sample.images.transpose(0, 3, 1, 2))
    assert np.array_equal(galaxies.labels, sample.labels)
    assert galaxies.classes == CLASSES
    assert np.isnan(galaxies.ra).all() and np.isnan(galaxies.dec).all()
    assert galaxies.ids is not None and galaxies.ids[0] == "E/g000.png"


def test_an_hdf5_file_without_positions_has_unknown_ones(tmp_path: Path) -> None:
    galaxies = convert(tmp_path, write_file(tmp_path / "a.h5", ra=None, dec=None))
    assert np.isnan(galaxies.ra).all() and np.isnan(galaxies.dec).all()
    with pytest.raises(DataError, match="ra: got no such array"):
        convert(tmp_path, write_file(tmp_path / "b.h5", ra=None))


def test_images_of_different_sizes_are_resized_each(tmp_path: Path) -> None:
    small, large = make_sample(60, 20), make_sample(60, 41, seed=1)
    path = sources.write_folder(tmp_path / "folder", small)
    for name, label, image in zip(large.names, large.labels, large.images, strict=True):
        (path / CLASSES[label] / f"large-{name}").write_bytes(sources.encode(image))
    galaxies = convert(tmp_path, path)
    assert galaxies.published_sizes == (20, 41)
    assert galaxies.images.shape == (120, 3, 20, 20)
    is_small = np.array(["large" not in name for name in galaxies.ids])
    assert np.array_equal(galaxies.images[is_small], small.images.transpose(0, 3, 1, 2))
    alone = convert(tmp_path, sources.write_folder(tmp_path / "alone", large))
    assert np.array_equal(galaxies.images[~is_small], alone.images)
    assert set(alone.digests) == set(galaxies.digests[~is_small])


@pytest.mark.parametrize("kind", ["HDF5", "CSV", "bytes"])
def test_classes_select_and_order(tmp_path: Path, kind: str) -> None:
    sample = make_sample()
    writers = WRITERS | {"HDF5": lambda path, sample: sources.write_hdf5(tmp_path / "a.h5", sample)}
    galaxies = convert(tmp_path, writers[kind](tmp_path / "source", sample), classes=("Sp", "E"))
    rows = np.flatnonzero(sample.labels != 1)
    assert galaxies.classes == ("Sp", "E") and galaxies.num_left_out == 40
    assert np.array_equal(galaxies.labels, np.where(sample.labels[rows] == 2, 0, 1))
    assert np.array_equal(galaxies.images, sample.images[rows].transpose(0, 3, 1, 2))
