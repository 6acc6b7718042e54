"""Kernel choice: the layers that are computed without their dense filter, by a machine's rates."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import AbortingNetwork, RaisingNetwork
from torch import nn

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models.build_model import build_model
from galaxyhpc.steerable.kernels import cpu, cpu_timing, selection

CPU = torch.device("cpu")
# a core of a Xeon
MACHINE = {
    "dense training": [4.5e-4, 7.4e-10, 1.2e-11, 4.3e-9, 4.5e-9, 2.5e-11],
    "harmonic training": [1.8e-4, 2.9e-11, 1.3e-11, 9.9e-10, 0.0, 1.7e-9],
    "dense inference": [1.5e-4, 3.7e-10, 1.1e-11, 6.7e-10, 3.5e-10],
    "harmonic inference": [2.1e-4, 2.0e-11, 1.5e-11, 7.7e-10, 0.0, 8.1e-10],
}


def choose_layers(group: str, is_training: bool = True, batch_size: int = 8) -> list[bool]:
    network = build_model(ModelConfig(group=group), 65)
    layer_inputs = selection.trace_layer_inputs(network, selection.BatchShape(batch_size, 65)).values()
    return [selection.is_faster_on_cpu(layer_input, MACHINE, is_training) for layer_input in layer_inputs]


@pytest.mark.parametrize("group", ["C2", "D1", "D8", "C16"])
def test_layers_do_without_dense_filters_after_the_first(group: str) -> None:
    first, *others = choose_layers(group)
    assert not first and all(others[1:])


def test_a_group_of_one_element_has_little_to_gain_and_is_dense_where_filters_are_ready() -> None:
    assert any(choose_layers("C1")) and not any(choose_layers("C1", is_training=False))


def test_rates_are_found_again_from_times() -> None:
    counts = np.array(
        [
            cpu_timing.count_harmonic_operations(layer_input, True)
            for layer_input in cpu_timing.make_calibration_inputs()
        ]
    )
    expected = MACHINE["harmonic training"]
    rates, error = cpu_timing.fit_rates(counts, counts @ expected)
    assert counts @ rates == pytest.approx(counts @ expected, rel=0.1) and error < 0.05


def test_what_comes_into_a_layer_is_found_without_computing() -> None:
    network = build_model(ModelConfig(group="D2", scale=0.2), 33).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    layer_inputs = list(selection.trace_layer_inputs(network, selection.BatchShape(5, 33)).values())
    shapes: list[tuple[int, ...]] = []
    for layer in selection.get_steerable_layers(network).values():
        layer.register_forward_pre_hook(lambda layer, inputs: shapes.append(tuple(inputs[0].shape)))
        layer.register_forward_hook(lambda layer, inputs, y: shapes.append((y.numel(),)))
    network(torch.rand(5, 3, 33, 33))
    for number, layer_input in enumerate(layer_inputs):
        (images, _, *sides), (values,) = shapes[2 * number : 2 * number + 2]
        assert (layer_input.batch_size, layer_input.input_size, layer_input.num_elements[1]) == (
            images,
            tuple(sides),
            values,
        )
        assert layer_input.needs_input_grad == (number > 0)
    assert network.training and len(layer_inputs) == 11
    assert all(
        torch.equal(before[name], value) for name, value in network.state_dict().items() if "running" not in name
    )


@pytest.mark.compiler
def test_a_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu_timing, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(cpu_timing, "MIN_ROUNDS", 1)
    monkeypatch.setattr(cpu_timing, "MAX_SECONDS", 0.1)
    state = torch.get_rng_state()
    rates = cpu_timing.get_machine_rates.__wrapped__(CPU, torch.float32, 1)
    assert torch.equal(torch.get_rng_state(), state)
    (path,) = (tmp_path / "galaxyhpc").glob("rates-*.json")
    monkeypatch.setattr(cpu_timing, "measure_rates", lambda *machine: pytest.fail("measured again"))
    assert cpu_timing.get_machine_rates.__wrapped__(CPU, torch.float32, 1) == rates
    for damaged in ("", "[]", "{}", '{"dense training": [1.0]}', path.read_text().replace("[", '["', 1)):
        path.write_text(damaged)
        monkeypatch.setattr(cpu_timing, "measure_rates", lambda *machine: rates)
        assert cpu_timing.get_machine_rates.__wrapped__(CPU, torch.float32, 1) == rates


def test_where_there_is_no_kernel_all_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_model(ModelConfig(group="D4", scale=0.1), 33)
    assert not any(
        selection.choose_kernels(network, selection.BatchShape(4, 33), CPU, torch.bfloat16, is_training=True).values()
    )
    monkeypatch.setattr(cpu, "is_available", lambda: False)
    assert not any(
        selection.choose_kernels(network, selection.BatchShape(4, 33), CPU, torch.float32, is_training=True).values()
    )
    choice = dict.fromkeys(selection.get_steerable_layers(network), True)
    assert not selection.apply_choice(network, choice, CPU)
    assert not any(layer.harmonic for layer in selection.get_steerable_layers(network).values())


def test_a_network_without_steerable_layers_has_no_choice() -> None:
    assert (
        selection.choose_kernels(nn.Conv2d(3, 3, 1), selection.BatchShape(1, 5), CPU, torch.float32, is_training=True)
        == {}
    )


@pytest.mark.parametrize(
    ("trial", "is_better", "warning"),
    [
        (selection.Trial(0.04, 2.0, 1.0), True, ""),
        (selection.Trial(0.04, 2.0, 2.1), False, ""),
        (selection.Trial(0.06, 2.0, 1.0), False, "harmonic ones differ from them by 0.060"),
        (selection.Trial(math.nan, 2.0, 1.0), False, "differ from them by nan"),
    ],
)
def test_a_choice_is_kept_if_it_is_faster_and_right(
    trial: selection.Trial, is_better: bool, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert selection.is_better(trial, torch.float32) == is_better
    assert warning in caplog.text and bool(warning) == bool(caplog.text)


@pytest.mark.compiler
@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("is_broken", [False, True])
def test_a_trial_compares_gradients_or_logits_and_leaves_the_network_alone(
    is_broken: bool, is_training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)  # of a hundred networks one has a ReLU that turns a rounding into an error of 0.02
    network = build_model(ModelConfig(group="D8", scale=0.25), 33).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    choice = {name: number > 0 for number, name in enumerate(selection.get_steerable_layers(network))}
    if is_broken and is_training:
        wrong = lambda gradient, x, weight, *rest: (torch.randn_like(x), torch.randn_like(weight))  # noqa: E731
        monkeypatch.setattr(cpu, "backward", wrong)
    elif is_broken:
        forward = cpu.forward
        monkeypatch.setattr(cpu, "forward", lambda *arguments: 1.5 * forward(*arguments))
    trial = selection.run_trial(network, choice, selection.BatchShape(4, 33), CPU, torch.float32, is_training)
    assert trial.seconds > 0 and trial.dense_seconds > 0
    assert (trial.error > 0.05) if is_broken else (trial.error < 0.01)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(layer.harmonic for layer in selection.get_steerable_layers(network).values())


@pytest.mark.parametrize(("network", "reason"), [(RaisingNetwork(), "no kernel image"), (AbortingNetwork(), "process")])
def test_a_trial_that_fails_or_takes_its_process_along_leaves_all_dense(
    network: nn.Module, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = (network, {"layer": True}, selection.BatchShape(3, 33), CPU, torch.float32)
    assert selection.validate_on_device(*arguments) == {"layer": False}
    assert "all layers are dense: a trial of harmonic ones failed" in caplog.text and reason in caplog.text
