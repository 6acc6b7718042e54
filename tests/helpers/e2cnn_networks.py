"""Networks of e2cnn's modules, and the comparison of one with its accelerated form."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from galaxyhpc.steerable import groups

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


def make_sequence(group: str, fields: tuple[int, int] = (4, 6), kernel_size: int = 3, side: int = 13) -> Any:
    """Return a small network with all that a classifier needs, from three colours to `fields[1]` invariant maps."""
    space = groups.make_gspace(group)
    from e2cnn import nn as modules

    colours = modules.FieldType(space, [space.trivial_repr] * 3)
    narrow, wide = (modules.FieldType(space, [space.regular_repr] * count) for count in fields)
    padding = kernel_size // 2
    return modules.SequentialModule(
        modules.MaskModule(colours, side, margin=1),
        modules.R2Conv(colours, narrow, kernel_size, padding=padding, bias=False),
        modules.InnerBatchNorm(narrow),
        modules.ReLU(narrow, inplace=True),
        modules.PointwiseAvgPoolAntialiased(narrow, 0.66, 2),
        modules.R2Conv(narrow, wide, kernel_size, padding=padding),
        modules.ReLU(wide),
        modules.GroupPooling(wide),
    )


def set_harmonic(network: nn.Module, harmonic: bool | None) -> None:
    """Make all convolutions of an accelerated network harmonic or dense."""
    for module in network.modules():
        if hasattr(module, "harmonic"):
            module.harmonic = harmonic


def copy_network(network: Any) -> Any:
    """Return a copy; the filters that e2cnn keeps in evaluation have a graph, which cannot be copied."""
    is_training = network.training
    copied = copy.deepcopy(network.train())
    with torch.no_grad():
        network.train(is_training)
        return copied.train(is_training)


def compute(network: nn.Module, x: Tensor, seed: int) -> dict[str, Tensor]:
    """Return the output, the gradients of a weighted sum of it, and the state afterwards."""
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    for parameter in network.parameters():
        parameter.grad = None
    is_typed = hasattr(network, "in_type") and not hasattr(network, "compute")
    if is_typed:
        from e2cnn.nn import GeometricTensor

        y = network(GeometricTensor(x, network.in_type)).tensor
    else:
        y = network(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).sin().view(y.shape)
    y.backward(weights)
    values = {"output": y.detach(), "input gradient": x.grad}
    values |= {f"gradient {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return values | {f"state {name}": value.detach().clone() for name, value in network.state_dict().items()}


def assert_equal_function(network: nn.Module, fast: nn.Module, x: Tensor, seed: int = 0) -> None:
    """Compare outputs, gradients and state; gradients that vanish are compared to the largest one.

    In evaluation e2cnn has no gradients of weights.
    """
    expected, actual = compute(copy_network(network), x, seed), compute(fast, x, seed)
    gradients = [value for name, value in expected.items() if name.startswith("gradient") and value.numel()]
    largest = max((float(value.abs().max()) for value in gradients), default=0.0)
    names = expected.keys() & actual.keys()
    assert names == actual.keys() or not network.training
    for name in (name for name in names if expected[name].numel()):
        error = float((actual[name].double() - expected[name].double()).abs().max())
        scale = max(float(expected[name].abs().max()), largest if name.startswith("gradient") else 0.0)
        assert math.isfinite(error) and error <= TOLERANCES[x.dtype] * scale, (name, error, scale)
