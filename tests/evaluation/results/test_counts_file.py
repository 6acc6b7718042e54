"""results.csv: its counts are those of the logits, of any number of classes, and damaged ones are ignored."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.results import PAIRS, is_same, make_run_logits

from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.metrics import compute_counts, compute_metrics
from galaxyhpc.evaluation.results import RunLogits
from galaxyhpc.storage.run_dir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "sweep" / "D4-steerable_cnn-s0-0123abcd")


def test_the_counts_on_disk_give_the_metrics_of_the_logits(run: RunDir) -> None:
    results.save(run, make_run_logits())
    table = results.read_counts(run)
    assert table is not None
    assert list(zip(table["condition"], table["severity"], strict=True)) == PAIRS
    metrics = compute_metrics(results.to_counts(table))
    for i, pair in enumerate(PAIRS):
        expected = compute_metrics(compute_counts(make_run_logits().logits[pair], make_run_logits().labels))
        assert {k: v[i] for k, v in metrics.items()} == pytest.approx({k: float(v) for k, v in expected.items()})


def clear_temperature(run: RunDir) -> None:
    """Empty the columns of results.csv that follow from the temperature."""
    table = pd.read_csv(run.results_file, dtype=str)
    empty = dict.fromkeys(("temperature", *results.SCALED_COLUMNS), "")
    table.assign(**empty).to_csv(run.results_file, index=False)


def test_the_scaled_counts_on_disk_give_the_metrics_of_the_divided_logits(run: RunDir) -> None:
    results.save(run, dataclasses.replace(make_run_logits(), temperature=1.7))
    table = results.read_counts(run)
    assert table is not None and (table["temperature"] == 1.7).all()
    raw, scaled = compute_metrics(results.to_counts(table)), compute_metrics(results.to_counts(table, is_scaled=True))
    for i, pair in enumerate(PAIRS):
        expected = compute_metrics(
            compute_counts(make_run_logits().logits[pair] / np.float64(1.7), make_run_logits().labels)
        )
        assert {k: v[i] for k, v in scaled.items()} == pytest.approx({k: float(v) for k, v in expected.items()})
    assert (raw["nll"] != scaled["nll"]).all() and np.array_equal(raw["macro_f1"], scaled["macro_f1"])


def test_without_a_temperature_nothing_is_scaled_and_the_rest_is_as_ever(run: RunDir) -> None:
    results.save(run, make_run_logits())
    table = results.read_counts(run)
    assert table is not None and table["temperature"].isna().all()
    raw, scaled = compute_metrics(results.to_counts(table)), compute_metrics(results.to_counts(table, is_scaled=True))
    assert np.isfinite(raw["ece"]).all() and np.array_equal(raw["accuracy"], scaled["accuracy"])
    assert all(np.isnan(scaled[name]).all() for name in ("nll", "brier", "ece"))
    assert is_same(make_run_logits(), results.load(run))


def test_a_table_without_scaled_counts_keeps_all_that_was_measured(run: RunDir) -> None:
    scaled = dataclasses.replace(make_run_logits(), temperature=1.7)
    results.save(run, scaled)
    original = run.results_file.read_bytes()
    clear_temperature(run)
    loaded = results.load(run)
    assert loaded is not None and is_same(scaled, loaded)
    results.save(run, loaded)
    assert run.results_file.read_bytes() == original


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("temperature", "-1.7", "temperature -1.7"),
        ("temperature", "", "could not convert"),
        ("nll_scaled_sum", "", "could not convert"),
        ("nll_scaled_sum", "nan", "non-finite sums"),
        ("brier_scaled_sum", "inf", "non-finite sums"),
        ("bins_scaled", "0 0 0" + " 0" * 42, "inconsistent counts"),
        ("bins_scaled", "", "missing"),
    ],
)
def test_scaled_counts_that_cannot_be_are_damage(
    run: RunDir, column: str, value: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    results.save(run, dataclasses.replace(make_run_logits(), temperature=1.7))
    pd.read_csv(run.results_file, dtype=str).assign(**{column: value}).to_csv(run.results_file, index=False)
    assert results.read_counts(run) is None
    assert "ignored: corrupt:" in caplog.text and message in caplog.text


def test_rows_of_two_temperatures_are_damage(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    results.save(run, dataclasses.replace(make_run_logits(), temperature=1.7))
    text = run.results_file.read_text()
    run.results_file.write_text(text.replace(",1.7,", ",1.8,", 1))
    assert results.read_counts(run) is None and "rows of several weights" in caplog.text


@pytest.mark.parametrize("column", ["nll_scaled_sum", "bins_scaled", "temperature"])
def test_scaled_counts_that_do_not_follow_from_the_logits_are_not_believed(
    run: RunDir, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    results.save(run, dataclasses.replace(make_run_logits(), temperature=1.7))
    table, others = pd.read_csv(run.results_file, dtype=str), dataclasses.replace(make_run_logits(), temperature=1.8)
    results.save(run, others)
    other = pd.read_csv(run.results_file, dtype=str)
    rows = slice(None) if column == "temperature" else 1
    table.loc[rows, column] = other.loc[rows, column]
    results.save(run, dataclasses.replace(make_run_logits(), temperature=1.7))
    table.to_csv(run.results_file, index=False)
    loaded = results.load(run)
    assert (None if loaded is None else len(loaded.logits)) == (None if column == "temperature" else 2)
    assert "does not follow" in caplog.text


def make_logits_of_classes(num_classes: int, pairs: list[tuple[str, float]] = PAIRS) -> RunLogits:
    labels = np.arange(2 * num_classes, dtype=results.get_label_dtype(num_classes)) % num_classes
    rng = np.random.default_rng(0)
    logits = {pair: (rng.normal(size=(len(labels), num_classes))).astype(np.float32) for pair in pairs}
    rows = np.arange(len(labels), dtype=np.int32)
    return RunLogits(rows, labels, rows, logits, "a" * 64, "f" * 64, False, 1.5)


@pytest.mark.parametrize("num_classes", [2, 32, 33, 1000])
def test_results_of_any_number_of_classes_are_read_as_written(run: RunDir, num_classes: int) -> None:
    saved = make_logits_of_classes(num_classes)
    results.save(run, saved)
    assert is_same(saved, results.load(run))
    table, predictions = results.read_counts(run), results.read_predictions(run)
    assert table is not None and predictions is not None
    counts = results.to_counts(table)
    for n, pair in enumerate(PAIRS):
        assert np.array_equal(predictions.predicted[pair], saved.logits[pair].argmax(1))
        assert np.array_equal(counts.confusion[n], compute_counts(saved.logits[pair], saved.labels).confusion)


def test_the_results_of_a_thousand_classes_are_small(run: RunDir) -> None:
    results.save(run, make_logits_of_classes(1000))
    assert run.results_file.stat().st_size < 50 * 2000 * len(PAIRS)  # cells without galaxies take no room


@pytest.mark.parametrize(
    ("old", "new"),
    [("0:", "0:0:-1 0:"), ("0:", "40:40:0 0:"), ("39:39:", "38:39:0 38:39:"), ("39:39:", "39:41:0 39:39:"), (":", ";")],
)
def test_a_damaged_confusion_of_many_classes_is_ignored(run: RunDir, old: str, new: str) -> None:
    results.save(run, make_logits_of_classes(40, PAIRS[:1]))
    text = run.results_file.read_text()
    run.results_file.write_text(text.replace(f",{old}", f",{new}", 1) if old == "0:" else text.replace(old, new, 1))
    assert run.results_file.read_text() != text
    assert results.read_counts(run) is None
