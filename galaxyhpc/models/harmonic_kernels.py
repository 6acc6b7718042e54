"""The Triton kernels of `harmonic_triton`. Each takes a tile of pixels and fields, and gathers rows of it.

Maps lie as rows of (pixels, fields), a row for a component; a table (rows, 3) says for each how many rows lie before
it, how many beside it, and its place among these. Pixels are those of a grid with a border, on which a neighbour is a
constant distance away. Matrices of constants come in two parts where the maps are of a half type: the sum of both is
as good as float32. Products are added in float32, or float64.
"""

# mypy: disable-error-code="no-untyped-def, no-any-return"

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
):  # fmt: skip
    """Make the rows of z that come of one irrep of x'."""
    slot, n = tl.program_id(0), tl.program_id(1) * COLS + tl.arange(0, COLS)  # irreps that share lines: together
    m, k = tl.arange(0, MP), tl.arange(0, KP)
    first, count, maps = tl.load(slots + 3 * slot), tl.load(slots + 3 * slot + 1), tl.load(slots + 3 * slot + 2)
    row, tap = k // (SIZE * SIZE), k % (SIZE * SIZE)
    near = (tap // SIZE - SIZE // 2) * grid_width + tap % SIZE - SIZE // 2
    moved = n[None, :] + near[:, None] * F
    there = (row < count)[:, None] & (moved >= 0) & (moved < pixels * F)
    row = first + tl.minimum(row, count - 1)
    before, beside, place = tl.load(sources + 3 * row), tl.load(sources + 3 * row + 1), tl.load(sources + 3 * row + 2)
    start = (before * pixels + place + near * beside) * F
    at = start[:, None] + (n // F)[None, :] * (beside * F)[:, None] + (n % F)[None, :]
    values = tl.load(hat + at, mask=there, other=0.0)
    found = times(constants, values, SPLIT, MP, KP, slot * MP * KP)
    held = (m < maps)[:, None] & (n < pixels * F)[None, :]
    at = places(targets, slot * MP + m, n // F, n % F, pixels, F)
    tl.store(z + at, found.to(z.dtype.element_ty), mask=held)


@triton.jit
def convolve(
    hat, weights, rows, constants, entries, sources, pixels, grid_width, first, N,
    F: tl.constexpr, E: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Make z of 3x3 filters and multiply it by the weights, for an irrep of the output with D components.

    A filter is even or odd, so that opposite neighbours are added or subtracted first.
    """
    irrep, pixel = tl.program_id(0), tl.program_id(1) * BM + tl.arange(0, BM)
    n, k = tl.program_id(2) * BN + tl.arange(0, BN), tl.arange(0, BK)
    sum0 = tl.zeros((BM, BN), tl.float32)
    sum1 = tl.zeros((BM, BN), tl.float32)
    for e in range(E):
        entry = irrep * E + e
        row, count = tl.load(entries + 2 * entry), tl.load(entries + 2 * entry + 1)
        sign = tl.load(constants + entry * 32 + 20)
        for chosen in range(0, F, BK):
            f = chosen + k
            filled = (f < F)[None, :]
            z0 = tl.zeros((BM, BK), tl.float32)
            z1 = tl.zeros((BM, BK), tl.float32)
            for component in tl.static_range(2):
                if component < count:
                    of = sources + 3 * (row + component)
                    wide = tl.load(of + 1) * F
                    at = hat + (tl.load(of) * pixels + tl.load(of + 2)) * F + pixel[:, None] * wide + f[None, :]
                    these = constants + entry * 32 + component * 5
                    value = tl.load(at, mask=filled & (pixel < pixels)[:, None], other=0.0).to(tl.float32)
                    z0 += tl.load(these) * value
                    if D == 2:
                        z1 += tl.load(these + 10) * value
                    for tap in tl.static_range(4):
                        far = (1 - tap // 3) * grid_width + 1 - tap % 3  # pixels from the first four taps
                        before, behind = (pixel >= far) & (pixel < pixels), pixel < pixels - far
                        value = tl.load(at - far * wide, mask=filled & before[:, None], other=0.0).to(tl.float32)
                        value += sign * tl.load(at + far * wide, mask=filled & behind[:, None], other=0.0).to(
                            tl.float32
                        )
                        z0 += tl.load(these + 1 + tap) * value
                        if D == 2:
                            z1 += tl.load(these + 11 + tap) * value
            at = ((irrep * E + e) * F + f)[:, None] * N + n[None, :]
            weight = tl.load(weights + at, mask=(f < F)[:, None] & (n < N)[None, :], other=0.0)
            sum0 = tl.dot(z0.to(weight.dtype), weight, sum0, input_precision="ieee")
            if D == 2:
                sum1 = tl.dot(z1.to(weight.dtype), weight, sum1, input_precision="ieee")
    start = first + irrep * D * pixels * N
    held = (pixel < pixels)[:, None] & (n < N)[None, :]
    at = rows + start + pixel[:, None] * N + n[None, :]
    tl.store(at, sum0.to(rows.dtype.element_ty), mask=held)
    if D == 2:
        tl.store(at + pixels * N, sum1.to(rows.dtype.element_ty), mask=held)
