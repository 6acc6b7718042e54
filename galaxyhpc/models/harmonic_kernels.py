"""The Triton kernels of `harmonic_triton`. Each takes a tile of pixels and fields, and gathers rows of it.

Maps lie as rows of (pixels, fields), a row for a component; a table (rows, 3) says for each how many rows lie before
it, how many beside it, and its place among these. Pixels are those of a grid with a border, on which a neighbour is a
constant distance away. Matrices of constants come in two parts where the maps are of a half type: the sum of both is
as good as float32. Products are added in float32, or float64.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def times(constants, values, SPLIT: tl.constexpr, M: tl.constexpr, K: tl.constexpr, at):
    """Multiply by a matrix (M, K), whose second part lies SPLIT behind the first; 0: there is one part."""
    place = tl.arange(0, M)[:, None] * K + tl.arange(0, K)[None, :]
    found = tl.dot(tl.load(constants + at + place), values, input_precision="ieee")
    if SPLIT:
        found += tl.dot(tl.load(constants + SPLIT + at + place), values, input_precision="ieee")
    return found


@triton.jit
def places(table, row, pixel, field, pixels, F: tl.constexpr):
    """Return where the values (rows, pixels x fields) lie."""
    before, beside, place = tl.load(table + 3 * row), tl.load(table + 3 * row + 1), tl.load(table + 3 * row + 2)
    return ((before * pixels + place)[:, None] + pixel[None, :] * beside[:, None]) * F + field[None, :]


@triton.jit
def into_irreps(
    x, rows, matrix, table, pixels, grid_height, grid_width, height, width, origin, step,
    F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, COLS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Channels-last maps -> rows, the first pixel at `origin` of the grid and `step` apart; zeros elsewhere."""
    n, d, r = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, DP), tl.arange(0, RP)
    pixel = n // F
    image, place = pixel // (grid_height * grid_width), pixel % (grid_height * grid_width)
    down, right = place // grid_width - origin, place % grid_width - origin
    there = (down >= 0) & (right >= 0) & (down % step == 0) & (right % step == 0) & (n < pixels * F)
    there = there & (down < height * step) & (right < width * step)
    source = ((image * height + down // step) * width + right // step) * F + n % F
    mask = there[:, None] & (d < D)[None, :]
    values = tl.load(x + source[:, None] * D + d[None, :], mask=mask, other=0.0)
    found = times(matrix, tl.trans(values), SPLIT, RP, DP, 0)
    held = (r < R)[:, None] & (n < pixels * F)[None, :]
    at = places(table, tl.minimum(r, R - 1), pixel, n % F, pixels, F)
    tl.store(rows + at, found.to(rows.dtype.element_ty), mask=held)


@triton.jit
def into_field(
    rows, y, matrix, table, pixels, grid_height, grid_width, height, width, origin, step, images,
    F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, COLS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Rows -> channels-last maps, the other way round."""
    n, d, r = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, DP), tl.arange(0, RP)
    pixel, inside = n // F, n < images * height * width * F
    image, place = pixel // (height * width), pixel % (height * width)
    source = (image * grid_height + place // width * step + origin) * grid_width + place % width * step + origin
    at = places(table, tl.minimum(r, R - 1), source, n % F, pixels, F)
    values = tl.load(rows + at, mask=(r < R)[:, None] & inside[None, :], other=0.0)
    found = tl.trans(times(matrix, values, SPLIT, DP, RP, 0))
    mask = inside[:, None] & (d < D)[None, :]
    tl.store(y + n[:, None] * D + d[None, :], found.to(y.dtype.element_ty), mask=mask)


@triton.jit
def make(
    hat, z, constants, slots, sources, targets, pixels, grid_width,
    F: tl.constexpr, SIZE: tl.constexpr, MP: tl.constexpr, KP: tl.constexpr, COLS: tl.constexpr, SPLIT: tl.constexpr,
    TURNS: tl.constexpr,
):  # fmt: skip
    """Make the rows of z that come of one irrep of x', of TURNS tiles."""
    slot, m, k = tl.program_id(0), tl.arange(0, MP), tl.arange(0, KP)  # irreps that share lines: at once
    first, count, maps = tl.load(slots + 3 * slot), tl.load(slots + 3 * slot + 1), tl.load(slots + 3 * slot + 2)
    row, tap = k // (SIZE * SIZE), k % (SIZE * SIZE)
    near = (tap // SIZE - SIZE // 2) * grid_width + tap % SIZE - SIZE // 2
    held = row < count
    row = first + tl.minimum(row, count - 1)
    before, beside, place = tl.load(sources + 3 * row), tl.load(sources + 3 * row + 1), tl.load(sources + 3 * row + 2)
    start = (before * pixels + place + near * beside) * F
    for turn in tl.range(TURNS):
        n = (tl.program_id(1) * TURNS + turn) * COLS + tl.arange(0, COLS)
        moved = n[None, :] + near[:, None] * F
        at = start[:, None] + (n // F)[None, :] * (beside * F)[:, None] + (n % F)[None, :]
        values = tl.load(hat + at, mask=held[:, None] & (moved >= 0) & (moved < pixels * F), other=0.0)
        found = times(constants, values, SPLIT, MP, KP, slot * MP * KP)
        at = places(targets, slot * MP + m, n // F, n % F, pixels, F)
        mask = (m < maps)[:, None] & (n < pixels * F)[None, :]
        tl.store(z + at, found.to(z.dtype.element_ty), mask=mask)
