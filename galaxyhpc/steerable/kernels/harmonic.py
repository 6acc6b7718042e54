"""Steerable convolution without the dense filter: the function of `layers.SteerableConv`, of the same weights.

Let Q be the change of basis from irreps to a field. In the basis of irreps every filter of e2cnn's basis is one small
block, from one irrep j of the input to one irrep l of the output, and copies of l share it:

    x' = Q^-1 x,    z[l, m] = K[l, m] * x'[j],    y'[l, copy] = sum over m of W[copy, m] z[l, m],    y = Q y'

where m counts the blocks that lead to l. The product with W does not know the d components of l apart, and there are 6
blocks a row of x' for 3x3 pixels: D16 needs 360 multiply-adds per pair of fields and pixel where its dense filter has
9,216. All entries of all blocks are multiples of few filters of pixels (6 for 3x3): these are applied first.

`reference` says so in plain tensors, `harmonic_tiles` does it fast on a CPU (Weiler and Cesa 2019, arXiv:1911.08251,
section 2.4 and appendix B, for the blocks).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from galaxyhpc.steerable import groups

FILTER_TOLERANCE = 1e-5  # two filters that differ by less, relative to the larger, are one: e2cnn samples in float32

BasisSpec = tuple[str, int, groups.FieldKind, groups.FieldKind, float | None]


@dataclass(frozen=True, eq=False)
class Irrep:
    """An irrep of the output with all its copies."""

    size: int
    components: NDArray[np.int64]  # (copies, size) rows of y'
    weight_indices: NDArray[np.int64]  # (blocks, copies) numbers in the basis


@dataclass(frozen=True, eq=False)
class Term:
    """A component of a block applied to x': the sum of `factors[i]` times row `rows[i]` seen through `filters[i]`."""

    in_irrep: int  # irrep of the input
    out_irrep: int  # place in Blocks.irreps
    component: int
    block: int
    in_components: tuple[int, ...]
    filter_indices: tuple[int, ...]
    factors: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class HarmonicBasis:
    """What a basis of filters is in the basis of irreps."""

    kernel_size: int  # px, the filter's side
    inputs: groups.Irreps
    outputs: groups.Irreps
    spatial_filters: NDArray[np.float64]  # (S, size^2), every entry of a block is a multiple of one
    irreps: tuple[Irrep, ...]  # of the output, that any block leads to
    terms: tuple[Term, ...]  # all rows of z, by input irrep

    @property
    def num_weights(self) -> int:
        """Weights of a pair of fields."""
        return sum(irrep.weight_indices.size for irrep in self.irreps)


@cache
def get_harmonic_basis(basis_spec: BasisSpec, is_transposed: bool = False) -> HarmonicBasis:
    """Find the blocks of a basis, or of the basis that brings gradients back: its transpose, turned by 180 degrees.

    Raises
    ------
    ValueError
        where a filter is more than one block
    """
    name, size, kind, out_kind, _ = basis_spec
    inputs, outputs = groups.get_irreps(name, kind), groups.get_irreps(name, out_kind)
    sampled = groups.get_basis(*basis_spec).filters.astype(np.float64)
    if is_transposed:
        inputs, outputs, sampled = outputs, inputs, sampled.swapaxes(1, 2)[..., ::-1, ::-1]
    turned = np.einsum("ao,boikl,ic->backl", outputs.change_of_basis.T, sampled, inputs.change_of_basis, optimize=True)
    filters = turned.reshape(*sampled.shape[:3], -1)
    ins, outs = _list_components(inputs), _list_components(outputs)
    found: dict[int, list[tuple[int, NDArray[Any], dict[int, int]]]] = {}  # kind -> input irrep, block, copy: number
    for number, each in enumerate(filters):
        slot, copy = _locate_block(each, ins, outs)
        block, same_kind = each[np.ix_(outs[copy], ins[slot])], found.setdefault(outputs.irrep_ids[copy], [])
        alike = [m for j, known, m in same_kind if j == slot and copy not in m and _is_same_filter(block, known)]
        if alike:
            alike[0][copy] = number
        else:
            same_kind.append((slot, block, {copy: number}))
    pixels: list[NDArray[Any]] = []
    irreps, terms = [], []
    for place, of_kind in enumerate(found.values()):
        copies = sorted(of_kind[0][2])
        if any(sorted(members) != copies for _, _, members in of_kind):
            raise ValueError(f"{basis_spec}: copies of an irrep have different filters")
        weights = np.array([[members[copy] for copy in copies] for _, _, members in of_kind])
        irreps.append(Irrep(len(outs[copies[0]]), np.array([outs[copy] for copy in copies]), weights))
        for m, (slot, block, _) in enumerate(of_kind):
            for component, entries in enumerate(block):
                sums = [
                    (int(row), *_match_or_add_filter(entry, pixels))
                    for row, entry in zip(ins[slot], entries, strict=True)
                ]
                rows, numbers, factors = zip(*[one for one in sums if one[2]], strict=True)
                terms.append(Term(slot, place, component, m, rows, numbers, factors))
    return HarmonicBasis(
        size, inputs, outputs, np.array(pixels), tuple(irreps), tuple(sorted(terms, key=lambda term: term.in_irrep))
    )


def _list_components(irreps: groups.Irreps) -> list[NDArray[np.int64]]:
    """Return the rows of each irrep."""
    ends = np.cumsum(irreps.sizes)
    return [np.arange(end - size, end) for end, size in zip(ends, irreps.sizes, strict=True)]


def _locate_block(
    basis_filter: NDArray[Any], in_components: list[NDArray[np.int64]], out_components: list[NDArray[np.int64]]
) -> tuple[int, int]:
    """Return which irrep of the input and which of the output a filter joins."""
    largest = np.abs(basis_filter).max()
    sizes, *begins = (
        np.abs(basis_filter).max(2),
        [some[0] for some in out_components],
        [some[0] for some in in_components],
    )
    for axis, begin in enumerate(begins):
        sizes = np.maximum.reduceat(sizes, begin, axis)
    joined = np.argwhere(sizes > FILTER_TOLERANCE * largest)
    if len(joined) != 1:
        raise ValueError(f"a filter of {len(joined)} blocks; allowed is one")
    copy, slot = joined[0]
    return int(slot), int(copy)


def _is_same_filter(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return left.shape == right.shape and bool(np.abs(left - right).max() < FILTER_TOLERANCE * np.abs(right).max())


def _match_or_add_filter(entry: NDArray[Any], spatial_filters: list[NDArray[Any]]) -> tuple[int, float]:
    """Return which of the known filters an entry is how many times, adding it to them where it is new."""
    length = float(np.linalg.norm(entry))
    if length < FILTER_TOLERANCE:
        return 0, 0.0
    for number, one in enumerate(spatial_filters):
        along = float(entry @ one)
        if np.linalg.norm(entry - along * one) < FILTER_TOLERANCE * length:
            return number, along
    spatial_filters.append(entry / length)
    return len(spatial_filters) - 1, length


def harmonic_conv_reference(x: Tensor, weight: Tensor, basis_spec: BasisSpec, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), by plain tensors."""
    of = get_harmonic_basis(basis_spec)
    d_in, d_out = len(of.inputs.change_of_basis), len(of.outputs.change_of_basis)
    fields = x.shape[1] // d_in
    given = weight.view(-1, fields, of.num_weights)
    hat = torch.einsum("rg,nfghw->nfrhw", _to_tensor(of.inputs.change_of_basis.T, x), x.unflatten(1, (fields, d_in)))
    kernels = _to_tensor(of.spatial_filters, x).view(-1, 1, of.kernel_size, of.kernel_size)
    seen = F.conv2d(hat.reshape(-1, 1, *x.shape[2:]), kernels, stride=stride, padding=padding)
    seen = seen.view(len(x), fields, d_in, *seen.shape[1:])
    found = seen.new_zeros(len(x), len(given), d_out, *seen.shape[-2:])
    for place, irrep in enumerate(of.irreps):
        for component in range(irrep.size):
            mine = [term for term in of.terms if (term.out_irrep, term.component) == (place, component)]
            z = torch.stack([_sum_term(seen, term) for term in sorted(mine, key=lambda term: term.block)])
            product = torch.einsum("ofmc,mnfhw->nochw", given[:, :, torch.from_numpy(irrep.weight_indices)], z)
            found[:, :, irrep.components[:, component]] = product
    y = torch.einsum("gr,norhw->noghw", _to_tensor(of.outputs.change_of_basis, x), found)
    return y.flatten(1, 2)


def _sum_term(filtered: Tensor, term: Term) -> Tensor:
    parts = zip(term.in_components, term.filter_indices, term.factors, strict=True)
    total: Tensor = sum(factor * filtered[:, :, row, number] for row, number, factor in parts)  # type: ignore[assignment]
    return total


def _to_tensor(values: NDArray[Any], like: Tensor) -> Tensor:
    return torch.tensor(values.copy(), dtype=like.dtype, device=like.device)
