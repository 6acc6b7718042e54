"""What became of each layer of an accelerated network, and what it gained."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from galaxyhpc.steerable.acceleration.convolution import FastConv
from galaxyhpc.steerable.acceleration.typed import TensorModule, is_equivariant, make_geometric

NUM_ROUNDS = 5  # of timing; the shortest counts


class Layer(NamedTuple):
    """A row of the report."""

    name: str
    original: str  # class of e2cnn or escnn
    form: str
    milliseconds: tuple[float, float] | None  # of the original, and of this


def report(fast: nn.Module, network: nn.Module | None = None, x: Tensor | None = None) -> str:
    """Return a table of the layers of an accelerated network: the original module, its form here, and the gain.

    With the network that it was made from and an input of it, every layer is timed: forward and backward in training,
    forward alone in evaluation. Layers that no input reaches, and those that hold others, are not.
    """
    layers = list_layers(fast)
    if network is not None and x is not None:
        seconds = _time_layers(fast, network, x, [layer.name for layer in layers])
        layers = [layer._replace(milliseconds=seconds.get(layer.name)) for layer in layers]
    rows = [("layer", "original", "form", "original ms", "ms", "gain"), *map(_format_row, layers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def list_layers(fast: nn.Module) -> list[Layer]:
    """Return the layers that are, or were, modules of e2cnn or escnn."""
    layers = []
    for name, module in fast.named_modules():
        if isinstance(module, FastConv):
            layers.append(Layer(name, "R2Conv", f"FastConv, {_describe_kernel(module)}", None))
        elif isinstance(module, TensorModule):
            layers.append(Layer(name, module.original_class, type(module).__name__, None))
        elif is_equivariant(module):
            layers.append(Layer(name, type(module).__name__, "kept", None))
    return layers


def _describe_kernel(module: FastConv) -> str:
    if module.harmonic is not None:
        return "harmonic" if module.harmonic else "dense"
    modes, kernels = {True: "training", False: "inference"}, {True: "harmonic", False: "dense"}
    choices = [(is_training, module._last_choices.get(is_training)) for is_training in modes]
    known = [f"{kernels[choice]} {modes[is_training]}" for is_training, choice in choices if choice is not None]
    return ", ".join(known) or "chosen with the first input"


def _format_row(layer: Layer) -> tuple[str, ...]:
    if layer.milliseconds is None:
        return (*layer[:3], "", "", "")
    before, after = layer.milliseconds
    return (*layer[:3], f"{before:.2f}", f"{after:.2f}", f"{before / after:.1f}")


def _time_layers(fast: nn.Module, network: nn.Module, x: Tensor, names: list[str]) -> dict[str, tuple[float, float]]:
    """Return the milliseconds of each layer in the original and here; copies are timed."""
    network, fast = _copy_mode(network, fast.training), copy.deepcopy(fast)
    inputs: dict[str, Tensor] = {}
    modules, originals = dict(fast.named_modules()), dict(network.named_modules())
    names = [name for name in names if name in originals and not list(_list_typed_parts(modules[name]))]
    hooks = [modules[name].register_forward_pre_hook(_make_recorder(inputs, name)) for name in names]
    fast(x)
    for hook in hooks:
        hook.remove()
    milliseconds = {}
    for name, values in inputs.items():
        original, module = originals[name], modules[name]
        run = [lambda v, m=original: m(make_geometric(v, m.in_type)).tensor, lambda v, m=module: m(v)]
        before, after = (1e3 * _time(function, values, fast.training) for function in run)
        milliseconds[name] = before, after
    return milliseconds


@torch.no_grad()
def _copy_mode(network: nn.Module, is_training: bool) -> nn.Module:
    """Return a copy in training or in evaluation: the filters that are kept in evaluation cannot be copied."""
    was_training = network.training
    copied = copy.deepcopy(network.train()).train(is_training)
    network.train(was_training)
    return copied


def _list_typed_parts(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if part is not module and hasattr(part, "in_type")]


def _make_recorder(inputs: dict[str, Tensor], name: str) -> Callable[..., None]:
    def record(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if len(arguments) == 1:
            values = arguments[0]
            inputs[name] = (values if isinstance(values, Tensor) else values.tensor).detach()

    return record


def _time(function: Callable[[Tensor], Tensor], x: Tensor, is_training: bool) -> float:
    """Return the shortest time, s."""
    seconds = []
    for _ in range(NUM_ROUNDS + 1):
        values = x.clone().requires_grad_(is_training)
        with torch.set_grad_enabled(is_training):
            values = values + 0  # a layer may work in place, which a leaf forbids
            start = time.perf_counter()
            y = function(values)
        if y.requires_grad:
            y.backward(torch.ones_like(y))
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
