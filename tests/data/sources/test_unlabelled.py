"""Galaxies to be classified are found at a path by what lies there, with their names and positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from helpers.sources import make_sample, write_catalogue, write_images, write_parquet, write_table
from pyarrow.parquet import ParquetFile

from galaxyhpc.config.schema import ColumnsConfig, DataConfig, FitsConfig
from galaxyhpc.data.images.image_files import GalaxyImage, ImageError
from galaxyhpc.data.sources.unlabelled import GalaxyFile, list_galaxy_files

SAMPLE = make_sample(6)


def open_files(path: Path, config: DataConfig | None = None) -> list[GalaxyFile]:
    return list(list_galaxy_files(path, config or DataConfig()))


def read(file: GalaxyFile) -> list[GalaxyImage | ImageError]:
    assert file.read_images is not None, file.error
    return list(file.read_images())


def test_a_directory_is_all_its_images_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a/deep", ".hidden"):
        write_images(tmp_path / name, make_sample(2))
    (tmp_path / "notes.txt").touch()
    files = open_files(tmp_path)
    assert [file.ids[0] for file in files] == ["a/deep/g000.png", "a/deep/g001.png", "b/g000.png", "b/g001.png"]
    assert files[0].source == str(tmp_path / "a/deep/g000.png")


def test_a_fits_file_is_a_catalogue_if_it_has_a_table_and_no_image(tmp_path: Path) -> None:
    write_images(tmp_path, SAMPLE)
    table = fits.table_to_hdu(Table({"file": SAMPLE.names}))
    image = fits.ImageHDU(np.ones((20, 20), np.float32))
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "table.fits")
    fits.HDUList([fits.PrimaryHDU(), image, table]).writeto(tmp_path / "image.fits")
    config = DataConfig(fits=FitsConfig(bands="rrr", stretch="asinh"))
    assert [file.ids for file in open_files(tmp_path / "table.fits", config)] == [(name,) for name in SAMPLE.names]
    assert [file.ids for file in open_files(tmp_path / "image.fits", config)] == [("image.fits",)]


def test_columns_that_the_run_names_are_used_where_the_catalogue_has_them(tmp_path: Path) -> None:
    config = DataConfig(columns=ColumnsConfig(file="png", label="kind", id=""))
    for name in ("png", "file"):
        path = write_table(tmp_path / f"{name}.csv", SAMPLE.table.rename(columns={"file": name}).drop(columns="label"))
        write_images(tmp_path, SAMPLE)
        assert [file.error for file in open_files(path, config)] == [""] * 6
    (file,) = open_files(write_table(tmp_path / "none.csv", SAMPLE.table[["ra", "dec"]]), config)
    assert "none.csv: columns: got ra, dec; expected one with the images, or with the names of their" in file.error


def test_files_are_relative_to_the_settings_directory_only_for_the_catalogue_of_the_training(tmp_path: Path) -> None:
    write_images(tmp_path / "images", SAMPLE)
    trained, other = (write_table(tmp_path / name, SAMPLE.table) for name in ("a.csv", "b.csv"))
    config = DataConfig(source=str(trained), images=str(tmp_path / "images"))
    assert not any(file.error for file in open_files(trained, config))
    assert all("no such file" in file.error for file in open_files(other, config))


def test_positions_and_file_names_may_be_missing_in_some_rows(tmp_path: Path) -> None:
    ra = ["", *map(str, SAMPLE.ra[1:])]
    files = open_files(write_catalogue(tmp_path, SAMPLE, ra=ra, file=[*SAMPLE.names[:-1], ""]))
    assert np.isnan(files[0].ra[0]) and files[1].ra[0] == SAMPLE.ra[1]
    assert "file: got nothing in row 5; expected the name of an image file" in files[5].error


def test_a_damaged_rest_of_a_shard_is_an_error_for_each_of_its_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", make_sample(120), "bytes", id=np.arange(120))
    with ParquetFile(path) as shard:
        start = shard.metadata.row_group(1).column(0).dictionary_page_offset
    content = path.read_bytes()
    path.write_bytes(content[:start] + bytes(40) + content[start + 40 :])
    (file,) = open_files(path)
    images = read(file)
    assert len(images) == 120 and isinstance(images[31], GalaxyImage)
    assert all(isinstance(image, ImageError) and "a.parquet" in str(image) for image in images[32:])


@pytest.mark.parametrize("name", ["absent.csv", "absent.parquet", "absent.fits", "absent.png"])
def test_what_is_not_there_is_an_error_of_one_line(name: str, tmp_path: Path) -> None:
    (file,) = open_files(tmp_path / name)
    assert file.error.startswith(f"{tmp_path / name}: got no such file") and "\n" not in file.error
