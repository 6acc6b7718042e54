"""A survey is predicted in parts, by tasks that may be killed at any time."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.classifiers import read_parts, write_galaxies, write_run

import jobs.evaluate
import jobs.train
from galaxyhpc import fsck, retry
from galaxyhpc.predict.__main__ import main
from galaxyhpc.predict.plan import write_plan
from galaxyhpc.prediction.job import TimeLimitError, predict_units
from galaxyhpc.prediction.survey import Attempts, SurveyDir
from galaxyhpc.runtime.job import StopSignal
from galaxyhpc.runtime.lock import hold
from galaxyhpc.runtime.rank import RankInfo
from galaxyhpc.status import __main__ as status
from galaxyhpc.storage.files import sha256
from galaxyhpc.storage.run_dir import RunDir

NUM_FILES, NUM_GALAXIES = 6, 20  # in each


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return write_run(tmp_path_factory.mktemp("runs") / "sweep")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of HDF5 files with different galaxies."""
    directory = tmp_path_factory.mktemp("files")
    for number in range(NUM_FILES):
        write_galaxies(directory / f"{number}.h5", NUM_GALAXIES, first=number * NUM_GALAXIES)
    return directory


def predict(run: RunDir, source: Path | str, output: Path, *more: str, others: Sequence[RunDir] = ()) -> int:
    runs = [str(each.path) for each in (run, *others)]
    return main([*runs, "--input", str(source), "--output", str(output), "--executor", "debug", *more])


@pytest.fixture(scope="module")
def unbroken(run: RunDir, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prediction of all files, by one process that nothing happened to."""
    output = tmp_path_factory.mktemp("unbroken") / "out"
    assert predict(run, files, output) == 0
    return output


def test_the_parts_have_each_galaxy_once_and_the_probabilities_of_the_short_form(
    run: RunDir, files: Path, unbroken: Path, tmp_path: Path
) -> None:
    sources = [str(path) for path in sorted(files.glob("*.h5"))]
    assert main([str(run.path), *sources, "--output", str(tmp_path / "out.csv")]) == 0
    table = pd.concat([pq.read_table(path).to_pandas() for path in sorted((unbroken / "parts").iterdir())])
    expected = pd.read_csv(tmp_path / "out.csv")
    pairs = list(zip(table["source"], table["row"], strict=True))
    assert pairs == list(zip(expected["source"], expected["index"], strict=True)) and len(set(pairs)) == len(table)
    names = [name for name in expected if name.startswith("raw_p_")]
    assert len(names) == 10 and np.ptp(table[names].to_numpy(), axis=0).max() > 0.05
    np.testing.assert_allclose(table[names], expected[names], rtol=0, atol=1e-6)


def test_galaxies_are_selected_from_the_parts_of_a_prediction(unbroken: Path, tmp_path: Path) -> None:
    command = [str(unbroken), "--select", "raw_probability > 0.7", "--to", str(tmp_path / "sure.csv")]
    assert main(command) == 0
    table = pd.concat([pq.read_table(path).to_pandas() for path in sorted((unbroken / "parts").iterdir())])
    selected = pd.read_csv(tmp_path / "sure.csv")
    assert 0 < len(selected) < len(table)
    assert selected["row"].tolist() == table.loc[table["raw_probability"] > 0.7, "row"].tolist()
    assert main(command) == 2 and main([*command, "--overwrite"]) == 0


@pytest.mark.slow
def test_a_hats_catalogue_is_made_of_the_parts_on_demand(
    run: RunDir, files: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_parts(unbroken)
    assert predict(run, files, unbroken, "--hats") == 0 and read_parts(unbroken) == before
    rows = pq.read_table(unbroken / "hats" / "dataset", columns=["ra"]).num_rows
    assert rows == NUM_FILES * NUM_GALAXIES and (unbroken / "hats" / "hats.properties").is_file()
    no_positions = tmp_path / "a.h5"
    with h5py.File(no_positions, "w") as file, h5py.File(files / "0.h5") as source:
        file["images"] = source["images"][:]
    assert predict(run, no_positions, tmp_path / "out", "--hats") == 2
    assert "20 galaxies without a position" in capsys.readouterr().err and len(read_parts(tmp_path / "out")) == 1


def test_what_is_done_is_left_alone_and_what_does_not_match_is_made_again(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_galaxies(tmp_path / f"{number}.h5", 5, first=5 * number)
    output, others = tmp_path / "out", [write_run(tmp_path / "runs" / "sweep", seed=1)]
    assert predict(run, tmp_path / "*.h5", output, others=others) == 0
    parts, before = sorted((output / "parts").iterdir()), read_parts(output)
    stamps = [path.stat().st_mtime_ns for path in parts]
    damaged = bytearray(before["000001.parquet"])
    damaged[100] ^= 1
    parts[1].write_bytes(damaged)
    assert fsck.main([str(output)]) == 1 and "000001.parquet: damaged: " in capsys.readouterr().out
    parts[1].write_bytes(damaged[:-50])
    os.utime(tmp_path / "2.h5")  # another input, for all that is known
    assert predict(run, tmp_path / "*.h5", output, others=others) == 0
    assert "3 units, 1 done" in capsys.readouterr().out
    after = read_parts(output)
    assert pq.read_table(parts[1], columns=["disagreement"])["disagreement"].to_numpy().min() > 0
    assert after["000001.parquet"] == before["000001.parquet"] and after["000002.parquet"] != before["000002.parquet"]
    assert [path.stat().st_mtime_ns == stamp for path, stamp in zip(parts, stamps, strict=True)] == [True, False, False]


def test_a_part_of_other_weights_or_settings_is_refused_and_named(
    run: RunDir, files: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(tmp_path / "runs" / "sweep", seed=1)
    before = read_parts(unbroken)
    assert predict(other, files, unbroken) == 2
    assert f"{unbroken}: begun with other settings: weights.{run.run_id}: got " in capsys.readouterr().err
    assert predict(run, files, unbroken, "--embeddings") == 2
    assert "embeddings: got False; expected True" in capsys.readouterr().err
    assert predict(run, files / "0.h5", unbroken) == 2 and "other inputs, such as unit 1" in capsys.readouterr().err
    foreign = tmp_path / "out" / "parts" / "000000.parquet"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(before["000000.parquet"])
    for name in ("settings.json", "units.parquet"):
        text = (unbroken / name).read_bytes().replace(run.run_id.encode(), other.run_id.encode())
        weights = (sha256(run.best_file).encode(), sha256(other.best_file).encode())
        (tmp_path / "out" / name).write_bytes(text.replace(*weights))
    assert predict(other, files, tmp_path / "out") == 2
    assert f"{foreign}: made with other weights: " in capsys.readouterr().err
    assert fsck.main([str(tmp_path / "out")]) == 1 and read_parts(unbroken) == before


def test_galaxies_without_an_image_are_told_before_and_after(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"image": pa.array([None, b"x"], pa.binary())}), tmp_path / "a.parquet")
    assert predict(run, tmp_path / "a.parquet", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "warning: " in shown and "got nothing in row 0" in shown and "so it is for the first 2 galaxies" in shown
    assert "1 of 1 unit predicted, 2 galaxies without a class (column error)" in shown


def test_files_of_a_user_are_no_prediction(run: RunDir, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = sorted(files.iterdir())
    assert predict(run, files, files, "--overwrite") == 2
    assert "got other files; expected a new directory" in capsys.readouterr().err and sorted(files.iterdir()) == names
    assert predict(run, files, files / "0.h5") == 2 and "0.h5: got a file; expected" in capsys.readouterr().err


def test_a_unit_that_fails_three_times_is_set_aside_and_the_rest_goes_on(
    run: RunDir, files: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    survey, source = copy_plan(unbroken, tmp_path), files / "1.h5"
    contents, stamp = source.read_bytes(), source.stat()
    source.write_bytes(contents[:100])
    try:
        assert predict_units(survey, survey.write_tasks(1)[0], StopSignal(), RankInfo())
    finally:
        source.write_bytes(contents)
        os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    ((number, attempts),) = survey.list_set_aside().items()
    assert (number, attempts.num_begun) == (1, 3) and "100 bytes" in attempts.reason
    assert survey.list_done() == {0, 2, 3, 4, 5}
    assert status.main([str(survey.path)]) == 0
    shown = capsys.readouterr().out
    assert "units: 5 of 6 done, 1 set aside" in shown and f"unit 1, {source}: DataError: " in shown
    assert fsck.main([str(survey.path)]) == 0 and "1 set aside" in capsys.readouterr().out
    write_plan(survey, survey.read_settings(), survey.read_units(), [])  # as the same command does, called again
    assert predict_units(survey, survey.write_tasks(1)[0], StopSignal(), RankInfo())
    assert survey.list_set_aside() == {} and read_parts(survey.path) == read_parts(unbroken)


def test_a_prediction_is_no_sweep(unbroken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for main_of, more in ((jobs.train.main, []), (jobs.evaluate.main, []), (retry.main, ["--failed"])):
        assert main_of([str(unbroken), *more]) == 2
        assert "got the prediction of a survey" in capsys.readouterr().err


def test_a_unit_whose_process_dies_three_times_is_set_aside(unbroken: Path, tmp_path: Path) -> None:
    survey = copy_plan(unbroken, tmp_path)
    survey.write_attempts(2, Attempts(3))  # as three killed processes leave it
    assert predict_units(survey, survey.write_tasks(1)[0], StopSignal(), RankInfo())
    assert survey.list_done() == {0, 1, 3, 4, 5}
    assert survey.list_set_aside()[2].reason == "its process was killed 3 times"


def copy_plan(unbroken: Path, tmp_path: Path) -> SurveyDir:
    """Copy the plan of a prediction, of which nothing is done."""
    survey = SurveyDir(tmp_path / "out")
    survey.path.mkdir()
    for file in (SurveyDir(unbroken).settings_file, SurveyDir(unbroken).units_file):
        (survey.path / file.name).write_bytes(file.read_bytes())
    return survey


def test_what_a_process_leaves_that_is_killed_after_its_part_is_removed(unbroken: Path, tmp_path: Path) -> None:
    survey = copy_plan(unbroken, tmp_path)
    assert predict_units(survey, survey.write_tasks(1)[0], StopSignal(), RankInfo())
    survey.write_attempts(1, Attempts(1))
    for path in (survey.get_claim(1), survey.get_claim(2)):
        path.touch()
    with hold(survey.get_claim(2)):  # by a process that is about to end it
        survey.remove_leftovers()
        assert sorted(path.name for path in survey.claims_dir.iterdir()) == ["000002", "000002.holder"]
    assert not list((survey.path / "attempts").iterdir())


def test_a_slow_process_holds_only_its_own_unit(unbroken: Path, tmp_path: Path) -> None:
    survey = copy_plan(unbroken, tmp_path)
    (task,) = survey.write_tasks(1)
    with hold(survey.get_claim(3)):
        assert predict_units(survey, task, StopSignal(), RankInfo())
        assert survey.list_done() == {0, 1, 2, 4, 5}
    assert predict_units(survey, task, StopSignal(), RankInfo()) and len(survey.list_done()) == 6


@dataclass
class StopAfter(StopSignal):
    """Is requested when it was looked at a number of times."""

    num_looks: int = 0

    @property
    def is_requested(self) -> bool:
        self.num_looks -= 1
        return self.num_looks < 0


@pytest.mark.parametrize(("num_looks", "num_done"), [(2, 1), (3, 1), (4, 2)])
def test_a_job_stops_between_batches_and_leaves_no_trace_of_the_unit_at_hand(
    num_looks: int, num_done: int, unbroken: Path, tmp_path: Path
) -> None:
    survey = copy_plan(unbroken, tmp_path)
    (task,) = survey.write_tasks(1)
    assert not predict_units(survey, task, StopAfter(num_looks=num_looks), RankInfo())
    assert len(survey.list_done()) == num_done and not list((survey.path / "attempts").iterdir())
    assert predict_units(survey, task, StopSignal(), RankInfo())
    assert read_parts(survey.path) == read_parts(unbroken)


def test_a_job_begins_no_unit_that_its_time_limit_would_end(unbroken: Path, tmp_path: Path) -> None:
    survey = copy_plan(unbroken, tmp_path)
    stop = StopSignal(job_id="no job", end_time=time.time() + 29)
    assert not predict_units(survey, survey.write_tasks(1)[0], stop, RankInfo()) and stop.should_requeue
    assert survey.list_done() == set() and not (survey.path / "attempts").exists()


def test_a_job_whose_time_limit_ends_before_its_first_unit_fails_and_says_what_it_needs(
    unbroken: Path, tmp_path: Path
) -> None:
    survey = copy_plan(unbroken, tmp_path)
    (task,), end_time = survey.write_tasks(1), time.time() + 100  # Slurm asks to stop 90 to 150 s before
    with pytest.raises(TimeLimitError, match=r"a limit that ended at galaxy 20 of 20 of the .*; expected 3 or more: "):
        predict_units(survey, task, StopAfter(num_looks=1, end_time=end_time), RankInfo())
    assert not list((survey.path / "attempts").iterdir()) and not survey.list_done()
    assert not predict_units(survey, task, StopAfter(num_looks=1, end_time=end_time + 100), RankInfo())  # preempted
    assert not predict_units(survey, task, StopAfter(num_looks=3, end_time=end_time), RankInfo())
    assert len(survey.list_done()) == 1


def test_the_dry_run_tells_the_cost_and_writes_nothing(
    run: RunDir, files: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(run, files, tmp_path / "out", "--dry-run", "--embeddings") == 0
    shown = capsys.readouterr().out
    assert re.search(r"hdf5 +6 +6 +120 ", shown) and "decoding: 256 px PNG" in shown
    assert re.search(r"^120 galaxies: .* CPU-hours, .* GB in parts$", shown, re.MULTILINE)
    assert "expected end: " in shown and not (tmp_path / "out").exists()
    before = sorted(unbroken.rglob("*"))
    assert predict(run, files, unbroken, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "6 done" in shown and "measured on 6 units that are done" in shown
    size = sum(path.stat().st_size for path in (unbroken / "parts").iterdir()) / 120
    assert float(re.search(r"10\^8 galaxies: .* CPU-hours, (\S+) GB", shown)[1]) == pytest.approx(size / 10, rel=0.01)
    assert sorted(unbroken.rglob("*")) == before
