"""The report of a prediction: its sums are those of the parts, what is missing is named, and a browser shows it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from astropy import units
from astropy_healpix import lonlat_to_healpix
from helpers.predictions import CLASSES, make_classifier, make_part, write_prediction

from galaxyhpc.analysis.tables import GENERATED_NOTICE
from galaxyhpc.prediction.report.page import write_report
from galaxyhpc.prediction.report.summary import NUM_BINS, SurveySummary, summarize
from galaxyhpc.prediction.report.throughput import measure_throughput, measure_union
from galaxyhpc.prediction.survey import Attempts, SurveyDir
from galaxyhpc.storage.run_dir import RunDir

RUNS = [make_classifier("a"), make_classifier("b", 1.0)]


def record_unit(task: RunDir, time: float, seconds: float, galaxies: int = 40) -> None:
    task.path.mkdir(exist_ok=True)
    event = {"time": time, "host": "node1", "event": "unit", "unit": 0, "galaxies": galaxies, "seconds": seconds}
    with task.events_file.open("a") as file:
        file.write(json.dumps(event) + "\n")


def write_survey(path: Path, runs: Sequence[Any] = RUNS, num_parts: int = 3, num_missing: int = 2) -> SurveyDir:
    """Write a prediction in which one of the missing units was set aside."""
    tables = [make_part(number, runs, 40) for number in range(num_parts)]
    survey = write_prediction(path, tables, runs, num_missing)
    if num_missing:
        survey.write_attempts(num_parts, Attempts(3, ("DataError: got <b>nonsense</b>",)))
    for number in range(2):
        record_unit(RunDir(survey.path / f"task-{number}"), 1000.0 + number, 10.0)
    return survey


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> SurveyDir:
    return write_survey(tmp_path_factory.mktemp("out") / "survey")


@pytest.fixture(scope="module")
def page(survey: SurveyDir) -> Path:
    return write_report(survey)


def sum_up(survey: SurveyDir, num_runs: int = 2) -> SurveySummary:
    return summarize(sorted(survey.parts_dir.iterdir()), CLASSES, num_runs)


def read_all(survey: SurveyDir) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(part) for part in sorted(survey.parts_dir.iterdir())], ignore_index=True)


def test_sums_over_parts_are_those_of_all_galaxies(survey: SurveyDir) -> None:
    summary, frame = sum_up(survey), read_all(survey)
    known = frame[frame["error"].isna()]
    assert (summary.num_galaxies, summary.num_classified, summary.num_errors) == (120, 117, 3)
    assert summary.counts.tolist() == [(known["class"] == label).sum() for label in range(3)]
    assert summary.confident.tolist() == [
        ((known["class"] == label) & (known["probability"] > 0.9)).sum() for label in range(3)
    ]
    probabilities = known[["p_E", "p_S0_or_Sa", "p_Irr/Pec"]].to_numpy(float)
    np.testing.assert_allclose(summary.expected, probabilities.sum(0))
    np.testing.assert_allclose(summary.variance, (probabilities * (1 - probabilities)).sum(0))
    expected, _ = np.histogram(known["entropy"], NUM_BINS, (0, math.log(3)))
    assert summary.histograms["entropy"].tolist() == expected.tolist()
    assert summary.histograms["disagreement"].sum() == 117 and not summary.histograms["typicality"].any()
    assert summary.flags["blank"] == 3 and summary.flags["filled"] == (known["num_filled"] > 0).sum()
    assert summary.errors == {"got 3 bytes; expected an image": 3}


def test_the_map_counts_galaxies_in_cells_of_equal_area(survey: SurveyDir) -> None:
    summary, frame = sum_up(survey), read_all(survey).dropna(subset=["ra"])
    assert summary.num_positions == len(frame) == 117
    cells = lonlat_to_healpix(frame["ra"].to_numpy() * units.deg, frame["dec"].to_numpy() * units.deg, 64, order="ring")
    np.testing.assert_array_equal(np.flatnonzero(summary.sky), np.unique(cells))


@pytest.mark.slow
def test_what_a_reader_has_to_know_is_a_warning(tmp_path: Path) -> None:
    """Of a network on demo galaxies, not calibrated, with a damaged part and galaxies unlike those of the training."""
    runs = [make_classifier(temperature=None, generated=True)]
    tables, values = [make_part(number, runs, 40) for number in range(2)], np.linspace(0.0005, 0.5, 40)
    place = tables[0].column_names.index("typicality")
    tables[0] = tables[0].set_column(place, "typicality", pa.array(values.astype(np.float32)))
    survey = write_prediction(tmp_path / "out", tables, runs)
    survey.get_part(1).write_bytes(survey.get_part(1).read_bytes()[:-4000])
    summary, html = sum_up(survey, 1), write_report(survey).read_text("utf-8")
    assert summary.num_galaxies == 40 and summary.num_atypical == 4 and list(summary.damaged) == ["000001.parquet"]
    assert "10.3 % of the galaxies are unlike those of the training" in html
    assert "1 part damaged and left out" in html and "000001.parquet" in html
    assert f"{GENERATED_NOTICE}." in html and "The probabilities are RAW" in html and "sum of probabilities" not in html


def test_rates_are_galaxies_per_second_at_work(survey: SurveyDir) -> None:
    table, total = measure_throughput(survey)
    assert table["task"].tolist() == ["task-0", "task-1"]
    assert table["rate"].tolist() == pytest.approx([4.0, 4.0])
    assert total["galaxies"] == 80 and total["hours"] == pytest.approx(11 / 3600)
    assert total["rate"] == pytest.approx(80 / 11)
    assert measure_union([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4


def test_the_page_says_what_was_done_what_is_missing_and_why(page: Path) -> None:
    html = page.read_text("utf-8")
    text = re.sub(r"\s+", " ", html)
    assert "120 galaxies of survey" in text and "3 of 5 units complete" in text
    assert "Incomplete: 1 unit without predictions (4)." in text and "1 unit set aside" in text
    assert "weights a (SHA-256), temperature 2.000" in text
    assert "<b>nonsense" not in html and "nonsense" in html  # as text
    assert GENERATED_NOTICE not in text and "are RAW" not in text


def test_a_prediction_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    survey = write_prediction(tmp_path / "out", [], RUNS, num_missing=2)
    html = write_report(survey).read_text("utf-8")
    assert "0 of 2 units complete" in html and "No galaxy has a class." in html and "have no positions" in html


@pytest.mark.slow
def test_a_browser_shows_the_page_and_asks_for_nothing(page: Path, open_page: Any) -> None:
    tab = open_page(page)
    assert tab.locator("h2").all_inner_texts() == [
        *("Summary", "Classes", "Sky", "Uncertainty", "Image quality", "Throughput", "Failures")
    ]
    assert tab.locator("table").count() == 5
    assert "DataError: got <b>nonsense</b>" in tab.locator("table").nth(3).inner_text()
    assert all(tab.locator("figure img").evaluate_all("images => images.map(image => image.naturalWidth > 300)"))
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert all(message.startswith(("file:", "data:")) for message in tab.messages)
