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
from galaxyhpc.steerable.kernels.harmonic import Blocks, Irrep, Recipe, blocks

CHUNK_BYTES = 1 << 30  # of z
COLUMNS = 256  # pixels x fields of a tile
TURNS = 4  # tiles of a program that makes z: while one is worked on, the next are read
LOADED = 1 << 15  # bytes of a tile's neighbours: several fit in shared memory

Rows = dict[int, tuple[int, int, int]]  # of a field's irreps: rows before it, beside it, its place there


@dataclass(frozen=True, eq=False)
class _Alike:
    """Irreps of the output of one shape."""

    size: int
    numbers: Tensor  # (irreps, blocks, copies) int64, in the basis
    beside: int  # copies, or more


@dataclass(frozen=True, eq=False)
class Field:
    """The rows of a field's irreps that any block leads to."""

    into: Tensor  # (parts, RP, DP)
    out: Tensor  # (parts, DP, RP)
    table: Tensor  # (rows, 3) int32
    planes: int  # rows and what fills their places up
    channels: int


@dataclass(frozen=True, eq=False)
class Plan:
    """The blocks of a recipe, or of its transpose, as the kernels read them."""

    of: Blocks
    alike: tuple[_Alike, ...]
    inputs: Field
    outputs: Field
    sources: Tensor  # (rows of x', 3) int32, a table; rows that lead to nothing are not there
    slots: Tensor  # (slots, 3) int32: first row, rows, maps
    maps: Tensor  # (slots x MP, 3) int32, a table
    constants: Tensor  # (parts, slots, MP, KP)

    def z_bytes(self, x: Tensor, fields: int) -> int:
        """Return how large z is, for each pixel."""
        return len(self.of.terms) * fields * x.element_size()


def _power(count: int) -> int:
    """Return the side of a tile that Triton multiplies."""
    return max(16, 1 << (count - 1).bit_length())


def _parts(values: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Round constants, to two numbers where one of this type is less than a float32."""
    high = values.to(dtype)
    parts = [high, (values - high.double()).to(dtype)] if dtype.itemsize == 2 else [high]
    return torch.stack(parts).to(device).contiguous()


def _alike(of: Blocks) -> list[list[int]]:
    """Return the irreps of the output, of one shape together; in the order of their rows, as for the transpose."""
    shapes = [(irrep.size, *irrep.weights.shape) for irrep in of.irreps]
    order = sorted(range(len(shapes)), key=lambda place: int(of.irreps[place].rows.min()))
    return [[place for place in order if shapes[place] == shape] for shape in sorted(set(shapes))]


def _beside(irrep: Irrep, fill: bool) -> int:
    """Return how many rows lie beside each other: for a matrix of few columns that is slow an empty one more."""
    copies = len(irrep.rows)
    return copies + copies % 2 if fill and irrep.size == 1 else copies


def _rows(of: Blocks, fill: bool) -> tuple[Rows, int]:
    """Return where the rows of y' lie, and their number."""
    found: Rows = {}
    before = 0
    for place in chain.from_iterable(_alike(of)):
        irrep, beside = of.irreps[place], _beside(of.irreps[place], fill)
        for component in range(irrep.size):
            found |= {int(row): (before, beside, copy) for copy, row in enumerate(irrep.rows[:, component])}
            before += beside
    return found, before


@cache
def _plan(recipe: Recipe, transposed: bool, fills: tuple[bool, bool], device: torch.device, dtype: torch.dtype) -> Plan:
    of, back = blocks(recipe, transposed), blocks(recipe, not transposed)
    (inputs, planes), (outputs, out_planes) = _rows(back, fills[0]), _rows(of, fills[1])
    sources = torch.tensor([inputs.get(row, (0, 1, 0)) for row in range(len(of.inputs.change))], dtype=torch.int32)
    alike = []
    for places in _alike(of):
        numbers = torch.tensor(np.stack([of.irreps[place].weights for place in places]), device=device)
        alike.append(_Alike(of.irreps[places[0]].size, numbers, _beside(of.irreps[places[0]], fills[1])))
    fields = (
        _field(of.inputs.change, inputs, planes, device, dtype),
        _field(of.outputs.change, outputs, out_planes, device, dtype),
    )
    return Plan(of, tuple(alike), *fields, sources.to(device), *_constants(of, device, dtype))


def _field(change: Any, rows: Rows, planes: int, device: torch.device, dtype: torch.dtype) -> Field:
    matrix = torch.zeros(_power(len(change)), _power(len(rows)), dtype=torch.float64)
    matrix[: len(change), : len(rows)] = torch.tensor(change[:, list(rows)])
    table = torch.tensor(list(rows.values()), dtype=torch.int32, device=device)
    return Field(_parts(matrix.T, dtype, device), _parts(matrix, dtype, device), table, planes, len(change))


def _constants(of: Blocks, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `make` reads of each irrep of the input."""
    begins, taps = np.cumsum([0, *of.inputs.sizes]), of.size**2
    terms = [[term for term in of.terms if term.slot == slot] for slot in range(len(of.inputs.sizes))]
    slots = [(begins[slot], size, len(terms[slot])) for slot, size in enumerate(of.inputs.sizes)]
    before, total = {}, 0
    for place in chain.from_iterable(_alike(of)):
        before[place], total = total, total + of.irreps[place].size * len(of.irreps[place].weights)
    most = _power(max(map(len, terms)))
    maps = torch.zeros(len(slots), most, 3, dtype=torch.int32)
    values = torch.zeros(len(slots), most, _power(max(of.inputs.sizes) * taps), dtype=torch.float64)
    for slot, some in enumerate(terms):
        for m, term in enumerate(some):
            number = len(of.irreps[term.kind].weights)
            maps[slot, m] = torch.tensor([before[term.kind] + term.component * number, number, term.block])
            for row, one, factor in zip(term.rows, term.filters, term.factors, strict=True):
                first = (row - begins[slot]) * taps
                values[slot, m, first : first + taps] += factor * torch.tensor(of.filters[one])
    read = torch.tensor(slots, dtype=torch.int32, device=device)
    return read, maps.flatten(0, 1).to(device), _parts(values, dtype, device)


class Grid(NamedTuple):
    """The pixels of a padded input."""

    height: int
    width: int

    @property
    def size(self) -> int:
        return self.height * self.width

    def into_irreps(self, x: Tensor, field: Field, origin: int, step: int) -> Tensor:
        """Channels-last maps (n, fields x d, H, W) -> rows; the first pixel is the grid's (origin, origin)."""
        pixels, fields = len(x) * self.size, x.shape[1] // field.channels
        found = x.new_empty(field.planes * pixels * fields)
        kernels.into_irreps[(triton.cdiv(pixels * fields, COLUMNS),)](
            x, found, field.into, field.table, pixels, *self, *x.shape[2:], origin, step, COLS=COLUMNS,
            **sides_of(field, fields),
        )  # fmt: skip
        return found

    def into_field(self, rows: Tensor, y: Tensor, field: Field, origin: int, step: int) -> None:
        """Rows -> channels-last maps, which are written."""
        fields = y.shape[1] // field.channels
        values = len(y) * y.shape[2] * y.shape[3] * fields
        kernels.into_field[(triton.cdiv(values, COLUMNS),)](
            rows, y, field.out, field.table, len(y) * self.size, *self, *y.shape[2:], origin, step, len(y),
            COLS=COLUMNS, **sides_of(field, fields),
        )  # fmt: skip

    def make(self, plan: Plan, hat: Tensor, pixels: int, begin: int = 0, count: int | None = None) -> list[Tensor]:
        """Make z of some pixels, in batches of matrices (irreps, components x pixels, blocks x fields)."""
        fields, count = len(hat) // (plan.inputs.planes * pixels), pixels if count is None else count
        z = hat.new_empty(len(plan.of.terms) * count * fields)
        parts, slots, m, k = plan.constants.shape
        columns = max(16, min(COLUMNS, LOADED // (k * hat.element_size())))
        kernels.make[(slots, triton.cdiv(count * fields, columns * TURNS))](
            hat, z, plan.constants, plan.slots, plan.sources, plan.maps, pixels, begin, count, self.width, F=fields,
            SIZE=plan.of.size, MP=m, KP=k, COLS=columns, SPLIT=(parts - 1) * slots * m * k, TURNS=TURNS,
        )  # fmt: skip
        shapes = [(len(one.numbers), one.size * count, one.numbers.shape[1] * fields) for one in plan.alike]
        return _matrices(z, shapes)


def chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Divide `count` things of `size` bytes into runs of at most CHUNK_BYTES: where they begin and end."""
    most = max(1, CHUNK_BYTES // size)
    return ((begin, min(begin + most, count)) for begin in range(0, count, most))


def _multiply(plan: Plan, z: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return y' of z and weights (irreps, blocks x fields, copies x fields of the output)."""
    sizes = [(len(maps), maps.shape[1], each.shape[2]) for maps, each in zip(z, weights, strict=True)]
    rows = z[0].new_empty(sum(a * b * c for a, b, c in sizes))
    parts = rows.split([a * b * c for a, b, c in sizes])
    for maps, each, part, size in zip(z, weights, parts, sizes, strict=True):
        torch.bmm(maps, each, out=part.view(size))
    return rows


def split(plan: Plan, rows: Tensor, pixels: int) -> list[Tensor]:
    """Return y' as batches of matrices (irreps, components x pixels, rows beside each other x fields)."""
    fields = len(rows) // (plan.outputs.planes * pixels)
    return _matrices(rows, [(len(one.numbers), one.size * pixels, one.beside * fields) for one in plan.alike])


def _matrices(flat: Tensor, shapes: list[tuple[int, int, int]]) -> list[Tensor]:
    parts = flat.split([a * b * c for a, b, c in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def sides_of(field: Field, fields: int) -> dict[str, int]:
    parts, rows, channels = field.into.shape
    sides = {"F": fields, "D": field.channels, "R": len(field.table), "DP": channels, "RP": rows}
    return sides | {"SPLIT": (parts - 1) * rows * channels}


def gathered(plan: Plan, weight: Tensor) -> list[Tensor]:
    """Weights (fields of the output, of the input, basis) -> (irreps, blocks x fields, rows x fields)."""
    found = []
    for one in plan.alike:
        each = weight[:, :, one.numbers].permute(2, 3, 1, 4, 0)
        filled = pad(each, (0, 0, 0, one.beside - each.shape[3]))
        found.append(filled.flatten(3).flatten(1, 2).contiguous())
    return found


def scattered(plan: Plan, several: Sequence[Tensor], fields: tuple[int, int]) -> Tensor:
    """Put gradients of `gathered` in their places."""
    found = several[0].new_empty(*fields, plan.of.weights)
    for one, each in zip(plan.alike, several, strict=True):
        irreps, number, copies = one.numbers.shape
        mine = each.view(irreps, number, fields[1], one.beside, fields[0])[:, :, :, :copies]
        found[:, :, one.numbers] = mine.permute(4, 2, 0, 1, 3)
    return found


def available() -> bool:
    """Whether there is a GPU."""
    return torch.cuda.is_available()


def forward(x: Tensor, weight: Tensor, recipe: Recipe, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), channels last."""
    x = x.contiguous(memory_format=torch.channels_last)
    given, grid = _given(x, weight, recipe), _grid(x, padding)
    plan = plan_of(recipe, False, x, (given.shape[1], len(given)))
    sides = [(side - plan.of.size) // stride + 1 for side in grid]
    shape = (len(x), len(given) * plan.outputs.channels, *sides)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    weights = gathered(plan, given)
    for begin, end in chunks(len(x), plan.z_bytes(x, given.shape[1]) * grid.size):
        hat = grid.into_irreps(x[begin:end], plan.inputs, padding, 1)
        rows = _multiply(plan, grid.make(plan, hat, (end - begin) * grid.size), weights)
        grid.into_field(rows, y[begin:end], plan.outputs, plan.of.size // 2, stride)
    return y


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, recipe: Recipe, stride: int, padding: int, for_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x, where it is wanted, and of the weights."""
    x, gradient = (each.contiguous(memory_format=torch.channels_last) for each in (x, gradient))
    given, grid = _given(x, weight, recipe).transpose(0, 1), _grid(x, padding)
    plan = plan_of(recipe, True, x, (given.shape[1], len(given)))
    by_x = torch.empty_like(x) if for_x else None
    weights = gathered(plan, given)
    totals = [torch.zeros_like(each, dtype=weight.dtype) for each in weights]
    for begin, end in chunks(len(x), plan.z_bytes(x, given.shape[1]) * grid.size):
        pixels = (end - begin) * grid.size
        by_rows = grid.into_irreps(gradient[begin:end], plan.inputs, plan.of.size // 2, stride)
        z = grid.make(plan, by_rows, pixels)
        if by_x is not None:
            grid.into_field(_multiply(plan, z, weights), by_x[begin:end], plan.outputs, padding, 1)
        seen = split(plan, grid.into_irreps(x[begin:end], plan.outputs, padding, 1), pixels)
        for total, maps, rows in zip(totals, z, seen, strict=True):
            total += torch.bmm(maps.mT, rows)
    return by_x, scattered(plan, totals, (len(given), given.shape[1])).transpose(0, 1).reshape(weight.shape)


def _grid(x: Tensor, padding: int) -> Grid:
    return Grid(*(int(side) + 2 * padding for side in x.shape[2:]))


def plan_of(recipe: Recipe, transposed: bool, x: Tensor, fields: tuple[int, int]) -> Plan:
    """Return the plan for maps of this type on this device, from so many fields to so many."""
    narrow = [each * x.element_size() % 16 != 0 for each in fields]  # bytes that are read at once
    return _plan(recipe, transposed, (narrow[0], narrow[1]), x.device, x.dtype)


def weights_of(weight: Tensor, recipe: Recipe, fields: int, dtype: torch.dtype) -> Tensor:
    """Return weights (fields of the output, `fields` of the input, basis) in the maps' type."""
    return weight.to(dtype).view(-1, fields, blocks(recipe).weights)


def _given(x: Tensor, weight: Tensor, recipe: Recipe) -> Tensor:
    """Return the weights for channels-last maps."""
    return weights_of(weight, recipe, x.shape[1] // len(blocks(recipe).inputs.change), x.dtype)
