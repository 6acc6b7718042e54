"""A file of galaxies is taken as published and refused, with one clear line, when it is not."""

from __future__ import annotations

import os

import numpy as np
import pytest
from helpers.data_files import write_file

from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.sources.hdf5 import DataError, open_hdf5

N, ROWS = 120, np.arange(120)
LABELS = ROWS % 10
WRONG = {
    "no images": ({"images": None}, "images: got no such array among ans, dec, pxscale, ra, redshift"),
    "no labels": ({"ans": None}, "ans: got no such array"),
    "no positions": ({"dec": None}, "dec: got no such array"),
    "not square": ({"images": np.zeros((N, 32, 30, 3), np.uint8)}, "images: got shape (120, 32, 30, 3)"),
    "channels first": ({"images": np.zeros((N, 3, 32, 32), np.uint8)}, "expected (N, S, S, 3)"),
    "one channel": ({"images": np.zeros((N, 32, 32), np.uint8)}, "images: got shape (120, 32, 32)"),
    "float pixels": ({"images": np.zeros((N, 32, 32, 3), np.float32)}, "got dtype float32; expected uint8"),
    "float labels": ({"ans": LABELS.astype(float)}, "ans: got dtype float64; expected integer"),
    "positions as text": ({"ra": np.full(N, b"12h")}, "ra: got dtype |S3; expected floating-point"),
    "lengths differ": ({"ra": np.zeros(N - 1)}, "ra: got shape (119,); expected (120,)"),
    "label too large": ({"ans": np.where(ROWS == 77, 10, LABELS)}, "ans: got label 10 in row 77; expected 0 to 9"),
    "label negative": ({"ans": np.where(ROWS == 3, -1, LABELS)}, "got label -1 in row 3"),
    "NaN position": ({"ra": np.where(ROWS == 5, np.nan, 1.0)}, "ra: got nan in row 5; expected 0 to 360"),
    "dec out of range": ({"dec": np.where(ROWS == 9, 90.5, 1.0)}, "dec: got 90.5 in row 9; expected -90 to 90"),
    "no positions known": (
        {"ra": np.zeros(N), "dec": np.zeros(N)},
        "ra and dec: got 120 of 120 galaxies at ra 0, dec 0; expected the position of each, in degrees",
    ),
    "a class missing": ({"ans": np.minimum(LABELS, 8)}, "got 0 galaxies of class 9 (Edge-on with Bulge)"),
    "scale of another length": ({"pxscale": np.ones(3)}, "pxscale: got shape (3,)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_with_what_it_holds_and_what_is_expected(tmp_path, case):
    changes, message = WRONG[case]
    path = write_file(tmp_path / "wrong.h5", **changes)
    with pytest.raises(DataError) as error:
        open_hdf5(path, DataConfig())
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "expected" in str(error.value)


def test_too_few_galaxies_are_refused(tmp_path):
    with pytest.raises(DataError, match="got 60 galaxies; expected 100 or more"):
        open_hdf5(write_file(tmp_path / "few.h5", n=60), DataConfig())


def test_a_file_that_is_missing_or_no_hdf5_is_refused(tmp_path):
    (tmp_path / "page.h5").write_text("<html>404</html>")
    for name, message in (("absent.h5", "no such file"), ("", "a directory"), ("page.h5", "a web page")):
        with pytest.raises(DataError, match=message):
            open_hdf5(tmp_path / name, DataConfig())


@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_a_file_cut_off_is_refused(tmp_path, part):
    path = write_file(tmp_path / "cut.h5")
    os.truncate(path, int(path.stat().st_size * part))
    with pytest.raises(DataError, match=r"of its|damaged"):
        open_hdf5(path, DataConfig())


def test_galaxies_at_one_position_are_counted_before_their_pairs_fill_the_memory(tmp_path):
    n = 20_000  # 200 million pairs
    path = write_file(
        tmp_path / "a.h5", n=n, side=16, images=np.zeros((n, 16, 16, 3), np.uint8), ra=np.zeros(n), dec=np.zeros(n)
    )
    with pytest.raises(DataError, match=r"got 20000 of 20000 galaxies at ra 0, dec 0; .* farther apart"):
        open_hdf5(path, DataConfig())
    dec = np.where(np.arange(n) < 100, 0.0, np.arange(n) / n)
    write_file(path, n=n, side=16, images=np.zeros((n, 16, 16, 3), np.uint8), ra=np.zeros(n), dec=dec)
    assert open_hdf5(path, DataConfig()).size == 16


def test_pixels_of_which_the_end_was_never_written_are_refused_from_one_slice(tmp_path, monkeypatch):
    monkeypatch.setattr("galaxyhpc.data.sources.hdf5.SLICE_BYTES", 50 * 32 * 32 * 3)
    images = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), np.uint8)
    path = write_file(tmp_path / "a.h5", images=images)
    open_hdf5(path, DataConfig()).check_images()
    images[110:] = 7
    path = write_file(tmp_path / "b.h5", images=images)
    with pytest.raises(DataError, match=r"images: got 10 of 20 images from row 100 on with one value in all pixels"):
        open_hdf5(path, DataConfig()).check_images()


@pytest.mark.parametrize("classes", [["E", "S0, lenticular", "Spirale à bras <&%_>"], [str(k) for k in range(1000)]])
def test_a_file_names_its_classes(tmp_path, classes):
    path = write_file(tmp_path / "a.h5", n=3 * len(classes) + 100, side=16, classes=classes)
    assert open_hdf5(path, DataConfig()).classes == tuple(classes)


def test_a_file_that_names_no_classes_has_those_of_galaxy10(tmp_path):
    assert open_hdf5(write_file(tmp_path / "a.h5"), DataConfig()).classes == GALAXY10_CLASSES


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (np.array([b"E", b"S0"]), ""),
        (["E"], "attribute classes: got 1 classes; expected 2 to 1000"),
        (["E", "E"], "attribute classes: got class name 'E' twice"),
        (np.array([b"E", b"S\xff"]), "attribute classes: 'utf-8' codec"),
        (np.arange(3), "attribute classes: got 0; expected an array of texts"),
        ([["E", "S0"], ["Sa", "Sb"]], "attribute classes: got ['E', 'S0']; expected an array of texts"),
        (["E", "S0", "Sa"], "ans: got 0 galaxies of class 2 (Sa); expected 3 or more"),
    ],
)
def test_names_of_classes_are_an_array_of_texts_one_for_each_label(tmp_path, classes, message):
    path = write_file(tmp_path / "a.h5", classes=classes, ans=np.arange(120) % 2)
    if not message:
        assert open_hdf5(path, DataConfig()).classes == ("E", "S0")
        return
    with pytest.raises(DataError) as error:
        open_hdf5(path, DataConfig())
    assert message in str(error.value)
