"""Types of fields, of e2cnn and escnn, can be copied and pickled.

Their representations hold functions, which pickle refuses, and a deep copy of a network copies e2cnn's groups. With
this module imported both store how a type is built: its group, and the names of representations.
"""

from __future__ import annotations

import copyreg
import importlib
from functools import cache
from typing import Any

from e2cnn import group as e2cnn_groups
from e2cnn import gspaces

import galaxyhpc.steerable.compat  # noqa: F401  (first: e2cnn is broken without it)
from galaxyhpc.steerable.acceleration.typed import get_library


@cache
def make_types_picklable(library: str | None) -> None:
    """Register how the types of an imported library are copied and pickled."""
    groups, nn = (importlib.import_module(f"{library}.{name}") for name in ("group", "nn"))
    reduce_group, reduce_space = (_reduce_group, _reduce_gspace)
    spaces: tuple[Any, ...] = (gspaces.Rot2dOnR2, gspaces.FlipRot2dOnR2, gspaces.Flip2dOnR2, gspaces.TrivialOnR2)
    if library == "escnn":
        reduce_group, reduce_space = _reduce_escnn_group, _reduce_escnn_gspace
        spaces = (importlib.import_module("escnn.gspaces").GSpace2D,)
    for group_class in (groups.CyclicGroup, groups.DihedralGroup, groups.SO2, groups.O2):
        copyreg.pickle(group_class, reduce_group)
    for space_class in spaces:
        copyreg.pickle(space_class, reduce_space)
    for class_ in vars(groups).values():
        if isinstance(class_, type) and issubclass(class_, groups.Representation):
            copyreg.pickle(class_, _reduce_representation)
    copyreg.pickle(nn.FieldType, _reduce_field_type)


def _reduce_group(group: Any) -> tuple[Any, ...]:
    if isinstance(group, e2cnn_groups.CyclicGroup):
        return e2cnn_groups.cyclic_group, (group.order(),)
    if isinstance(group, e2cnn_groups.DihedralGroup):
        return e2cnn_groups.dihedral_group, (group.rotation_order,)
    make = e2cnn_groups.so2_group if isinstance(group, e2cnn_groups.SO2) else e2cnn_groups.o2_group
    return make, (group._maximum_frequency,)


def _reduce_escnn_group(group: Any) -> tuple[Any, ...]:
    frequency = getattr(group, "_maximum_frequency", None)
    keys = group._keys if frequency is None else {"maximum_frequency": frequency}
    return _make_escnn_group, (type(group), keys)


def _make_escnn_group(group_class: Any, keys: dict[str, Any]) -> Any:
    return group_class._generator(**keys)


def _reduce_gspace(space: Any) -> tuple[Any, ...]:
    arguments = {"fibergroup": space.fibergroup}
    if hasattr(space, "axis"):
        arguments["axis"] = space.axis
    return _make_gspace, (type(space), arguments)


def _reduce_escnn_gspace(space: Any) -> tuple[Any, ...]:
    arguments = {"sg_id": space._sg_id}
    frequency = getattr(space.fibergroup, "_maximum_frequency", None)
    if frequency is not None:
        arguments["maximum_frequency"] = frequency
    return _make_gspace, (type(space), arguments)


def _make_gspace(space_class: Any, arguments: dict[str, Any]) -> Any:
    make_types_picklable(get_library(space_class))  # also in a process that only loads
    return space_class(**arguments)


def _reduce_representation(representation: Any) -> tuple[Any, ...]:
    group, irrep_id = representation.group, getattr(representation, "id", None)
    if isinstance(irrep_id, tuple):  # of escnn, whose groups build irreps on demand
        return _get_irrep, (group, irrep_id)
    make = next(base for base in type(representation).__mro__ if base.__name__ == "Representation")
    arrays = (representation.change_of_basis, representation.change_of_basis_inv)
    names = (representation.name, list(representation.irreps))
    return _make_representation, (make, group, *names, *arrays, sorted(representation.supported_nonlinearities))


def _get_irrep(group: Any, irrep_id: tuple[int, ...]) -> Any:
    return group.irrep(*irrep_id)


def _make_representation(
    make: Any, group: Any, name: str, irreps: list[Any], change_of_basis: Any, inverse: Any, nonlinearities: list[str]
) -> Any:
    known = group.representations.get(name)
    if known is not None and known.irreps == irreps:
        return known
    return make(group, name, irreps, change_of_basis, set(nonlinearities), change_of_basis_inv=inverse)


def _reduce_field_type(field_type: Any) -> tuple[Any, ...]:
    return type(field_type), (field_type.gspace, field_type.representations)
