"""How maps in the basis of irreps lie in a GPU's memory, and the tables and constants by which its kernels read them.

A map has a plane (pixels, copies, fields) for each component of each irrep, which its copies share. z has a matrix
(pixels, blocks x fields) for each component of each irrep of the output. Copies of an irrep of the input have the same
filters: they are read as if they were more fields, and their blocks are neighbours in z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from galaxyhpc.steerable.kernels.harmonic import BasisSpec, HarmonicBasis, Irrep, Term, get_harmonic_basis

ACCESS_BYTES = 16  # read or written by a thread at once

# planes of one copy before the component's, copies, index of the copy; of z: matrices of one block, blocks, the block
Place = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class FieldLayout:
    """The components of a field's irreps that any block leads to, and their places in memory."""

    to_irreps: Tensor  # (parts, RP, DP)
    to_field: Tensor  # (parts, DP, RP)
    table: Tensor  # (components, 3) int32, a `Place` of each
    constant: Tensor  # (components,) float64, of a field whose channels are one
    channels: int
    max_copies: int  # of an irrep

    @property
    def num_planes(self) -> int:
        """Number of planes of one copy."""
        return len(self.table)

    def count_pixels(self, x_hat: Tensor, fields: int) -> int:
        """Return the number of pixels of maps with this number of fields in memory."""
        return len(x_hat) // (self.num_planes * fields)

    def pad_fields(self, fields: int) -> int:
        """Return a number of fields, rounded up: at a pixel all copies of most irreps take whole accesses."""
        access = ACCESS_BYTES // self.to_irreps.element_size()
        multiple = access // math.gcd(access, self.max_copies)
        return -(-fields // multiple) * multiple


@dataclass(frozen=True, eq=False)
class InputBatch:
    """Irreps of the input with equal numbers of components and copies, which one launch reads."""

    num_irreps: int
    size: int
    copies: int
    targets: Tensor  # (irreps, MP, 3) int32, the `Place` in z of each map; (0, 0, 0) for padding
    constants: Tensor  # (irreps, parts, MP, KP)
    alignment: int  # divides copies and the places of blocks in z


@dataclass(frozen=True, eq=False)
class OutputBatch:
    """Irreps of the output with equal numbers of components, blocks and copies, computed by one batched product."""

    size: int
    weight_indices: Tensor  # (irreps, blocks, copies) int64, in the basis


@dataclass(frozen=True, eq=False)
class Plan:
    """The blocks of a basis, or of its transpose, as the kernels read them."""

    basis: HarmonicBasis
    transposed: HarmonicBasis
    inputs: FieldLayout
    outputs: FieldLayout
    input_batches: tuple[InputBatch, ...]
    output_batches: tuple[OutputBatch, ...]

    def count_z_bytes(self, x_hat: Tensor, fields: int) -> int:
        """Return the bytes of z for one pixel."""
        return len(self.basis.terms) * fields * x_hat.element_size()

    def gather_weights(self, weight: Tensor) -> list[Tensor]:
        """Weights (fields of the output, of the input, basis) -> (irreps, blocks x fields, copies x fields)."""
        fields = (self.outputs.pad_fields(len(weight)), self.inputs.pad_fields(weight.shape[1]))
        padded = pad(weight, (0, 0, 0, fields[1] - weight.shape[1], 0, fields[0] - len(weight)))
        matrices = (padded[:, :, batch.weight_indices].permute(2, 3, 1, 4, 0) for batch in self.output_batches)
        return [matrix.flatten(3).flatten(1, 2).contiguous() for matrix in matrices]

    def scatter_gradients(self, gradients: Sequence[Tensor], fields: tuple[int, int]) -> Tensor:
        """Return the gradient of the weights (fields of the output, of the input, basis) from those of the matrices."""
        grad_weight = gradients[0].new_empty(*fields, self.basis.num_weights)
        for batch, gradient in zip(self.output_batches, gradients, strict=True):
            _, blocks, copies = batch.weight_indices.shape
            by_field = gradient.unflatten(2, (copies, -1)).unflatten(1, (blocks, -1)).permute(4, 2, 0, 1, 3)
            grad_weight[:, :, batch.weight_indices] = by_field[: fields[0], : fields[1]]
        return grad_weight


@cache
def get_plan(basis_spec: BasisSpec, is_transposed: bool, device: torch.device, dtype: torch.dtype) -> Plan:
    """Return the plan of a basis, or of its transpose, for maps of this type and device."""
    basis, transposed = get_harmonic_basis(basis_spec, is_transposed), get_harmonic_basis(basis_spec, not is_transposed)
    terms = [_list_terms(basis, irrep) for irrep in transposed.irreps]
    block_order = order_blocks(basis, transposed)
    places = _place_blocks(basis, block_order)
    inputs = []
    for indices in group_irreps_by_shape(transposed):
        copies, size = transposed.irreps[indices[0]].components.shape
        batch_terms = [terms[index][0] for index in indices]
        constants = _split_precision(_make_constants(basis, size, batch_terms), dtype, device)
        targets = torch.zeros(len(indices), constants.shape[2], 3, dtype=torch.int32)
        for irrep_targets, irrep_terms in zip(targets, batch_terms, strict=True):
            irrep_places = [places[term.out_irrep, term.component, term.block] for term in irrep_terms]
            irrep_targets[: len(irrep_places)] = torch.tensor(irrep_places)
        alignment = math.gcd(copies, *targets.flatten().tolist())
        inputs.append(InputBatch(len(indices), size, copies, targets.to(device), constants, alignment))
    outputs = []
    for indices in group_irreps_by_shape(basis):
        weight_indices = [basis.irreps[index].weight_indices[block_order[index]] for index in indices]
        size = basis.irreps[indices[0]].size
        outputs.append(OutputBatch(size, torch.tensor(np.stack(weight_indices), device=device)))
    layouts = (
        _make_field_layout(basis.inputs.change_of_basis, transposed, device, dtype),
        _make_field_layout(basis.outputs.change_of_basis, basis, device, dtype),
    )
    return Plan(basis, transposed, *layouts, tuple(inputs), tuple(outputs))


def group_irreps_by_shape(basis: HarmonicBasis) -> list[list[int]]:
    """Return the indices of the output irreps by shape, each in the order of components, as for the transpose."""
    shapes = [(irrep.size, *irrep.weight_indices.shape) for irrep in basis.irreps]
    order = sorted(range(len(shapes)), key=lambda index: int(basis.irreps[index].components.min()))
    return [[index for index in order if shapes[index] == shape] for shape in sorted(set(shapes))]


def _list_terms(basis: HarmonicBasis, irrep: Irrep) -> list[list[Term]]:
    """Return the terms of each copy of an irrep of the input, in one order."""
    begins = list(np.cumsum([0, *basis.inputs.sizes]))
    slots = [begins.index(components[0]) for components in irrep.components]
    return [[term for term in basis.terms if term.in_irrep == slot] for slot in slots]


def order_blocks(basis: HarmonicBasis, transposed: HarmonicBasis) -> list[list[int]]:
    """Return the blocks of each irrep of the output, those of copies of an irrep of the input side by side.

    Those of most copies come first, so that their places have common divisors.
    """
    terms = [_list_terms(basis, irrep) for irrep in transposed.irreps]
    order: list[list[int]] = [[] for _ in basis.irreps]
    for irrep_terms in sorted(terms, key=len, reverse=True):
        for copies in zip(*irrep_terms, strict=True):
            if copies[0].component == 0:
                order[copies[0].out_irrep] += [term.block for term in copies]
    return order


def _place_blocks(basis: HarmonicBasis, block_order: list[list[int]]) -> dict[tuple[int, int, int], Place]:
    """Return the place in z of each irrep of the output, component of it and block."""
    places: dict[tuple[int, int, int], Place] = {}
    for indices in group_irreps_by_shape(basis):
        for index, component in product(indices, range(basis.irreps[indices[0]].size)):
            blocks, before = block_order[index], len(places)
            places |= {(index, component, block): (before, len(blocks), n) for n, block in enumerate(blocks)}
    return places


def _make_constants(basis: HarmonicBasis, size: int, terms: list[list[Term]]) -> Tensor:
    """Return the filters (irreps of the input, MP, KP), taps of all components side by side."""
    taps = basis.kernel_size**2
    rows = _round_up_to_tile(max(map(len, terms)))
    constants = torch.zeros(len(terms), rows, _round_up_to_tile(size * taps), dtype=torch.float64)
    begins = np.cumsum([0, *basis.inputs.sizes])
    for irrep_constants, irrep_terms in zip(constants, terms, strict=True):
        for row, term in zip(irrep_constants, irrep_terms, strict=False):
            for component, index, factor in zip(term.in_components, term.filter_indices, term.factors, strict=True):
                start = (component - begins[term.in_irrep]) * taps
                row[start : start + taps] += factor * torch.tensor(basis.spatial_filters[index])
    return constants


def place_components(basis: HarmonicBasis) -> dict[int, Place]:
    """Return the places in memory of the components of the field that is the output of a basis, in their order."""
    layout: dict[int, Place] = {}
    for index in (index for indices in group_irreps_by_shape(basis) for index in indices):
        for copies in basis.irreps[index].components.T:
            before = len(layout)
            layout |= {int(component): (before, len(copies), copy) for copy, component in enumerate(copies)}
    return layout


def _make_field_layout(
    change_of_basis: NDArray[np.float64], basis: HarmonicBasis, device: torch.device, dtype: torch.dtype
) -> FieldLayout:
    """Lay out the field that is the output of a basis."""
    layout = place_components(basis)
    channels, rows = len(change_of_basis), len(layout)
    matrix = torch.zeros(_round_up_to_tile(channels), _round_up_to_tile(rows), dtype=torch.float64)
    matrix[:channels, :rows] = torch.tensor(change_of_basis[:, list(layout)])
    to_irreps, to_field = (_split_precision(values, dtype, device) for values in (matrix.T, matrix))
    table = torch.tensor(list(layout.values()), dtype=torch.int32, device=device)
    constant = to_field.double().sum((0, 1))[:rows]  # as rounded
    max_copies = max(len(irrep.components) for irrep in basis.irreps)
    return FieldLayout(to_irreps, to_field, table, constant, channels, max_copies)


def _round_up_to_tile(count: int) -> int:
    """Return the side of a tile that Triton can multiply, a power of two of at least 16."""
    return max(16, 1 << (count - 1).bit_length())


def _split_precision(matrices: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Round (..., M, K) to (..., parts, M, K): to a sum of two numbers where the type is half, as exact as float32."""
    high = matrices.to(dtype)
    parts = [high, (matrices - high.double()).to(dtype)] if dtype.itemsize == 2 else [high]
    return torch.stack(parts, -3).to(device).contiguous()
