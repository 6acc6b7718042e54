"""Steerable convolution without the dense filter: the function of `layers.SteerableConv`, with the same weights.

Let Q be the change of basis from irreps to a field. In the basis of irreps every filter of e2cnn's basis is one small
block, from one irrep j of the input to one irrep l of the output, and copies of l share it (Weiler and Cesa 2019,
arXiv:1911.08251, section 2.4 and appendix B):

    x' = Q^-1 x,    z[l, m] = K[l, m] * x'[j],    y'[l, copy] = sum over m of W[copy, m] z[l, m],    y = Q y'

where m counts the blocks that lead to l. The product with W is the same for all components of l, and there are 6
blocks per component of x' for 3x3 pixels: D16 needs 360 multiply-adds per pair of fields and pixel where its dense
filter has 9,216. All entries of all blocks are multiples of few spatial filters (6 for 3x3), which are applied first.

`harmonic_conv_reference` computes this in plain tensors, `cpu` and `gpu` compute it fast.
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

FILTER_TOLERANCE = 1e-5  # relative; filters that differ by less are equal: e2cnn samples in float32

BasisSpec = tuple[str, int, groups.FieldKind, groups.FieldKind, float | None]


@dataclass(frozen=True, eq=False)
class Irrep:
    """An irrep of the output field with all its copies."""

    size: int
    components: NDArray[np.int64]  # (copies, size) indices of components of y'
    weight_indices: NDArray[np.int64]  # (blocks, copies) indices of weights in the basis


@dataclass(frozen=True, eq=False)
class Term:
    """A component of z, a block applied to x': the sum over i of factor i x (spatial filter i * component i of x')."""

    in_irrep: int  # index of the irrep of the input
    out_irrep: int  # index in `HarmonicBasis.irreps`
    component: int  # of the output irrep
    block: int
    in_components: tuple[int, ...]  # of x'
    filter_indices: tuple[int, ...]  # in `HarmonicBasis.spatial_filters`
    factors: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class HarmonicBasis:
    """A basis of filters, written in the basis of irreps."""

    kernel_size: int  # px, the filter's side
    inputs: groups.Irreps
    outputs: groups.Irreps
    spatial_filters: NDArray[np.float64]  # (S, kernel_size^2); every entry of a block is a multiple of one of them
    irreps: tuple[Irrep, ...]  # of the output, those that any block leads to
    terms: tuple[Term, ...]  # all components of z, ordered by input irrep

    @property
    def num_weights(self) -> int:
        """Number of weights of a pair of fields."""
        return sum(irrep.weight_indices.size for irrep in self.irreps)


@cache
def get_harmonic_basis(basis_spec: BasisSpec, is_transposed: bool = False) -> HarmonicBasis:
    """Find the blocks of a basis, or of the basis of the gradient: its transpose, rotated by 180 degrees.

    Raises
    ------
    ValueError
        where a filter has more than one block
    """
    name, size, kind, out_kind, _ = basis_spec
    inputs, outputs = groups.get_irreps(name, kind), groups.get_irreps(name, out_kind)
    sampled = groups.get_basis(*basis_spec).filters.astype(np.float64)
    if is_transposed:
        inputs, outputs, sampled = outputs, inputs, sampled.swapaxes(1, 2)[..., ::-1, ::-1]
    n_basis, d_out, d_in = sampled.shape[:3]
    rotated = outputs.change_of_basis.T @ sampled.reshape(n_basis, d_out, -1)  # einsum would copy it several times
    filters = inputs.change_of_basis.T @ rotated.reshape(n_basis, d_out, d_in, -1)
    in_components, out_components = _list_components(inputs), _list_components(outputs)
    # id of the output irrep -> (index of the input irrep, block, {copy: index of its weight})
    blocks_by_irrep: dict[int, list[tuple[int, NDArray[Any], dict[int, int]]]] = {}
    for weight_index, basis_filter in enumerate(filters):
        slot, copy = _locate_block(basis_filter, in_components, out_components)
        block = basis_filter[np.ix_(out_components[copy], in_components[slot])]
        blocks = blocks_by_irrep.setdefault(outputs.irrep_ids[copy], [])
        equal = [m for j, other, m in blocks if j == slot and copy not in m and _is_same_filter(block, other)]
        if equal:
            equal[0][copy] = weight_index
        else:
            blocks.append((slot, block, {copy: weight_index}))
    spatial_filters: list[NDArray[Any]] = []
    irreps, terms = [], []
    for out_irrep, blocks in enumerate(blocks_by_irrep.values()):
        copies = sorted(blocks[0][2])
        if any(sorted(weight_of_copy) != copies for _, _, weight_of_copy in blocks):
            raise ValueError(f"{basis_spec}: copies of an irrep have different filters")
        weights = np.array([[weight_of_copy[copy] for copy in copies] for _, _, weight_of_copy in blocks])
        components = np.array([out_components[copy] for copy in copies])
        irreps.append(Irrep(len(out_components[copies[0]]), components, weights))
        for block_index, (slot, block, _) in enumerate(blocks):
            for component, entries in enumerate(block):
                sums = [
                    (int(in_component), *_match_or_add_filter(entry, spatial_filters))
                    for in_component, entry in zip(in_components[slot], entries, strict=True)
                ]
                summands = zip(*[summand for summand in sums if summand[2]], strict=True)
                terms.append(Term(slot, out_irrep, component, block_index, *summands))
    terms.sort(key=lambda term: term.in_irrep)
    return HarmonicBasis(size, inputs, outputs, np.array(spatial_filters), tuple(irreps), tuple(terms))


def _list_components(irreps: groups.Irreps) -> list[NDArray[np.int64]]:
    """Return the indices of the components of each irrep."""
    ends = np.cumsum(irreps.sizes)
    return [np.arange(end - size, end) for end, size in zip(ends, irreps.sizes, strict=True)]


def _locate_block(
    basis_filter: NDArray[Any], in_components: list[NDArray[np.int64]], out_components: list[NDArray[np.int64]]
) -> tuple[int, int]:
    """Return the index of the input irrep and of the output irrep that a filter connects."""
    sizes = np.abs(basis_filter).max(2)
    for axis, components in enumerate((out_components, in_components)):
        sizes = np.maximum.reduceat(sizes, [indices[0] for indices in components], axis)
    blocks = np.argwhere(sizes > FILTER_TOLERANCE * np.abs(basis_filter).max())
    if len(blocks) != 1:
        raise ValueError(f"filter basis: got a filter of {len(blocks)} blocks; expected 1")
    copy, slot = blocks[0]
    return int(slot), int(copy)


def _is_same_filter(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return left.shape == right.shape and bool(np.abs(left - right).max() < FILTER_TOLERANCE * np.abs(right).max())


def _match_or_add_filter(entry: NDArray[Any], spatial_filters: list[NDArray[Any]]) -> tuple[int, float]:
    """Return the index of the filter that an entry is a multiple of, and the factor; add it to them where it is new."""
    length = float(np.linalg.norm(entry))
    if length < FILTER_TOLERANCE:
        return 0, 0.0
    for index, spatial_filter in enumerate(spatial_filters):
        factor = float(entry @ spatial_filter)
        if np.linalg.norm(entry - factor * spatial_filter) < FILTER_TOLERANCE * length:
            return index, factor
    spatial_filters.append(entry / length)
    return len(spatial_filters) - 1, length


def harmonic_conv_reference(x: Tensor, weight: Tensor, basis_spec: BasisSpec, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), in plain tensors."""
    basis = get_harmonic_basis(basis_spec)
    d_in, d_out = len(basis.inputs.change_of_basis), len(basis.outputs.change_of_basis)
    fields = x.shape[1] // d_in
    weights = weight.view(-1, fields, basis.num_weights)
    x_hat = torch.einsum(
        "rg,nfghw->nfrhw", _to_tensor(basis.inputs.change_of_basis.T, x), x.unflatten(1, (fields, d_in))
    )
    kernels = _to_tensor(basis.spatial_filters, x).view(-1, 1, basis.kernel_size, basis.kernel_size)
    filtered = F.conv2d(x_hat.reshape(-1, 1, *x.shape[2:]), kernels, stride=stride, padding=padding)
    filtered = filtered.view(len(x), fields, d_in, *filtered.shape[1:])
    y_hat = filtered.new_zeros(len(x), len(weights), d_out, *filtered.shape[-2:])
    for out_irrep, irrep in enumerate(basis.irreps):
        for component in range(irrep.size):
            terms = [term for term in basis.terms if (term.out_irrep, term.component) == (out_irrep, component)]
            z = torch.stack([_sum_term(filtered, term) for term in sorted(terms, key=lambda term: term.block)])
            product = torch.einsum("ofmc,mnfhw->nochw", weights[:, :, torch.from_numpy(irrep.weight_indices)], z)
            y_hat[:, :, irrep.components[:, component]] = product
    y = torch.einsum("gr,norhw->noghw", _to_tensor(basis.outputs.change_of_basis, x), y_hat)
    return y.flatten(1, 2)


def _sum_term(filtered: Tensor, term: Term) -> Tensor:
    parts = zip(term.in_components, term.filter_indices, term.factors, strict=True)
    total: Tensor = sum(factor * filtered[:, :, row, number] for row, number, factor in parts)  # type: ignore[assignment]
    return total


def _to_tensor(values: NDArray[Any], like: Tensor) -> Tensor:
    return torch.tensor(values.copy(), dtype=like.dtype, device=like.device)
