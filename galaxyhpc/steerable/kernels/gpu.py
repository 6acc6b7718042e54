"""The harmonic convolution of a GPU, by the Triton kernels of `harmonic_kernels` and batches of matrix products.

    into_irreps    x  -> x'      Q^-1
    make           x' -> z       the blocks
    torch.bmm      z  -> y'      the weights; one for all irreps of the output that are alike
    into_field     y' -> y       Q

Forward and backward keep x alone and go through a batch a few images at a time. The gradient of x is the same function
of the transposed filters, and its z gives the weights' too: their z of y' times x' is what z of x' times y' would be.
All maps lie on one grid, the padded input; a stride leaves pixels of it out.
"""

from __future__ import annotations

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
TILES_PER_PROGRAM = 4  # tiles of a program that makes z: while one is worked on, the next are read
MAX_LOADED_BYTES = 1 << 15  # bytes of a tile's neighbours: several fit in shared memory

ComponentLayout = dict[int, tuple[int, int, int]]  # of a field's irreps: rows before it, beside it, its place there


@dataclass(frozen=True, eq=False)
class _IrrepBatch:
    """Irreps of the output of one shape."""

    size: int
    weight_indices: Tensor  # (irreps, blocks, copies) int64, in the basis
    padded_copies: int  # copies, or more


@dataclass(frozen=True, eq=False)
class FieldLayout:
    """The rows of a field's irreps that any block leads to."""

    to_irreps: Tensor  # (parts, RP, DP)
    to_field: Tensor  # (parts, DP, RP)
    table: Tensor  # (rows, 3) int32
    num_planes: int  # rows and what fills their places up
    channels: int


@dataclass(frozen=True, eq=False)
class Plan:
    """The blocks of a recipe, or of its transpose, as the kernels read them."""

    basis: HarmonicBasis
    irrep_batches: tuple[_IrrepBatch, ...]
    inputs: FieldLayout
    outputs: FieldLayout
    source_table: Tensor  # (rows of x', 3) int32, a table; rows that lead to nothing are not there
    slot_table: Tensor  # (slots, 3) int32: first row, rows, maps
    target_table: Tensor  # (slots x MP, 3) int32, a table
    constants: Tensor  # (parts, slots, MP, KP)

    def count_z_bytes(self, x: Tensor, fields: int) -> int:
        """Return how large z is, for each pixel."""
        return len(self.basis.terms) * fields * x.element_size()


def _round_up_to_power_of_two(count: int) -> int:
    """Return the side of a tile that Triton multiplies."""
    return max(16, 1 << (count - 1).bit_length())


def _split_precision(values: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Round constants, to two numbers where one of this type is less than a float32."""
    high = values.to(dtype)
    parts = [high, (values - high.double()).to(dtype)] if dtype.itemsize == 2 else [high]
    return torch.stack(parts).to(device).contiguous()


def _group_irreps_by_shape(basis: HarmonicBasis) -> list[list[int]]:
    """Return the irreps of the output, of one shape together; in the order of their rows, as for the transpose."""
    shapes = [(irrep.size, *irrep.weight_indices.shape) for irrep in basis.irreps]
    order = sorted(range(len(shapes)), key=lambda place: int(basis.irreps[place].components.min()))
    return [[place for place in order if shapes[place] == shape] for shape in sorted(set(shapes))]


def _count_padded_copies(irrep: Irrep, should_pad: bool) -> int:
    """Return how many rows lie beside each other: for a matrix of few columns that is slow an empty one more."""
    copies = len(irrep.components)
    return copies + copies % 2 if should_pad and irrep.size == 1 else copies


def _lay_out_components(basis: HarmonicBasis, should_pad: bool) -> tuple[ComponentLayout, int]:
    """Return where the rows of y' lie, and their number."""
    found: ComponentLayout = {}
    before = 0
    for place in chain.from_iterable(_group_irreps_by_shape(basis)):
        irrep, beside = basis.irreps[place], _count_padded_copies(basis.irreps[place], should_pad)
        for component in range(irrep.size):
            found |= {int(row): (before, beside, copy) for copy, row in enumerate(irrep.components[:, component])}
            before += beside
    return found, before


@cache
def _make_plan(
    basis_spec: BasisSpec, is_transposed: bool, should_pad: tuple[bool, bool], device: torch.device, dtype: torch.dtype
) -> Plan:
    of, back = get_harmonic_basis(basis_spec, is_transposed), get_harmonic_basis(basis_spec, not is_transposed)
    (inputs, planes), (outputs, out_planes) = (
        _lay_out_components(back, should_pad[0]),
        _lay_out_components(of, should_pad[1]),
    )
    sources = torch.tensor(
        [inputs.get(row, (0, 1, 0)) for row in range(len(of.inputs.change_of_basis))], dtype=torch.int32
    )
    alike = []
    for places in _group_irreps_by_shape(of):
        numbers = torch.tensor(np.stack([of.irreps[place].weight_indices for place in places]), device=device)
        alike.append(
            _IrrepBatch(of.irreps[places[0]].size, numbers, _count_padded_copies(of.irreps[places[0]], should_pad[1]))
        )
    fields = (
        _make_field_layout(of.inputs.change_of_basis, inputs, planes, device, dtype),
        _make_field_layout(of.outputs.change_of_basis, outputs, out_planes, device, dtype),
    )
    return Plan(of, tuple(alike), *fields, sources.to(device), *_make_constants(of, device, dtype))


def _make_field_layout(
    change_of_basis: Any, components: ComponentLayout, planes: int, device: torch.device, dtype: torch.dtype
) -> FieldLayout:
    matrix = torch.zeros(
        _round_up_to_power_of_two(len(change_of_basis)), _round_up_to_power_of_two(len(components)), dtype=torch.float64
    )
    matrix[: len(change_of_basis), : len(components)] = torch.tensor(change_of_basis[:, list(components)])
    table = torch.tensor(list(components.values()), dtype=torch.int32, device=device)
    return FieldLayout(
        _split_precision(matrix.T, dtype, device),
        _split_precision(matrix, dtype, device),
        table,
        planes,
        len(change_of_basis),
    )


def _make_constants(basis: HarmonicBasis, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `make` reads of each irrep of the input."""
    begins, taps = np.cumsum([0, *basis.inputs.sizes]), basis.kernel_size**2
    terms = [[term for term in basis.terms if term.in_irrep == slot] for slot in range(len(basis.inputs.sizes))]
    slots = [(begins[slot], size, len(terms[slot])) for slot, size in enumerate(basis.inputs.sizes)]
    before, total = {}, 0
    for place in chain.from_iterable(_group_irreps_by_shape(basis)):
        before[place], total = total, total + basis.irreps[place].size * len(basis.irreps[place].weight_indices)
    most = _round_up_to_power_of_two(max(map(len, terms)))
    maps = torch.zeros(len(slots), most, 3, dtype=torch.int32)
    values = torch.zeros(
        len(slots), most, _round_up_to_power_of_two(max(basis.inputs.sizes) * taps), dtype=torch.float64
    )
    for slot, some in enumerate(terms):
        for m, term in enumerate(some):
            number = len(basis.irreps[term.out_irrep].weight_indices)
            maps[slot, m] = torch.tensor([before[term.out_irrep] + term.component * number, number, term.block])
            for row, one, factor in zip(term.in_components, term.filter_indices, term.factors, strict=True):
                first = (row - begins[slot]) * taps
                values[slot, m, first : first + taps] += factor * torch.tensor(basis.spatial_filters[one])
    read = torch.tensor(slots, dtype=torch.int32, device=device)
    return read, maps.flatten(0, 1).to(device), _split_precision(values, dtype, device)


class Grid(NamedTuple):
    """The pixels of a padded input."""

    height: int
    width: int

    @property
    def size(self) -> int:
        return self.height * self.width

    def field_to_irreps(self, x: Tensor, field: FieldLayout, origin: int, step: int) -> Tensor:
        """Channels-last maps (n, fields x d, H, W) -> rows; the first pixel is the grid's (origin, origin)."""
        pixels, fields = len(x) * self.size, x.shape[1] // field.channels
        found = x.new_empty(field.num_planes * pixels * fields)
        kernels.field_to_irreps[(triton.cdiv(pixels * fields, TILE_COLUMNS),)](
            x, found, field.to_irreps, field.table, pixels, *self, *x.shape[2:], origin, step, COLS=TILE_COLUMNS,
            **get_constexprs(field, fields),
        )  # fmt: skip
        return found

    def irreps_to_field(self, y_hat: Tensor, y: Tensor, field: FieldLayout, origin: int, step: int) -> None:
        """Rows -> channels-last maps, which are written."""
        fields = y.shape[1] // field.channels
        values = len(y) * y.shape[2] * y.shape[3] * fields
        kernels.irreps_to_field[(triton.cdiv(values, TILE_COLUMNS),)](
            y_hat, y, field.to_field, field.table, len(y) * self.size, *self, *y.shape[2:], origin, step, len(y),
            COLS=TILE_COLUMNS, **get_constexprs(field, fields),
        )  # fmt: skip

    def compute_z(
        self, plan: Plan, x_hat: Tensor, pixels: int, begin: int = 0, count: int | None = None
    ) -> list[Tensor]:
        """Make z of some pixels, in batches of matrices (irreps, components x pixels, blocks x fields)."""
        fields, count = len(x_hat) // (plan.inputs.num_planes * pixels), pixels if count is None else count
        z = x_hat.new_empty(len(plan.basis.terms) * count * fields)
        parts, slots, m, k = plan.constants.shape
        columns = max(16, min(TILE_COLUMNS, MAX_LOADED_BYTES // (k * x_hat.element_size())))
        kernels.compute_z[(slots, triton.cdiv(count * fields, columns * TILES_PER_PROGRAM))](
            x_hat, z, plan.constants, plan.slot_table, plan.source_table, plan.target_table, pixels, begin, count, self.width, F=fields,
            SIZE=plan.basis.kernel_size, MP=m, KP=k, COLS=columns, SPLIT=(parts - 1) * slots * m * k, TILES=TILES_PER_PROGRAM,
        )  # fmt: skip
        shapes = [
            (len(one.weight_indices), one.size * count, one.weight_indices.shape[1] * fields)
            for one in plan.irrep_batches
        ]
        return _view_as_matrices(z, shapes)


def split_into_chunks(count: int, item_bytes: int) -> Iterator[tuple[int, int]]:
    """Divide `count` things of `size` bytes into runs of at most CHUNK_BYTES: where they begin and end."""
    most = max(1, CHUNK_BYTES // item_bytes)
    return ((begin, min(begin + most, count)) for begin in range(0, count, most))


def _multiply(plan: Plan, z: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return y' of z and weights (irreps, blocks x fields, copies x fields of the output)."""
    sizes = [(len(maps), maps.shape[1], each.shape[2]) for maps, each in zip(z, weights, strict=True)]
    rows = z[0].new_empty(sum(a * b * c for a, b, c in sizes))
    parts = rows.split([a * b * c for a, b, c in sizes])
    for maps, each, part, size in zip(z, weights, parts, sizes, strict=True):
        torch.bmm(maps, each, out=part.view(size))
    return rows


def split_irrep_batches(plan: Plan, y_hat: Tensor, pixels: int) -> list[Tensor]:
    """Return y' as batches of matrices (irreps, components x pixels, rows beside each other x fields)."""
    fields = len(y_hat) // (plan.outputs.num_planes * pixels)
    return _view_as_matrices(
        y_hat, [(len(one.weight_indices), one.size * pixels, one.padded_copies * fields) for one in plan.irrep_batches]
    )


def _view_as_matrices(values: Tensor, shapes: list[tuple[int, int, int]]) -> list[Tensor]:
    parts = values.split([a * b * c for a, b, c in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def get_constexprs(field: FieldLayout, fields: int) -> dict[str, int]:
    parts, rows, channels = field.to_irreps.shape
    sides = {"F": fields, "D": field.channels, "R": len(field.table), "DP": channels, "RP": rows}
    return sides | {"SPLIT": (parts - 1) * rows * channels}


def gather_weights(plan: Plan, weight: Tensor) -> list[Tensor]:
    """Weights (fields of the output, of the input, basis) -> (irreps, blocks x fields, rows x fields)."""
    found = []
    for one in plan.irrep_batches:
        each = weight[:, :, one.weight_indices].permute(2, 3, 1, 4, 0)
        filled = pad(each, (0, 0, 0, one.padded_copies - each.shape[3]))
        found.append(filled.flatten(3).flatten(1, 2).contiguous())
    return found


def scatter_gradients(plan: Plan, gradients: Sequence[Tensor], fields: tuple[int, int]) -> Tensor:
    """Put gradients of `gathered` in their places."""
    found = gradients[0].new_empty(*fields, plan.basis.num_weights)
    for one, each in zip(plan.irrep_batches, gradients, strict=True):
        irreps, number, copies = one.weight_indices.shape
        mine = each.view(irreps, number, fields[1], one.padded_copies, fields[0])[:, :, :, :copies]
        found[:, :, one.weight_indices] = mine.permute(4, 2, 0, 1, 3)
    return found


def is_available() -> bool:
    """Whether there is a GPU."""
    return torch.cuda.is_available()


def forward(x: Tensor, weight: Tensor, basis_spec: BasisSpec, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), channels last."""
    x = x.contiguous(memory_format=torch.channels_last)
    given, grid = _reshape_weights_for_input(x, weight, basis_spec), _make_padded_grid(x, padding)
    plan = get_plan(basis_spec, False, x, (given.shape[1], len(given)))
    sides = [(side - plan.basis.kernel_size) // stride + 1 for side in grid]
    shape = (len(x), len(given) * plan.outputs.channels, *sides)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    weights = gather_weights(plan, given)
    for begin, end in split_into_chunks(len(x), plan.count_z_bytes(x, given.shape[1]) * grid.size):
        hat = grid.field_to_irreps(x[begin:end], plan.inputs, padding, 1)
        rows = _multiply(plan, grid.compute_z(plan, hat, (end - begin) * grid.size), weights)
        grid.irreps_to_field(rows, y[begin:end], plan.outputs, plan.basis.kernel_size // 2, stride)
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
    """Return the gradients of x, where it is wanted, and of the weights."""
    x, gradient = (each.contiguous(memory_format=torch.channels_last) for each in (x, gradient))
    given, grid = _reshape_weights_for_input(x, weight, basis_spec).transpose(0, 1), _make_padded_grid(x, padding)
    plan = get_plan(basis_spec, True, x, (given.shape[1], len(given)))
    by_x = torch.empty_like(x) if needs_input_grad else None
    weights = gather_weights(plan, given)
    totals = [torch.zeros_like(each, dtype=weight.dtype) for each in weights]
    for begin, end in split_into_chunks(len(x), plan.count_z_bytes(x, given.shape[1]) * grid.size):
        pixels = (end - begin) * grid.size
        by_rows = grid.field_to_irreps(gradient[begin:end], plan.inputs, plan.basis.kernel_size // 2, stride)
        z = grid.compute_z(plan, by_rows, pixels)
        if by_x is not None:
            grid.irreps_to_field(_multiply(plan, z, weights), by_x[begin:end], plan.outputs, padding, 1)
        seen = split_irrep_batches(plan, grid.field_to_irreps(x[begin:end], plan.outputs, padding, 1), pixels)
        for total, maps, rows in zip(totals, z, seen, strict=True):
            total += torch.bmm(maps.mT, rows)
    return by_x, scatter_gradients(plan, totals, (len(given), given.shape[1])).transpose(0, 1).reshape(weight.shape)


def _make_padded_grid(x: Tensor, padding: int) -> Grid:
    return Grid(*(int(side) + 2 * padding for side in x.shape[2:]))


def get_plan(basis_spec: BasisSpec, is_transposed: bool, x: Tensor, fields: tuple[int, int]) -> Plan:
    """Return the plan for maps of this type on this device, from so many fields to so many."""
    narrow = [each * x.element_size() % 16 != 0 for each in fields]  # bytes that are read at once
    return _make_plan(basis_spec, is_transposed, (narrow[0], narrow[1]), x.device, x.dtype)


def reshape_weights(weight: Tensor, basis_spec: BasisSpec, fields: int, dtype: torch.dtype) -> Tensor:
    """Return weights (fields of the output, `fields` of the input, basis) in the maps' type."""
    return weight.to(dtype).view(-1, fields, get_harmonic_basis(basis_spec).num_weights)


def _reshape_weights_for_input(x: Tensor, weight: Tensor, basis_spec: BasisSpec) -> Tensor:
    """Return the weights for channels-last maps."""
    return reshape_weights(
        weight, basis_spec, x.shape[1] // len(get_harmonic_basis(basis_spec).inputs.change_of_basis), x.dtype
    )
