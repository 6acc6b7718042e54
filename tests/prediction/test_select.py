"""The galaxies that an expression selects become a CSV or a FITS table, whatever the columns are called."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from astropy import units
from astropy.table import Table
from helpers.predictions import make_classifier, make_part, write_prediction
from pyarrow import parquet

from galaxyhpc.prediction.expression import SelectionError
from galaxyhpc.prediction.selection import Selection, select
from galaxyhpc.prediction.survey import SurveyDir, SurveyError

EXPRESSION = "`p_Irr/Pec` > 0.4 and not saturated"
RUNS = [make_classifier(generated=True)]


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> SurveyDir:
    """Three parts of 40 galaxies with embeddings, and a unit that is not done."""
    parts = [make_part(number, RUNS, 40, with_embeddings=True) for number in range(3)]
    return write_prediction(tmp_path_factory.mktemp("out") / "out", parts, RUNS, num_missing=1)


def read_expected(survey: SurveyDir) -> pd.DataFrame:
    """Return the selected galaxies, chosen by pandas."""
    frame = pa.concat_tables(map(parquet.read_table, sorted(survey.parts_dir.iterdir()))).to_pandas()
    return frame[(frame["p_Irr/Pec"] > 0.4) & (frame["saturated"] == False)].drop(columns="embedding")  # noqa: E712


def test_a_csv_has_the_selected_galaxies_of_all_parts_in_order(survey: SurveyDir, tmp_path: Path) -> None:
    expected = read_expected(survey)
    selection = select(survey.path, EXPRESSION, tmp_path / "chosen.csv")
    assert 10 < len(expected) < 60 and selection == Selection(len(expected), 120, 4, 1)
    chosen = pd.read_csv(tmp_path / "chosen.csv")
    assert chosen.columns.tolist() == expected.columns.tolist()
    assert chosen["id"].tolist() == expected["id"].tolist()
    np.testing.assert_allclose(chosen["p_Irr/Pec"], expected["p_Irr/Pec"], rtol=1e-6)
    np.testing.assert_array_equal(chosen["ra"], expected["ra"])
    assert set(chosen["trained_on"]) == {"GENERATED galaxies"}


def test_a_fits_table_has_the_same_rows_with_units_and_nulls(survey: SurveyDir, tmp_path: Path) -> None:
    expected = read_expected(survey)
    select(survey.path, EXPRESSION, tmp_path / "chosen.fits")
    chosen = Table.read(tmp_path / "chosen.fits")
    assert chosen.colnames == expected.columns.tolist() and len(chosen) == len(expected)
    assert chosen["ra"].unit == chosen["dec"].unit == units.deg
    assert chosen["id"].astype(str).tolist() == expected["id"].tolist()
    for name in ("ra", "dec", "p_E", "entropy", "num_filled", "class", "row"):
        np.testing.assert_array_equal(np.asarray(chosen[name]), expected[name])
    assert np.asarray(chosen["upsampled"]).tolist() == expected["upsampled"].tolist()
    assert "`p_Irr/Pec` > 0.4" in str(chosen.meta["comments"])


def test_a_galaxy_without_prediction_keeps_its_nulls(survey: SurveyDir, tmp_path: Path) -> None:
    for name in ("bad.csv", "bad.fits"):
        assert select(survey.path, "error is not None", tmp_path / name).num_selected == 3
    (row, *_), chosen = pd.read_csv(tmp_path / "bad.csv").to_dict("records"), Table.read(tmp_path / "bad.fits")
    assert np.isnan(row["p_E"]) and np.isnan(row["class"]) and row["error"].startswith("x.png")
    assert np.ma.is_masked(chosen["class"][0]) and np.isnan(float(chosen["p_E"].filled(np.nan)[0]))
    assert chosen["error"].astype(str)[0].startswith("x.png: got 3 bytes")


def test_no_galaxy_is_a_table_without_rows(survey: SurveyDir, tmp_path: Path) -> None:
    for name in ("none.csv", "none.fits"):
        assert select(survey.path, "p_E > 2", tmp_path / name).num_selected == 0
    assert len(pd.read_csv(tmp_path / "none.csv")) == len(Table.read(tmp_path / "none.fits")) == 0


def test_texts_that_fits_cannot_hold_are_replaced(tmp_path: Path) -> None:
    runs = [make_classifier(classes=("Élliptique", "b c", "d"))]
    survey = write_prediction(tmp_path / "out", [make_part(0, runs)], runs)
    select(survey.path, "`p_Élliptique` >= 0", tmp_path / "chosen.fits")
    chosen = Table.read(tmp_path / "chosen.fits")
    assert "p_?lliptique" in chosen.colnames and set(chosen["name"].astype(str)) <= {"?lliptique", "b c", "d"}


def test_what_cannot_be_selected_is_said_and_nothing_is_written(survey: SurveyDir, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"--to: got 'x.txt'; expected a name that ends in .csv or .fits"):
        select(survey.path, "p_E > 0", tmp_path / "x.txt")
    with pytest.raises(SelectionError, match="unknown column 'p_Merging'"):
        select(survey.path, "p_Merging > 0", tmp_path / "x.csv")
    with pytest.raises(SurveyError, match=r"got no settings.json"):
        select(tmp_path, "p_E > 0", tmp_path / "x.csv")
    empty = write_prediction(tmp_path / "empty", [], RUNS, num_missing=1)
    with pytest.raises(SelectionError, match="got no part; expected at least one"):
        select(empty.path, "p_E > 0", tmp_path / "x.csv")
    damaged = write_prediction(tmp_path / "damaged", [make_part(0, RUNS), make_part(1, RUNS)], RUNS)
    damaged.get_part(1).write_bytes(damaged.get_part(1).read_bytes()[:-2000])
    with pytest.raises(SelectionError, match=r"000001.parquet: got .*; expected a part of this prediction"):
        select(damaged.path, "p_E > 0", tmp_path / "x.csv")
    mixed = write_prediction(tmp_path / "mixed", [make_part(0, RUNS), make_part(1, RUNS).drop_columns("margin")], RUNS)
    with pytest.raises(SelectionError, match=r"000001.parquet: got other columns than those of 000000.parquet"):
        select(mixed.path, "p_E > 0", tmp_path / "x.csv")
    assert not list(tmp_path.glob("*x.*"))


@contextmanager
def measure_memory() -> Iterator[list[int]]:
    """Yield a list that the peaks of pyarrow's and of Python's memory are added to, in bytes."""
    peaks: list[int] = []
    usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        yield peaks
        peaks += [pool.max_memory(), tracemalloc.get_traced_memory()[1]]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_parts(tmp_path: Path) -> None:
    table, peaks = make_part(0, RUNS, 1000), {}
    for count in (2, 16):
        survey = write_prediction(tmp_path / f"{count}", [table] * count, RUNS)
        with measure_memory() as peaks[count]:
            for name in ("all.csv", "all.fits"):
                assert select(survey.path, "p_E >= 0", tmp_path / name).num_selected == 999 * count
    for few, many in zip(peaks[2], peaks[16], strict=True):
        assert many < 1.5 * few + 100_000
