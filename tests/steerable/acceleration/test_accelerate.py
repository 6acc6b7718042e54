"""An accelerated network is the network that e2cnn computes: outputs, gradients, statistics and state."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.e2cnn_networks import (
    LIBRARY,
    ResidualNetwork,
    assert_equal_function,
    copy_network,
    get_modules,
    make_geometric,
    make_sequence,
    make_space,
    set_harmonic,
)

from galaxyhpc.steerable import accelerate, report, restore
from galaxyhpc.steerable.compat import StandIn


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let e2cnn compute in float64 what it computes in float32 whatever its input."""
    folder = "basismanager" if LIBRARY == "escnn" else "r2_conv"
    get_modules()
    basisexpansion_singleblock = importlib.import_module(f"{LIBRARY}.nn.modules.{folder}.basisexpansion_singleblock")
    monkeypatch.setattr(basisexpansion_singleblock, "_stored_filters", {})  # shared by all networks
    modules = [module for name, module in sys.modules.items() if name.startswith(f"{LIBRARY}.nn.modules")]
    for module in modules:
        if hasattr(module, "torch"):
            monkeypatch.setattr(module, "torch", StandIn(module.torch, float=torch.float64))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if LIBRARY == "e2cnn" else default)  # escnn knows no other
    yield
    torch.set_default_dtype(default)


@pytest.mark.parametrize("harmonic", [False, True])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("group", ["C1", "C4", "D4"])
def test_a_network_and_its_gradients_are_those_of_e2cnn(group: str, is_training: bool, harmonic: bool) -> None:
    torch.manual_seed(0)
    network = make_sequence(group).train(is_training)
    fast = accelerate(copy_network(network))
    set_harmonic(fast, harmonic)
    assert_equal_function(network, fast, torch.randn(2, 3, 13, 13))


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("group", ["C4", "D4"])
def test_in_float64_they_agree_to_ten_digits(group: str, is_training: bool, float64: None) -> None:
    torch.manual_seed(0)
    network = make_sequence(group).double().train(is_training)
    assert_equal_function(network, accelerate(copy_network(network)), torch.randn(2, 3, 13, 13).double())


@pytest.mark.parametrize("harmonic", [False, True])
def test_a_users_own_module_keeps_its_code_and_gets_fast_parts(harmonic: bool) -> None:
    torch.manual_seed(0)
    network = ResidualNetwork()
    fast = accelerate(copy_network(network))
    assert isinstance(fast, ResidualNetwork)
    assert fast.convolutions[1] is fast.by_name["all"][0][1] is fast.convolution1
    assert not isinstance(fast.convolution1, type(network.convolution1))
    set_harmonic(fast, harmonic)
    assert_equal_function(network, fast, torch.randn(2, 3, 9, 9))


def test_a_module_that_occurs_twice_is_one_and_is_called_twice() -> None:
    space, modules = make_space("C4"), get_modules()
    fields = modules.FieldType(space, [space.regular_repr] * 2)
    layer = modules.R2Conv(fields, fields, 3, padding=1)
    network = modules.SequentialModule(layer, modules.ReLU(fields), layer)
    fast = accelerate(copy_network(network))
    assert len(list(fast.parameters())) == 2
    assert_equal_function(network, fast, torch.randn(2, 8, 5, 5))


def test_the_original_stays_as_it_is() -> None:
    network = ResidualNetwork()
    layer = network.convolution1
    accelerate(network).eval()
    assert network.convolution1 is layer is network.convolutions[1]
    assert network.training


def test_a_derived_class_is_kept_because_it_may_compute_anything() -> None:
    space, modules = make_space("C4"), get_modules()

    class Doubled(modules.ReLU):
        def forward(self, x: Any) -> Any:
            return super().forward(x) * 2.0

    fields = modules.FieldType(space, [space.regular_repr] * 2)
    network = modules.SequentialModule(modules.R2Conv(fields, fields, 3), Doubled(fields))
    fast = accelerate(copy_network(network))
    assert_equal_function(network, fast, torch.randn(2, 8, 5, 5))
    assert "kept" in report(fast)


def test_a_module_with_hooks_is_kept_because_they_may_change_anything() -> None:
    network = make_sequence("C4").train()  # a new R2Conv has filters, until train() is called
    layer = network._modules["5"]
    layer.register_forward_hook(lambda module, inputs, output: output * 2.0)
    fast = accelerate(network)
    line = next(line for line in report(fast).splitlines() if line.startswith("5 "))
    assert "kept" in line
    assert_equal_function(network, fast, torch.randn(2, 3, 13, 13))


@pytest.mark.parametrize("harmonic", [False, True])
def test_a_nonlinearity_may_work_in_place_on_the_output_of_a_convolution(harmonic: bool) -> None:
    space, modules = make_space("C4"), get_modules()
    fields = modules.FieldType(space, [space.regular_repr] * 2)
    layer = modules.R2Conv(fields, fields, 3, bias=False)
    network = modules.SequentialModule(layer, modules.ReLU(fields, inplace=True))
    fast = accelerate(copy_network(network))
    set_harmonic(fast, harmonic)
    assert_equal_function(network, fast, torch.randn(2, 8, 5, 5))


def test_it_loads_a_checkpoint_of_e2cnn() -> None:
    network, other = make_sequence("C4").eval(), make_sequence("C4")
    fast = accelerate(other).eval()
    fast.load_state_dict(network.state_dict())
    assert_equal_function(network, fast, torch.randn(2, 3, 13, 13))
    with pytest.raises(RuntimeError, match="Missing key"):
        fast.load_state_dict({})


def test_another_networks_type_is_no_matter() -> None:
    network = make_sequence("C4")
    expected = accelerate(network).eval()(torch.ones(1, 3, 13, 13))
    twin = make_sequence("C4").double()  # shares its bases with the first
    torch.testing.assert_close(accelerate(network).eval()(torch.ones(1, 3, 13, 13)), expected)
    twin.float()


@pytest.mark.slow  # measures the rates of the machine
@pytest.mark.parametrize("is_training", [True, False])
def test_the_forms_that_are_chosen_agree_with_e2cnn(is_training: bool) -> None:
    torch.manual_seed(0)
    network = make_sequence("D8", (12, 24)).train(is_training)
    fast = accelerate(copy_network(network))
    set_harmonic(fast, None)
    assert "chosen with the first input" in report(fast)
    assert_equal_function(network, fast, torch.randn(2, 3, 13, 13))
    assert "training" in report(fast)  # with gradients, which evaluation has here, too


def test_parameters_are_those_of_the_network() -> None:
    network = make_sequence("C4")
    names = dict(network.named_parameters())
    assert all(parameter is names[name] for name, parameter in accelerate(network).named_parameters())
    assert len(names) == len(list(accelerate(network).parameters()))


def test_a_geometric_tensor_gives_a_geometric_tensor() -> None:
    network = make_sequence("C4").eval()
    images = torch.randn(1, 3, 13, 13)
    fast = accelerate(network)
    y = fast(make_geometric(images, network.in_type))
    assert y.type == network.out_type
    torch.testing.assert_close(y.tensor, fast(images))


def test_fields_of_another_type_are_refused() -> None:
    network = make_sequence("C4")
    space, FieldType = network.in_type.gspace, get_modules().FieldType
    with pytest.raises(ValueError, match=r"got fields of type .*; expected"):
        accelerate(network)(make_geometric(torch.randn(1, 4, 13, 13), FieldType(space, [space.regular_repr])))


def test_a_network_trained_fast_is_restored_in_e2cnn() -> None:
    torch.manual_seed(0)
    network = make_sequence("D4").eval()
    fast = accelerate(copy_network(network)).train()
    optimizer = torch.optim.SGD(fast.parameters(), 0.01)
    images = torch.randn(4, 3, 13, 13)
    before = fast.state_dict()["1.weights"].clone()
    for _ in range(3):
        optimizer.zero_grad()
        fast(images).square().mean().backward()
        optimizer.step()
    assert not torch.equal(before, fast.state_dict()["1.weights"])
    assert restore(fast, network) is network
    assert_equal_function(network, fast.eval(), images)


def test_what_cannot_be_converted_or_restored_is_refused() -> None:
    with pytest.raises(ValueError, match="got Linear without modules of e2cnn or escnn; expected some"):
        accelerate(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"restore: got 0.mask; expected the state of ResidualNetwork"):
        restore(accelerate(make_sequence("C4")), ResidualNetwork())


@pytest.mark.parametrize("harmonic", [False, True])
def test_maps_of_other_channels_are_refused(harmonic: bool) -> None:
    fast = accelerate(make_sequence("C4"))
    set_harmonic(fast, harmonic)
    with pytest.raises(RuntimeError, match=r"R2Conv: got a shape of \(1, 4, 13, 13\); expected \(N, 3, H, W\)"):
        fast(torch.ones(1, 4, 13, 13))


def test_an_unknown_part_of_a_checkpoint_is_refused() -> None:
    fast = accelerate(make_sequence("C4"))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        fast.load_state_dict(fast.state_dict() | {"9.weights": torch.ones(1)})


def test_the_library_imports_torch_numpy_and_e2cnn_only() -> None:
    code = "import sys, galaxyhpc.steerable; print('torch' in sys.modules, 'e2cnn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"
