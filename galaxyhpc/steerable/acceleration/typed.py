"""Modules on plain tensors that take a GeometricTensor, too, of e2cnn or escnn: known by name, as escnn is optional."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

LIBRARIES = ("e2cnn", "escnn")  # escnn, its successor, has the same modules; it is imported by nobody but its user


def get_library(class_: type) -> str | None:
    """Return the library that defines a class, or None."""
    library = class_.__module__.partition(".")[0]
    return library if library in LIBRARIES else None


def find_library(value: Any) -> str | None:
    """Return the library that defines the class of a value or one that it is derived from, or None."""
    return next(filter(None, map(get_library, type(value).__mro__)), None)


def is_equivariant(module: nn.Module) -> bool:
    """Whether a module is one of e2cnn or escnn, or derived from one."""
    return any(class_.__name__ == "EquivariantModule" and get_library(class_) for class_ in type(module).__mro__)


def make_geometric(x: Tensor, field_type: Any) -> Any:
    """Return a GeometricTensor of the library of its type."""
    return sys.modules[f"{find_library(field_type)}.nn"].GeometricTensor(x, field_type)


class TensorModule(nn.Module):
    """A module of e2cnn or escnn as `compute`, a function of tensors."""

    in_type: Any
    out_type: Any

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.in_type, self.out_type = original.in_type, original.out_type
        self.space, self.original_class = getattr(original, "space", None), type(original).__name__
        self.training = original.training

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        raise NotImplementedError

    def evaluate_output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the output, which modules that hold others ask for."""
        return (input_shape[0], self.out_type.size, *self.compute_sides(input_shape[2:]))

    def compute_sides(self, sides: Sequence[int]) -> Sequence[int]:
        """Return the sides of maps of these sides afterwards, in px."""
        return sides

    def forward(self, x: Any) -> Any:
        """Compute a tensor, or a GeometricTensor."""
        return call_typed(self, x)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Load a state of the original module, too."""
        super()._load_from_state_dict(*arguments)
        ignore_derived_state(*arguments)


def ignore_derived_state(
    state: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: list[str], errors: Any
) -> None:
    """Let a state hold what the original keeps beside parameters and statistics: filters, bases and indices."""
    unexpected[:] = [key for key in unexpected if not key.startswith(prefix)]


def compute_convolved_sides(sides: Sequence[int], kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """Return the sides of maps after a convolution, whose settings are numbers or one for each side."""
    per_side = [[value] * len(sides) if isinstance(value, int) else value for value in (kernel_size, stride, padding)]
    settings = zip(sides, *per_side, strict=True)
    return tuple((side + 2 * pad - dilation * (size - 1) - 1) // step + 1 for side, size, step, pad in settings)


def is_fast(module: nn.Module) -> bool:
    """Whether a module is one of e2cnn or escnn that was converted, and takes tensors."""
    return hasattr(module, "original_class")


def call_typed(module: Any, x: Any) -> Any:
    """Compute a tensor, or a GeometricTensor of the module's type, and return the same."""
    if isinstance(x, Tensor):
        return module.compute(x)
    if x.type is not module.in_type and x.type != module.in_type:
        raise ValueError(f"{type(module).__name__}: got fields of type {x.type}; expected {module.in_type}")
    points = () if getattr(x, "coords", None) is None else (x.coords,)  # of a cloud, which escnn has
    return type(x)(module.compute(x.tensor), module.out_type, *points)


def call_untyped(module: nn.Module, x: Tensor) -> Tensor:
    """Compute a tensor by any equivariant module."""
    y: Tensor = module(x) if is_fast(module) else module(make_geometric(x, module.in_type)).tensor
    return y
