"""Result files: saved results are loaded unchanged, and corrupt ones are ignored."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.results import PAIRS, is_same, make_run_logits

from galaxyhpc.evaluation import results
from galaxyhpc.storage.run_dir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "sweep" / "D4-steerable_cnn-s0-0123abcd")


def test_what_was_saved_is_loaded(run: RunDir) -> None:
    results.save(run, make_run_logits())
    assert is_same(make_run_logits(), results.load(run))
    assert is_same(make_run_logits(), results.load(run, weights="a" * 64, fingerprint="f" * 64))


@pytest.mark.parametrize("temperature", [1.5, None])
def test_a_temperature_is_kept_where_there_is_one(run: RunDir, temperature: float | None) -> None:
    results.save(run, dataclasses.replace(make_run_logits(), temperature=temperature))
    loaded, predictions = results.load(run), results.read_predictions(run)
    assert loaded is not None and predictions is not None
    assert loaded.temperature == predictions.temperature == temperature


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), "warm"])
def test_a_temperature_that_cannot_be_one_is_damage(run: RunDir, temperature: float | str) -> None:
    results.save(run, make_run_logits())
    with h5py.File(run.predictions_file, "a") as file:
        file.attrs["temperature"] = temperature
    assert results.load(run) is None


def test_nothing_measured_is_none(run: RunDir) -> None:
    assert results.load(run) is results.read_counts(run) is results.read_predictions(run) is None


def test_predictions_are_read_without_logits(run: RunDir) -> None:
    results.save(run, make_run_logits())
    predictions = results.read_predictions(run)
    assert predictions is not None
    assert np.array_equal(predictions.groups, make_run_logits().groups)
    for pair, logits in make_run_logits().logits.items():
        assert np.array_equal(predictions.predicted[pair], logits.argmax(1))


@pytest.mark.parametrize("other", [{"weights": "b" * 64}, {"fingerprint": "0" * 64}])
def test_results_of_other_weights_or_galaxies_count_as_none(
    run: RunDir, other: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    results.save(run, make_run_logits())
    assert results.load(run, **other) is None
    assert len(caplog.messages) == 1 and "other weights or other galaxies" in caplog.text


def test_more_conditions_are_added_to_those_there(run: RunDir) -> None:
    results.save(run, make_run_logits(PAIRS[:1]))
    results.save(run, make_run_logits())
    assert is_same(make_run_logits(), results.load(run))


def test_a_results_table_not_made_from_the_predictions_is_not_believed(
    run: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    results.save(run, make_run_logits(weights="b" * 64))
    old = run.results_file.read_bytes()
    results.save(run, make_run_logits())
    run.results_file.write_bytes(old)
    assert results.load(run) is None
    assert "does not match predictions.h5" in caplog.text


def test_a_row_that_contradicts_its_logits_is_measured_again(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    results.save(run, make_run_logits())
    text = run.results_file.read_text().splitlines()
    fields = text[2].split(",")
    fields[5] = "1.25"  # nll_sum
    run.results_file.write_text("\n".join([*text[:2], ",".join(fields), *text[3:]]) + "\n")
    loaded = results.load(run)
    assert loaded is not None and list(loaded.logits) == [PAIRS[0], PAIRS[2]]
    assert "rotation 7.5 does not follow" in caplog.text


def damage_file(path: Path, damage: str) -> None:
    """Damage a file as a full disk, a crash or a mistake would."""
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "empty": b"",
            "truncated": data[: middle + 7],
            "zeros": data[:middle] + bytes(64) + data[middle + 64 :],
            "other file": b"\x00\xff not what it should be\n" * 50,
        }[damage]
    )


@pytest.mark.parametrize("file", ["results.csv", "predictions.h5"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "zeros", "other file"])
def test_a_damaged_file_is_taken_for_an_absent_one_in_one_log_line(
    run: RunDir, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    results.save(run, make_run_logits(n=400))
    damage_file(run.path / file, damage)
    assert results.load(run) is None
    assert len(caplog.messages) == 1 and "ignored: corrupt:" in caplog.text and "\n" not in caplog.messages[0]
    results.save(run, make_run_logits())
    assert is_same(make_run_logits(), results.load(run))


def test_one_flipped_bit_in_any_dataset_is_noticed(run: RunDir) -> None:
    results.save(run, make_run_logits())
    with h5py.File(run.predictions_file) as file:
        offsets = {name: file[name].id.get_chunk_info(0).byte_offset for name in file}
    original = run.predictions_file.read_bytes()
    assert len(offsets) == 7
    for offset in offsets.values():
        run.predictions_file.write_bytes(original[:offset] + bytes([original[offset] ^ 1]) + original[offset + 1 :])
        assert results.load(run) is None


def test_results_copied_from_another_run_are_refused(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    results.save(run, make_run_logits())
    other = RunDir(run.sweep_dir / "D4-steerable_cnn-s1-ffffffff")
    other.path.mkdir()
    other.results_file.write_bytes(run.results_file.read_bytes())
    other.predictions_file.write_bytes(run.predictions_file.read_bytes())
    assert results.read_counts(other) is results.read_predictions(other) is None
    assert f"of run {run.run_id}" in caplog.text


KILLED = """
import os, signal, sys
from pathlib import Path
from galaxyhpc.evaluation import results
from galaxyhpc.storage.run_dir import RunDir
from helpers.results import PAIRS, make_run_logits
weights, path = sys.argv[1:]
os_replace, left = os.replace, [1]
def replace(source, target):
    if str(target).endswith("results.csv"):
        os.kill(os.getpid(), signal.SIGKILL)  # predictions.h5 is in place, results.csv is not
    os_replace(source, target)
os.replace = replace
results.save(RunDir(Path(path)), make_run_logits(weights=weights))
"""


@pytest.mark.parametrize(("weights", "kept"), [("a" * 64, PAIRS[:1]), ("b" * 64, None)])
def test_a_process_killed_between_both_files_leaves_only_what_is_true(
    run: RunDir, weights: str, kept: list[tuple[str, float]] | None
) -> None:
    first = make_run_logits()
    results.save(run, dataclasses.replace(first, logits={PAIRS[0]: first.logits[PAIRS[0]]}))
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(results.__file__).parents[3])])
    command = [sys.executable, "-c", textwrap.dedent(KILLED), weights, str(run.path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.returncode == -signal.SIGKILL
    loaded = results.load(run)
    assert (None if loaded is None else list(loaded.logits)) == kept
