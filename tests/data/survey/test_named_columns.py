"""Columns that a user names are found in every kind of file that has columns; one that is not there is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import sources
from helpers.sources import Sample, make_sample
from helpers.survey import find_and_read, write_hats, write_tar

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.survey.named_columns import (
    check_columns,
    check_first_galaxies,
    list_nearest,
    make_column_check,
    name_columns,
    parse_columns,
)
from galaxyhpc.data.survey.units import find_units, list_inputs

SAMPLE = make_sample(6)
NAMES = {"file": "cutout", "id": "Objekt Nr", "ra": "RA=2000", "dec": "déc"}  # in a shell, any name can be typed
FITS_NAMES = NAMES | {"dec": "DEJ2000"}
HDF5_NAMES = {"file": "images", "id": "nom", "ra": "alpha", "dec": "delta"}


def write_catalogue(path: Path, names: dict[str, str]) -> Path:
    """Write a catalogue of image files with these names, and positions of zeros under the usual ones."""
    sources.write_images(path.parent, SAMPLE)
    table = SAMPLE.table.rename(columns={key: names[key] for key in ("file", "ra", "dec")})
    table[names["id"]], table["ra"], table["dec"] = range(100, 106), 0.0, 0.0
    return sources.write_table(path, table)


def write_parquet(path: Path, sample: Sample = SAMPLE) -> Path:
    """Write parquet with images inside, by these names and the usual ones."""
    columns: dict[str, Any] = {"cutout": sources.make_parquet_images(sample, "bytes"), "Objekt Nr": np.arange(100, 106)}
    columns |= {"RA=2000": sample.ra, "déc": sample.dec, "ra": np.zeros(6), "dec": np.zeros(6)}
    return sources.write_parquet(path, sample, "struct", **columns)


def write_hats_catalogue(root: Path) -> Path:
    """Write a HATS catalogue of one partition whose properties name other columns of positions."""
    write_hats(root, SAMPLE, {(0, 4): slice(6)})
    write_parquet(root / "dataset/Norder=0/Dir=0/Npix=4.parquet")
    (root / "hats.properties").write_text("hats_col_ra=ra\nhats_col_dec=dec\n")
    return root


def write_hdf5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["images"], file["nom"] = SAMPLE.images, [str(number) for number in range(100, 106)]
        file["alpha"], file["delta"], file["ra"], file["dec"] = SAMPLE.ra, SAMPLE.dec, np.zeros(6), np.zeros(6)
        file["short"] = np.zeros(3)
    return path


WRITERS: dict[str, tuple[Callable[[Path], Path], dict[str, str]]] = {
    "CSV": (lambda path: write_catalogue(path / "a.csv", NAMES), NAMES),
    "FITS table": (lambda path: write_catalogue(path / "a.fits", FITS_NAMES), FITS_NAMES),
    "parquet catalogue": (lambda path: write_catalogue(path / "a.parquet", NAMES), NAMES),
    "parquet": (lambda path: write_parquet(path / "a.parquet"), NAMES),
    "HATS": (write_hats_catalogue, NAMES),
    "HDF5": (lambda path: write_hdf5(path / "a.h5"), HDF5_NAMES),
}


def check(path: Path, *texts: str) -> None:
    """Check a file on its own, as the short form does, and when its units are found; both say the same."""
    columns = parse_columns(texts)
    config = name_columns(DataConfig(), columns)
    files = [file for members in list_inputs([str(path)]).values() for file in members]
    try:
        find_units([str(path)], config, check=make_column_check(columns, config))
    except DataError as error:
        with pytest.raises(DataError, match=f"^{re.escape(str(error))}$"):
            check_columns(files, columns, config)
        raise
    check_columns(files, columns, config)


@pytest.mark.parametrize("kind", WRITERS)
def test_named_columns_are_read_from_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    write, names = WRITERS[kind]
    path = write(tmp_path)
    check(path, *(f"{key}={name}" for key, name in names.items()))
    table = find_and_read(path, columns=names)
    assert table["id"].tolist() == [str(number) for number in range(100, 106)]
    assert np.allclose(table[["ra", "dec"]], np.stack([SAMPLE.ra, SAMPLE.dec], axis=1), rtol=0, atol=1e-12)
    with pytest.raises(DataError) as error:
        check(path, f"id={names['id'].lower()}x")
    assert str(error.value).count("\n") == 0 and str(error.value).startswith(f"{tmp_path}/")
    expected = f"--columns id: got no column '{names['id'].lower()}x' of texts or numbers; expected one of "
    assert f"{expected}'{names['id']}', " in str(error.value)


@pytest.mark.parametrize(
    ("kind", "texts", "message"),
    [
        ("parquet", ["id=cutout"], "id: got no column 'cutout' of texts or numbers; expected one of "),
        ("parquet", ["file=cutout.bytes"], "file: got no column 'cutout.bytes'; expected one of 'cutout', "),
        ("HDF5", ["id=short"], "id: got no column 'short' of texts or numbers; expected one of "),
        ("HDF5", ["file=stamps"], "file: got no column 'stamps'; expected 'images'"),
        ("CSV", ["file=CUTOUT"], "file: got no column 'CUTOUT'; expected one of 'cutout', "),
    ],
)
def test_a_column_that_cannot_be_what_it_is_named_for_is_refused(
    kind: str, texts: list[str], message: str, tmp_path: Path
) -> None:
    path = WRITERS[kind][0](tmp_path)
    with pytest.raises(DataError) as error:
        check(path, *texts)
    assert f"--columns {message}" in str(error.value)


def test_files_without_columns_and_positions_of_one_column_are_refused(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", SAMPLE)
    with pytest.raises(DataError, match=r"a.tar: --columns id: got no columns; expected a table, parquet or HDF5 with"):
        check(archive, "id=objid")
    check(archive, "id=")
    lone = sources.write_table(tmp_path / "a.csv", SAMPLE.table.rename(columns={"ra": "alpha"}).drop(columns="dec"))
    with pytest.raises(DataError, match=r"a.csv: --columns: got ra=alpha alone; expected dec=NAME, too"):
        check(lone, "ra=alpha")


def test_two_columns_of_a_common_name_are_refused_unless_one_is_named(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file["RA"] = SAMPLE.ra
    with pytest.raises(
        DataError, match=r"a.h5: column RA: got 2 of this name \(RA, ra\); .* \(of predict: --columns\)"
    ):
        find_units([str(path)], DataConfig())
    check(path, "ra=RA")
    assert np.array_equal(find_and_read(path, columns={"ra": "RA"})["ra"], SAMPLE.ra)


def test_columns_with_which_no_galaxy_can_be_read_are_refused(tmp_path: Path) -> None:
    path, columns = write_catalogue(tmp_path / "a.csv", NAMES), NAMES | {"ra": "label"}
    config = name_columns(DataConfig(), columns)
    with pytest.raises(
        DataError, match=r"a.csv: label: got E in row 0; .*; so it is for the first 6 galaxies: see --c"
    ):
        check_first_galaxies(find_units([str(path)], config), columns, config, True)


def test_an_input_whose_first_galaxies_all_lack_an_image_is_told_and_a_good_one_is_not(tmp_path: Path) -> None:
    path, columns = write_catalogue(tmp_path / "a.csv", NAMES), {"file": "cutout"}
    config = name_columns(DataConfig(), columns)
    units = find_units([str(path)], config)
    assert check_first_galaxies(units, columns, config, True) == check_first_galaxies(units, {}, config, True) == ""
    for image in tmp_path.rglob("*.png"):
        image.write_bytes(b"none")
    assert re.search(
        r"a.csv: row 0: got 4 bytes .*; so it is for .* 6 gal", check_first_galaxies(units, {}, config, True)
    )
    path.write_text("")
    assert "a file of 0 bytes that was changed" in check_first_galaxies(units, {}, config, True)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["RA=x"], "--columns: got 'RA=x'; expected KEY=NAME, where KEY is file, id, ra or dec; files stand before it"),
        (["a.csv"], "--columns: got 'a.csv'; expected KEY=NAME"),
        (["ra=x", "dec=y", "ra=z"], "--columns ra: got 'x' and 'z'; expected one name"),
        (["ra=x", "dec=x"], "--columns: got 'x' for ra and dec; expected a column for each"),
        (["file="], "--columns file: got nothing; expected the column of the images or of their files"),
        (["ra=x", "dec="], "--columns: got dec= alone; expected ra= and dec=, for positions that are not used"),
    ],
)
def test_a_mistake_in_a_key_or_a_name_is_told(texts: list[str], message: str) -> None:
    with pytest.raises(DataError) as error:
        parse_columns(texts)
    assert str(error.value).startswith(message)


def test_the_nearest_names_come_first_and_those_that_look_alike_are_escaped() -> None:
    names = [*(f"flux_{number}" for number in range(20)), "RAJ2000", "ra\u200b"]
    assert list_nearest("raj2000", names).startswith("one of 'RAJ2000', ")
    assert list_nearest("raj2000", names).endswith(" and 14 more")
    assert list_nearest("ra", names).startswith(r"one of 'ra\u200b', ")
