"""Compiled networks: one graph, the same numbers, and channels-last maps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.tiers import slow_unless
from torch import Tensor, nn

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models.build_model import build_model
from galaxyhpc.steerable.batch_norm import FieldBatchNorm
from galaxyhpc.steerable.layers import (
    AntialiasedPool,
    CircularMask,
    GroupPooling,
    Restriction,
    SteerableConv,
    blur_separably,
)

FAMILIES: dict[str, dict[str, Any]] = {
    "steerable_cnn": {"group": "D4", "scale": 0.04},
    "cnn": {"architecture": "cnn", "scale": 0.2},
    "e2resnet": {"architecture": "e2resnet", "group": "C4", "depth": 18, "base_width": 1, "blocks": (1, 1, 1, 1)},
    "e2wrn": {"architecture": "e2wrn", "group": "D4", "depth": 10, "widen": 1, "restriction": ("C4", "C1")},
}

# torch's own doing, 2.13
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.autograd.function.Function.*should not be instantiated", "ignore:.*torch.jit.script_method"
)


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.manual_seed(0)
    torch.compiler.reset()


def network(family: str) -> nn.Module:
    return build_model(ModelConfig(**FAMILIES[family]), 33)


def step(model: nn.Module, run: Any, images: Tensor) -> dict[str, Tensor]:
    """Return the logits of a training step, its gradients, and what the batch norms remember."""
    torch.manual_seed(1)  # of dropout
    logits = run(images)
    (logits * torch.linspace(-1, 1, 10)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **gradients, **dict(model.named_buffers())}


def assert_as_compiled(family: str, backend: str) -> None:
    """Compare a training step and an evaluation, without gradients and with them."""
    model, images = network(family).double(), torch.rand(4, 3, 33, 33, dtype=torch.float64)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # compilers draw numbers of their own
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    compiled_step, eager_step = step(twin, compiled, images), step(model, model, images)
    assert compiled_step.keys() == eager_step.keys()
    for name, values in eager_step.items():
        torch.testing.assert_close(
            compiled_step[name], values, rtol=1e-7, atol=1e-9, msg=lambda message, n=name: f"{n}: {message}"
        )
    model.eval(), twin.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(compiled(images), model(images), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", slow_unless(("steerable_cnn",), FAMILIES))
def test_a_network_is_one_graph_that_computes_the_same(family: str) -> None:
    assert_as_compiled(family, "aot_eager")


@pytest.mark.slow
@pytest.mark.compiler
def test_every_kind_of_layer_can_be_turned_into_code() -> None:
    layers = [SteerableConv("D4", 2, 2, padding=1), FieldBatchNorm(2, 8), nn.ReLU(inplace=True), AntialiasedPool()]
    model = nn.Sequential(CircularMask(9), *layers, Restriction("D4", "C4"), GroupPooling(4))
    twin, x = copy.deepcopy(model), torch.rand(3, 16, 9, 9)
    compiled = torch.compile(twin, fullgraph=True)
    outputs = [run(x) for run in (model, compiled)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    pairs = zip(outputs, (model, twin), strict=True)
    gradients = [torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in pairs]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dict(twin.named_buffers()), dict(model.named_buffers()))


@pytest.mark.slow
def test_batches_of_any_size_share_a_graph() -> None:
    model, graphs = network("steerable_cnn"), 0

    def count(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=count, dynamic=True)
    for images in (4, 5, 7):
        compiled(torch.rand(images, 3, 33, 33)).sum().backward()
    assert graphs == 1


@pytest.mark.slow
def test_a_network_under_autocast_is_one_graph() -> None:
    model = network("e2wrn")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        compiled(torch.rand(4, 3, 33, 33)).float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_channels_last_in_every_layer(family: str, training: bool) -> None:
    model, checked = network(family).train(training), []

    def check(name: str, values: Tensor) -> None:
        if values.dim() == 4:
            checked.append(name)
            assert values.is_contiguous(memory_format=torch.channels_last), name

    def check_with_gradient(name: str, output: Tensor) -> None:
        check(name, output)
        if output.requires_grad:
            output.register_hook(lambda gradient: check_gradient(f"the gradient of {name}", gradient))

    def check_gradient(name: str, gradient: Tensor) -> None:
        if not torch.equal(gradient, gradient[..., :1, :1].expand_as(gradient)):  # behind the average, pixels are equal
            check(name, gradient)

    for name, layer in model.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _, inputs, output, name=name: check_with_gradient(name, output))
    model(torch.rand(4, 3, 33, 33)).sum().backward()
    assert len(checked) > 30


def test_the_fused_blur_is_the_convolution() -> None:
    for size in (33, 34, (9, 6)):
        height, width = (size, size) if isinstance(size, int) else size
        x = torch.randn(2, 6, height, width, requires_grad=True)
        pool = AntialiasedPool()
        ours, theirs = blur_separably(x, pool.kernel, (2, 2), (2, 2)), pool(x)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        upstream = torch.randn_like(theirs)
        gradients = [torch.autograd.grad(y, x, upstream)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


def test_group_pooling_and_restriction_are_those_of_channels_by_hand() -> None:
    x = torch.randn(2, 3 * 16, 5, 5, requires_grad=True)
    restriction = Restriction("D8", "C4")
    by_field = x.view(2, 3, 16, 5, 5)
    pairs = (
        (restriction(x), by_field[:, :, restriction.permutation].flatten(1, 2)),
        (GroupPooling(16)(x), by_field.amax(2)),
    )
    for actual, expected in pairs:
        upstream = torch.randn_like(expected)
        assert torch.equal(actual, expected)
        assert torch.equal(*(torch.autograd.grad(y, x, upstream, retain_graph=True)[0] for y in (actual, expected)))
