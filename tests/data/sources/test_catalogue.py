"""A catalogue, a folder or parquet that cannot be used is refused in one line that names the file and the row."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import sources
from helpers.sources import make_sample

from galaxyhpc.config.schema import ColumnsConfig, DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.dataset import divide_before_conversion
from galaxyhpc.data.galaxies import prepare
from galaxyhpc.data.sources.open_source import open_source
from galaxyhpc.data.sources.source import Source


def open_path(path: Path, **changes: Any) -> Source:
    return open_source(path, DataConfig(source=str(path), **changes))


def get_error(path: Path, **changes: Any) -> str:
    """Return the one line that refuses a source when it is opened or its images are checked."""
    with pytest.raises(DataError) as error:
        open_path(path, **changes).check_images()
    line = str(error.value)
    assert line.startswith(str(path.parent)) and "\n" not in line and "got " in line and "; expected " in line
    return line


def change(values: list[Any], row: int, value: Any) -> list[Any]:
    return [*values[:row], value, *values[row + 1 :]]


def test_a_class_of_one_galaxy_that_is_like_another_is_taken_for_a_misprint(tmp_path: Path) -> None:
    sample = make_sample()
    names = np.array(["spiral", "lenticular", "elliptical"])[np.unique(sample.table["label"], return_inverse=True)[1]]
    labels = change(names.tolist(), 0, "spirall")
    line = get_error(sources.write_catalogue(tmp_path, sample, label=labels))
    assert line.endswith("(spirall) in line 2; expected 3 or more of every class, one for each split, or data.classes "
                         "without it; is it spiral?")  # fmt: skip


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        (
            "label",
            15,
            "",
            "label: got nothing in line 17; expected a class for each galaxy, or the classes to train on",
        ),
        ("label", 15, "nan", "label: got nothing in line 17"),
        ("label", 5, "lonely", "label: got 1 galaxy of class 3 (lonely) in line 7; expected 3 or more of every class"),
        ("file", 3, "", "file: got nothing in line 5; expected the name of an image file"),
        ("file", 3, "absent.png", "image files: got 1 of 120 that do not exist, such as "),
        ("file", 3, "absent.png", "absent.png (catalogue.csv, line 5); expected names relative to data.images"),
        ("ra", 7, "12:30:00", "ra: got 12:30:00 in line 9; expected a number from 0 to 360 degrees, or nothing"),
        ("ra", 7, -3.0, "ra: got -3.0 in line 9"),
        ("dec", 119, 95, "dec: got 95.0 in line 121"),
    ],
)
def test_a_bad_value_is_named_with_its_line(tmp_path: Path, column: str, row: int, value: Any, message: str) -> None:
    sample = make_sample()
    values = sample.table[column].tolist()
    path = sources.write_catalogue(tmp_path, sample, **{column: change(values, row, value)})
    assert message in get_error(path)


def test_a_line_is_that_of_an_editor_with_blank_lines_and_line_breaks_in_quotes(tmp_path: Path) -> None:
    path = sources.write_catalogue(tmp_path, make_sample(), note=["two\nlines"] * 120)
    lines = path.read_text().splitlines()
    assert lines[9].startswith("g004.png,E")
    lines[9] = lines[9].replace("E", "", 1)
    path.write_text("\n".join(["", *lines]))
    assert "label: got nothing in line 12" in get_error(path)  # a record ends on its second line


@pytest.mark.parametrize("name", ["catalogue.ecsv", "catalogue.fits"])
def test_rows_of_other_tables_count_from_0(tmp_path: Path, name: str) -> None:
    sample = make_sample()
    path = sources.write_catalogue(tmp_path, sample, name, ra=change(sample.ra.tolist(), 7, 400.0))
    assert "ra: got 400.0 in row 7; expected a number from 0 to 360 degrees" in get_error(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"label": "labell"}}, "data.columns.label: got no column 'labell'; expected label?"),
        ({"columns": {"label": "ra2"}}, "data.columns.label: got no column 'ra2'; expected ra?"),
        ({"columns": {"id": "x"}}, "data.columns.id: got no column 'x'; expected one of file, label, ra, dec"),
        ({"columns": {"label": ""}}, "columns: got file, label, ra, dec; expected one with the class of each galaxy"),
        ({"columns": {"file": ""}}, "columns: got file, label, ra, dec; expected one with the name of each image file"),
        ({"columns": {"ra": ""}}, "columns: got data.columns.dec alone; expected both ra and dec"),
        ({"classes": ("E", "Sa")}, "data.classes: got 'Sa', of which label has no galaxy; expected some of E, S0, Sp"),
        ({"images": "/nowhere"}, "image files: got 120 of 120 that do not exist, such as /nowhere/g000.png"),
    ],
)
def test_settings_that_fit_no_column_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    path = sources.write_catalogue(tmp_path, make_sample())
    assert message in get_error(path, **settings)


def test_columns_are_found_by_common_names_in_any_case(tmp_path: Path) -> None:
    sample = make_sample()
    names = {"file": "Image_Path", "label": "Hubble_Class", "ra": "RAJ2000", "dec": "DEJ2000"}
    table = sample.table.rename(columns=names).assign(objID=range(120), comment="no class")
    sources.write_images(tmp_path, sample)
    source = open_path(sources.write_table(tmp_path / "a.csv", table))
    assert source.classes == sources.CLASSES
    assert source.columns.ids is not None and source.columns.ids.tolist() == [str(row) for row in range(120)]
    assert np.array_equal(source.columns.ra, sample.ra)


def test_two_columns_of_a_needed_name_are_refused_and_others_are_not(tmp_path: Path) -> None:
    sample = make_sample()
    sources.write_images(tmp_path, sample)
    table = sample.table.assign(id=range(120), name=range(120), note="", comment="")
    twice = table.rename(columns={"name": "id", "comment": "note"})
    line = get_error(sources.write_table(tmp_path / "a.csv", twice))
    expected = "column id: got 2 of this name (id, id); expected one: rename the other, or name it in data.columns.id"
    expected += " (of predict: --columns)"
    assert line == f"{tmp_path}/a.csv: {expected}"
    assert open_path(tmp_path / "a.csv", columns={"id": "file"}).columns.ids.tolist() == sample.names
    by_case = sources.write_table(tmp_path / "b.csv", table.rename(columns={"name": "ID"}))
    assert "column id: got 2 of this name (id, ID)" in get_error(by_case)
    assert open_path(by_case, columns={"id": "ID"}).columns.ids is not None


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv.gz", "\t")])
def test_columns_may_be_separated_by_semicolons_or_tabs(tmp_path: Path, name: str, separator: str) -> None:
    sample = make_sample()
    sources.write_images(tmp_path, sample)
    table = sample.table.assign(note="a, b")
    table.to_csv(tmp_path / name, sep=separator, index=False)
    source = open_path(tmp_path / name)
    assert source.classes == sources.CLASSES and np.array_equal(source.columns.ra, sample.ra)
    table.assign(ra="1,5").to_csv(tmp_path / name, sep=separator, index=False)
    assert "ra: got 1,5 in line 2; expected a number" in get_error(tmp_path / name)


@pytest.mark.parametrize(
    ("values", "classes", "expected"),
    [
        ([10, 9, 2], (), ("2", "9", "10")),
        (["1.0", "0.0", "10.0"], (), ("0", "1", "10")),
        (["0.25", "1.0", "-1.0"], (1, 0.25), ("1", "0.25")),
        (["Sb", "E 1", "é"], (), ("E 1", "Sb", "é")),
        ([-1, 0, 1], (0, 1), ("0", "1")),
    ],
)
def test_labels_are_texts_or_numbers(
    tmp_path: Path, values: list[Any], classes: tuple[Any, ...], expected: tuple[str, ...]
) -> None:
    path = sources.write_catalogue(tmp_path, make_sample(), label=values * 40)
    source = open_path(path, classes=tuple(name if isinstance(name, int) else str(name) for name in classes))
    assert source.classes == expected
    assert source.num_left_out == 40 * (3 - len(expected))


def test_negative_numbers_are_no_labels_unless_classes_are_named(tmp_path: Path) -> None:
    path = sources.write_catalogue(tmp_path, make_sample(), label=[0, 1, 2, -1] * 30)
    assert "label: got -1 in line 5; expected a class for each galaxy, or the classes to train on" in get_error(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got no columns to parse from file; expected a table in CSV"),
        (b"file,label\na.png,E\nb.png,E,3,4\n", "Expected 2 fields in line 3, saw 4; expected a table in CSV"),
        (b"file,label\n", "label: got 0 classes; expected 2 to 1000"),
        (b"\xff\xfe\x00file", "expected a table in CSV"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError) as error:
        open_path(tmp_path / "a.csv")
    assert message.lower() in str(error.value).lower() and "\n" not in str(error.value)


def test_a_damaged_image_is_named_with_its_line_when_it_is_reached(tmp_path: Path) -> None:
    path = sources.write_catalogue(tmp_path, make_sample())
    content = (tmp_path / "g005.png").read_bytes()
    (tmp_path / "g005.png").write_bytes(content[: len(content) // 2])
    config = DataConfig(source=str(path), cache=str(tmp_path / "cache"), image_size=20, classes=sources.CLASSES)
    with pytest.raises(DataError, match=r"g005.png: got .* \(catalogue.csv, line 7\)$"):
        prepare(config)
    assert not list((tmp_path / "cache").glob("*px*"))


def test_a_launch_sees_missing_and_blank_images_before_a_job_does(tmp_path: Path) -> None:
    path = sources.write_catalogue(tmp_path, make_sample())
    config = DataConfig(source=str(path), cache=str(tmp_path / "cache"), image_size=20, classes=sources.CLASSES)
    assert len(divide_before_conversion([config])[config]) == 120
    (tmp_path / "g005.png").unlink()
    with pytest.raises(DataError, match=r"1 of 120 that do not exist, such as .*g005.png \(catalogue.csv, line 7\)"):
        divide_before_conversion([config])
    for name in make_sample().names:
        (tmp_path / name).write_bytes(sources.encode(np.zeros((20, 20, 3), np.uint8)))
    with pytest.raises(DataError, match="images: got 20 of 20 read as a trial with one value in all pixels"):
        divide_before_conversion([config])


def test_many_galaxies_at_one_position_are_refused(tmp_path: Path) -> None:
    path = sources.write_catalogue(tmp_path, make_sample(), ra=[0.0] * 120, dec=[0.0] * 120)
    assert "ra and dec: got 120 of 120 galaxies at ra 0, dec 0; expected the position of each" in get_error(path)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder/E").mkdir(parents=True)
    assert "got no subdirectory with images; expected one subdirectory of images" in get_error(tmp_path / "folder")


def test_a_folder_of_splits_gives_its_split(tmp_path: Path) -> None:
    sample = make_sample()
    for name in ("train", "Val", "test"):
        sources.write_folder(tmp_path / "folder" / name, sample)
    splits = open_path(tmp_path / "folder").columns.given_splits
    assert splits is not None and sorted(set(splits.tolist())) == ["test", "train", "validation"]


@pytest.mark.parametrize("part", [None, "dev"])
def test_shards_give_their_split_by_their_names(tmp_path: Path, part: str | None) -> None:
    sample = make_sample()
    for name in filter(None, ("train-00000-of-00001", part and f"{part}-00000-of-00001", "test-00000-of-00001")):
        sources.write_parquet(tmp_path / "data" / f"{name}.parquet", sample, "struct")
    columns = open_path(tmp_path).columns
    assert columns.given_splits is not None and columns.ids is not None
    expected = {"test", "train", *(["validation"] if part else [])}
    assert set(columns.given_splits.tolist()) == expected
    assert columns.ids[0] == "g000.png"
    unsplit = open_path(tmp_path, columns=ColumnsConfig(split=""))
    assert unsplit.columns.given_splits is None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "row 3: got "),
        (b"", "row 3: got nothing; expected a PNG, JPEG, TIFF or WebP image"),
        (b"<html>", "row 3: got 6 bytes that are none, or damaged; expected a PNG, JPEG, TIFF or WebP image"),
    ],
)
def test_a_damaged_image_in_parquet_is_named_with_its_row(tmp_path: Path, image: bytes | None, message: str) -> None:
    sample = make_sample()
    images = change(sources.make_parquet_images(sample, "bytes"), 3, image)
    path = sources.write_parquet(tmp_path / "a.parquet", sample, "bytes", image=images)
    assert message in get_error(path)


def test_lists_that_are_no_image_are_refused(tmp_path: Path) -> None:
    sample = make_sample()
    images = sources.make_parquet_images(sample, "lists")
    torn = change(images, 3, [*images[3][:-1], [[1]]])
    path = sources.write_parquet(tmp_path / "a.parquet", sample, "lists", image=torn)
    assert "row 3: got an array float64 (0, 0)" in get_error(path)
    path = sources.write_parquet(tmp_path / "a.parquet", sample, "lists", image=change(images, 3, images[3][:-5]))
    assert "row 3: got 20 x 15 px; expected square images" in get_error(path)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path) -> None:
    path = sources.write_parquet(tmp_path / "a.parquet", make_sample(), "bytes")
    code = f"""
import sys
from pathlib import Path
sys.modules["pyarrow"] = None
from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.sources.open_source import open_source
open_source(Path({str(path)!r}), DataConfig())
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stderr.endswith("expected pyarrow, which reads parquet: `pip install galaxyhpc[survey]`\n")
