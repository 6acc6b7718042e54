"""The harmonic convolution of a GPU, from three Triton kernels and batches of matrix products.

    _into_irreps    x  -> x'      Q^-1, and a border of zeros
    _make           x' -> z       the blocks of one irrep of the input
                    z  -> y'      torch.bmm, one for all irreps of the output that are alike
    _into_field     y' -> y       Q

Forward and backward keep x alone and go through a batch a few images at a time. The gradient of x is the same function
of the transposed filters, and its z gives the weights' too: x' times z is what z times y' is. Maps lie as rows of
(pixels, fields), a row for a component; the pixels are those of the padded input, so that a neighbour is a constant
distance away: values of pixels without an output are nobody's. A stride leaves pixels out at the end.

Maps are of any float type; constants of half types come in two parts, so that they are as good as float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from galaxyhpc.models.harmonic import Blocks, Recipe, blocks

CHUNK_BYTES = 256 << 20  # of z
COLUMNS = 256  # pixels x fields of a tile
WARPS = 4


@triton.jit
def _times(constants, values, SPLIT: tl.constexpr, M: tl.constexpr, K: tl.constexpr, at):
    """Multiply by a matrix (M, K) of constants, of which the second part lies behind the first."""
    place = tl.arange(0, M)[:, None] * K + tl.arange(0, K)[None, :]
    found = tl.dot(tl.load(constants + at + place), values, input_precision="ieee")
    if SPLIT:
        found += tl.dot(tl.load(constants + SPLIT + at + place), values, input_precision="ieee")
    return found


@triton.jit
def _rows(table, row, n, pixels, F: tl.constexpr):
    """Return where values lie: the table holds the rows before one, those beside it, and its place among them."""
    before, beside, place = tl.load(table + 3 * row), tl.load(table + 3 * row + 1), tl.load(table + 3 * row + 2)
    return (before * pixels + place)[:, None] * F + (n // F * F)[None, :] * beside[:, None] + (n % F)[None, :]


@triton.jit
def _into_irreps(
    x, rows, matrix, table, pixels, grid_height, grid_width, height, width, origin, step,
    F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, COLS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    n, d, r = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, DP), tl.arange(0, RP)
    pixel = n // F
    image, place = pixel // (grid_height * grid_width), pixel % (grid_height * grid_width)
    down, right = place // grid_width - origin, place % grid_width - origin
    there = (down >= 0) & (right >= 0) & (down % step == 0) & (right % step == 0) & (n < pixels * F)
    there = there & (down < height * step) & (right < width * step)
    source = ((image * height + down // step) * width + right // step) * F + n % F
    mask = there[:, None] & (d < D)[None, :]
    values = tl.load(x + source[:, None] * D + d[None, :], mask=mask, other=0.0)
    found = _times(matrix, tl.trans(values), SPLIT, RP, DP, 0)
    held = (r < R)[:, None] & (n < pixels * F)[None, :]
    at = _rows(table, tl.minimum(r, R - 1), n, pixels, F)
    tl.store(rows + at, found.to(rows.dtype.element_ty), mask=held)


@triton.jit
def _into_field(
    rows, y, matrix, table, pixels, grid_height, grid_width, height, width, images, step,
    F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, COLS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    n, d, r = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, DP), tl.arange(0, RP)
    pixel, inside = n // F, n < images * height * width * F
    image, place = pixel // (height * width), pixel % (height * width)
    source = (image * grid_height + place // width * step) * grid_width + place % width * step
    at = _rows(table, tl.minimum(r, R - 1), source * F + n % F, pixels, F)
    values = tl.load(rows + at, mask=(r < R)[:, None] & inside[None, :], other=0.0)
    found = tl.trans(_times(matrix, values, SPLIT, DP, RP, 0))
    mask = inside[:, None] & (d < D)[None, :]
    tl.store(y + n[:, None] * D + d[None, :], found.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _make(
    hat, z, constants, slots, table, pixels, grid_width,
    F: tl.constexpr, SIZE: tl.constexpr, MP: tl.constexpr, KP: tl.constexpr, COLS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    slot, n = tl.program_id(0), tl.program_id(1) * COLS + tl.arange(0, COLS)  # irreps write to the same lines: at once
    m, k = tl.arange(0, MP), tl.arange(0, KP)
    first, count, maps = tl.load(slots + 3 * slot), tl.load(slots + 3 * slot + 1), tl.load(slots + 3 * slot + 2)
    row, tap = k // (SIZE * SIZE), k % (SIZE * SIZE)
    near = (tap // SIZE * grid_width + tap % SIZE) * F
    there = (row < count)[:, None] & (n[None, :] + near[:, None] < pixels * F)
    at = ((first + row) * pixels * F + near)[:, None] + n[None, :]
    values = tl.load(hat + at, mask=there, other=0.0)
    found = _times(constants, values, SPLIT, MP, KP, slot * MP * KP)
    held = (m < maps)[:, None] & (n < pixels * F)[None, :]
    tl.store(z + _rows(table, slot * MP + m, n, pixels, F), found.to(z.dtype.element_ty), mask=held)


@dataclass(frozen=True, eq=False)
class _Alike:
    """Irreps of the output of one shape."""

    size: int
    numbers: Tensor  # (irreps, blocks, copies) int64, in the basis


@dataclass(frozen=True, eq=False)
class _Field:
    """The rows of a field's irreps."""

    into: Tensor  # (parts, RP, DP)
    out: Tensor  # (parts, DP, RP)
    table: Tensor  # (rows, 3) int32
    channels: int


@dataclass(frozen=True, eq=False)
class _Plan:
    """The blocks of a recipe, or of its transpose, as the kernels read them."""

    of: Blocks
    alike: tuple[_Alike, ...]
    inputs: _Field
    outputs: _Field  # without rows that no block leads to
    slots: Tensor  # (slots, 3) int32: first row, rows, maps
    maps: Tensor  # (slots x MP, 3) int32, a table
    constants: Tensor  # (parts, slots, MP, KP)


def _power(count: int) -> int:
    """Return the side of a tile that Triton multiplies."""
    return max(16, 1 << (count - 1).bit_length())


def _parts(values: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Round constants, to two numbers where one of this type is less than a float32."""
    high = values.to(dtype)
    parts = [high, (values - high.double()).to(dtype)] if dtype.itemsize == 2 else [high]
    return torch.stack(parts).to(device).contiguous()


@cache
def _plan(recipe: Recipe, transposed: bool, device: torch.device, dtype: torch.dtype) -> _Plan:
    of = blocks(recipe, transposed)
    alike, before = [], {}  # of each irrep: rows of z and of y' before it
    shapes = [(irrep.size, *irrep.weights.shape) for irrep in of.irreps]
    z_rows = y_rows = 0
    for shape in dict.fromkeys(shapes):
        (size, number, copies), places = shape, [place for place, each in enumerate(shapes) if each == shape]
        alike.append(_Alike(size, torch.tensor(np.stack([of.irreps[k].weights for k in places]), device=device)))
        for place in places:
            before[place] = z_rows, y_rows
            z_rows, y_rows = z_rows + size * number, y_rows + size * copies
    inputs = {row: (row, 1, 0) for row in range(len(of.inputs.change))}
    outputs = {
        int(row): (before[place][1] + component * len(irrep.rows), len(irrep.rows), copy)
        for place, irrep in enumerate(of.irreps)
        for copy, rows in enumerate(irrep.rows)
        for component, row in enumerate(rows)
    }
    fields = (
        _field(of.inputs.change, inputs, device, dtype),
        _field(of.outputs.change, outputs, device, dtype),
    )
    constants = _constants(of, [before[place][0] for place in range(len(shapes))], device, dtype)
    return _Plan(of, tuple(alike), *fields, *constants)


def _field(change: Any, rows: dict[int, tuple[int, int, int]], device: torch.device, dtype: torch.dtype) -> _Field:
    matrix = torch.zeros(_power(len(change)), _power(len(rows)), dtype=torch.float64)
    matrix[: len(change), : len(rows)] = torch.tensor(change[:, list(rows)])
    table = torch.tensor(list(rows.values()), dtype=torch.int32, device=device)
    return _Field(_parts(matrix.T, dtype, device), _parts(matrix, dtype, device), table, len(change))


def _constants(of: Blocks, before: list[int], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the parts of a plan that say how z is made of x', by irrep of the input."""
    taps, begins = of.size**2, np.cumsum([0, *of.inputs.sizes])
    terms = [[term for term in of.terms if term.slot == slot] for slot in range(len(of.inputs.sizes))]
    slots = [(begins[slot], size, len(terms[slot])) for slot, size in enumerate(of.inputs.sizes)]
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


class _Walk:
    """One pass over a batch: maps that come in as `inputs` go through z and leave as `outputs`."""

    def __init__(self, plan: _Plan, weight: Tensor, grid: tuple[int, int], fields: tuple[int, int]) -> None:
        """Take weights (fields of the output, of the input, basis) and the sides of the padded input."""
        self.plan, self.grid, (self.fields, self.out_fields) = plan, grid, fields
        # (irreps, blocks x fields, copies x out_fields)
        gathered = [weight[:, :, one.numbers].permute(2, 3, 1, 4, 0) for one in plan.alike]
        self.weights = [each.flatten(3).flatten(1, 2) for each in gathered]
        self.per_image = grid[0] * grid[1]

    def chunks(self, x: Tensor) -> Iterator[slice]:
        """Return which images go together."""
        size = len(self.plan.of.terms) * self.fields * self.per_image * x.element_size()
        images = max(1, CHUNK_BYTES // size)
        return (slice(begin, min(begin + images, len(x))) for begin in range(0, len(x), images))

    def into_irreps(self, x: Tensor, field: _Field, fields: int, origin: int, step: int) -> Tensor:
        """Channels-last maps (n, fields x d, H, W) -> rows; the grid's pixel `origin` is the maps' first."""
        pixels = len(x) * self.per_image
        found = x.new_empty(len(field.table) * pixels * fields)
        _into_irreps[(triton.cdiv(pixels * fields, COLUMNS),)](
            x, found, field.into, field.table, pixels, *self.grid, *x.shape[2:], origin, step,
            **_sides(field, fields),
        )  # fmt: skip
        return found

    def into_field(self, rows: Tensor, y: Tensor, step: int) -> None:
        """Rows of the output -> channels-last maps, which are written."""
        values = len(y) * y.shape[2] * y.shape[3] * self.out_fields
        _into_field[(triton.cdiv(values, COLUMNS),)](
            rows, y, self.plan.outputs.out, self.plan.outputs.table, len(y) * self.per_image, *self.grid,
            *y.shape[2:], len(y), step, **_sides(self.plan.outputs, self.out_fields),
        )  # fmt: skip

    def make(self, hat: Tensor, images: int) -> list[Tensor]:
        """Make z, in batches of matrices (irreps, components x pixels, blocks x fields)."""
        plan, pixels = self.plan, images * self.per_image
        z = hat.new_empty(len(plan.of.terms) * pixels * self.fields)
        parts, slots, m, k = plan.constants.shape
        _make[(slots, triton.cdiv(pixels * self.fields, COLUMNS))](
            hat, z, plan.constants, plan.slots, plan.maps, pixels, self.grid[1], F=self.fields, SIZE=plan.of.size,
            MP=m, KP=k, COLS=COLUMNS, SPLIT=(parts - 1) * slots * m * k, num_warps=WARPS,
        )  # fmt: skip
        return self._split(z, pixels, 1, self.fields)

    def split(self, rows: Tensor, images: int) -> list[Tensor]:
        """Return y' as batches of matrices (irreps, components x pixels, copies x out_fields)."""
        return self._split(rows, images * self.per_image, 2, self.out_fields)

    def multiply(self, z: Sequence[Tensor], images: int) -> Tensor:
        """Multiply z by the weights."""
        rows = z[0].new_empty(len(self.plan.outputs.table) * images * self.per_image * self.out_fields)
        for maps, product, found in zip(z, self.weights, self.split(rows, images), strict=True):
            torch.bmm(maps, product, out=found)
        return rows

    def _split(self, flat: Tensor, pixels: int, which: int, fields: int) -> list[Tensor]:
        shapes = [(len(one.numbers), one.size * pixels, one.numbers.shape[which] * fields) for one in self.plan.alike]
        parts = flat.split([a * b * c for a, b, c in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _sides(field: _Field, fields: int) -> dict[str, int]:
    parts, rows, channels = field.into.shape
    sides = {"F": fields, "D": field.channels, "R": len(field.table), "DP": channels, "RP": rows}
    return sides | {"COLS": COLUMNS, "SPLIT": (parts - 1) * rows * channels, "num_warps": WARPS}


def forward(x: Tensor, weight: Tensor, recipe: Recipe, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), channels last."""
    plan = _plan(recipe, False, x.device, x.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    fields = x.shape[1] // plan.inputs.channels
    given = weight.to(x.dtype).view(-1, fields, plan.of.weights)
    height, width = (side + 2 * padding for side in x.shape[2:])
    walk = _Walk(plan, given, (height, width), (fields, len(given)))
    sides = [(side - plan.of.size) // stride + 1 for side in walk.grid]
    y = x.new_empty(len(x), len(given) * plan.outputs.channels, *sides).to(memory_format=torch.channels_last)
    for some in walk.chunks(x):
        images = some.stop - some.start
        z = walk.make(walk.into_irreps(x[some], plan.inputs, fields, padding, 1), images)
        walk.into_field(walk.multiply(z, images), y[some], stride)
    return y


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, recipe: Recipe, stride: int, padding: int, wants_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x, where it is wanted, and of the weights."""
    plan = _plan(recipe, True, x.device, x.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    fields, size = x.shape[1] // plan.outputs.channels, plan.of.size
    given = weight.to(x.dtype).view(-1, fields, plan.of.weights)
    height, width = (side + size - 1 for side in x.shape[2:])
    walk = _Walk(plan, given.transpose(0, 1), (height, width), (len(given), fields))
    by_x = torch.empty_like(x) if wants_x else None
    by_weights = [torch.zeros_like(product, dtype=weight.dtype) for product in walk.weights]
    for some in walk.chunks(x):
        images = some.stop - some.start
        z = walk.make(walk.into_irreps(gradient[some], plan.inputs, len(given), size - 1 - padding, stride), images)
        if by_x is not None:
            walk.into_field(walk.multiply(z, images), by_x[some], 1)
        seen = walk.split(walk.into_irreps(x[some], plan.outputs, fields, 0, 1), images)
        for total, maps, rows in zip(by_weights, z, seen, strict=True):
            total += torch.bmm(maps.mT, rows)
    return by_x, _together(plan, by_weights, (len(given), fields)).view_as(weight)


def _together(plan: _Plan, by_weights: Sequence[Tensor], fields: tuple[int, int]) -> Tensor:
    """Put the gradients of a transposed walk's weights in their places."""
    found = by_weights[0].new_empty(*fields, plan.of.weights)
    for one, each in zip(plan.alike, by_weights, strict=True):
        irreps, number, copies = one.numbers.shape
        found[:, :, one.numbers] = each.view(irreps, number, fields[0], copies, fields[1]).permute(2, 4, 0, 1, 3)
    return found
