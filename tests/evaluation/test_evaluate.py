"""Evaluation of a trained run: complete, the same for every network, and only what is missing."""

from __future__ import annotations

import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.warm_processes import start_python

from galaxyhpc.config.conditions import CONDITIONS, Condition
from galaxyhpc.config.schema import DataConfig, DemoConfig, EvaluateConfig, ModelConfig, RunConfig
from galaxyhpc.data.dataset import load_split
from galaxyhpc.data.galaxies import prepare
from galaxyhpc.data.loader import load_device_dataset, predict
from galaxyhpc.evaluation import corruptions, results
from galaxyhpc.evaluation.calibration import fit_temperature
from galaxyhpc.evaluation.corruptions import DrawFn, Survey
from galaxyhpc.evaluation.evaluate import NotTrainedError, evaluate, get_conditions, is_evaluated, load_network
from galaxyhpc.models.build_model import build_model
from galaxyhpc.models.kernel_choice import describe_kernels
from galaxyhpc.runtime.job import StopSignal
from galaxyhpc.storage.files import sha256, write_text
from galaxyhpc.storage.run_dir import RunDir, read_state


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def make_run(sweep: Path, cache: Path, *conditions: str, seed: int = 0) -> RunDir:
    """Write a run with untrained weights as its best ones: their accuracy does not matter here."""
    config = RunConfig(
        data=DataConfig(cache=str(cache), image_size=33, demo=DemoConfig(galaxies=300, size=32)),
        model=ModelConfig(group="C4", scale=0.1),
        evaluate=EvaluateConfig(conditions=conditions, batch_size=32),
        seed=seed,
    )
    run = RunDir(sweep / config.run_id)
    write_text(run.config_file, config.model_dump_json())
    torch.manual_seed(seed)
    torch.save({"model": build_model(config.model, 33).state_dict()}, run.best_file)
    return run


class StopLater(StopSignal):
    """A signal that arrives at the tenth check."""

    looks = 0

    @property
    def is_requested(self) -> bool:
        self.looks += 1
        return self.looks >= 10


def load(run: RunDir) -> results.RunLogits:
    run_logits = results.load(run)
    assert run_logits is not None
    return run_logits


def test_every_condition_and_severity_is_measured_on_the_test_galaxies(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, "clean", "rotation", "pedestal_noise", "shot_noise")
    assert evaluate(run, StopSignal())
    table, run_logits = results.read_counts(run), load(run)
    assert table is not None and len(table) == 1 + 48 + 3 + 5
    assert set(zip(table.condition, table.severity, strict=True)) == set(get_conditions(run.load_config()))
    assert (table.n == len(run_logits.rows)).all() and run_logits.generated
    assert run_logits.weights == sha256(run.best_file)
    logits = run_logits.logits["clean", 0.0]
    assert table.correct[0] == (logits.argmax(1) == run_logits.labels).sum()
    assert read_state(run).name == "evaluated" and is_evaluated(run, run.load_config())
    network = load_network(run, run.load_config(), torch.device("cpu"))
    assert run.read_events()[-1]["kernels"] == describe_kernels(network)


def test_the_temperature_is_that_of_the_validation_galaxies(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, "clean")
    evaluate(run, StopSignal())
    config, device = run.load_config(), torch.device("cpu")
    galaxies = prepare(config.data)
    split = load_split(config.data, galaxies, run.sweep_dir)
    rows = torch.tensor(split.row[split.split == "validation"].to_numpy())
    dataset = load_device_dataset(galaxies, device)
    logits, labels = predict(load_network(run, config, device), dataset, rows, batch_size=32)
    assert load(run).temperature == pytest.approx(fit_temperature(logits.numpy(), labels.numpy()), rel=1e-3)


def test_results_without_a_temperature_are_given_one_and_nothing_else(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, "clean")
    evaluate(run, StopSignal())
    previous = load(run)
    with h5py.File(run.predictions_file, "a") as file:
        del file.attrs["temperature"]
    assert load(run).temperature is None and not is_evaluated(run, run.load_config())
    evaluate(run, StopSignal())
    assert load(run).temperature == previous.temperature and is_evaluated(run, run.load_config())
    assert run.read_events()[-1]["measured"] == 0
    np.testing.assert_array_equal(load(run).logits["clean", 0.0], previous.logits["clean", 0.0])


def test_results_without_scaled_counts_are_given_them_without_measuring(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, "clean")
    evaluate(run, StopSignal())
    complete, predictions = run.results_file.read_bytes(), load(run)
    table = pd.read_csv(run.results_file, dtype=str).assign(
        **dict.fromkeys(("temperature", *results.SCALED_COLUMNS), "")
    )
    table.to_csv(run.results_file, index=False)
    assert not is_evaluated(run, run.load_config())
    assert evaluate(run, StopSignal(should_exit=True))  # which would not measure one batch
    assert run.results_file.read_bytes() == complete and is_evaluated(run, run.load_config())
    assert load(run).temperature == predictions.temperature and run.read_events()[-1]["kept"] == 1


def test_an_invariant_network_answers_alike_at_quarter_turns(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, "rotation")
    evaluate(run, StopSignal())
    logits = load(run).logits
    for angle in (90.0, 180.0, 270.0):
        np.testing.assert_allclose(logits["rotation", angle], logits["rotation", 0.0], rtol=1e-3, atol=1e-4)
    assert not np.allclose(logits["rotation", 45.0], logits["rotation", 0.0], rtol=1e-3, atol=1e-4)


def test_only_what_is_missing_is_computed(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, "clean", "shot_noise")
    evaluate(run, StopSignal())
    previous = load(run).logits
    config = run.load_config()
    names = ("clean", "shot_noise", "pedestal_noise")
    extended = config.model_copy(update={"evaluate": EvaluateConfig(conditions=names)})
    assert extended.run_id == config.run_id
    write_text(run.config_file, extended.model_dump_json())
    evaluate(run, StopSignal())
    assert run.read_events()[-1]["measured"] == 3 and run.read_events()[-1]["kept"] == 6
    updated = load(run).logits
    assert len(updated) == 9 and all(np.array_equal(updated[pair], previous[pair]) for pair in previous)


def test_a_new_condition_is_a_row_and_a_function_and_finished_runs_get_it_alone(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, cache, "clean", "flip")
    evaluate(run, StopSignal())
    previous, config = load(run).logits, run.load_config()

    def dimmed(images: torch.Tensor, factor: float, draw: DrawFn, survey: Survey) -> torch.Tensor:
        return images * factor

    monkeypatch.setitem(CONDITIONS, "dimmed", Condition({1.0: 0.5, 2.0: 0.0}, "of the light", "dimmed"))
    monkeypatch.setitem(corruptions.CORRUPTIONS, "dimmed", dimmed)
    names = ("clean", "flip", "dimmed", "flip+dimmed")
    extended = config.model_copy(update={"evaluate": EvaluateConfig(conditions=names)})
    write_text(run.config_file, extended.model_dump_json())
    assert run.load_config() == extended and extended.run_id == config.run_id
    evaluate(run, StopSignal())
    assert run.read_events()[-1]["measured"] == 4 and run.read_events()[-1]["kept"] == 3
    updated = load(run).logits
    assert all(np.array_equal(updated[pair], previous[pair]) for pair in previous)
    assert len(np.unique(updated["dimmed", 2.0].round(4), axis=0)) == 1  # every galaxy black
    np.testing.assert_allclose(updated["flip+dimmed", 2.0], updated["dimmed", 2.0], rtol=1e-4)
    assert is_evaluated(run, extended)


def test_what_is_done_is_left_alone(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, "clean")
    evaluate(run, StopSignal())
    previous = run.results_file.stat().st_mtime_ns, len(run.read_events())
    assert evaluate(run, StopSignal())
    assert (run.results_file.stat().st_mtime_ns, len(run.read_events())) == previous


def test_other_weights_are_measured_afresh(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, "clean")
    evaluate(run, StopSignal())
    torch.manual_seed(99)
    torch.save({"model": build_model(run.load_config().model, 33).state_dict()}, run.best_file)
    assert not is_evaluated(run, run.load_config())
    previous = load(run).logits["clean", 0.0]
    evaluate(run, StopSignal())
    assert not np.array_equal(load(run).logits["clean", 0.0], previous)


def test_a_signal_saves_what_is_measured_and_the_next_start_goes_on(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, "rotation")
    assert not evaluate(run, StopLater())
    num_measured = len(load(run).logits)
    assert 0 < num_measured < 48
    assert evaluate(run, StopSignal())
    assert run.read_events()[-1]["measured"] == 48 - num_measured


def test_a_signal_before_the_first_condition_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, "clean")
    assert not evaluate(run, StopSignal(should_exit=True))
    assert not run.results_file.exists()


@pytest.mark.slow
def test_an_evaluation_killed_at_any_moment_ends_with_the_same_numbers(tmp_path: Path, cache: Path) -> None:
    uninterrupted, run = make_run(tmp_path / "a", cache, "rotation"), make_run(tmp_path / "b", cache, "rotation")
    evaluate(uninterrupted, StopSignal())
    for pause in (0.0, 0.2):
        process = start_python("-m", "jobs.evaluate", str(run.path))
        while process.poll() is None and not (run.path / ".lock-0").exists():
            time.sleep(0.01)
        time.sleep(pause)
        process.kill()
        process.wait()
    evaluate(run, StopSignal())
    for pair, logits in load(uninterrupted).logits.items():
        np.testing.assert_array_equal(load(run).logits[pair], logits)


def test_a_network_begun_from_imagenet_is_loaded_where_those_weights_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    config = RunConfig(data=DataConfig(image_size=33), model=ModelConfig(architecture="resnet18", pretrained=True))
    run, trained = RunDir(tmp_path / config.run_id), build_model(ModelConfig(architecture="resnet18"), 33)
    run.path.mkdir()
    torch.save({"model": trained.state_dict()}, run.best_file)
    loaded = load_network(run, config, torch.device("cpu"))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in trained.state_dict().items())


def test_a_run_without_weights_is_refused(tmp_path: Path, cache: Path) -> None:
    run = make_run(tmp_path, cache, "clean")
    run.best_file.unlink()
    with pytest.raises(NotTrainedError, match=r"training is not finished"):
        evaluate(run, StopSignal())
