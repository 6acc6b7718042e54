"""The harmonic convolution of a GPU: z is made a few images at a time by Triton kernels and multiplied at once.

Forward and backward keep x alone. A map lies as rows of (pixels, fields), one row for each component of an irrep; rows
that one product needs lie side by side, so that all irreps of one size are one batch of matrices. Every kernel takes a
tile of pixels and fields, gathers some rows of it, and multiplies them by a small matrix of constants:

    _into_irreps    x  -> x'      Q^-1
    _make           x' -> z       blocks of one irrep of the input, at nine shifts of x'
    _unmake         z  -> x'      the transpose of _make
    _into_field     y' -> y       Q

Constants are float32, and products of float16 and bfloat16 maps are added in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from galaxyhpc.models.harmonic import Blocks, Recipe, blocks

CHUNK_BYTES = 64 << 20  # of z
COLUMNS = 256  # pixels x fields of a tile


@triton.jit
def _address(table, row, pixel, field, pixels, F: tl.constexpr):
    """Return where a row's values lie: table holds (rows before it, rows beside it, its place there)."""
    before, beside, place = tl.load(table + 3 * row), tl.load(table + 3 * row + 1), tl.load(table + 3 * row + 2)
    first = before.to(tl.int64) * pixels
    near = pixel[None, :, None] * beside[:, None, None] + place[:, None, None]
    return (first[:, None, None] + near) * F + field[None, None, :]


@triton.jit
def _into_irreps(
    x,
    rows,
    matrix,
    table,
    pixels,
    F: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    DP: tl.constexpr,
    RP: tl.constexpr,
    BP: tl.constexpr,
    BF: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pixel, field = tl.program_id(0) * BP + tl.arange(0, BP), tl.program_id(1) * BF + tl.arange(0, BF)
    d, r = tl.arange(0, DP), tl.arange(0, RP)
    inside = (pixel < pixels)[:, None, None] & (field < F)[None, :, None] & (d < D)[None, None, :]
    at = (pixel.to(tl.int64)[:, None, None] * F + field[None, :, None]) * D + d[None, None, :]
    turn = tl.load(matrix + d[:, None] * RP + r[None, :])
    values = tl.reshape(tl.load(x + at, mask=inside, other=0.0), (BP * BF, DP)).to(turn.dtype)
    found = tl.trans(tl.dot(values, turn, input_precision=PRECISION))
    held = (r < R)[:, None, None] & (pixel < pixels)[None, :, None] & (field < F)[None, None, :]
    at = _address(table, tl.minimum(r, R - 1), pixel, field, pixels, F)
    tl.store(rows + at, tl.reshape(found, (RP, BP, BF)).to(rows.dtype.element_ty), mask=held)


@triton.jit
def _into_field(
    rows,
    y,
    matrix,
    table,
    pixels,
    F: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    DP: tl.constexpr,
    RP: tl.constexpr,
    BP: tl.constexpr,
    BF: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pixel, field = tl.program_id(0) * BP + tl.arange(0, BP), tl.program_id(1) * BF + tl.arange(0, BF)
    d, r = tl.arange(0, DP), tl.arange(0, RP)
    held = (r < R)[:, None, None] & (pixel < pixels)[None, :, None] & (field < F)[None, None, :]
    at = _address(table, tl.minimum(r, R - 1), pixel, field, pixels, F)
    turn = tl.load(matrix + d[None, :] * RP + r[:, None])
    values = tl.reshape(tl.load(rows + at, mask=held, other=0.0), (RP, BP * BF)).to(turn.dtype)
    found = tl.dot(tl.trans(values), turn, input_precision=PRECISION)
    inside = (pixel < pixels)[:, None, None] & (field < F)[None, :, None] & (d < D)[None, None, :]
    at = (pixel.to(tl.int64)[:, None, None] * F + field[None, :, None]) * D + d[None, None, :]
    tl.store(y + at, tl.reshape(found, (BP, BF, DP)).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _make(
    hat,
    z,
    constants,
    rows_of,
    table,
    height,
    width,
    out_height,
    out_width,
    pixels,
    in_pixels,
    stride,
    padding,
    F: tl.constexpr,
    SIZE: tl.constexpr,
    KP: tl.constexpr,
    MP: tl.constexpr,
    BP: tl.constexpr,
    BF: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pixel, field = tl.program_id(0) * BP + tl.arange(0, BP), tl.program_id(1) * BF + tl.arange(0, BF)
    slot = tl.program_id(2)
    k, m = tl.arange(0, KP), tl.arange(0, MP)
    first, count, maps = tl.load(rows_of + 3 * slot), tl.load(rows_of + 3 * slot + 1), tl.load(rows_of + 3 * slot + 2)
    row, tap = k // (SIZE * SIZE), k % (SIZE * SIZE)
    image, place = pixel // (out_height * out_width), pixel % (out_height * out_width)
    down = (place // out_width * stride - padding)[None, :] + (tap // SIZE)[:, None]  # (KP, BP)
    right = (place % out_width * stride - padding)[None, :] + (tap % SIZE)[:, None]
    there = (down >= 0) & (down < height) & (right >= 0) & (right < width) & (pixel < pixels)[None, :]
    there = there & (row < count)[:, None]
    source = image[None, :] * (height * width) + down * width + right
    at = ((first + row).to(tl.int64)[:, None] * in_pixels + source)[:, :, None] * F + field[None, None, :]
    seen = tl.load(hat + at, mask=there[:, :, None] & (field < F)[None, None, :], other=0.0)
    block = tl.load(constants + (slot * MP + m)[:, None] * KP + k[None, :])
    found = tl.dot(block, tl.reshape(seen, (KP, BP * BF)).to(block.dtype), input_precision=PRECISION)
    held = (m < maps)[:, None, None] & (pixel < pixels)[None, :, None] & (field < F)[None, None, :]
    at = _address(table, slot * MP + m, pixel, field, pixels, F)
    tl.store(z + at, tl.reshape(found, (MP, BP, BF)).to(z.dtype.element_ty), mask=held)


@triton.jit
def _unmake(
    z,
    hat,
    constants,
    rows_of,
    table,
    height,
    width,
    out_height,
    out_width,
    pixels,
    in_pixels,
    stride,
    padding,
    F: tl.constexpr,
    SIZE: tl.constexpr,
    RP: tl.constexpr,
    MP: tl.constexpr,
    BP: tl.constexpr,
    BF: tl.constexpr,
    PRECISION: tl.constexpr,
):
    source, field = tl.program_id(0) * BP + tl.arange(0, BP), tl.program_id(1) * BF + tl.arange(0, BF)
    slot = tl.program_id(2)
    m, r = tl.arange(0, MP), tl.arange(0, RP)
    first, count, maps = tl.load(rows_of + 3 * slot), tl.load(rows_of + 3 * slot + 1), tl.load(rows_of + 3 * slot + 2)
    image, place = source // (height * width), source % (height * width)
    wanted = (m < maps)[:, None, None] & (field < F)[None, None, :]
    found = tl.zeros((RP, BP * BF), constants.dtype.element_ty)
    for tap in range(SIZE * SIZE):
        down, right = place // width + padding - tap // SIZE, place % width + padding - tap % SIZE
        there = (down >= 0) & (right >= 0) & (down % stride == 0) & (right % stride == 0) & (source < in_pixels)
        down, right = down // stride, right // stride
        there = there & (down < out_height) & (right < out_width)
        pixel = tl.where(there, image * (out_height * out_width) + down * out_width + right, 0)
        at = _address(table, slot * MP + m, pixel, field, pixels, F)
        seen = tl.load(z + at, mask=there[None, :, None] & wanted, other=0.0)
        block = tl.load(constants + ((slot * SIZE * SIZE + tap) * RP + r)[:, None] * MP + m[None, :])
        found += tl.dot(block, tl.reshape(seen, (MP, BP * BF)).to(block.dtype), input_precision=PRECISION)
    at = ((first + r).to(tl.int64)[:, None] * in_pixels + source[None, :])[:, :, None] * F + field[None, None, :]
    held = (r < count)[:, None, None] & (source < in_pixels)[None, :, None] & (field < F)[None, None, :]
    tl.store(hat + at, tl.reshape(found, (RP, BP, BF)).to(hat.dtype.element_ty), mask=held)


@dataclass(frozen=True, eq=False)
class _Alike:
    """Irreps of the output of one shape: their products are one batch of matrices."""

    size: int
    numbers: Tensor  # (irreps, blocks, copies) int64, in the basis


@dataclass(frozen=True, eq=False)
class _Turn:
    """From the rows of irreps to a field's channels and back."""

    matrix: Tensor  # (DP, RP), a row for each channel
    table: Tensor  # (rows, 3) int32
    channels: int


@dataclass(frozen=True, eq=False)
class _Plan:
    """The blocks of a recipe as the kernels read them."""

    of: Blocks
    alike: tuple[_Alike, ...]
    inputs: _Turn
    outputs: _Turn  # without the rows that no block leads to
    slots: Tensor  # (slots, 3) int32: first row, rows, maps
    maps: Tensor  # (slots x MP, 3) int32, a table
    forward: Tensor  # (slots, MP, KP)
    adjoint: Tensor  # (slots, size^2, 16, MP)

    @property
    def maps_of_slot(self) -> int:
        return self.forward.shape[1]


def _power(count: int) -> int:
    """Return the side of a tile that Triton multiplies."""
    return max(16, int(triton.next_power_of_2(count)))


@cache
def _plan(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> _Plan:
    of = blocks(recipe)
    alike, before = [], {}  # of each irrep: rows of z and of y' before it
    shapes = [(irrep.size, *irrep.weights.shape) for irrep in of.irreps]
    z_rows = y_rows = 0
    for shape in dict.fromkeys(shapes):
        (size, number, copies), places = shape, [place for place, each in enumerate(shapes) if each == shape]
        alike.append(_Alike(size, torch.tensor(np.stack([of.irreps[k].weights for k in places]), device=device)))
        for place in places:
            before[place] = z_rows, y_rows
            z_rows, y_rows = z_rows + size * number, y_rows + size * copies
    out_rows = {
        int(row): (before[place][1] + component * len(irrep.rows), len(irrep.rows), copy)
        for place, irrep in enumerate(of.irreps)
        for copy, rows in enumerate(irrep.rows)
        for component, row in enumerate(rows)
    }
    return _Plan(
        of,
        tuple(alike),
        _turn(of.inputs.change, {row: (row, 1, 0) for row in range(len(of.inputs.change))}, device, dtype),
        _turn(of.outputs.change, out_rows, device, dtype),
        *_constants(of, {place: rows for place, (rows, _) in before.items()}, device, dtype),
    )


def _turn(change: Any, rows: dict[int, tuple[int, int, int]], device: torch.device, dtype: torch.dtype) -> _Turn:
    matrix = torch.zeros(_power(len(change)), _power(len(rows)), dtype=dtype, device=device)
    matrix[: len(change), : len(rows)] = torch.tensor(change[:, list(rows)], dtype=dtype)
    return _Turn(matrix, torch.tensor(list(rows.values()), dtype=torch.int32, device=device), len(change))


def _constants(of: Blocks, before: dict[int, int], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the parts of a plan that say how z is made of x', by irrep of the input."""
    taps, begins = of.size**2, np.cumsum([0, *of.inputs.sizes])
    terms = [[term for term in of.terms if term.slot == slot] for slot in range(len(of.inputs.sizes))]
    slots = [(begins[slot], size, len(terms[slot])) for slot, size in enumerate(of.inputs.sizes)]
    most = _power(max(map(len, terms)))
    maps = torch.zeros(len(slots), most, 3, dtype=torch.int32)
    values = torch.zeros(len(slots), most, max(of.inputs.sizes), taps, dtype=torch.float64)
    for slot, some in enumerate(terms):
        for m, term in enumerate(some):
            number = len(of.irreps[term.kind].weights)
            maps[slot, m] = torch.tensor([before[term.kind] + term.component * number, number, term.block])
            for row, one, factor in zip(term.rows, term.filters, term.factors, strict=True):
                values[slot, m, row - begins[slot]] += factor * torch.tensor(of.filters[one])
    forward = torch.zeros(len(slots), most, _power(values.shape[2] * taps), dtype=dtype)
    forward[:, :, : values.shape[2] * taps] = values.flatten(2)
    adjoint = torch.zeros(len(slots), taps, 16, most, dtype=dtype)
    adjoint[:, :, : values.shape[2]] = values.permute(0, 3, 2, 1)
    read = (torch.tensor(slots, dtype=torch.int32), maps.flatten(0, 1), forward, adjoint)
    return tuple(each.to(device) for each in read)


class _Walk:
    """One pass over the images of a batch, a few at a time."""

    def __init__(self, x: Tensor, weight: Tensor, recipe: Recipe, stride: int, padding: int) -> None:
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.plan = plan = _plan(recipe, x.device, exact)
        self.stride, self.padding, self.size = stride, padding, plan.of.size
        self.precision = "tf32" if x.dtype in (torch.float16, torch.bfloat16) else "ieee"
        self.fields = x.shape[1] // plan.inputs.channels
        given = weight.detach().view(-1, self.fields, plan.of.weights)
        self.out_fields, self.sides = len(given), (int(x.shape[2]), int(x.shape[3]))
        rows, columns = ((side + 2 * padding - self.size) // stride + 1 for side in self.sides)
        self.out_sides, self.pixels = (rows, columns), rows * columns
        self.per_image = len(plan.of.terms) * self.fields * rows * columns
        self.images = max(1, min(len(x), CHUNK_BYTES // (self.per_image * x.element_size())))
        self.x = x.contiguous(memory_format=torch.channels_last)
        # (irreps, blocks x fields, copies x out_fields)
        gathered = [given[:, :, one.numbers].permute(2, 3, 1, 4, 0) for one in plan.alike]
        self.weights = [each.flatten(3).flatten(1, 2).to(x.dtype) for each in gathered]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Return where chunks of images begin and end."""
        for begin in range(0, len(self.x), self.images):
            yield begin, min(begin + self.images, len(self.x))

    def into_irreps(self, x: Tensor, turn: _Turn, fields: int) -> Tensor:
        """Channels-last maps (n, fields x d, H, W) -> rows (rows, n x H x W, fields)."""
        pixels, rows = len(x) * x.shape[2] * x.shape[3], len(turn.table)
        found = x.new_empty(rows * pixels * fields)
        self._tiles(_into_irreps, pixels, fields, 1)(
            x,
            found,
            turn.matrix,
            turn.table,
            pixels,
            F=fields,
            D=turn.channels,
            R=rows,
            DP=turn.matrix.shape[0],
            RP=turn.matrix.shape[1],
        )
        return found

    def into_field(self, rows: Tensor, y: Tensor, turn: _Turn, fields: int) -> None:
        """Rows -> channels-last maps y, which are written."""
        pixels = len(y) * y.shape[2] * y.shape[3]
        self._tiles(_into_field, pixels, fields, 1)(
            rows,
            y,
            turn.matrix,
            turn.table,
            pixels,
            F=fields,
            D=turn.channels,
            R=len(turn.table),
            DP=turn.matrix.shape[0],
            RP=turn.matrix.shape[1],
        )

    def make(self, hat: Tensor, images: int) -> Tensor:
        """Make z of some images."""
        z = hat.new_empty(images * self.per_image)
        self._shift(_make, hat, z, self.plan.forward, images, KP=self.plan.forward.shape[2])
        return z

    def unmake(self, z: Tensor, images: int) -> Tensor:
        """Return what x' has of z, by the transpose of `make`."""
        hat = z.new_empty(self.plan.inputs.channels * images * self.sides[0] * self.sides[1] * self.fields)
        self._shift(_unmake, z, hat, self.plan.adjoint, images, RP=self.plan.adjoint.shape[2])
        return hat

    def _shift(self, kernel: Any, source: Tensor, target: Tensor, constants: Tensor, images: int, **more: int) -> None:
        (height, width), (rows, columns), plan = self.sides, self.out_sides, self.plan
        pixels, in_pixels = images * rows * columns, images * height * width
        mine = pixels if kernel is _make else in_pixels
        self._tiles(kernel, mine, self.fields, len(plan.slots))(
            source,
            target,
            constants,
            plan.slots,
            plan.maps,
            height,
            width,
            rows,
            columns,
            pixels,
            in_pixels,
            self.stride,
            self.padding,
            F=self.fields,
            SIZE=self.size,
            MP=plan.maps_of_slot,
            **more,
        )

    def _tiles(self, kernel: Any, pixels: int, fields: int, slots: int) -> Any:
        """Return a kernel that is to be called with what is its own; its tiles are few fields of many pixels."""
        wide = next((power for power in (32, 16, 8, 4) if fields % power == 0), min(8, _power(fields)))
        high = COLUMNS // wide
        grid = (triton.cdiv(pixels, high), triton.cdiv(fields, wide), slots)
        return partial(kernel[grid], BP=high, BF=wide, PRECISION=self.precision)

    def split(self, z: Tensor, images: int) -> list[Tensor]:
        """Return z as batches of matrices (irreps, components x pixels, blocks x fields)."""
        return self._split(z, images, 1, self.fields)

    def split_out(self, rows: Tensor, images: int) -> list[Tensor]:
        """Return y' as batches of matrices (irreps, components x pixels, copies x out_fields)."""
        return self._split(rows, images, 2, self.out_fields)

    def _split(self, flat: Tensor, images: int, which: int, fields: int) -> list[Tensor]:
        pixels = images * self.out_sides[0] * self.out_sides[1]
        shapes = [(len(one.numbers), one.size * pixels, one.numbers.shape[which] * fields) for one in self.plan.alike]
        parts = flat.split([a * b * c for a, b, c in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def together(self, by_weights: Sequence[Tensor], weight: Tensor) -> Tensor:
        """Put the gradients of `weights` in their places."""
        found = weight.new_empty(self.out_fields, self.fields, self.plan.of.weights)
        for one, each in zip(self.plan.alike, by_weights, strict=True):
            irreps, number, copies = one.numbers.shape
            split = each.view(irreps, number, self.fields, copies, self.out_fields)
            found[:, :, one.numbers] = split.permute(4, 2, 0, 1, 3).to(found.dtype)
        return found.view_as(weight)


def forward(x: Tensor, weight: Tensor, recipe: Recipe, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), channels last."""
    walk = _Walk(x, weight, recipe, stride, padding)
    plan = walk.plan
    shape = (len(x), walk.out_fields * plan.outputs.channels, *walk.out_sides)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for begin, end in walk.chunks():
        z = walk.make(walk.into_irreps(walk.x[begin:end], plan.inputs, walk.fields), end - begin)
        rows = x.new_empty(len(plan.outputs.table) * (end - begin) * walk.pixels * walk.out_fields)
        several = zip(walk.split(z, end - begin), walk.weights, walk.split_out(rows, end - begin), strict=True)
        for maps, product, found in several:
            torch.bmm(maps, product, out=found)
        walk.into_field(rows, y[begin:end], plan.outputs, walk.out_fields)
    return y


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, recipe: Recipe, stride: int, padding: int, wants_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x, where it is wanted, and of the weights."""
    walk = _Walk(x, weight, recipe, stride, padding)
    plan = walk.plan
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    by_x = torch.empty_like(walk.x) if wants_x else None
    by_weights = [torch.zeros_like(product, dtype=plan.forward.dtype) for product in walk.weights]
    for begin, end in walk.chunks():
        z = walk.make(walk.into_irreps(walk.x[begin:end], plan.inputs, walk.fields), end - begin)
        rows = walk.into_irreps(gradient[begin:end], plan.outputs, walk.out_fields)
        by_z = torch.empty_like(z) if wants_x else z
        maps, by_maps = walk.split(z, end - begin), walk.split(by_z, end - begin)
        for n, by_rows in enumerate(walk.split_out(rows, end - begin)):
            by_weights[n] += torch.bmm(maps[n].mT, by_rows)
            if wants_x:
                torch.bmm(by_rows, walk.weights[n].mT, out=by_maps[n])
        if by_x is not None:
            walk.into_field(walk.unmake(by_z, end - begin), by_x[begin:end], plan.inputs, walk.fields)
    return by_x, walk.together(by_weights, weight)
