"""A HATS catalogue is read as its partitions, whichever way it is laid out; one that is not whole is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import sources
from helpers.sources import make_sample
from helpers.survey import find_and_read, stack, write_hats

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.survey.hats import list_partitions
from galaxyhpc.data.survey.units import find_units

PIXELS = {(0, 4): slice(0, 20), (5, 10_017): slice(20, 80), (5, 2): slice(80, 120)}
ORDER = [*range(20), *range(80, 120), *range(20, 80)]  # of the rows, as the pixels are sorted


@pytest.mark.parametrize("suffix", [".parquet", ".snappy.parquet", "/"])
@pytest.mark.parametrize("is_listed", [True, False])
def test_partitions_are_files_or_directories_and_need_not_be_listed(
    tmp_path: Path, suffix: str, is_listed: bool
) -> None:
    sample = make_sample()
    root = write_hats(tmp_path / "catalogue", sample, PIXELS, suffix)
    if not is_listed:
        (root / "partition_info.csv").unlink()
    assert np.array_equal(stack(find_and_read(root)), sample.images[ORDER])


def test_a_glob_of_its_files_gives_every_galaxy_once(tmp_path: Path) -> None:
    sample = make_sample()
    root = write_hats(tmp_path, sample, PIXELS)
    assert len(list(root.glob("dataset/**/*.parquet"))) == 4
    table = find_and_read(root / "dataset/**/*.parquet")
    assert sorted(table["id"]) == sample.names


def test_positions_are_in_the_columns_that_the_properties_name(tmp_path: Path) -> None:
    sample = make_sample()
    root = write_hats(tmp_path, sample, {(0, 4): slice(0, 20)})
    other = {"coord_ra": sample.ra[::-1], "coord_dec": sample.dec[::-1]}
    sources.write_parquet(root / "dataset/Norder=0/Dir=0/Npix=4.parquet", sample, "bytes", slice(20), **other)
    (root / "hats.properties").write_text("#HATS catalog\nhats_col_ra=coord_ra\nhats_col_dec = coord_dec\n")
    table = find_and_read(root)
    assert np.array_equal(table["ra"], sample.ra[::-1][:20])
    assert np.array_equal(table["dec"], sample.dec[::-1][:20])
    assert np.array_equal(find_and_read(root, columns={"ra": "ra", "dec": "dec"})["ra"], sample.ra[:20])
    assert find_and_read(root, columns={"ra": ""})["ra"].isna().all()


def test_a_collection_is_its_main_catalogue(tmp_path: Path) -> None:
    sample = make_sample()
    write_hats(tmp_path / "main", sample, PIXELS)
    write_hats(tmp_path / "main_10arcs", sample, {(0, 4): slice(0, 5)})
    (tmp_path / "collection.properties").write_text("#HATS Collection\nobs_collection=x\nhats_primary_table_url=main\n")
    assert np.array_equal(stack(find_and_read(tmp_path)), sample.images[ORDER])
    shutil.rmtree(tmp_path / "main")
    with pytest.raises(DataError, match=r"collection.properties: main catalogue: got hats_primary_table_url = main"):
        list_partitions(tmp_path)


def test_image_files_are_relative_to_the_catalogue(tmp_path: Path) -> None:
    sample = make_sample()
    root = write_hats(tmp_path, sample, {(0, 4): slice(0, 20)})
    sources.write_images(root, sample)
    partition = root / "dataset/Norder=0/Dir=0/Npix=4.parquet"
    sources.write_table(partition, sample.table)
    assert np.array_equal(stack(find_and_read(root)), sample.images)
    assert np.array_equal(stack(find_and_read(partition)), sample.images)


def test_a_catalogue_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    root = write_hats(tmp_path, make_sample(), PIXELS)
    (info := root / "partition_info.csv").write_text("Norder,Npix\n0,4\n5,2\n")
    with pytest.raises(
        DataError, match=r"got no partition Norder=5, Npix=10017, which exists; expected each of the cat"
    ):
        list_partitions(root)
    info.write_text("Norder,Npix\n0,4\n5,2\n5,10017\n5,10018\n")
    message = r"got 1 of 4 partitions that do not exist, such as Norder=5/Dir=10000/Npix=10018; expected the whole"
    with pytest.raises(DataError, match=message):
        find_units([str(root)], DataConfig())
    info.write_text("order\n1\n")
    with pytest.raises(DataError, match=r"partition_info.csv: got .*; expected columns Norder and Npix"):
        list_partitions(root)
    shutil.rmtree(root / "dataset/Norder=0")
    shutil.rmtree(root / "dataset/Norder=5/Dir=0")
    shutil.rmtree(root / "dataset/Norder=5/Dir=10000")
    with pytest.raises(DataError, match=r"dataset: got no partition; expected Norder=K/Dir=D/Npix=P.parquet"):
        find_units([str(root)], DataConfig())
