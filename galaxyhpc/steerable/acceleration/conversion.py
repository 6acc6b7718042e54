"""Networks of modules of e2cnn or escnn on tensors: the table of conversions, and the way back."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galaxyhpc.steerable.acceleration import normalization, norms, pointwise
from galaxyhpc.steerable.acceleration.convolution import FastConv
from galaxyhpc.steerable.acceleration.copying import make_types_picklable
from galaxyhpc.steerable.acceleration.typed import (
    TensorModule,
    call_untyped,
    find_library,
    get_library,
    is_equivariant,
    is_fast,
)

Network = TypeVar("Network", bound=nn.Module)


class FastSequential(TensorModule):
    """`SequentialModule`, with its modules under the same names."""

    def __init__(self, original: Any, parts: dict[str, nn.Module]) -> None:
        super().__init__(original)
        for name, module in parts.items():
            self.add_module(name, module)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        parts: dict[str, Any] = self._modules  # not children(), which lists a module that occurs twice once
        for module in parts.values():
            x = call_untyped(module, x)
        return x

    def evaluate_output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the output, which modules that hold others ask for."""
        for module in self:
            input_shape = module.evaluate_output_shape(input_shape)
        return tuple(input_shape)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def __getitem__(self, index: int | slice) -> Any:
        parts = list(self)[index]
        return nn.Sequential(*parts) if isinstance(index, slice) else parts

    _load_from_state_dict = nn.Module._load_from_state_dict  # only its parts have a state of their own


def accelerate(network: nn.Module) -> nn.Module:
    """Return a network of e2cnn's or escnn's modules with fast ones in their place: the same function and parameters.

    `network` is a module of e2cnn or escnn, or a module of your own that holds such modules and wraps its input in a
    GeometricTensor. The result has the same structure, names, parameters, statistics and mode; those modules take and
    return tensors (N, C, H, W), or GeometricTensors. Outputs and gradients agree to 1e-5 in float32 and to 1e-10
    in float64. Parameters and statistics are shared: an optimizer of `network` trains both. `network` itself stays as
    it is; `restore` brings it up to date after training, and `fast.load_state_dict` takes its checkpoints. Accelerate
    a copy of a network that shall keep its own parameters, or its device and type when the other's change.

    A convolution is computed in the basis of irreps or by its dense filter (`kernels.harmonic`), whichever is
    estimated to be faster for the shape of its input. `report` lists the forms of all layers, and times them.

    Limits
    ------
    A module that is in no table here stays as it is and works on as before: unknown classes and classes derived from
    these libraries', modules with hooks, `R2ConvTransposed`, `R2Diffop`, `NormMaxPool`, `GatedNonLinearity2`, the
    `Induced`, `Concatenated`, `VectorField`, `Fourier` and `TensorProduct` non-linearities, convolutions on points, and
    all modules on spaces other than the plane. One of your own that derives from `EquivariantModule` still takes
    GeometricTensors only.

    Without dense filters are float32 layers on a CPU with a C++ compiler, with dilation 1, without groups and with
    equal strides. The first input on a machine measures its rates, in about ten seconds. On a GPU every layer is
    dense unless its `harmonic` is set. A graph for `torch.compile` keeps the choices of the last call before it, and
    is dense without one; one for a file (`torch.export`, ONNX) is always dense.

    A deep float32 network rounds as much as its original does: gradients of two wide ones can differ by 1e-3 where a
    value near zero passes ReLU in one of them only.

    Maps are channels-last in memory, so that `view` may have to be `reshape`; those of invariant pooling are not.
    Random dropout draws other values from the same seed.

    Raises
    ------
    ValueError
        where the network holds no module of e2cnn or escnn
    """
    libraries = {find_library(module) for module in network.modules() if is_equivariant(module)}
    if not libraries and not any(map(is_fast, network.modules())):
        raise ValueError(f"accelerate: got {type(network).__name__} without modules of e2cnn or escnn; expected some")
    for library in libraries:
        make_types_picklable(library)
    return _convert(network, {})


def _convert(module: nn.Module, converted: dict[int, nn.Module]) -> nn.Module:
    """Convert a module with those it holds; one that occurs twice is converted once."""
    if id(module) not in converted:
        make = CONVERSIONS.get(get_class_name(module))
        if get_class_name(module) == "SequentialModule" and _has_fast_form(module):
            parts = {name: _convert(part, converted) for name, part in module._modules.items() if part is not None}
            converted[id(module)] = FastSequential(module, parts)
        elif make is None or not _has_fast_form(module):
            converted[id(module)] = _copy_module(module, converted)
        else:
            converted[id(module)] = make(module)
    return converted[id(module)]


def _copy_module(module: nn.Module, converted: dict[int, nn.Module]) -> nn.Module:
    """Copy a module that has no fast form, with its parameters and buffers shared and its parts converted."""
    copied: nn.Module = type(module).__new__(type(module))
    converted[id(module)] = copied
    copied.__dict__ = {name: _convert_attribute(value, converted) for name, value in vars(module).items()}
    return copied


def _convert_attribute(value: Any, converted: dict[int, nn.Module]) -> Any:
    """Convert the modules in an attribute: a list of modules, which torch does not know, has the same ones."""
    if isinstance(value, nn.Module):
        return _convert(value, converted)
    if isinstance(value, dict | set):
        value = copy.copy(value)  # of parameters, buffers, hooks
    if isinstance(value, dict):
        for key, part in value.items():
            value[key] = _convert_attribute(part, converted)
    if type(value) in (list, tuple):
        parts = [_convert_attribute(part, converted) for part in value]
        return value if all(map(operator.is_, parts, value)) else type(value)(parts)
    return value


def _has_fast_form(module: Any) -> bool:
    """Whether a module that is in the table computes what its fast form does: without hooks, as its class defines."""
    if "forward" in vars(module) or any(vars(module)[name] for name in HOOKS):
        return False
    if getattr(getattr(module.in_type, "gspace", None), "dimensionality", 2) != 2:
        return False  # escnn has others
    name = get_class_name(module)
    if name in BATCH_NORMS and module.momentum is None:
        return False
    if name == "InnerBatchNorm" and not module.affine:
        return False
    return name not in BATCH_NORMS or getattr(module, "track_running_stats", True)


def get_class_name(module: nn.Module) -> str:
    """Return the name of a class of e2cnn or escnn, of which some of escnn's end in the dimension; else ""."""
    return type(module).__name__.removesuffix("2D") if get_library(type(module)) else ""


def _pool(function: Any, *names: str) -> Callable[[Any], nn.Module]:
    return lambda m: pointwise.FastPointwise(m, function, **{name: getattr(m, name) for name in names})


def _convert_pointwise(module: Any) -> nn.Module:
    return pointwise.FastPointwise(module, module._function)


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
AVERAGE_POOL = ("kernel_size", "stride", "padding", "ceil_mode")
BATCH_NORMS = {
    "InnerBatchNorm": normalization.FastInnerBatchNorm,
    "NormBatchNorm": normalization.FastNormBatchNorm,
    "InducedNormBatchNorm": normalization.FastNormBatchNorm,
    "GNormBatchNorm": normalization.FastGNormBatchNorm,
    "IIDBatchNorm2d": normalization.FastIIDBatchNorm,
}
# of modules that hold no others; a module of another class, or of a class derived from one of these, stays
CONVERSIONS: dict[str, Callable[[Any], nn.Module]] = {
    **BATCH_NORMS,
    "R2Conv": FastConv,
    "ReLU": lambda m: pointwise.FastPointwise(m, F.relu, inplace=m._inplace),
    "ELU": lambda m: pointwise.FastPointwise(m, F.elu, alpha=m.alpha, inplace=m._inplace),
    "LeakyReLU": lambda m: pointwise.FastPointwise(
        m, F.leaky_relu, negative_slope=m._negative_slope, inplace=m._inplace
    ),
    "PointwiseNonLinearity": _convert_pointwise,
    "NormNonLinearity": norms.FastNormNonLinearity,
    "GatedNonLinearity1": norms.FastGatedNonLinearity,
    "PointwiseMaxPool": _pool(torch.max_pool2d, *MAX_POOL),
    "PointwiseMaxPoolAntialiased": pointwise.FastBlur,
    "PointwiseAvgPool": _pool(F.avg_pool2d, *AVERAGE_POOL),
    "PointwiseAvgPoolAntialiased": pointwise.FastBlur,
    "PointwiseAdaptiveAvgPool": _pool(F.adaptive_avg_pool2d, "output_size"),
    "PointwiseAdaptiveMaxPool": _pool(pointwise.adaptive_max_pool2d, "output_size"),
    "GroupPooling": pointwise.FastGroupPooling,
    "NormPool": norms.FastNormPool,
    "InducedNormPool": norms.FastNormPool,
    "PointwiseDropout": lambda m: pointwise.FastDropout(m, F.dropout, p=m.p, inplace=m.inplace),
    "FieldDropout": norms.FastFieldDropout,
    "MaskModule": pointwise.FastMask,
    "RestrictionModule": pointwise.FastRestriction,
    "IdentityModule": pointwise.FastRestriction,
    "DisentangleModule": pointwise.FastChannelMap,
    "ReshuffleModule": pointwise.FastChannelMap,
    "R2Upsampling": pointwise.FastUpsampling,
}


@torch.no_grad()
def restore(fast: nn.Module, network: Network) -> Network:
    """Copy the state of an accelerated network into the network that it was made from, or one like it; return that.

    Filters that the original keeps in evaluation are made again.

    Raises
    ------
    ValueError
        where the network lacks a part of the state
    """
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
