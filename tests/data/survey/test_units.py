"""The galaxies of a survey are the same in whatever files and units they come; errors name file and row."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pytest
from helpers import sources
from helpers.data_files import write_file
from helpers.sources import Sample, encode, make_sample
from helpers.survey import find_and_read, read_all, stack, write_hats, write_tar, write_tensors
from pyarrow import parquet

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.images.image_files import ImageError
from galaxyhpc.data.survey import hdf5
from galaxyhpc.data.survey.unit import divide_rows
from galaxyhpc.data.survey.units import decode_image, find_units, read_unit

WRITERS: dict[str, Callable[[Path, Sample], Path]] = {
    "struct": lambda path, sample: sources.write_parquet(path / "a.parquet", sample, "struct"),
    "bytes": lambda path, sample: sources.write_parquet(path / "a.parquet", sample, "bytes", id=sample.names),
    "lists": lambda path, sample: sources.write_parquet(path / "a.parquet", sample, "lists", id=sample.names),
    "tensors": lambda path, sample: write_tensors(path / "a.parquet", sample),
    "HDF5": lambda path, sample: sources.write_hdf5(path / "a.h5", sample),
    "CSV": lambda path, sample: sources.write_catalogue(path, sample),
    "ECSV": lambda path, sample: sources.write_catalogue(path, sample, "catalogue.ecsv"),
    "FITS table": lambda path, sample: sources.write_catalogue(path, sample, "catalogue.fits"),
    "parquet catalogue": lambda path, sample: sources.write_catalogue(path, sample, "catalogue.parquet"),
    "tar": lambda path, sample: write_tar(path / "a.tar", sample),
    "HATS": lambda path, sample: write_hats(path, sample, {(1, 3): slice(0, 70), (0, 7): slice(70, 120)}),
}
HAS_NO_POSITIONS, HAS_NO_IDS = ("tar",), ("HDF5", "tensors")


@pytest.mark.parametrize("kind", WRITERS)
def test_all_galaxies_are_read_once_from_every_kind_of_input(tmp_path: Path, kind: str) -> None:
    sample, directory = make_sample(), tmp_path / "input"
    directory.mkdir()
    table = find_and_read(WRITERS[kind](directory, sample), galaxies_per_unit=33)
    order = slice(None) if kind != "HATS" else [*range(70, 120), *range(70)]  # of its pixels: those of order 0 first
    assert np.array_equal(stack(table), sample.images[order])
    assert table["unit"].nunique() > 1
    assert not table.duplicated(["source", "row"]).any()
    names = [] if kind in HAS_NO_IDS else np.array(sample.names)[order].tolist()
    assert [os.path.basename(name) for name in table["id"] if name] == names
    if kind in HAS_NO_POSITIONS:
        assert table["ra"].isna().all() and table["dec"].isna().all()
    else:
        assert np.array_equal(table[["ra", "dec"]], np.stack([sample.ra, sample.dec], axis=1)[order])


def test_a_directory_of_images_is_read_by_name(tmp_path: Path) -> None:
    sample = make_sample()
    sources.write_images(tmp_path / "b", sample)
    (tmp_path / "a.png").write_bytes(encode(sample.images[7]))
    (tmp_path / ".hidden.png").write_bytes(b"")
    table = find_and_read(tmp_path, galaxies_per_unit=50)
    assert table["id"].tolist() == ["a.png", *(f"b/{name}" for name in sample.names)]
    assert np.array_equal(stack(table), sample.images[[7, *range(120)]])


def test_globs_and_directories_of_shards_are_read_each_file_once(tmp_path: Path) -> None:
    sample = make_sample()
    for number in range(3):
        sources.write_parquet(tmp_path / f"{number}.parquet", sample, "bytes", slice(40 * number, 40 * number + 40))
    units = find_units([str(tmp_path / "*.parquet"), str(tmp_path), str(tmp_path / "1.parquet")], DataConfig())
    assert [(unit.number, Path(unit.source).name, unit.num_galaxies) for unit in units] == [
        (0, "0.parquet", 40),
        (1, "1.parquet", 40),
        (2, "2.parquet", 40),
    ]
    assert np.array_equal(stack(read_all(units)), sample.images)


def test_a_unit_is_a_run_of_row_groups_or_a_part_of_a_large_one() -> None:
    assert list(divide_rows([4, 4, 4], 8)) == [(0, 8), (8, 12)]
    assert list(divide_rows([3, 4, 4, 1], 6)) == [(0, 3), (3, 7), (7, 12)]
    assert list(divide_rows([2, 25, 2], 10)) == [(0, 2), (2, 12), (12, 22), (22, 29)]
    assert list(divide_rows([0, 0], 10)) == list(divide_rows([], 10)) == []


def test_the_column_of_images_is_preferred_to_one_of_names_and_can_be_given(tmp_path: Path) -> None:
    sample = make_sample()
    images = sources.make_parquet_images(sample, "bytes")
    path = sources.write_parquet(tmp_path / "a.parquet", sample, "bytes", img=sample.names, other=images[::-1])
    assert np.array_equal(stack(find_and_read(path)), sample.images)
    assert np.array_equal(stack(find_and_read(path, columns={"file": "other"})), sample.images[::-1])
    table = find_and_read(path, columns={"id": "img", "ra": "dec", "dec": ""})
    assert table["id"].tolist() == sample.names
    assert table["ra"].isna().all()


def test_only_the_columns_in_use_are_read(tmp_path: Path) -> None:
    sample = make_sample()
    path = sources.write_parquet(tmp_path / "a.parquet", sample, "bytes", spectrum=np.random.default_rng(0).random(120))
    footer = parquet.read_metadata(path)
    content = bytearray(path.read_bytes())
    for group in range(footer.num_row_groups):
        column = footer.row_group(group).column(footer.schema.names.index("spectrum"))
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    with pytest.raises(OSError):
        parquet.read_table(path)
    assert np.array_equal(stack(find_and_read(path)), sample.images)


def test_a_large_row_group_is_not_held_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.bytes(2**18) for _ in range(512)]
    parquet.write_table(
        pyarrow.table({"image": images}), tmp_path / "a.parquet", compression="none", write_batch_size=16
    )
    (unit,) = find_units([str(tmp_path / "a.parquet")], DataConfig())
    before, most = pyarrow.total_allocated_bytes(), 0
    for _ in read_unit(unit, DataConfig()):
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert 0 < most < 2**27 / 2  # of 2**27


def test_images_inside_may_be_files_beside_the_shard_or_absent(tmp_path: Path) -> None:
    sample = make_sample()
    sources.write_images(tmp_path, sample)
    images = sources.make_parquet_images(sample, "struct")
    for image in images[:5]:
        image["bytes"] = None
    images[5], images[6]["path"] = {"bytes": None, "path": "none.png"}, None
    images[7] = None
    path = sources.write_parquet(tmp_path / "a.parquet", sample, "struct", image=images)
    table = find_and_read(path)
    assert (
        table["image"][5]
        == f"{tmp_path}/none.png: got No such file or directory; expected an image file (a.parquet, row 5)"
    )
    assert table["image"][7] == f"{path}: got nothing in row 7; expected an image, or the name of its file"
    rest = table.drop([5, 7])
    assert np.array_equal(stack(rest), sample.images[rest.index])


def test_images_of_a_catalogue_that_are_absent_or_damaged_are_errors_of_their_rows(tmp_path: Path) -> None:
    sample = make_sample()
    names = np.array(sample.names, dtype=object)
    names[[3, 70]] = "absent.png", ""
    path = sources.write_catalogue(tmp_path, sample, file=names)
    (tmp_path / names[4]).write_text("<html>")
    table = find_and_read(path, galaxies_per_unit=50)
    assert "absent.png: got No such file or directory" in table["image"][3]
    assert table["image"][3].endswith("(catalogue.csv, row 3)")
    assert table["image"][70] == f"{path}: got nothing in row 70; expected the name of an image file"
    assert table["image"][4].startswith("image: got 6 bytes that are none, or damaged; expected a PNG, JPEG")
    rest = table.drop([3, 4, 70])
    assert np.array_equal(stack(rest), sample.images[rest.index])


def test_an_image_that_may_be_readable_later_fails_its_unit(tmp_path: Path) -> None:
    path = sources.write_catalogue(tmp_path, make_sample(), file=["\0.png", 300 * "a", *make_sample().names[2:]])
    (unit,) = find_units([str(path)], DataConfig())
    chunks = read_unit(unit, DataConfig())
    assert [type(encoded) for encoded in next(chunks).encoded[:3]] == [ImageError, ImageError, bytes]
    limits, opened = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                opened.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(
            DataError, match=r"png: got Too many open files; expected an image file \(catalogue.csv, row"
        ):
            next(chunks)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in opened:
            os.close(descriptor)


def test_a_long_catalogue_is_read_from_where_a_unit_begins(tmp_path: Path) -> None:
    names = [f"{row}.png" for row in range(20_000)]
    (tmp_path / "catalogue.csv").write_text("file\n" + "\n".join(names) + "\n")
    units = find_units([str(tmp_path)], DataConfig(), 9000)
    assert [(unit.first, unit.stop) for unit in units] == [(0, 9000), (9000, 18_000), (18_000, 20_000)]
    for unit in units[1:]:
        galaxies = list(read_unit(unit, DataConfig()))
        assert np.concatenate([part.rows for part in galaxies]).tolist() == list(range(unit.first, unit.stop))
        assert [name for part in galaxies for name in part.ids] == names[unit.first : unit.stop]


def test_a_galaxy_at_no_position_of_the_sky_is_an_error_and_at_none_is_not(tmp_path: Path) -> None:
    sample = make_sample()
    ra, dec = sample.ra.tolist(), sample.dec.tolist()
    ra[2], dec[3], ra[4] = 400.0, -99.0, None
    path = sources.write_parquet(tmp_path / "a.parquet", sample, "bytes", ra=ra, dec=dec)
    table = find_and_read(path)
    assert table["image"][2] == f"{path}: ra: got 400.0 in row 2; expected 0 to 360 degrees"
    assert table["image"][3] == f"{path}: dec: got -99.0 in row 3; expected -90 to 90 degrees"
    assert np.array_equal(table["image"][4], sample.images[4])
    assert np.flatnonzero(table["ra"].isna()).tolist() == [2, 4]


def test_hdf5_may_have_floats_ids_and_chunks_of_many_images(tmp_path: Path) -> None:
    sample = make_sample()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        values = sample.images / 255.0
        values[9] += 1
        file.create_dataset("images", data=values, chunks=(50, 10, 10, 1))
        file["objid"], file["ra"], file["dec"] = sample.names, sample.ra, sample.dec
    units = find_units([str(tmp_path / "a.h5")], DataConfig(), 30)
    assert [(unit.first, unit.stop) for unit in units] == [(0, 50), (50, 100), (100, 120)]
    table = read_all(units)
    assert table["id"].tolist() == sample.names
    assert "images[9]; expected finite floats in [0, 1]" in table["image"][9]
    assert np.array_equal(stack(table.drop(9)), np.delete(sample.images, 9, axis=0))


def test_fits_images_of_a_catalogue_are_stretched_as_in_the_training(tmp_path: Path) -> None:
    from astropy.io import fits

    from galaxyhpc.data.images.fits_images import read_fits

    flux = np.random.default_rng(0).gamma(0.5, 0.1, (3, 20, 20)).astype(np.float32)
    fits.PrimaryHDU(flux, fits.Header({"BANDS": "grz"})).writeto(tmp_path / "a.fits")
    (tmp_path / "cut.fits").write_bytes((tmp_path / "a.fits").read_bytes()[:3000])
    (tmp_path / "b.fits.gz").write_bytes(gzip.compress((tmp_path / "a.fits").read_bytes()))
    (tmp_path / "catalogue.csv").write_text("file\na.fits\ncut.fits\nb.fits.gz\n")
    table = find_and_read(tmp_path / "catalogue.csv")
    assert np.array_equal(table["image"][0], read_fits(tmp_path / "a.fits", DataConfig()).pixels)
    assert table["image"][1].endswith("bytes that are none, or damaged; expected a FITS file")
    assert np.array_equal(table["image"][0], table["image"][2])
    assert len(find_and_read(tmp_path)) == 3  # as a directory of images, too


def test_grey_images_are_refused_unless_allowed() -> None:
    grey = np.repeat(np.arange(400, dtype=np.uint8).reshape(20, 20, 1), 3, axis=2)
    for encoded in (encode(grey), grey, grey.transpose(2, 0, 1), grey[..., 0]):
        error = decode_image(encoded, DataConfig(), False, "a.parquet, row 3")
        assert isinstance(error, ImageError)
        assert str(error).startswith("a.parquet, row 3: got a grey image; expected red, green and blue")
        assert np.array_equal(decode_image(encoded, DataConfig(), True).pixels, grey)  # type: ignore[union-attr]
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_file_that_changed_after_the_plan_is_refused(tmp_path: Path) -> None:
    path = sources.write_parquet(tmp_path / "a.parquet", make_sample(), "bytes")
    (unit,) = find_units([str(path)], DataConfig())
    sources.write_parquet(path, make_sample(), "bytes", slice(0, 60))
    with pytest.raises(
        DataError, match=r"a.parquet: got a file of \d+ bytes that was changed .*; expected the same file"
    ):
        next(read_unit(unit, DataConfig()))
    path.unlink()
    with pytest.raises(DataError, match=r"a.parquet: got No such file or directory where there were \d+ bytes"):
        next(read_unit(unit, DataConfig()))


def write_damaged(path: Path) -> None:
    for number in range(5):
        sources.write_parquet(path / f"{number}.parquet", make_sample(), "bytes")
    for number in (1, 3):
        (path / f"{number}.parquet").write_bytes((path / "0.parquet").read_bytes()[:-50])


def write_other_columns(path: Path) -> None:
    sources.write_parquet(path / "0.parquet", make_sample(), "bytes")
    parquet.write_table(pyarrow.table({"image": [[1.5, 2.5]], "flux": [1.0]}), path / "1.parquet")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_damaged, r"1.parquet: got a file cut off or damaged .*\(1 more of 5 files cannot be used\)"),
        (
            write_other_columns,
            r"1.parquet: columns: got image \(list<.*double>\); expected one with images .*columns.file",
        ),
        (lambda path: write_file(path / "a.h5", images=np.zeros((3, 8), np.uint8)), "a.h5: got images of shape"),
        (lambda path: (path / "a.tar").write_bytes(bytes(1024)), "a.tar: members: got no images; expected "),
        (
            lambda path: (path / "a.csv").write_text("name,ra\na,1\n"),
            r"a.csv: columns: got name, ra; expected one with",
        ),
        (
            lambda path: (path / "a.txt").write_text(""),
            "got a directory without such files; expected a HATS catalogue, ",
        ),
        (
            lambda path: [(path / name).write_text("") for name in ("a.parquet", "b.h5", "c.png")],
            "got a directory with parquet and hdf5, such as b.h5; expected one of these: name the files, such as '/",
        ),
    ],
    ids=["cut off", "other columns", "HDF5", "tar", "CSV", "nothing", "two kinds"],
)
def test_inputs_that_cannot_be_used_are_named_before_anything_is_read(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        find_units([str(tmp_path)], DataConfig())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.parquet", "absent.parquet: got no such file"),
        ("absent*", "got no such file"),
        ("a.tar.gz", "a.tar.gz: got the ending .gz"),
        ("a.png", "a.png: got one image; expected its directory"),
    ],
)
def test_names_that_are_no_input_are_refused(tmp_path: Path, name: str, message: str) -> None:
    for existing in ("a.tar.gz", "a.png"):
        (tmp_path / existing).write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        find_units([str(tmp_path / name)], DataConfig())


def test_damage_behind_a_sound_footer_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = sources.write_parquet(tmp_path / "a.parquet", make_sample(), "bytes")
    content = bytearray(path.read_bytes())
    content[5000:6000] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.parquet: got a file cut off or damaged \(.*\); expected a parquet file"):
        find_and_read(path)


def test_the_headers_of_many_hdf5_files_are_read_by_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["images"] = make_sample(number + 1).images
    expected = find_units([str(tmp_path)], DataConfig())
    monkeypatch.setattr(hdf5, "MIN_FILES_PER_PROCESS", 2)
    assert find_units([str(tmp_path)], DataConfig()) == expected and [unit.stop for unit in expected] == [1, 2, 3, 4]
    (tmp_path / "2.h5").write_bytes(b"")
    with pytest.raises(DataError, match=r"2.h5: got an empty file; expected an HDF5 file"):
        find_units([str(tmp_path)], DataConfig())
