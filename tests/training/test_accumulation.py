"""A step of several passes expands every filter once, and ends with the same gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models.build_model import build_model
from galaxyhpc.steerable.layers import SteerableConv, accumulate_filter_gradients

PARTS = 4


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(group="D4", scale=0.1), 33).train()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3 * PARTS, 3, 33, 33)


def accumulate(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a step."""
    parts = images.chunk(PARTS)
    for part in parts[:-1]:
        with accumulate_filter_gradients(network):
            network(part).square().sum().backward()
    network(parts[-1]).square().sum().backward()
    return {name: value.grad for name, value in network.named_parameters()}


def compute_plain_gradients(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    for part in images.chunk(PARTS):
        network(part).square().sum().backward()
    return {name: value.grad for name, value in network.named_parameters()}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float64])
def test_filters_are_expanded_once_and_the_gradients_are_the_same(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch, precision: torch.dtype
) -> None:
    low = precision == torch.bfloat16
    if precision == torch.float64:
        network, images = network.double(), images.double()
    expand, expanded = SteerableConv.expand_filter, []

    def expand_and_count(self: SteerableConv, *dtypes: torch.dtype) -> Tensor:
        expanded.append(self)
        return expand(self, *dtypes)

    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        expected = compute_plain_gradients(copy.deepcopy(network), images)
        monkeypatch.setattr(SteerableConv, "expand_filter", expand_and_count)
        for _ in range(2):
            network.zero_grad()
            expanded.clear()
            gradients = accumulate(network, images)
            layers = [module for module in network.modules() if isinstance(module, SteerableConv)]
            assert len(expanded) == len(layers) and set(expanded) == set(layers)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.1}[precision]
    for name, value in expected.items():
        assert (gradients[name] - value).norm() <= tolerance * value.norm() + 1e-12, name


def test_weights_receive_no_gradient_before_the_last_pass(network: nn.Module, images: Tensor) -> None:
    with accumulate_filter_gradients(network):
        network(images).sum().backward()
    layers = [module for module in network.modules() if isinstance(module, SteerableConv)]
    assert all(layer.weight.grad is None for layer in layers)


@pytest.mark.parametrize("cause", ["an error", "other weights"])
def test_gradients_of_an_abandoned_step_reach_no_later_one(network: nn.Module, images: Tensor, cause: str) -> None:
    expected = compute_plain_gradients(copy.deepcopy(network), images)
    if cause == "an error":
        with pytest.raises(RuntimeError), accumulate_filter_gradients(network):
            network(images).sum().backward()
            raise RuntimeError
    else:
        with accumulate_filter_gradients(network):
            network(images).sum().backward()
        with torch.no_grad():
            for value in network.parameters():
                value.mul_(1.0)
    network.zero_grad()
    gradients = compute_plain_gradients(network, images)
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-5 * value.abs().max().item())


def test_a_network_can_be_copied_between_two_passes(network: nn.Module, images: Tensor) -> None:
    with accumulate_filter_gradients(network):
        network(images).sum().backward()
        copied = copy.deepcopy(network)
    assert not any(module.is_accumulating for module in copied.modules() if isinstance(module, SteerableConv))
