"""The results of the benchmark, for tiny networks; no test depends on how long something takes."""

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
from galaxyhpc.benchmark.layer_timing import LayerCase, list_layers, time_layer
from galaxyhpc.benchmark.pipelines import prediction
from galaxyhpc.benchmark.timing import (
    ImplementationError,
    SubprocessRunner,
    TimingBudget,
    call_method,
    compare_implementations,
)
from galaxyhpc.config.conditions import list_severity_pairs
from galaxyhpc.config.schema import ModelConfig, RunConfig
from galaxyhpc.models.build_model import build_model
from galaxyhpc.steerable.kernels import gpu_roofline
from galaxyhpc.steerable.kernels.selection import BatchShape

TINY = ["--device", "cpu", "--size", "33", "--scale", "0.05", "--batch", "4", "--threads", "1"]
SHORT = TimingBudget(2, 0.01)
CASE = Case(ModelConfig(group="D2", scale=0.05), 33, 4, "cpu", False, 1)
IMPLEMENTATIONS = ["e2cnn", "dense", "ours"]


@pytest.fixture(scope="module")
def benchmark_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything, of one group, in real processes."""
    out = tmp_path_factory.mktemp("benchmark") / "all.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(command.TIMING_BUDGETS, "cpu", SHORT)
        assert main([*TINY, "--groups", "C2", "--out", str(out)]) == 0
    results: dict[str, Any] = json.loads(out.read_text())
    return results


class InProcessRunner:
    """An implementation in this process."""

    def __init__(self, case: Case, implementation: str) -> None:
        self.timed_network = TimedNetwork(case, implementation)

    def wait_until_ready(self) -> None:
        """Return at once."""

    def call(self, method: str, *arguments: float) -> Any:
        return call_method(self.timed_network, method, *arguments)

    def close(self) -> None:
        self.timed_network.release()


@pytest.fixture
def in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all implementations share this process."""
    monkeypatch.setattr(timing, "SubprocessRunner", InProcessRunner)


@pytest.mark.slow
def test_the_file_names_the_machine(benchmark_results: dict[str, Any]) -> None:
    machine = benchmark_results["machine"]
    assert machine["device"] == "cpu" and machine["threads"] == 1 and machine["torch"] == torch.__version__
    assert machine["name"] and machine["date"] and machine["commit"]


@pytest.mark.slow
def test_every_implementation_has_its_times_its_memory_and_its_start(benchmark_results: dict[str, Any]) -> None:
    network = benchmark_results["networks"]["C2"]
    assert (network["size"], network["batch"], network["precision"]) == (33, 4, "float32")
    for name in IMPLEMENTATIONS:
        times = network["implementations"][name]
        assert times["startup_seconds"] > times["build_seconds"] > 0 and times["peak_bytes"] > 0
        for part in ("training", "inference"):
            assert 0 < times[part]["seconds"] <= times[part]["median_seconds"] and times[part]["rounds"] == 2
    assert network["implementations"]["ours"]["optimizer_seconds"] > 0


@pytest.mark.slow
def test_ratios_are_the_quotients_of_the_times(benchmark_results: dict[str, Any]) -> None:
    network = benchmark_results["networks"]["C2"]
    for other in ("e2cnn", "dense"):
        for part in ("training", "inference"):
            slow, fast = (network["implementations"][name][part]["seconds"] for name in (other, "ours"))
            assert network["ratios"][part][f"{other}_to_ours"] == pytest.approx(slow / fast)
    assert set(network["ratios"]) == {"training", "inference", "startup_seconds", "peak_bytes"}


@pytest.mark.slow
def test_data_are_compared_with_torchvisions_chain_and_with_a_step(benchmark_results: dict[str, Any]) -> None:
    data = benchmark_results["data"]
    quotient = data["torchvision"]["seconds"] / data["ours"]["seconds"]
    assert data["ratios"]["torchvision_to_ours"] == pytest.approx(quotient) and quotient > 0
    assert set(data["fraction_of_step"]) == {"C1", "cnn"} and min(data["fraction_of_step"].values()) > 0


@pytest.mark.slow
def test_two_processes_are_compared_with_one(benchmark_results: dict[str, Any]) -> None:
    scaling = benchmark_results["scaling"]
    ratio = scaling["images_per_second_2"] / scaling["images_per_second_1"]
    assert scaling["efficiency"] == pytest.approx(ratio / 2) and ratio > 0


@pytest.mark.slow
def test_predictions_are_measured_from_files_of_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(command.TIMING_BUDGETS, "cpu", SHORT)
    for name, value in {"SIDE": 40, "NUM_RENDERED": 2, "NUM_GALAXIES": 5, "MIN_BATCHES": 1}.items():
        monkeypatch.setattr(prediction, name, value)
    assert main([*TINY, "--groups", "cnn", "--parts", "predict", "--out", str(tmp_path / "x.json")]) == 0
    results = json.loads((tmp_path / "x.json").read_text())["predict"]
    assert [result["format"] for result in results] == ["PNG", "JPEG", "parquet of JPEG", "HDF5", "FITS"]
    for result in results:
        speeds, seconds = result["images_per_second"], result["cpu_seconds_per_image"]
        assert result["limit"] == pytest.approx(1 / (1 / speeds["decoded"] + 1 / speeds["classified"]))
        assert result["fraction_of_limit"] == pytest.approx(speeds["both"] / result["limit"])
        needed = seconds["decoded"] + seconds["classified"]
        assert result["fraction_of_limit_by_cpu_time"] == pytest.approx(needed / seconds["both"])
    *lines, _ = capsys.readouterr().out.splitlines()  # the last names file and machine
    assert max(map(len, lines)) <= 80 and sum(line.startswith("cnn") for line in lines) == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--groups", "X3"], "--groups: got X3; expected cnn, C1 to C64"),
        (["--groups", ","], "--groups: got none"),
        (["--device", "cuda"], "--device: got cuda, but torch sees no GPU"),
        (["--size", "64"], "--size: got 64"),
        (["--batch", "1"], "--batch: got 1"),
        (["--scale", "0"], "--scale: got 0"),
        (["--implementations", "e2cnn,fast"], "--implementations: got fast; expected some of e2cnn, dense, ours"),
        (["--parts", "training,lunch"], "--parts: got lunch"),
        (["--parts", "layers"], "--parts: got layers on a CPU"),
        (["--threads", "0"], "--threads: got 0"),
        (["--out", "no/such/place.json"], "--out: no directory no/such"),
        (["--predict", "sweeps/all_groups.yaml"], "--predict: got no --from"),
        (["--predict", "sweeps/all_groups.yaml", "--from", "LICENSE"], "LICENSE: got JSONDecodeError"),
        (["--predict", "sweeps/all_groups.yaml", "--from", "nowhere.json"], "--from: nowhere.json: no such file"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="one mistake is none where there is a GPU")
def test_a_mistake_is_one_line_and_measures_nothing(
    wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(wrong) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and not output.out


def test_the_dense_limit_says_what_the_network_says() -> None:
    network = build_model(CASE.model, 33)
    limit, images = make_dense_limit(network), torch.rand(4, 3, 33, 33)
    torch.testing.assert_close(limit(images), network(images))
    assert sum(isinstance(module, DenseConv) for module in limit.modules()) == 11
    limit(images).sum().backward()
    assert all(value.grad is not None for value in limit.parameters())
    assert all(value.grad is None for value in network.parameters())


@pytest.mark.slow
def test_a_failed_implementation_is_recorded_and_the_others_continue(
    in_one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_network = TimedNetwork._build_network

    def refuse(self: TimedNetwork) -> Any:
        if self.implementation == "dense":
            raise RuntimeError("out of memory\nwith many details")
        return build_network(self)

    monkeypatch.setattr(TimedNetwork, "_build_network", refuse)
    network = compare_implementations(CASE, IMPLEMENTATIONS, ["training"], SHORT, lambda results: None)
    assert network["implementations"]["dense"] == {"failed": "RuntimeError: out of memory"}
    assert set(network["ratios"]["training"]) == {"e2cnn_to_ours"}


def test_a_killed_process_is_a_failed_implementation() -> None:
    runner = SubprocessRunner(CASE, "ours")
    os.kill(runner.process.pid or 0, signal.SIGKILL)
    with pytest.raises(ImplementationError, match="status -9"):
        runner.call("start")
    runner.close()


def test_an_interrupted_benchmark_leaves_the_results_so_far(
    in_one_process: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compare = compare_implementations

    def interrupted(
        case: Case, implementations: Any, parts: Any, budget: TimingBudget, on_result: Callable[[Any], None]
    ) -> Any:
        if case.name == "C2":
            raise KeyboardInterrupt
        return compare(case, implementations, parts, SHORT, on_result)

    monkeypatch.setattr(command, "compare_implementations", interrupted)
    out = tmp_path / "part.json"
    arguments = ["--groups", "C1,C2", "--implementations", "ours", "--parts", "training", "--out", str(out)]
    assert main([*TINY, *arguments]) == 130
    assert set(json.loads(out.read_text())["networks"]) == {"C1"}


def test_without_time_what_is_not_begun_is_noted(in_one_process: None, tmp_path: Path) -> None:
    out = tmp_path / "part.json"
    arguments = ["--groups", "C1,C2", "--parts", "training,data", "--seconds", "0", "--out", str(out)]
    assert main([*TINY, *arguments]) == 0
    results = json.loads(out.read_text())
    assert results["networks"] == {} and results["skipped"] == ["C1", "C2", "data"]


def test_a_spent_budget_leaves_one_round(in_one_process: None) -> None:
    spent = replace(SHORT, num_rounds=3, deadline=0.0)
    network = compare_implementations(CASE, ["ours"], ["training"], spent, lambda results: None)
    assert network["implementations"]["ours"]["training"]["rounds"] == 1


@pytest.mark.compiler
@pytest.mark.parametrize(("kernels", "num_layers"), [("dense", 0), ("harmonic", 11)])
def test_kernels_can_be_forced(kernels: str, num_layers: int, in_one_process: None) -> None:
    case = replace(CASE, kernels=kernels)
    network = compare_implementations(case, ["ours"], [], SHORT, lambda results: None)
    assert network["kernels"] == kernels and network["implementations"]["ours"]["harmonic_layers"] == num_layers


def test_estimates_of_a_gpu_are_those_of_the_kernels_that_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = gpu_roofline.Ceilings(1e12, 1e12, 1e12)
    monkeypatch.setattr(gpu_roofline, "get_ceilings", lambda device, dtype: ceilings)
    network = TimedNetwork(replace(CASE, kernels="dense"), "ours")
    network.start()
    estimates = network.estimate()
    assert set(estimates) == {"training"}
    assert estimates["training"]["seconds"] == estimates["training"]["dense_seconds"] > 0


def test_a_profile_lists_what_a_step_spends_its_time_on(in_one_process: None) -> None:
    network = compare_implementations(CASE, ["dense"], ["profile"], SHORT, lambda results: None)
    profile = network["implementations"]["dense"]["profile"]
    kernels = profile["longest_kernels"]
    assert profile["wall_ms"] > 0 and profile["busy_ms"] > 0 and profile["num_launches"] >= len(kernels) > 0
    assert [milliseconds for *_, milliseconds in kernels] == sorted((k[2] for k in kernels), reverse=True)


def test_the_layers_of_a_network_are_listed_once() -> None:
    network = build_model(ModelConfig(group="D4", scale=0.5), 65)
    cases = list_layers(network, BatchShape(2, 65))
    assert cases[0] == LayerCase("D4", 6, 12, 33, 2) and cases[0].name == "D4 6->12 @33"
    assert len(cases) == len(set(cases)) == 8  # of 10 between regular fields


@pytest.mark.slow
def test_every_part_of_a_layer_has_a_time() -> None:
    """In Triton's interpreter where there is no GPU."""
    pytest.importorskip("triton")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    times = time_layer(LayerCase("C2", 1, 2, 3, 1), device, torch.float32, 0.0)
    parts = ("dense", "harmonic", "z", "product", "harmonic_norm", "harmonic_norm_pool", "fused_norm", "torch_norm")
    assert all(times[f"{part}_ms"] > 0 for part in (*parts, "fused_norm_pool", "torch_norm_pool"))


def make_results(case: Case, training: float, inference: float) -> dict[str, Any]:
    """Return the results of a benchmark of one network, from the seconds of a batch."""
    times = {"training": {"median_seconds": training}, "inference": {"median_seconds": inference}}
    network = {"model": case.model.model_dump(mode="json"), "size": case.image_size, "batch": case.batch_size}
    network |= {"precision": "float32", "implementations": {"ours": times | {"optimizer_seconds": 0.5}}}
    data = {"batch": 2, "ours": {"median_seconds": 0.2}}
    machine = {"device": "cpu", "name": "here", "threads": 1}
    return {"machine": machine, "networks": {case.name: network}, "data": data}


def test_a_prediction_adds_up_what_an_epoch_and_an_evaluation_are_made_of() -> None:
    config = RunConfig.model_validate(
        {
            "model": CASE.model,
            "data": {"image_size": 33, "demo": {"galaxies": 1000}},
            "train": {"epochs": 3, "batch_size": 70},
            "evaluate": {"conditions": ("clean",)},
        }
    )
    (run,) = forecast.forecast_runs([config], forecast.parse_benchmark(make_results(CASE, training=8.0, inference=1.0)))
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
    benchmark = forecast.parse_benchmark(make_results(CASE, training=8.0, inference=1.0))
    settings = {"data": {"image_size": 33}, "train": {"epochs": 3}}
    groups = [
        RunConfig.model_validate({**settings, "model": {"group": name, "scale": 0.05}}) for name in ("C1", "D2", "D8")
    ]
    small, own, large = forecast.forecast_runs(groups, benchmark)
    assert (
        not small.is_measured
        and own.is_measured
        and not large.is_measured
        and small.total_seconds < large.total_seconds
    )
    other = replace(CASE, image_size=65)
    assert not forecast.forecast_runs([groups[1]], forecast.parse_benchmark(make_results(other, 8.0, 1.0)))[
        0
    ].is_measured


def test_the_hours_of_a_sweep_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, sweep = tmp_path / "here.json", tmp_path / "two.yaml"
    file.write_text(json.dumps(make_results(CASE, training=8.0, inference=1.0)))
    sweep.write_text(
        "base: {data.image_size: 33, model.scale: 0.05}\nblocks: [{grid: {model.group: [D2, C1]}}]\nseeds: 2\n"
    )
    assert main(["--predict", str(sweep), "--from", str(file)]) == 0
    output = capsys.readouterr().out
    assert "D2-steerable_cnn" in output and "measurement" in output and "whole sweep, 8 devices" in output
