"""`predict --columns`: both forms read the columns that a user names, and refuse before they write anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers import sources
from helpers.classifiers import write_run
from helpers.sources import make_sample

from galaxyhpc import fsck
from galaxyhpc.predict.__main__ import main
from galaxyhpc.prediction.job import predict_units
from galaxyhpc.prediction.survey import SurveyDir
from galaxyhpc.runtime.job import StopSignal
from galaxyhpc.runtime.rank import RankInfo
from galaxyhpc.status import __main__ as status

SAMPLE = make_sample(6, side=40)
COLUMNS = ["file=cutout", "ra=RA (2000)", "dec=DEC (2000)", "id=objekt"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_run(tmp_path_factory.mktemp("runs") / "sweep").path)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue with positions of zeros under the usual names."""
    directory = tmp_path_factory.mktemp("table")
    sources.write_images(directory, SAMPLE)
    names = {"file": "cutout", "ra": "RA (2000)", "dec": "DEC (2000)"}
    columns = SAMPLE.table.rename(columns=names).assign(objekt=range(100, 106), ra=0.0, dec=0.0)
    return sources.write_table(directory / "a.csv", columns)


def predict(run: str, table: Path, output: Path, *more: str) -> int:
    return main([run, "--input", str(table), "--output", str(output), "--executor", "debug", *more])


def check(rows: pd.DataFrame) -> None:
    assert rows["id"].tolist() == [str(number) for number in range(100, 106)]
    np.testing.assert_allclose(rows[["ra", "dec"]], np.stack([SAMPLE.ra, SAMPLE.dec], axis=1))


def test_a_few_files_are_classified_by_named_columns(
    run: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.csv"
    command = [run, str(table), "--output", str(output), "--columns"]
    assert main([*command, *COLUMNS[1:], "file=cutouts", "--skip-bad"]) == 2
    assert f"{table}: --columns file: got no column 'cutouts'; expected one of 'cutout', " in capsys.readouterr().err
    assert main([*command, "RA=ra"]) == 2 and "expected KEY=NAME, where KEY is file, id, ra or dec" in (
        capsys.readouterr().err
    )
    assert not output.exists()
    assert main([*command, *COLUMNS[:2], "--columns", *COLUMNS[2:]]) == 0
    check(pd.read_csv(output, dtype={"id": str}))


def test_a_survey_keeps_the_named_columns_in_its_plan(
    run: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert predict(run, table, output, "--columns", *COLUMNS[:3], "id=object") == 2
    line = capsys.readouterr().err
    assert line.startswith(
        f"{table}: --columns id: got no column 'object' of texts or numbers; expected one of 'objekt'"
    )
    assert line.count("\n") == 1 and not output.exists()
    assert predict(run, table, output, "--columns", *COLUMNS, "--dry-run") == 0 and not output.exists()
    assert predict(run, table, output, "--columns", *COLUMNS) == 0
    (part,) = (output / "parts").iterdir()
    check(pq.read_table(part).to_pandas())
    assert fsck.main([str(output)]) == 0 and status.main([str(output)]) == 0
    content = part.read_bytes()
    part.unlink()
    survey = SurveyDir(output)
    assert predict_units(survey, survey.list_tasks()[0], StopSignal(), RankInfo())  # as a job elsewhere, from the plan
    assert part.read_bytes() == content


def test_a_prediction_is_not_resumed_with_other_columns(
    run: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert predict(run, table, output, "--columns", *COLUMNS) == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in output.rglob("*"))
    for columns, difference in ((COLUMNS[:3], "expected nothing"), ([*COLUMNS[:3], "id="], "expected ''")):
        assert predict(run, table, output, "--columns", *columns) == 2
        assert f"begun with other settings: columns.id: got objekt; {difference}; " in capsys.readouterr().err
    assert sorted((path, path.stat().st_mtime_ns) for path in output.rglob("*")) == before
    assert predict(run, table, output, "--columns", *reversed(COLUMNS)) == 0
    assert "6 galaxies in 1 unit, 1 done" in capsys.readouterr().out
