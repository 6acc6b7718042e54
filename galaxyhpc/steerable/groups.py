"""The symmetry groups: their e2cnn equivalents, their action on pixels, and their filter bases.

C_N holds the N rotations by multiples of 360/N degrees, D_N those and N reflections. A basis is sampled once by a
one-field `R2Conv` of e2cnn with its default rings, so that a layer made from it equals e2cnn's layer. Arrays are
read-only because e2cnn's shared tensors let one model's `.to()` change another. e2cnn is imported on use: it takes as
long as torch, and a network without a group, a basis in the cache or the order of a group do not need it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

# how the channels of one field transform: 1 fixed, or |G| permuted; `in` and `out` are those of a registered basis
FieldKind = Literal["trivial", "regular", "in", "out"]


@dataclass(frozen=True)
class GridElement:
    """A group element that maps the pixel grid onto itself: a left-right reflection, then quarter turns."""

    is_mirrored: bool
    quarter_turns: int  # counter-clockwise

    def __call__(self, images: Tensor) -> Tensor:
        """Move the pixels of (..., H, W) images."""
        flipped = images.flip(-1) if self.is_mirrored else images
        return torch.rot90(flipped, self.quarter_turns, (-2, -1))


@dataclass(frozen=True, eq=False)
class SampledBasis:
    """A basis of the equivariant filters from one input field to one output field; read-only."""

    filters: np.ndarray  # (n_basis, d_out, d_in, k, k) float32
    std: np.ndarray  # (n_basis,) float32: standard deviation of a new weight, for one input field


def group_order(name: str) -> int:
    """Return the number of elements |G|."""
    family, n = _parse_name(name)
    return n if family == "C" else 2 * n


def count_rotations(name: str) -> int:
    """Return the number of rotations."""
    return _parse_name(name)[1]


def make_gspace(name: str) -> Any:
    """Return e2cnn's space of the group acting on the plane; a reflection keeps the vertical axis."""
    from e2cnn import gspaces

    import galaxyhpc.steerable.compat  # noqa: F401  (first: e2cnn is broken without it)

    family, n = _parse_name(name)
    if family == "C":
        return gspaces.Rot2dOnR2(n) if n > 1 else gspaces.TrivialOnR2()
    return gspaces.FlipRot2dOnR2(n) if n > 1 else gspaces.Flip2dOnR2()


def get_grid_elements(name: str) -> tuple[GridElement, ...]:
    """Return the elements that need no interpolation: multiples of 90 degrees and, for D_N, their reflections."""
    family, n = _parse_name(name)
    quarter_turns = [4 * r // n for r in range(n) if 4 * r % n == 0]
    reflections = (False, True) if family == "D" else (False,)
    return tuple(GridElement(is_mirrored, turns) for is_mirrored in reflections for turns in quarter_turns)


def get_restriction_permutation(name: str, subgroup: str) -> tuple[int, ...]:
    """Return the order of a regular field's channels in which they form adjacent regular fields of a subgroup.

    A regular field has one channel for each element; the subgroup H permutes those of one coset Hg among themselves,
    as it permutes its own elements.
    """
    num_rotations = count_rotations(name)
    subgroup_elements = _list_elements(subgroup, num_rotations)
    remaining, order = _list_elements(name, num_rotations), []
    channels = {element: channel for channel, element in enumerate(remaining)}
    while remaining:
        coset = [_multiply_elements(h, remaining[0], num_rotations) for h in subgroup_elements]
        order += [channels[element] for element in coset]
        remaining = [element for element in remaining if element not in coset]
    return tuple(order)


def _list_elements(name: str, num_rotations: int) -> list[tuple[int, int]]:
    """List a group's elements in e2cnn's order: (is mirrored, rotation in units of 360 / `num_rotations` degrees)."""
    family, n = _parse_name(name)
    return [(mirrored, r * num_rotations // n) for mirrored in range(1 + (family == "D")) for r in range(n)]


def _multiply_elements(left: tuple[int, int], right: tuple[int, int], num_rotations: int) -> tuple[int, int]:
    return (left[0] ^ right[0], (left[1] + (-right[1] if left[0] else right[1])) % num_rotations)


@cache
def get_basis(
    name: str,
    kernel_size: int,
    kind: FieldKind = "regular",
    out_kind: FieldKind = "regular",
    cutoff: float | None = None,
) -> SampledBasis:
    """Return the basis of (kernel_size, kernel_size) px filters from one field to one field, cached on the disk.

    `cutoff` limits the angular frequency at radius r px to cutoff x r; without it e2cnn's own limits hold.
    """
    if name in _registered_bases:
        return _registered_bases[name][0]
    from galaxyhpc.steerable.basis_cache import load_or_sample

    key = {"group": name, "kernel_size": kernel_size, "kinds": (kind, out_kind), "cutoff": cutoff}
    return SampledBasis(*load_or_sample(key, lambda: _sample_basis(name, kernel_size, kind, out_kind, cutoff)))


@dataclass(frozen=True, eq=False)
class Irreps:
    """A field as a direct sum of irreducible representations: field = change_of_basis @ irreps; read-only."""

    change_of_basis: np.ndarray  # (d, d) float64, orthogonal
    sizes: tuple[int, ...]  # of each irrep, 1 or 2
    irrep_ids: tuple[int, ...]  # equal ids are copies of one irrep


@cache
def get_irreps(name: str, kind: FieldKind) -> Irreps:
    """Return e2cnn's decomposition of a field."""
    if name in _registered_bases:
        _, inputs, outputs = _registered_bases[name]
        return inputs if kind == "in" else outputs
    if kind == "trivial":
        return Irreps(np.ones((1, 1)), (1,), (0,))
    from galaxyhpc.steerable.basis_cache import load_or_sample

    def decompose() -> tuple[np.ndarray, np.ndarray]:
        space = make_gspace(name)
        regular, irreps = space.regular_repr, space.fibergroup.irreps
        names = list(dict.fromkeys(regular.irreps))
        slots = [(irreps[irrep].size, names.index(irrep)) for irrep in regular.irreps]
        return np.array(regular.change_of_basis, dtype=np.float64), np.array(slots)

    change_of_basis, slots = load_or_sample({"group": name, "irreps": "regular"}, decompose)
    return Irreps(change_of_basis, *(tuple(column) for column in slots.T.tolist()))


_registered_bases: dict[str, tuple[SampledBasis, Irreps, Irreps]] = {}  # by digest


def register_basis(filters: np.ndarray, inputs: Irreps, outputs: Irreps) -> tuple[str, int, FieldKind, FieldKind, None]:
    """Make a basis of filters (n_basis, d_out, d_in, k, k) between any two fields known to this process.

    The arguments of `get_basis` that stand for it are returned. They follow from its values alone, so that a process
    that registers the same basis gives it the same name.
    """
    arrays = (filters, inputs.change_of_basis, outputs.change_of_basis)
    digest = hashlib.sha256(
        repr((filters.shape, inputs.sizes, inputs.irrep_ids, outputs.sizes, outputs.irrep_ids)).encode()
    )
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    name = f"basis-{digest.hexdigest()[:32]}"
    if name not in _registered_bases:
        std = np.full(len(filters), np.nan, np.float32)  # its weights come with it
        _registered_bases[name] = SampledBasis(filters, std), inputs, outputs
    return name, filters.shape[-1], "in", "out", None


def _sample_basis(
    name: str, kernel_size: int, kind: FieldKind, out_kind: FieldKind, cutoff: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sample with e2cnn."""
    import e2cnn.nn
    from e2cnn.nn.init import _generalized_he_init_variances

    import galaxyhpc.steerable.compat  # noqa: F401  (first: e2cnn is broken without it)

    with torch.device("cpu"):  # the caller may be building on the meta device
        space = make_gspace(name)
        fields = {"trivial": space.trivial_repr, "regular": space.regular_repr}
        types = [e2cnn.nn.FieldType(space, [fields[field_kind]]) for field_kind in (kind, out_kind)]
        convolution = e2cnn.nn.R2Conv(*types, kernel_size, bias=False, frequencies_cutoff=cutoff, initialize=False)
        (block,) = convolution.basisexpansion.children()
        filters = block.sampled_basis.unflatten(-1, (kernel_size, kernel_size))
        std = _generalized_he_init_variances(convolution.basisexpansion)
        return filters.float().numpy().copy(), std.float().numpy().copy()


def _parse_name(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"([CD])([1-9]\d?)", name)
    if match is None:
        raise ValueError(f"group: got {name!r}; expected C1, C2 ... (rotations) or D1, D2 ... (with reflections)")
    return match[1], int(match[2])
