"""Modules on plain tensors that take e2cnn's GeometricTensor, too; e2cnn's types can be copied and pickled.

The representations of e2cnn hold functions, which pickle refuses, and a deep copy of a network copies its groups. With
this module imported both store how a type is built: its group, and the names of representations.
"""

from __future__ import annotations

import copyreg
from typing import Any

from e2cnn import group as e2cnn_groups
from e2cnn import gspaces
from e2cnn.nn import FieldType, GeometricTensor
from torch import Tensor, nn

import galaxyhpc.steerable.compat  # noqa: F401  (first: e2cnn is broken without it)


class TensorModule(nn.Module):
    """A module of e2cnn as `compute`, a function of tensors."""

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

    def forward(self, x: Any) -> Any:
        """Compute a tensor, or a GeometricTensor."""
        return call_typed(self, x)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Load a state of e2cnn's module, too."""
        super()._load_from_state_dict(*arguments)
        ignore_derived_state(*arguments)


def ignore_derived_state(
    state: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: list[str], errors: Any
) -> None:
    """Let a state hold what e2cnn keeps beside parameters and statistics: filters, bases and indices."""
    unexpected[:] = [key for key in unexpected if not key.startswith(prefix)]


def call_typed(module: Any, x: Any) -> Any:
    """Compute a tensor, or a GeometricTensor of the module's type, and return the same."""
    if isinstance(x, Tensor):
        return module.compute(x)
    if x.type is not module.in_type and x.type != module.in_type:
        raise ValueError(f"{type(module).__name__}: got fields of type {x.type}; expected {module.in_type}")
    return GeometricTensor(module.compute(x.tensor), module.out_type)


def call_untyped(module: nn.Module, x: Tensor) -> Tensor:
    """Compute a tensor by any equivariant module."""
    y: Tensor = module(x) if hasattr(module, "compute") else module(GeometricTensor(x, module.in_type)).tensor
    return y


def _reduce_group(group: Any) -> tuple[Any, ...]:
    if isinstance(group, e2cnn_groups.CyclicGroup):
        return e2cnn_groups.cyclic_group, (group.order(),)
    if isinstance(group, e2cnn_groups.DihedralGroup):
        return e2cnn_groups.dihedral_group, (group.rotation_order,)
    make = e2cnn_groups.so2_group if isinstance(group, e2cnn_groups.SO2) else e2cnn_groups.o2_group
    return make, (group._maximum_frequency,)


def _reduce_gspace(space: Any) -> tuple[Any, ...]:
    arguments = {"fibergroup": space.fibergroup}
    if hasattr(space, "axis"):
        arguments["axis"] = space.axis
    return _make_gspace, (type(space), arguments)


def _make_gspace(space_class: Any, arguments: dict[str, Any]) -> Any:
    return space_class(**arguments)


def _reduce_representation(representation: Any) -> tuple[Any, ...]:
    arrays = (representation.change_of_basis, representation.change_of_basis_inv)
    nonlinearities = sorted(representation.supported_nonlinearities)
    names = (representation.name, list(representation.irreps))
    return _make_representation, (representation.group, *names, *arrays, nonlinearities)


def _make_representation(
    group: Any, name: str, irreps: list[str], change_of_basis: Any, inverse: Any, nonlinearities: list[str]
) -> Any:
    known = group.representations.get(name)
    if known is not None and known.irreps == irreps:
        return known
    options = {"change_of_basis_inv": inverse}
    return e2cnn_groups.Representation(group, name, irreps, change_of_basis, set(nonlinearities), **options)


def _reduce_field_type(field_type: Any) -> tuple[Any, ...]:
    return FieldType, (field_type.gspace, field_type.representations)


def _register_reducers() -> None:
    for group_class in (e2cnn_groups.CyclicGroup, e2cnn_groups.DihedralGroup, e2cnn_groups.SO2, e2cnn_groups.O2):
        copyreg.pickle(group_class, _reduce_group)
    for space_class in (gspaces.Rot2dOnR2, gspaces.FlipRot2dOnR2, gspaces.Flip2dOnR2, gspaces.TrivialOnR2):
        copyreg.pickle(space_class, _reduce_gspace)
    for class_ in vars(e2cnn_groups).values():
        if isinstance(class_, type) and issubclass(class_, e2cnn_groups.Representation):
            copyreg.pickle(class_, _reduce_representation)
    copyreg.pickle(FieldType, _reduce_field_type)


_register_reducers()
