"""Networks of e2cnn's modules on tensors: the table of conversions, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from e2cnn import nn as e2cnn_modules
from torch import Tensor, nn

from galaxyhpc.steerable.acceleration import normalization, pointwise
from galaxyhpc.steerable.acceleration.convolution import FastConv
from galaxyhpc.steerable.acceleration.typed import TensorModule, call_untyped

Network = TypeVar("Network", bound=nn.Module)


class FastSequential(TensorModule):
    """`SequentialModule`, with its modules under the same names."""

    def __init__(self, original: Any, modules: dict[str, nn.Module]) -> None:
        super().__init__(original)
        for name, module in modules.items():
            self.add_module(name, module)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        modules: dict[str, Any] = self._modules  # not children(), which lists a module that occurs twice once
        for module in modules.values():
            x = call_untyped(module, x)
        return x


def accelerate(network: nn.Module) -> nn.Module:
    """Return a network of e2cnn's modules as one of fast ones, on tensors, with the same function."""
    return _convert(network, {})


def _convert(module: nn.Module, converted: dict[int, nn.Module]) -> nn.Module:
    """Convert a module with those it holds; one that occurs twice is converted once."""
    if id(module) not in converted:
        make = CONVERSIONS.get(type(module), _copy_module)
        converted[id(module)] = make(module, converted)
    return converted[id(module)]


def _copy_module(module: nn.Module, converted: dict[int, nn.Module]) -> nn.Module:
    """Copy a module that has no fast form, with its parameters and buffers shared and its parts converted."""
    copied: nn.Module = type(module).__new__(type(module))
    converted[id(module)] = copied
    state = dict(module.__dict__)
    for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        state[name] = type(state[name])(state[name])
    state["_modules"] = {name: part and _convert(part, converted) for name, part in module._modules.items()}
    copied.__dict__ = {name: _convert_attribute(value, converted) for name, value in state.items()}
    return copied


def _convert_attribute(value: Any, converted: dict[int, nn.Module]) -> Any:
    """Convert modules in an attribute: lists of modules, which torch does not know, refer to the same ones."""
    if isinstance(value, nn.Module):
        return _convert(value, converted)
    if type(value) in (list, tuple) and any(isinstance(part, nn.Module) for part in value):
        return type(value)(_convert_attribute(part, converted) for part in value)
    return value


def _convert_sequence(module: Any, converted: dict[int, nn.Module]) -> nn.Module:
    return FastSequential(module, {name: _convert(part, converted) for name, part in module._modules.items()})


def _convert_batch_norm(module: Any, converted: dict[int, nn.Module]) -> nn.Module:
    if normalization.is_supported(module):
        return normalization.FastInnerBatchNorm(module)
    return _copy_module(module, converted)


def _pool_options(module: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names}


MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
AVERAGE_POOL = ("kernel_size", "stride", "padding", "ceil_mode")

CONVERSIONS: dict[type, Callable[[Any, dict[int, nn.Module]], nn.Module]] = {
    e2cnn_modules.SequentialModule: _convert_sequence,
    e2cnn_modules.R2Conv: lambda m, _: FastConv(m),
    e2cnn_modules.InnerBatchNorm: _convert_batch_norm,
    e2cnn_modules.ReLU: lambda m, _: pointwise.FastPointwise(m, F.relu, inplace=m._inplace),
    e2cnn_modules.GroupPooling: lambda m, _: pointwise.FastGroupPooling(m),
    e2cnn_modules.PointwiseAvgPoolAntialiased: lambda m, _: pointwise.FastBlur(m),
    e2cnn_modules.MaskModule: lambda m, _: pointwise.FastMask(m),
}


@torch.no_grad()
def restore(fast: nn.Module, network: Network) -> Network:
    """Copy the state of an accelerated network into the network that it was made from, or one like it."""
    targets = dict(network.named_parameters(remove_duplicate=False)) | dict(
        network.named_buffers(remove_duplicate=False)
    )
    for name, value in fast.state_dict().items():
        if name not in targets:
            raise ValueError(f"restore: got {name}; expected the state of {type(network).__name__}")
        targets[name].copy_(value)
    for module in network.modules():
        if hasattr(module, "expand_parameters") and not module.training:
            module.train().eval()  # expands the filter that it keeps
    return network
