"""The harmonic convolution on a GPU: Triton kernels of `triton_kernels` and batched matrix products.

    field_to_irreps    x  -> x'      Q^-1
    compute_z          x' -> z       the blocks
    torch.bmm          z  -> y'      the weights; one product for all irreps of the output of one shape
    irreps_to_field    y' -> y       Q

Forward and backward keep only x and process a few images of a batch at a time. The gradient of x is the same function
with the transposed filters, and its z gives the weights' gradient, too: z of y' times x' equals z of x' times y'. All
maps lie on one grid, the padded input; a stride skips pixels of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from galaxyhpc.steerable.kernels import triton_kernels as kernels
from galaxyhpc.steerable.kernels.harmonic import BasisSpec, HarmonicBasis, Irrep, get_harmonic_basis

CHUNK_BYTES = 1 << 30  # of z
TILE_COLUMNS = 256  # pixels x fields of a tile
TILES_PER_PROGRAM = 4  # of `compute_z`: while one tile is computed, the next are loaded
_HAS_FLOAT32_PRODUCTS = "dtype" in torch.ops.aten.bmm.overloads()  # torch >= 2.8
MAX_LOADED_BYTES = 1 << 15  # of a tile's neighbours: several tiles fit in shared memory

# component of a field's irreps -> planes before its group of copies, copies in the group, its index in the group
ComponentLayout = dict[int, tuple[int, int, int]]


@dataclass(frozen=True, eq=False)
class _IrrepBatch:
    """Irreps of the output with equal sizes, computed by one batched product."""

    size: int
    weight_indices: Tensor  # (irreps, blocks, copies) int64, in the basis
    padded_copies: int  # number of copies, rounded up for alignment


@dataclass(frozen=True, eq=False)
class FieldLayout:
    """The components of a field's irreps that any block leads to, and their places in memory."""

    to_irreps: Tensor  # (parts, RP, DP)
    to_field: Tensor  # (parts, DP, RP)
    table: Tensor  # (components, 3) int32, see `ComponentLayout`
    num_planes: int  # components and padding
    channels: int


@dataclass(frozen=True, eq=False)
class Plan:
    """The blocks of a basis, or of its transpose, as the kernels read them."""

    basis: HarmonicBasis
    irrep_batches: tuple[_IrrepBatch, ...]
    inputs: FieldLayout
    outputs: FieldLayout
    source_table: Tensor  # (components of x', 3) int32, see `ComponentLayout`; (0, 1, 0) for one that no block reads
    slot_table: Tensor  # (irreps of the input, 3) int32: first component, components, maps of z
    target_table: Tensor  # (irreps of the input x MP, 3) int32, of the maps of z, see `ComponentLayout`
    constants: Tensor  # (parts, irreps of the input, MP, KP)

    def count_z_bytes(self, x: Tensor, fields: int) -> int:
        """Return the bytes of z for one pixel."""
        return len(self.basis.terms) * fields * x.element_size()


def _round_up_to_power_of_two(count: int) -> int:
    """Return the side of a tile that Triton can multiply, at least 16."""
    return max(16, 1 << (count - 1).bit_length())


def _split_precision(values: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Round constants to a type; to a sum of two numbers where the type is a half one, as exact as float32."""
    high = values.to(dtype)
    parts = [high, (values - high.double()).to(dtype)] if dtype.itemsize == 2 else [high]
    return torch.stack(parts).to(device).contiguous()


def _group_irreps_by_shape(basis: HarmonicBasis) -> list[list[int]]:
    """Return the indices of the output irreps by shape, each in the order of components, as for the transpose."""
    shapes = [(irrep.size, *irrep.weight_indices.shape) for irrep in basis.irreps]
    order = sorted(range(len(shapes)), key=lambda index: int(basis.irreps[index].components.min()))
    return [[index for index in order if shapes[index] == shape] for shape in sorted(set(shapes))]


def _count_padded_copies(irrep: Irrep, should_pad: bool) -> int:
    """Return the number of copies in memory; even where an odd number of narrow columns would be slow to read."""
    copies = len(irrep.components)
    return copies + copies % 2 if should_pad and irrep.size == 1 else copies


def _lay_out_components(basis: HarmonicBasis, should_pad: bool) -> tuple[ComponentLayout, int]:
    """Return the places of the components of y', and the number of planes."""
    layout: ComponentLayout = {}
    num_planes = 0
    for index in chain.from_iterable(_group_irreps_by_shape(basis)):
        irrep = basis.irreps[index]
        copies = _count_padded_copies(irrep, should_pad)
        for component in irrep.components.T:
            layout |= {int(row): (num_planes, copies, copy) for copy, row in enumerate(component)}
            num_planes += copies
    return layout, num_planes


@cache
def _make_plan(
    basis_spec: BasisSpec, is_transposed: bool, should_pad: tuple[bool, bool], device: torch.device, dtype: torch.dtype
) -> Plan:
    basis, transposed = get_harmonic_basis(basis_spec, is_transposed), get_harmonic_basis(basis_spec, not is_transposed)
    inputs, in_planes = _lay_out_components(transposed, should_pad[0])
    outputs, out_planes = _lay_out_components(basis, should_pad[1])
    d_in = len(basis.inputs.change_of_basis)
    sources = torch.tensor([inputs.get(row, (0, 1, 0)) for row in range(d_in)], dtype=torch.int32)
    irrep_batches = []
    for indices in _group_irreps_by_shape(basis):
        first = basis.irreps[indices[0]]
        weight_indices = torch.tensor(np.stack([basis.irreps[i].weight_indices for i in indices]), device=device)
        irrep_batches.append(_IrrepBatch(first.size, weight_indices, _count_padded_copies(first, should_pad[1])))
    layouts = (
        _make_field_layout(basis.inputs.change_of_basis, inputs, in_planes, device, dtype),
        _make_field_layout(basis.outputs.change_of_basis, outputs, out_planes, device, dtype),
    )
    return Plan(basis, tuple(irrep_batches), *layouts, sources.to(device), *_make_constants(basis, device, dtype))


def _make_field_layout(
    change_of_basis: Any, components: ComponentLayout, planes: int, device: torch.device, dtype: torch.dtype
) -> FieldLayout:
    channels, rows = len(change_of_basis), len(components)
    shape = (_round_up_to_power_of_two(channels), _round_up_to_power_of_two(rows))
    matrix = torch.zeros(shape, dtype=torch.float64)
    matrix[:channels, :rows] = torch.tensor(change_of_basis[:, list(components)])
    table = torch.tensor(list(components.values()), dtype=torch.int32, device=device)
    to_irreps, to_field = (_split_precision(values, dtype, device) for values in (matrix.T, matrix))
    return FieldLayout(to_irreps, to_field, table, planes, channels)


def _make_constants(basis: HarmonicBasis, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `compute_z` reads of each irrep of the input: slot table, target table and constants."""
    begins, taps = np.cumsum([0, *basis.inputs.sizes]), basis.kernel_size**2
    terms = [[term for term in basis.terms if term.in_irrep == slot] for slot in range(len(basis.inputs.sizes))]
    slots = [(begins[slot], size, len(terms[slot])) for slot, size in enumerate(basis.inputs.sizes)]
    maps_before, total = {}, 0
    for index in chain.from_iterable(_group_irreps_by_shape(basis)):
        maps_before[index] = total
        total += basis.irreps[index].size * len(basis.irreps[index].weight_indices)
    max_maps = _round_up_to_power_of_two(max(map(len, terms)))
    max_values = _round_up_to_power_of_two(max(basis.inputs.sizes) * taps)
    targets = torch.zeros(len(slots), max_maps, 3, dtype=torch.int32)
    constants = torch.zeros(len(slots), max_maps, max_values, dtype=torch.float64)
    for slot, slot_terms in enumerate(terms):
        for m, term in enumerate(slot_terms):
            num_blocks = len(basis.irreps[term.out_irrep].weight_indices)
            map_index = maps_before[term.out_irrep] + term.component * num_blocks
            targets[slot, m] = torch.tensor([map_index, num_blocks, term.block])
            for component, index, factor in zip(term.in_components, term.filter_indices, term.factors, strict=True):
                start = (component - begins[slot]) * taps
                constants[slot, m, start : start + taps] += factor * torch.tensor(basis.spatial_filters[index])
    slot_table = torch.tensor(slots, dtype=torch.int32, device=device)
    return slot_table, targets.flatten(0, 1).to(device), _split_precision(constants, dtype, device)


class Grid(NamedTuple):
    """The pixel grid of a padded input."""

    height: int
    width: int

    @property
    def size(self) -> int:
        return self.height * self.width

    def field_to_irreps(self, x: Tensor, field: FieldLayout, origin: int, step: int) -> Tensor:
        """Channels-last maps (n, fields x d, H, W) -> irreps; the first pixel is the grid's (origin, origin)."""
        pixels, fields = len(x) * self.size, x.shape[1] // field.channels
        x_hat = x.new_empty(field.num_planes * pixels * fields)
        kernels.field_to_irreps[(triton.cdiv(pixels * fields, TILE_COLUMNS),)](
            x, x_hat, field.to_irreps, field.table, pixels, *self, *x.shape[2:], origin, step, COLS=TILE_COLUMNS,
            **get_constexprs(field, fields),
        )  # fmt: skip
        return x_hat

    def irreps_to_field(self, y_hat: Tensor, y: Tensor, field: FieldLayout, origin: int, step: int) -> None:
        """Irreps -> channels-last maps, written to y."""
        fields = y.shape[1] // field.channels
        values = len(y) * y.shape[2] * y.shape[3] * fields
        kernels.irreps_to_field[(triton.cdiv(values, TILE_COLUMNS),)](
            y_hat, y, field.to_field, field.table, len(y) * self.size, *self, *y.shape[2:], origin, step, len(y),
            COLS=TILE_COLUMNS, **get_constexprs(field, fields),
        )  # fmt: skip

    def compute_z(
        self, plan: Plan, x_hat: Tensor, pixels: int, begin: int = 0, count: int | None = None
    ) -> list[Tensor]:
        """Compute z of `count` pixels as batches of matrices (irreps, components x pixels, blocks x fields)."""
        fields, count = len(x_hat) // (plan.inputs.num_planes * pixels), pixels if count is None else count
        z = x_hat.new_empty(len(plan.basis.terms) * count * fields)
        parts, slots, m, k = plan.constants.shape
        columns = max(16, min(TILE_COLUMNS, MAX_LOADED_BYTES // (k * x_hat.element_size())))
        kernels.compute_z[(slots * triton.cdiv(count * fields, columns * TILES_PER_PROGRAM),)](
            x_hat, z, plan.constants, plan.slot_table, plan.source_table, plan.target_table, slots,
            pixels, begin, count, self.width, F=fields, SIZE=plan.basis.kernel_size, MP=m, KP=k, COLS=columns,
            SPLIT=(parts - 1) * slots * m * k, TILES=TILES_PER_PROGRAM,
        )  # fmt: skip
        shapes = [
            (len(batch.weight_indices), batch.size * count, batch.weight_indices.shape[1] * fields)
            for batch in plan.irrep_batches
        ]
        return _view_as_matrices(z, shapes)


def split_into_chunks(count: int, item_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the begin and end of chunks of at most CHUNK_BYTES of `count` items."""
    chunk_size = max(1, CHUNK_BYTES // item_bytes)
    return ((begin, min(begin + chunk_size, count)) for begin in range(0, count, chunk_size))


def _multiply(plan: Plan, z: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return y' of z and weights (irreps, blocks x fields, copies x fields of the output)."""
    shapes = [(len(maps), maps.shape[1], matrix.shape[2]) for maps, matrix in zip(z, weights, strict=True)]
    y_hat = z[0].new_empty(sum(map(math.prod, shapes)))
    for maps, matrix, out in zip(z, weights, _view_as_matrices(y_hat, shapes), strict=True):
        torch.bmm(maps, matrix, out=out)
    return y_hat


def multiply_in_float32(a: Tensor, b: Tensor) -> Tensor:
    """Return a batch of products, of half precision in float32: rounded, their sum over chunks would lose digits."""
    if a.dtype.itemsize > 2 or (a.is_cuda and not _HAS_FLOAT32_PRODUCTS):
        return torch.bmm(a, b)
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.bmm(a.float(), b.float())


def split_irrep_batches(plan: Plan, y_hat: Tensor, pixels: int) -> list[Tensor]:
    """Return y' as batches of matrices (irreps, components x pixels, copies x fields)."""
    fields = len(y_hat) // (plan.outputs.num_planes * pixels)
    shapes = [
        (len(batch.weight_indices), batch.size * pixels, batch.padded_copies * fields) for batch in plan.irrep_batches
    ]
    return _view_as_matrices(y_hat, shapes)


def _view_as_matrices(values: Tensor, shapes: list[tuple[int, int, int]]) -> list[Tensor]:
    parts = values.split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def get_constexprs(field: FieldLayout, fields: int) -> dict[str, int]:
    """Return the compile-time constants of the kernels that change between a field and its irreps."""
    parts, rows, channels = field.to_irreps.shape
    sides = {"F": fields, "D": field.channels, "R": len(field.table), "DP": channels, "RP": rows}
    return sides | {"SPLIT": (parts - 1) * rows * channels}


def gather_weights(plan: Plan, weight: Tensor) -> list[Tensor]:
    """Weights (fields of the output, of the input, basis) -> (irreps, blocks x fields, copies x fields)."""
    matrices = []
    for batch in plan.irrep_batches:
        values = weight[:, :, batch.weight_indices].permute(2, 3, 1, 4, 0)
        padded = pad(values, (0, 0, 0, batch.padded_copies - values.shape[3]))
        matrices.append(padded.flatten(3).flatten(1, 2).contiguous())
    return matrices


def scatter_gradients(plan: Plan, gradients: Sequence[Tensor], fields: tuple[int, int]) -> Tensor:
    """Return the gradient of the weights from those of the matrices of `gather_weights`."""
    grad_weight = gradients[0].new_empty(*fields, plan.basis.num_weights)
    for batch, gradient in zip(plan.irrep_batches, gradients, strict=True):
        irreps, blocks, copies = batch.weight_indices.shape
        unpadded = gradient.view(irreps, blocks, fields[1], batch.padded_copies, fields[0])[:, :, :, :copies]
        grad_weight[:, :, batch.weight_indices] = unpadded.permute(4, 2, 0, 1, 3)
    return grad_weight


def is_available() -> bool:
    """Whether there is a GPU."""
    return torch.cuda.is_available()


def forward(x: Tensor, weight: Tensor, basis_spec: BasisSpec, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), channels last."""
    x = x.contiguous(memory_format=torch.channels_last)
    weight_3d, grid = _reshape_weights_for_input(x, weight, basis_spec), _make_padded_grid(x, padding)
    plan = get_plan(basis_spec, False, x, (weight_3d.shape[1], len(weight_3d)))
    sides = [(side - plan.basis.kernel_size) // stride + 1 for side in grid]
    shape = (len(x), len(weight_3d) * plan.outputs.channels, *sides)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    weights = gather_weights(plan, weight_3d)
    for begin, end in split_into_chunks(len(x), plan.count_z_bytes(x, weight_3d.shape[1]) * grid.size):
        x_hat = grid.field_to_irreps(x[begin:end], plan.inputs, padding, 1)
        y_hat = _multiply(plan, grid.compute_z(plan, x_hat, (end - begin) * grid.size), weights)
        grid.irreps_to_field(y_hat, y[begin:end], plan.outputs, plan.basis.kernel_size // 2, stride)
    return y


def backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    basis_spec: BasisSpec,
    stride: int,
    padding: int,
    needs_input_grad: bool,
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x, where it is needed, and of the weights."""
    x, gradient = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, gradient))
    weight_3d, grid = _reshape_weights_for_input(x, weight, basis_spec).transpose(0, 1), _make_padded_grid(x, padding)
    plan = get_plan(basis_spec, True, x, (weight_3d.shape[1], len(weight_3d)))
    grad_x = torch.empty_like(x) if needs_input_grad else None
    weights = gather_weights(plan, weight_3d)
    totals = [torch.zeros_like(tensor, dtype=weight.dtype) for tensor in weights]
    for begin, end in split_into_chunks(len(x), plan.count_z_bytes(x, weight_3d.shape[1]) * grid.size):
        pixels = (end - begin) * grid.size
        grad_y_hat = grid.field_to_irreps(gradient[begin:end], plan.inputs, plan.basis.kernel_size // 2, stride)
        z = grid.compute_z(plan, grad_y_hat, pixels)
        if grad_x is not None:
            grid.irreps_to_field(_multiply(plan, z, weights), grad_x[begin:end], plan.outputs, padding, 1)
        x_hat = split_irrep_batches(plan, grid.field_to_irreps(x[begin:end], plan.outputs, padding, 1), pixels)
        for total, maps, x_hat_matrices in zip(totals, z, x_hat, strict=True):
            total += multiply_in_float32(maps.mT, x_hat_matrices)
    grad_weight = scatter_gradients(plan, totals, (len(weight_3d), weight_3d.shape[1])).transpose(0, 1)
    return grad_x, grad_weight.reshape(weight.shape)


def _make_padded_grid(x: Tensor, padding: int) -> Grid:
    return Grid(*(int(side) + 2 * padding for side in x.shape[2:]))


def get_plan(basis_spec: BasisSpec, is_transposed: bool, x: Tensor, fields: tuple[int, int]) -> Plan:
    """Return the plan for maps of this type and device, with numbers of fields (in, out)."""
    should_pad = [num_fields * x.element_size() % 16 != 0 for num_fields in fields]  # 16 bytes are read at once
    return _make_plan(basis_spec, is_transposed, (should_pad[0], should_pad[1]), x.device, x.dtype)


def reshape_weights(weight: Tensor, basis_spec: BasisSpec, fields: int, dtype: torch.dtype) -> Tensor:
    """Return weights (fields of the output, fields of the input, basis) in the type of the maps."""
    return weight.to(dtype).view(-1, fields, get_harmonic_basis(basis_spec).num_weights)


def _reshape_weights_for_input(x: Tensor, weight: Tensor, basis_spec: BasisSpec) -> Tensor:
    """Return the weights for channels-last maps, as `reshape_weights`."""
    d_in = len(get_harmonic_basis(basis_spec).inputs.change_of_basis)
    return reshape_weights(weight, basis_spec, x.shape[1] // d_in, x.dtype)
