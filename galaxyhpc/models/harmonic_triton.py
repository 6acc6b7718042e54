"""The harmonic convolution of a GPU, by the Triton kernels of `harmonic_kernels` and batches of matrix products.

    into_irreps    x  -> x'      Q^-1
    convolve       x' -> y'      3x3: blocks and weights; z never leaves the chip
    into_field     y' -> y       Q

    make           x' -> z       the blocks alone, for other sizes and for the gradient of the weights
    torch.bmm      z  -> y'      the weights; one for all irreps of the output that are alike

Forward and backward keep x alone and go through a batch a few images at a time. The gradient of x is the same function
of the transposed filters. The weights' is z times the gradient of y', or the transposed filters' z times x': whichever
has fewer fields. Both lie on one grid, the padded input; a stride leaves pixels of it out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from galaxyhpc.models import harmonic_kernels as kernels
from galaxyhpc.models.harmonic import Blocks, Irrep, Recipe, Term, blocks

CHUNK_BYTES = 1 << 30  # of z
COLUMNS = 256  # pixels x fields of a tile
WARPS = 4
SMALL = 1e-9  # a difference of constants that counts as none

Rows = dict[int, tuple[int, int, int]]  # of a field's irreps: rows before it, beside it, its place there


@dataclass(frozen=True, eq=False)
class _Alike:
    """Irreps of the output of one shape."""

    size: int
    numbers: Tensor  # (irreps, blocks, copies) int64, in the basis
    entries: Tensor  # (irreps, blocks, 2) int32: first row of x', rows
    constants: Tensor | None  # (irreps, blocks, 32) float32; None where a filter is neither even nor odd


@dataclass(frozen=True, eq=False)
class _Field:
    """The rows of a field's irreps that any block leads to."""

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
    outputs: _Field
    sources: Tensor  # (rows of x', 3) int32, a table; rows that lead to nothing are not there
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


def _shapes(of: Blocks) -> list[tuple[int, int, int]]:
    """Return (components, blocks, copies) of each irrep of the output."""
    return [(irrep.size, *irrep.weights.shape) for irrep in of.irreps]


def _alike(of: Blocks) -> list[list[int]]:
    """Return the irreps of the output, of one shape together."""
    shapes = _shapes(of)
    return [[place for place, each in enumerate(shapes) if each == shape] for shape in dict.fromkeys(shapes)]


def _rows(of: Blocks) -> Rows:
    """Return where the rows of y' lie."""
    found: Rows = {}
    before = 0
    for place in (place for places in _alike(of) for place in places):
        irrep, copies = of.irreps[place], len(of.irreps[place].rows)
        for component in range(irrep.size):
            found |= {int(row): (before, copies, copy) for copy, row in enumerate(irrep.rows[:, component])}
            before += copies
    return found


@cache
def _plan(recipe: Recipe, transposed: bool, device: torch.device, dtype: torch.dtype) -> _Plan:
    of, back = blocks(recipe, transposed), blocks(recipe, not transposed)
    inputs, outputs = _rows(back), _rows(of)
    sources = torch.tensor([inputs.get(row, (0, 1, 0)) for row in range(len(of.inputs.change))], dtype=torch.int32)
    alike = []
    for places in _alike(of):
        irreps = [of.irreps[place] for place in places]
        terms = [[term for term in of.terms if term.kind == place] for place in places]
        entries, constants = zip(*map(_entries, [of] * len(irreps), irreps, terms), strict=True)
        numbers = torch.tensor(np.stack([irrep.weights for irrep in irreps]), device=device)
        usable = dtype != torch.float64 and all(one is not None for one in constants)
        folded = torch.stack(constants).to(device) if usable else None
        alike.append(_Alike(irreps[0].size, numbers, torch.stack(entries).to(device), folded))
    fields = [
        _field(change, rows, device, dtype)
        for change, rows in ((of.inputs.change, inputs), (of.outputs.change, outputs))
    ]
    return _Plan(of, tuple(alike), *fields, sources.to(device), *_constants(of, device, dtype))


def _field(change: Any, rows: Rows, device: torch.device, dtype: torch.dtype) -> _Field:
    matrix = torch.zeros(_power(len(change)), _power(len(rows)), dtype=torch.float64)
    matrix[: len(change), : len(rows)] = torch.tensor(change[:, list(rows)])
    table = torch.tensor(list(rows.values()), dtype=torch.int32, device=device)
    return _Field(_parts(matrix.T, dtype, device), _parts(matrix, dtype, device), table, len(change))


def _begins(of: Blocks) -> list[int]:
    """Return the first row of each irrep of the input."""
    return [int(begin) for begin in np.cumsum([0, *of.inputs.sizes])]


def _filters(of: Blocks, term: Term) -> Tensor:
    """Return what a row of z is of the rows of its irrep, (rows, taps) float64."""
    begin = _begins(of)[term.slot]
    found = torch.zeros(of.inputs.sizes[term.slot], of.size**2, dtype=torch.float64)
    for row, one, factor in zip(term.rows, term.filters, term.factors, strict=True):
        found[row - begin] += factor * torch.tensor(of.filters[one])
    return found


def _entries(of: Blocks, irrep: Irrep, terms: Sequence[Term]) -> tuple[Tensor, Tensor | None]:
    """Return what `convolve` reads of an irrep of the output: of which rows its blocks are, and their constants."""
    entries = torch.zeros(len(irrep.weights), 2, dtype=torch.int32)
    constants = torch.zeros(len(irrep.weights), 32)
    values = torch.zeros(len(irrep.weights), 2, 2, of.size**2, dtype=torch.float64)
    for term in terms:
        found = _filters(of, term)
        entries[term.block] = torch.tensor([_begins(of)[term.slot], len(found)])
        values[term.block, term.component, : len(found)] = found
    even = values[..., :4] + values.flip(-1)[..., :4]
    odd = values[..., :4] - values.flip(-1)[..., :4]
    signs = torch.where(odd.flatten(1).abs().amax(1) < SMALL, 1.0, -1.0)
    folds = torch.where(signs > 0, odd.flatten(1).abs().amax(1), even.flatten(1).abs().amax(1)) < SMALL
    if of.size != 3 or not bool(folds.all()):
        return entries, None
    constants[:, :20] = torch.cat([values[..., 4:5], values[..., :4]], -1).flatten(1)
    constants[:, 20] = signs
    return entries, constants


def _constants(of: Blocks, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `make` reads of each irrep of the input."""
    terms = [[term for term in of.terms if term.slot == slot] for slot in range(len(of.inputs.sizes))]
    slots = [(_begins(of)[slot], size, len(terms[slot])) for slot, size in enumerate(of.inputs.sizes)]
    most, taps = _power(max(map(len, terms))), of.size**2
    before, total = {}, 0
    for place in (place for places in _alike(of) for place in places):
        before[place], total = total, total + of.irreps[place].size * len(of.irreps[place].weights)
    maps = torch.zeros(len(slots), most, 3, dtype=torch.int32)
    values = torch.zeros(len(slots), most, _power(max(of.inputs.sizes) * taps), dtype=torch.float64)
    for slot, some in enumerate(terms):
        for m, term in enumerate(some):
            number = len(of.irreps[term.kind].weights)
            maps[slot, m] = torch.tensor([before[term.kind] + term.component * number, number, term.block])
            found = _filters(of, term).flatten()
            values[slot, m, : len(found)] = found
    read = torch.tensor(slots, dtype=torch.int32, device=device)
    return read, maps.flatten(0, 1).to(device), _parts(values, dtype, device)


class _Walk:
    """One pass over a batch, on the grid of its padded input."""

    def __init__(self, x: Tensor, recipe: Recipe, stride: int, padding: int, out_fields: int) -> None:
        self.recipe, self.stride, self.padding = recipe, stride, padding
        height, width = (side + 2 * padding for side in x.shape[2:])
        self.grid, self.per_image = (height, width), height * width
        self.plan, self.back = (_plan(recipe, transposed, x.device, x.dtype) for transposed in (False, True))
        self.fields, self.out_fields = x.shape[1] // self.plan.inputs.channels, out_fields
        rows = max(len(self.plan.of.terms) * min(self.fields, out_fields), 32 * max(self.fields, out_fields))
        self.images = max(1, CHUNK_BYTES // (rows * self.per_image * x.element_size()))

    def chunks(self, x: Tensor) -> Iterator[tuple[slice, int]]:
        """Return which images go together, and how many pixels they have."""
        for begin in range(0, len(x), self.images):
            some = slice(begin, min(begin + self.images, len(x)))
            yield some, (some.stop - begin) * self.per_image

    def into_irreps(self, x: Tensor, field: _Field, fields: int, origin: int, step: int) -> Tensor:
        """Channels-last maps (n, fields x d, H, W) -> rows."""
        pixels = len(x) * self.per_image
        found = x.new_empty(len(field.table) * pixels * fields)
        kernels.into_irreps[(triton.cdiv(pixels * fields, COLUMNS),)](
            x, found, field.into, field.table, pixels, *self.grid, *x.shape[2:], origin, step, **_sides(field, fields)
        )
        return found

    def into_field(self, rows: Tensor, y: Tensor, field: _Field, fields: int, origin: int, step: int) -> None:
        """Rows -> channels-last maps, which are written."""
        values = len(y) * y.shape[2] * y.shape[3] * fields
        kernels.into_field[(triton.cdiv(values, COLUMNS),)](
            rows, y, field.out, field.table, len(y) * self.per_image, *self.grid, *y.shape[2:], origin, step, len(y),
            **_sides(field, fields),
        )  # fmt: skip

    def make(self, plan: _Plan, hat: Tensor, pixels: int, fields: int) -> list[Tensor]:
        """Make z, in batches of matrices (irreps, components x pixels, blocks x fields)."""
        z = hat.new_empty(len(plan.of.terms) * pixels * fields)
        parts, slots, m, k = plan.constants.shape
        columns = max(16, min(COLUMNS, (1 << 15) // (k * hat.element_size())))  # what shared memory holds
        kernels.make[(slots, triton.cdiv(pixels * fields, columns))](
            hat, z, plan.constants, plan.slots, plan.sources, plan.maps, pixels, self.grid[1], F=fields,
            SIZE=plan.of.size, MP=m, KP=k, COLS=columns, SPLIT=(parts - 1) * slots * m * k, num_warps=WARPS,
        )  # fmt: skip
        return _split(plan, z, pixels, 1, fields)

    def multiply(self, plan: _Plan, hat: Tensor, weights: Sequence[Tensor], pixels: int, fields: int) -> Tensor:
        """Return y' of x' and weights (irreps, blocks x fields, copies x fields of the output)."""
        columns = sum(
            one.size * len(one.numbers) * each.shape[2] for one, each in zip(plan.alike, weights, strict=True)
        )
        rows = hat.new_empty(columns * pixels)
        if any(one.constants is None for one in plan.alike):
            z = self.make(plan, hat, pixels, fields)
            sizes = [(len(maps), maps.shape[1], each.shape[2]) for maps, each in zip(z, weights, strict=True)]
            for maps, each, found, size in zip(
                z, weights, rows.split([a * b * c for a, b, c in sizes]), sizes, strict=True
            ):
                torch.bmm(maps, each, out=found.view(size))
            return rows
        first = 0
        for one, each in zip(plan.alike, weights, strict=True):
            columns = each.shape[2]
            wide = min(128, _power(columns))
            kernels.convolve[(len(each), triton.cdiv(pixels, 64), triton.cdiv(columns, wide))](
                hat, each, rows, one.constants, one.entries, plan.sources, pixels, self.grid[1], first, columns,
                F=fields, E=one.numbers.shape[1], D=one.size, BM=64, BN=wide, BK=16, num_warps=WARPS,
            )  # fmt: skip
            first += len(each) * one.size * pixels * columns
        return rows

    def by_weights(self, plan: _Plan, hat: Tensor, other: Tensor, pixels: int, fields: tuple[int, int]) -> list[Tensor]:
        """Return z of x' times the other side's rows."""
        several = zip(self.make(plan, hat, pixels, fields[0]), _split(plan, other, pixels, 2, fields[1]), strict=True)
        return [torch.bmm(maps.mT, rows) for maps, rows in several]


def _split(plan: _Plan, flat: Tensor, pixels: int, which: int, fields: int) -> list[Tensor]:
    shapes = [(len(one.numbers), one.size * pixels, one.numbers.shape[which] * fields) for one in plan.alike]
    parts = flat.split([a * b * c for a, b, c in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _sides(field: _Field, fields: int) -> dict[str, int]:
    parts, rows, channels = field.into.shape
    sides = {"F": fields, "D": field.channels, "R": len(field.table), "DP": channels, "RP": rows}
    return sides | {"COLS": COLUMNS, "SPLIT": (parts - 1) * rows * channels, "num_warps": WARPS}


def _gathered(plan: _Plan, weight: Tensor) -> list[Tensor]:
    """Weights (fields of the output, of the input, basis) -> (irreps, blocks x fields, copies x fields)."""
    several = [weight[:, :, one.numbers].permute(2, 3, 1, 4, 0) for one in plan.alike]
    return [each.flatten(3).flatten(1, 2).contiguous() for each in several]


def _scattered(plan: _Plan, several: Sequence[Tensor], fields: tuple[int, int]) -> Tensor:
    """Put gradients of `_gathered` in their places."""
    found = several[0].new_empty(*fields, plan.of.weights)
    for one, each in zip(plan.alike, several, strict=True):
        irreps, number, copies = one.numbers.shape
        found[:, :, one.numbers] = each.view(irreps, number, fields[1], copies, fields[0]).permute(4, 2, 0, 1, 3)
    return found


def forward(x: Tensor, weight: Tensor, recipe: Recipe, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), channels last."""
    x = x.contiguous(memory_format=torch.channels_last)
    given, fields = _weights(x, weight, recipe)
    walk = _Walk(x, recipe, stride, padding, len(given))
    plan, centre = walk.plan, recipe[1] // 2
    sides = [(side - plan.of.size) // stride + 1 for side in walk.grid]
    shape = (len(x), len(given) * plan.outputs.channels, *sides)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    weights = _gathered(plan, given)
    for some, pixels in walk.chunks(x):
        hat = walk.into_irreps(x[some], plan.inputs, fields, padding, 1)
        rows = walk.multiply(plan, hat, weights, pixels, fields)
        walk.into_field(rows, y[some], plan.outputs, len(given), centre, stride)
    return y


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, recipe: Recipe, stride: int, padding: int, wants_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x, where it is wanted, and of the weights."""
    x, gradient = (each.contiguous(memory_format=torch.channels_last) for each in (x, gradient))
    given, fields = _weights(x, weight, recipe)
    walk = _Walk(x, recipe, stride, padding, len(given))
    plan, back, centre = walk.plan, walk.back, recipe[1] // 2
    by_x = torch.empty_like(x) if wants_x else None
    weights = _gathered(back, given.transpose(0, 1))
    mine = plan if fields <= len(given) else back
    total: list[Tensor] | None = None
    for some, pixels in walk.chunks(x):
        by_rows = walk.into_irreps(gradient[some], plan.outputs, len(given), centre, stride)
        if by_x is not None:
            by_hat = walk.multiply(back, by_rows, weights, pixels, len(given))
            walk.into_field(by_hat, by_x[some], plan.inputs, fields, padding, 1)
        hat = walk.into_irreps(x[some], plan.inputs, fields, padding, 1)
        pair = ((hat, by_rows), (fields, len(given))) if mine is plan else ((by_rows, hat), (len(given), fields))
        part = [each.to(weight.dtype) for each in walk.by_weights(mine, *pair[0], pixels, pair[1])]
        total = part if total is None else [a + b for a, b in zip(total, part, strict=True)]
    assert total is not None
    if mine is plan:
        return by_x, _scattered(plan, total, (len(given), fields)).view_as(weight)
    return by_x, _scattered(back, total, (fields, len(given))).transpose(0, 1).reshape(weight.shape)


def _weights(x: Tensor, weight: Tensor, recipe: Recipe) -> tuple[Tensor, int]:
    """Return weights (fields of the output, of the input, basis) in the maps' type, and the fields of the input."""
    of = blocks(recipe)
    fields = x.shape[1] // len(of.inputs.change)
    return weight.to(x.dtype).view(-1, fields, of.weights), fields
