"""Networks of e2cnn's modules, and the comparison of one with its accelerated form.

With GALAXYHPC_TEST_ESCNN=1 they are networks of escnn's modules, where that is installed: no index holds all it needs.
"""

from __future__ import annotations

import copy
import importlib
import math
import os
from typing import Any

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

from galaxyhpc.steerable import groups

LIBRARY = "escnn" if os.environ.get("GALAXYHPC_TEST_ESCNN") == "1" else "e2cnn"
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


def make_space(group: str) -> Any:
    """Return the plane with rotations and reflections of a group."""
    space = groups.make_gspace(group)  # also imports compat
    if LIBRARY == "e2cnn":
        return space
    spaces = importlib.import_module("escnn.gspaces")
    return (spaces.flipRot2dOnR2 if group.startswith("D") else spaces.rot2dOnR2)(int(group[1:]))


def get_modules() -> Any:
    """Return the library's modules."""
    groups.make_gspace("C1")  # first: e2cnn is patched with it
    if LIBRARY == "escnn":  # whose bases for reflections need what scikit-learn withdrew
        numerical = importlib.import_module("escnn.group._numerical")
        numerical.randomized_svd = lambda a, **options: randomized_svd(np.asarray(a), **options)
    return importlib.import_module(f"{LIBRARY}.nn")


def make_geometric(x: Tensor, field_type: Any) -> Any:
    """Return a GeometricTensor."""
    return get_modules().GeometricTensor(x, field_type)


def make_sequence(group: str, fields: tuple[int, int] = (4, 6), kernel_size: int = 3, side: int = 13) -> Any:
    """Return a small network with all that a classifier needs, from three colours to `fields[1]` invariant maps."""
    space = make_space(group)
    modules = get_modules()

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


class ResidualNetwork(nn.Module):
    """A user's own module: it wraps its input, adds fields, keeps modules in a list, and ends in a linear layer."""

    def __init__(self, group: str = "D4", fields: int = 3) -> None:
        super().__init__()
        space = make_space(group)
        modules = get_modules()

        self.make_geometric = modules.GeometricTensor
        self.colours = modules.FieldType(space, [space.trivial_repr] * 3)
        regular = modules.FieldType(space, [space.regular_repr] * fields)
        self.stem = modules.R2Conv(self.colours, regular, 3, padding=1)
        self.convolutions = [modules.R2Conv(regular, regular, 3, padding=1, bias=False) for _ in range(2)]
        self.by_name = {"all": [self.convolutions]}
        self.norms = getattr(modules, "ModuleList", nn.ModuleList)([modules.InnerBatchNorm(regular) for _ in range(2)])
        for number, layer in enumerate(self.convolutions):
            self.add_module(f"convolution{number}", layer)
        self.relu, self.pool = modules.ReLU(regular), modules.GroupPooling(regular)
        self.linear = nn.Linear(fields, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 4)."""
        fields = self.stem(self.make_geometric(x, self.colours))
        for layer, norm in zip(self.convolutions, self.norms, strict=True):
            fields = fields + self.relu(norm(layer(fields)))
        pooled = self.pool(fields).tensor
        logits: Tensor = self.linear(pooled.view(*pooled.shape[:2], -1).mean(2))
        return logits


def make_network_of_irreps() -> Any:
    """Return a network whose fields are irreps, with norms and gates."""
    space = make_space("C8")
    modules = get_modules()

    colours = modules.FieldType(space, [space.trivial_repr] * 3)
    gated = modules.FieldType(space, [space.trivial_repr] * 4 + [space.irrep(1)] * 2 + [space.irrep(2)] * 2)
    vectors = modules.FieldType(space, [space.irrep(1)] * 3)
    gates = modules.GatedNonLinearity1(gated)
    return modules.SequentialModule(
        modules.R2Conv(colours, gated, 3, padding=1),
        modules.GNormBatchNorm(gated),
        gates,
        modules.R2Conv(gates.out_type, vectors, 3, padding=1, stride=2),
        modules.NormBatchNorm(vectors),
        modules.NormNonLinearity(vectors, "n_sigmoid"),
        modules.NormPool(vectors),
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


def call(network: Any, x: Tensor) -> Tensor:
    """Compute a tensor by a network that takes tensors, or only GeometricTensors."""
    is_typed = hasattr(network, "in_type") and not hasattr(network, "compute")
    y: Tensor = network(make_geometric(x, network.in_type)).tensor if is_typed else network(x)
    return y


def compute(network: nn.Module, x: Tensor, seed: int) -> dict[str, Tensor]:
    """Return the output, the gradients of a weighted sum of it, and the state afterwards."""
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    for parameter in network.parameters():
        parameter.grad = None
    y = call(network, x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).sin().view(y.shape)
    y.backward(weights)
    values = {"output": y.detach(), "input gradient": x.grad}
    values |= {f"gradient {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return values | {f"state {name}": value.detach().clone() for name, value in network.state_dict().items()}


def assert_equal_function(network: nn.Module, fast: nn.Module, x: Tensor, seed: int = 0) -> None:
    """Compare outputs, gradients and state.

    In evaluation e2cnn has no gradients of weights.
    """
    expected, actual = compute(copy_network(network), x, seed), compute(fast, x, seed)
    assert expected.keys() >= actual.keys() or not network.training
    assert not find_differences(expected, actual, TOLERANCES[x.dtype])


def find_differences(expected: dict[str, Tensor], actual: dict[str, Tensor], tolerance: float) -> dict[str, Any]:
    """Return error and scale of the values that differ; gradients that vanish are compared to the largest one."""
    gradients = [value for name, value in expected.items() if name.startswith("gradient") and value.numel()]
    largest = max((float(value.abs().max()) for value in gradients), default=0.0)
    differences = {}
    for name in (name for name in expected.keys() & actual.keys() if expected[name].numel()):
        error = float((actual[name].double() - expected[name].double()).abs().max())
        scale = max(float(expected[name].abs().max()), largest if name.startswith("gradient") else 0.0)
        if not math.isfinite(error) or error > tolerance * scale:
            differences[name] = error, scale
    return differences
