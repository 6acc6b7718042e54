"""Nearly the same images without positions are never divided, or decided as asked across a given split, and listed."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import sources
from helpers.sources import CLASSES, Sample, encode, make_sample
from PIL import Image

from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.dataset import open_dataset
from galaxyhpc.data.split_file import read_split_header
from galaxyhpc.fsck import check_split

N = 120
COPIES = ((0, 1), (2, 3), (4, 5))  # the second of each is the first one in JPEG; the last pair has the same pixels
UNKNOWN = {"ra": [""] * N, "dec": [""] * N}


def make_near_sample() -> Sample:
    """Return smooth galaxies of random detail, three pairs of which are copies."""
    sample = make_sample(N)
    small = np.random.default_rng(0).integers(0, 256, (N, 12, 12, 3), np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(image).resize((40, 40), Image.Resampling.BICUBIC)) for image in small]
    )
    for first, second in COPIES[:2]:
        images[second] = np.asarray(Image.open(io.BytesIO(encode(images[first], "JPEG", quality=60))))
    images[5] = images[4]
    return dataclasses.replace(sample, images=images)


def open_sample(tmp_path: Path, duplicates: str = "drop", **columns: list[str]) -> pd.DataFrame:
    source = sources.write_catalogue(tmp_path / "source", make_near_sample(), **columns)
    config = DataConfig(
        source=str(source),
        classes=CLASSES,
        cache=str(tmp_path / "cache"),
        image_size=20,
        conflicting_duplicates=duplicates,
    )
    table = open_dataset(config, tmp_path / "sweep")[1]
    assert check_split(tmp_path / "sweep", []).errors == ()
    return table


def read_actions(tmp_path: Path) -> dict[tuple[int, int], str]:
    table = pd.read_csv(tmp_path / "sweep/duplicates.csv")
    assert {"id", "other_id", "label", "other_label", "correlation", "split", "other_split"} <= set(table)
    assert table["correlation"].between(0.73, 1).all() and table["correlation"][0] == 1
    return {
        (row, other): action
        for row, other, action in zip(table["row"], table["other_row"], table["action"], strict=True)
    }


def test_copies_stay_in_one_split_and_are_listed(tmp_path: Path) -> None:
    table = open_sample(tmp_path, **UNKNOWN)
    for pair in COPIES:
        assert table["sky_group"][list(pair)].nunique() == table["split"][list(pair)].nunique() == 1
    assert table["sky_group"].nunique() == N - len(COPIES)
    assert read_actions(tmp_path) == dict.fromkeys(COPIES, "linked")
    header = read_split_header(tmp_path / "sweep/split.csv")["duplicates"]
    assert header == "1 pairs of the same and 2 of nearly the same images: 3 linked; see duplicates.csv"


def test_positions_tell_where_they_are_known(tmp_path: Path) -> None:
    table = open_sample(tmp_path)
    assert table["sky_group"].nunique() >= N - 3 and not (tmp_path / "sweep/duplicates.csv").exists()
    assert table["sky_group"][[0, 1]].nunique() == 2


GIVEN = ["train" if row % 2 else "test" for row in range(N)]


@pytest.mark.parametrize(("asked", "action"), [("drop", "dropped"), ("keep", "divided")])
def test_of_copies_in_two_given_parts_that_in_the_test_set_is_kept_as_asked(
    tmp_path: Path, asked: str, action: str
) -> None:
    table = open_sample(tmp_path, asked, split=GIVEN, **UNKNOWN)
    assert read_actions(tmp_path) == dict.fromkeys(COPIES, action)
    dropped = np.flatnonzero(table["split"] == "dropped").tolist()
    assert dropped == ([1, 3, 5] if asked == "drop" else [])


def test_copies_in_two_given_parts_are_refused_as_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"6 galaxies with the pixels, or nearly these, .* row 0 \(g000.png\), row 1"):
        open_sample(tmp_path, "refuse", split=GIVEN, **UNKNOWN)
