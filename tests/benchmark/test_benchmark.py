"""What the benchmark writes, of tiny networks and without a look at the clock."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from galaxyhpc.benchmark import __main__ as command
from galaxyhpc.benchmark import forecast, timing
from galaxyhpc.benchmark.__main__ import main
from galaxyhpc.benchmark.implementations import Case, DenseConv, TimedNetwork, make_dense_limit
from galaxyhpc.benchmark.timing import (
    ImplementationError,
    InProcessRunner,
    SubprocessRunner,
    TimingBudget,
    compare_implementations,
)
from galaxyhpc.config.conditions import list_severity_pairs
from galaxyhpc.config.schema import ModelConfig, RunConfig
from galaxyhpc.models.build_model import build_model

TINY = ["--device", "cpu", "--size", "33", "--scale", "0.05", "--batch", "4", "--threads", "1"]
SHORT = TimingBudget(2, 0.01)
CASE = Case(ModelConfig(group="D2", scale=0.05), 33, 4, "cpu", False, 1)
WAYS = ["plain", "dense", "ours"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything, of one group, in real processes."""
    out = tmp_path_factory.mktemp("benchmark") / "all.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(command.TIMING_BUDGETS, "cpu", SHORT)
        assert main([*TINY, "--groups", "C2", "--out", str(out)]) == 0
    answers: dict[str, Any] = json.loads(out.read_text())
    return answers


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all ways share this process."""
    monkeypatch.setattr(timing, "SubprocessRunner", InProcessRunner)


@pytest.mark.slow
def test_the_file_names_the_machine(found: dict[str, Any]) -> None:
    machine = found["machine"]
    assert machine["device"] == "cpu" and machine["threads"] == 1 and machine["torch"] == torch.__version__
    assert machine["name"] and machine["date"] and machine["commit"]


@pytest.mark.slow
def test_every_way_has_its_times_its_memory_and_its_start(found: dict[str, Any]) -> None:
    network = found["networks"]["C2"]
    assert (network["size"], network["batch"], network["precision"]) == (33, 4, "float32")
    for way in WAYS:
        each = network["ways"][way]
        assert each["startup_seconds"] > each["build_seconds"] > 0 and each["peak_bytes"] > 0
        for part in ("training", "inference"):
            assert 0 < each[part]["seconds"] <= each[part]["median_seconds"] and each[part]["turns"] == 2
    assert network["ways"]["ours"]["optimizer_seconds"] > 0


@pytest.mark.slow
def test_ratios_are_the_quotients_of_the_times(found: dict[str, Any]) -> None:
    network = found["networks"]["C2"]
    for way in ("plain", "dense"):
        for part in ("training", "inference"):
            slow, fast = (network["ways"][name][part]["seconds"] for name in (way, "ours"))
            assert network["ratios"][part][f"{way}_to_ours"] == pytest.approx(slow / fast)
    assert set(network["ratios"]) == {"training", "inference", "startup_seconds", "peak_bytes"}


@pytest.mark.slow
def test_data_are_compared_with_torchvisions_chain_and_with_a_step(found: dict[str, Any]) -> None:
    data = found["data"]
    quotient = data["torchvision"]["seconds"] / data["ours"]["seconds"]
    assert data["ratios"]["torchvision_to_ours"] == pytest.approx(quotient) and quotient > 0
    assert set(data["share_of_step"]) == {"C1", "cnn"} and min(data["share_of_step"].values()) > 0


@pytest.mark.slow
def test_two_processes_are_compared_with_one(found: dict[str, Any]) -> None:
    both = found["processes"]
    ratio = both["images_per_second_2"] / both["images_per_second_1"]
    assert both["efficiency"] == pytest.approx(ratio / 2) and ratio > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--groups", "X3"], "--groups: found X3; allowed: cnn, C1 to C64"),
        (["--groups", ","], "--groups: found none"),
        (["--device", "cuda"], "--device: found cuda, but torch sees no GPU"),
        (["--size", "64"], "--size: found 64"),
        (["--batch", "1"], "--batch: found 1"),
        (["--scale", "0"], "--scale: found 0"),
        (["--ways", "plain,fast"], "--ways: found fast; allowed: plain, dense, ours"),
        (["--parts", "training,lunch"], "--parts: found lunch"),
        (["--threads", "0"], "--threads: found 0"),
        (["--out", "no/such/place.json"], "--out: no directory no/such"),
        (["--predict", "sweeps/all_groups.yaml"], "--predict: found no --from"),
        (["--predict", "sweeps/all_groups.yaml", "--from", "LICENSE"], "LICENSE: found JSONDecodeError"),
        (["--predict", "sweeps/all_groups.yaml", "--from", "nowhere.json"], "nowhere.json"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="one mistake is none where there is a GPU")
def test_a_mistake_is_one_line_and_measures_nothing(
    wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(wrong) == 2
    written = capsys.readouterr()
    assert said in written.err and written.err.count("\n") == 1 and not written.out


def test_the_dense_limit_says_what_the_network_says() -> None:
    network = build_model(CASE.model, 33)
    limit, images = make_dense_limit(network), torch.rand(4, 3, 33, 33)
    torch.testing.assert_close(limit(images), network(images))
    assert sum(isinstance(module, DenseConv) for module in limit.modules()) == 11
    limit(images).sum().backward()
    assert all(value.grad is not None for value in limit.parameters())
    assert all(value.grad is None for value in network.parameters())


def test_a_way_that_fails_is_told_and_the_others_go_on(together: None, monkeypatch: pytest.MonkeyPatch) -> None:
    built = TimedNetwork._build_network

    def refuse(self: TimedNetwork) -> Any:
        if self.implementation == "dense":
            raise RuntimeError("out of memory\nwith many details")
        return built(self)

    monkeypatch.setattr(TimedNetwork, "_build_network", refuse)
    answers = compare_implementations(CASE, WAYS, ["training"], SHORT, lambda one: None)
    assert answers["ways"]["dense"] == {"failed": "RuntimeError: out of memory"}
    assert set(answers["ratios"]["training"]) == {"plain_to_ours"}


def test_a_killed_process_is_a_way_that_failed() -> None:
    subject = SubprocessRunner(CASE, "ours")
    os.kill(subject.process.pid or 0, signal.SIGKILL)
    with pytest.raises(ImplementationError, match="status -9"):
        subject.call("start")
    subject.close()


def test_a_run_that_is_broken_off_leaves_what_it_has(
    together: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = compare_implementations

    def broken(case: Case, ways: Any, parts: Any, effort: TimingBudget, note: Callable[[Any], None]) -> Any:
        if case.name == "C2":
            raise KeyboardInterrupt
        return whole(case, ways, parts, SHORT, note)

    monkeypatch.setattr(command, "compare_implementations", broken)
    out = tmp_path / "part.json"
    arguments = ["--groups", "C1,C2", "--ways", "ours", "--parts", "training", "--out", str(out)]
    assert main([*TINY, *arguments]) == 130
    assert set(json.loads(out.read_text())["networks"]) == {"C1"}


def answers(case: Case, training: float, inference: float) -> dict[str, Any]:
    """What a benchmark of one network would have written; s for a batch."""
    times = {"training": {"median_seconds": training}, "inference": {"median_seconds": inference}}
    one = {"model": case.model.model_dump(mode="json"), "size": case.image_size, "batch": case.batch_size}
    one |= {"precision": "float32", "ways": {"ours": times | {"optimizer_seconds": 0.5}}}
    data = {"batch": 2, "ours": {"median_seconds": 0.2}}
    machine = {"device": "cpu", "name": "here", "threads": 1}
    return {"machine": machine, "networks": {case.name: one}, "data": data}


def test_a_prediction_adds_up_what_an_epoch_and_an_evaluation_are_made_of() -> None:
    config = RunConfig.model_validate(
        {
            "model": CASE.model,
            "data": {"image_size": 33, "demo": {"galaxies": 1000}},
            "train": {"epochs": 3, "batch_size": 70},
            "evaluate": {"conditions": ("clean",)},
        }
    )
    (run,) = forecast.forecast_runs([config], forecast.parse_benchmark(answers(CASE, training=8.0, inference=1.0)))
    steps = 700 // 70
    epoch = steps * (70 * (8.0 / 4 + 0.2 / 2) + 0.5) + 100 * 1.0 / 4
    assert (
        run.is_measured
        and run.epoch_seconds == pytest.approx(epoch)
        and run.prediction.training_seconds == pytest.approx(3 * epoch)
    )
    assert len(list_severity_pairs(config.evaluate.conditions)) == 1
    assert run.prediction.evaluation_seconds == pytest.approx(200 * 1.0 / 4, rel=0.01)


def test_a_network_that_was_not_measured_is_predicted_by_a_fit() -> None:
    measured = forecast.parse_benchmark(answers(CASE, training=8.0, inference=1.0))
    of = {"data": {"image_size": 33}, "train": {"epochs": 3}}
    groups = [RunConfig.model_validate({**of, "model": {"group": name, "scale": 0.05}}) for name in ("C1", "D2", "D8")]
    small, own, large = forecast.forecast_runs(groups, measured)
    assert (
        not small.is_measured
        and own.is_measured
        and not large.is_measured
        and small.total_seconds < large.total_seconds
    )
    other = replace(CASE, image_size=65)
    assert not forecast.forecast_runs([groups[1]], forecast.parse_benchmark(answers(other, 8.0, 1.0)))[0].is_measured


def test_the_hours_of_a_sweep_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, sweep = tmp_path / "here.json", tmp_path / "two.yaml"
    file.write_text(json.dumps(answers(CASE, training=8.0, inference=1.0)))
    sweep.write_text(
        "base: {data.image_size: 33, model.scale: 0.05}\nblocks: [{grid: {model.group: [D2, C1]}}]\nseeds: 2\n"
    )
    assert main(["--predict", str(sweep), "--from", str(file)]) == 0
    told = capsys.readouterr().out
    assert "D2-steerable_cnn" in told and "its own seconds" in told and "the sweep on 8 of it" in told
