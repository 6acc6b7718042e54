"""The Triton kernels of `gpu` and `fused_blocks`. Each processes a tile of pixels and fields.

Maps are stored as planes of (pixels, fields), one per component; a table (components, 3) gives for each component the
planes before its group of copies, the copies in the group, and its index in the group (`gpu.ComponentLayout`). Pixels
are those of a grid with a border, on which a neighbour is a constant distance away. Matrices of constants come in two
parts where the maps are of a half type: the sum of both is as exact as float32. Products are added in float32, or
float64.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def matmul_constants(constants, values, LOW_OFFSET: tl.constexpr, M: tl.constexpr, K: tl.constexpr, offset):
    """Multiply by a matrix (M, K), whose second part lies LOW_OFFSET behind the first; 0: there is one part."""
    place = tl.arange(0, M)[:, None] * K + tl.arange(0, K)[None, :]
    found = tl.dot(tl.load(constants + offset + place), values, input_precision="ieee")
    if LOW_OFFSET:
        found += tl.dot(tl.load(constants + LOW_OFFSET + offset + place), values, input_precision="ieee")
    return found


@triton.jit
def compute_offsets(table, row, pixel, field, pixels, F: tl.constexpr):
    """Return the memory offsets of values (components, pixels x fields)."""
    before, beside, place = tl.load(table + 3 * row), tl.load(table + 3 * row + 1), tl.load(table + 3 * row + 2)
    return ((before * pixels + place)[:, None] + pixel[None, :] * beside[:, None]) * F + field[None, :]


@triton.jit
def field_to_irreps(
    x, x_hat, matrix, table, pixels, grid_height, grid_width, height, width, origin, stride,
    F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, COLS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Channels-last maps -> irreps: the first pixel at `origin` of the grid, `stride` apart; zeros elsewhere."""
    n, d, r = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, DP), tl.arange(0, RP)
    pixel = n // F
    image, place = pixel // (grid_height * grid_width), pixel % (grid_height * grid_width)
    down, right = place // grid_width - origin, place % grid_width - origin
    there = (down >= 0) & (right >= 0) & (down % stride == 0) & (right % stride == 0) & (n < pixels * F)
    there = there & (down < height * stride) & (right < width * stride)
    source = ((image * height + down // stride) * width + right // stride) * F + n % F
    mask = there[:, None] & (d < D)[None, :]
    values = tl.load(x + source[:, None] * D + d[None, :], mask=mask, other=0.0)
    found = matmul_constants(matrix, tl.trans(values), SPLIT, RP, DP, 0)
    held = (r < R)[:, None] & (n < pixels * F)[None, :]
    at = compute_offsets(table, tl.minimum(r, R - 1), pixel, n % F, pixels, F)
    tl.store(x_hat + at, found.to(x_hat.dtype.element_ty), mask=held)


@triton.jit
def irreps_to_field(
    y_hat, y, matrix, table, pixels, grid_height, grid_width, height, width, origin, stride, batch_size,
    F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, COLS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Irreps -> channels-last maps, the inverse of `field_to_irreps`."""
    n, d, r = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, DP), tl.arange(0, RP)
    pixel, inside = n // F, n < batch_size * height * width * F
    image, place = pixel // (height * width), pixel % (height * width)
    source = (image * grid_height + place // width * stride + origin) * grid_width + place % width * stride + origin
    at = compute_offsets(table, tl.minimum(r, R - 1), source, n % F, pixels, F)
    values = tl.load(y_hat + at, mask=(r < R)[:, None] & inside[None, :], other=0.0)
    found = tl.trans(matmul_constants(matrix, values, SPLIT, DP, RP, 0))
    mask = inside[:, None] & (d < D)[None, :]
    tl.store(y + n[:, None] * D + d[None, :], found.to(y.dtype.element_ty), mask=mask)


@triton.jit
def compute_z(
    x_hat, z, constants, slot_table, source_table, target_table, pixels, begin, count, grid_width,
    F: tl.constexpr, SIZE: tl.constexpr, MP: tl.constexpr, KP: tl.constexpr, COLS: tl.constexpr, SPLIT: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """Compute the maps of z that come from one irrep of x', for TILES tiles; z holds `count` pixels from `begin`."""
    slot, m, k = tl.program_id(0), tl.arange(0, MP), tl.arange(0, KP)  # neighbouring programs share cache lines
    first, rows, maps = (
        tl.load(slot_table + 3 * slot),
        tl.load(slot_table + 3 * slot + 1),
        tl.load(slot_table + 3 * slot + 2),
    )
    row, tap = k // (SIZE * SIZE), k % (SIZE * SIZE)
    near = (tap // SIZE - SIZE // 2) * grid_width + tap % SIZE - SIZE // 2 + begin
    held = row < rows
    row = first + tl.minimum(row, rows - 1)
    before, beside, place = (
        tl.load(source_table + 3 * row),
        tl.load(source_table + 3 * row + 1),
        tl.load(source_table + 3 * row + 2),
    )
    start = (before * pixels + place + near * beside) * F
    for turn in tl.range(TILES):
        n = (tl.program_id(1) * TILES + turn) * COLS + tl.arange(0, COLS)
        moved = n[None, :] + near[:, None] * F
        at = start[:, None] + (n // F)[None, :] * (beside * F)[:, None] + (n % F)[None, :]
        values = tl.load(x_hat + at, mask=held[:, None] & (moved >= 0) & (moved < pixels * F), other=0.0)
        found = matmul_constants(constants, values, SPLIT, MP, KP, slot * MP * KP)
        at = compute_offsets(target_table, slot * MP + m, n // F, n % F, count, F)
        mask = (m < maps)[:, None] & (n < count * F)[None, :]
        tl.store(z + at, found.to(z.dtype.element_ty), mask=mask)


@triton.jit
def is_interior(pixel, pixels, grid_height, grid_width):
    """Whether a pixel is not on the border, one pixel wide."""
    place = pixel % (grid_height * grid_width)
    down, right = place // grid_width, place % grid_width
    found = (down > 0) & (down < grid_height - 1) & (right > 0) & (right < grid_width - 1)
    return found & (pixel < pixels)


@triton.jit
def sum_moments(
    y_hat, weights, table, partial_sums, pixels, grid_height, grid_width,
    F: tl.constexpr, FP: tl.constexpr, R: tl.constexpr, BP: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Sum components times their weights, and their squares, by field: partial sums (programs, 2, F)."""
    field = tl.arange(0, FP)
    first = tl.zeros((FP,), tl.float32)
    second = tl.zeros((FP,), tl.float32)
    for turn in range(TILES):
        pixel = (tl.program_id(0) * TILES + turn) * BP + tl.arange(0, BP)
        mask = is_interior(pixel, pixels, grid_height, grid_width)[:, None] & (field < F)[None, :]
        for row in range(R):
            before, beside = tl.load(table + 3 * row), tl.load(table + 3 * row + 1)
            start = (before * pixels + tl.load(table + 3 * row + 2)) * F
            at = start + pixel[:, None] * (beside * F) + field[None, :]
            value = tl.load(y_hat + at, mask=mask, other=0.0).to(tl.float32)
            first += tl.sum(value, 0) * tl.load(weights + row)
            second += tl.sum(value * value, 0)
    at = partial_sums + tl.program_id(0) * 2 * F + field
    tl.store(at, first, mask=field < F)
    tl.store(at + F, second, mask=field < F)


@triton.jit
def normalise(
    y_hat, x_hat, to_field, to_irreps, table, factors, pixels, grid_height, grid_width,
    F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, COLS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """y' -> x': to the field, factors (2, F) [scale, shift], ReLU, and back; the border becomes zero."""
    n, r = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, RP)
    pixel, field = n // F, n % F
    at = compute_offsets(table, tl.minimum(r, R - 1), pixel, field, pixels, F)
    mask = (r < R)[:, None] & (pixel < pixels)[None, :]
    held = is_interior(pixel, pixels, grid_height, grid_width)
    values = matmul_constants(to_field, tl.load(y_hat + at, mask=mask, other=0.0), SPLIT, DP, RP, 0)
    values = values * tl.load(factors + field)[None, :] + tl.load(factors + F + field)[None, :]
    values = tl.where(held[None, :] & (values > 0), values, 0.0)
    found = matmul_constants(to_irreps, values.to(y_hat.dtype.element_ty), SPLIT, RP, DP, 0)
    tl.store(x_hat + at, found.to(x_hat.dtype.element_ty), mask=mask)


@triton.jit
def relu_backward(
    y_hat, grad_x_hat, to_field, table, factors, pixel, field, pixels, grid_height, grid_width,
    F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Return y, and the gradient that passes the ReLU, both (DP, columns) float32."""
    r = tl.arange(0, RP)
    at = compute_offsets(table, tl.minimum(r, R - 1), pixel, field, pixels, F)
    held = is_interior(pixel, pixels, grid_height, grid_width) & (field < F)
    mask = (r < R)[:, None] & held[None, :]
    y = matmul_constants(to_field, tl.load(y_hat + at, mask=mask, other=0.0), SPLIT, DP, RP, 0)
    gradient = matmul_constants(to_field, tl.load(grad_x_hat + at, mask=mask, other=0.0), SPLIT, DP, RP, 0)
    scale = tl.load(factors + field, mask=field < F, other=0.0)
    shift = tl.load(factors + F + field, mask=field < F, other=0.0)
    lit = (y * scale[None, :] + shift[None, :] > 0) & held[None, :]
    return y, tl.where(lit & (tl.arange(0, DP) < D)[:, None], gradient, 0.0)


@triton.jit
def sum_normalise_gradients(
    y_hat, grad_x_hat, to_field, table, factors, partial_sums, pixels, grid_height, grid_width,
    F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, BP: tl.constexpr,
    BF: tl.constexpr, TILES: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Sum the gradients that pass the ReLU, and these times y, by field: partial sums (programs, 2, F)."""
    column = tl.arange(0, BP * BF)
    field = tl.program_id(1) * BF + column % BF
    first = tl.zeros((BP * BF,), tl.float32)
    second = tl.zeros((BP * BF,), tl.float32)
    for turn in range(TILES):
        pixel = (tl.program_id(0) * TILES + turn) * BP + column // BF
        y, gradient = relu_backward(
            y_hat,
            grad_x_hat,
            to_field,
            table,
            factors,
            pixel,
            field,
            pixels,
            grid_height,
            grid_width,
            F,
            D,
            R,
            DP,
            RP,
            SPLIT,
        )
        first += tl.sum(gradient, 0)
        second += tl.sum(gradient * y, 0)
    field = tl.program_id(1) * BF + tl.arange(0, BF)
    at = partial_sums + tl.program_id(0) * 2 * F + field
    tl.store(at, tl.sum(tl.reshape(first, (BP, BF)), 0), mask=field < F)
    tl.store(at + F, tl.sum(tl.reshape(second, (BP, BF)), 0), mask=field < F)


@triton.jit
def normalise_backward(
    y_hat, grad_x_hat, grad_y_hat, to_field, to_irreps, table, factors, pixels, grid_height, grid_width,
    F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, COLS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Gradient of x' -> gradient of y'; factors (5, F): scale, shift, and those of the gradient, of y and of 1."""
    n, r = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, RP)
    pixel, field = n // F, n % F
    y, gradient = relu_backward(
        y_hat,
        grad_x_hat,
        to_field,
        table,
        factors,
        pixel,
        field,
        pixels,
        grid_height,
        grid_width,
        F,
        D,
        R,
        DP,
        RP,
        SPLIT,
    )
    one, two, three = (
        tl.load(factors + 2 * F + field),
        tl.load(factors + 3 * F + field),
        tl.load(factors + 4 * F + field),
    )
    held = is_interior(pixel, pixels, grid_height, grid_width)[None, :] & (tl.arange(0, DP) < D)[:, None]
    values = tl.where(held, gradient * one[None, :] + y * two[None, :] + three[None, :], 0.0)
    found = matmul_constants(to_irreps, values.to(y_hat.dtype.element_ty), SPLIT, RP, DP, 0)
    mask = (r < R)[:, None] & (pixel < pixels)[None, :]
    at = compute_offsets(table, tl.minimum(r, R - 1), pixel, field, pixels, F)
    tl.store(grad_y_hat + at, found.to(grad_y_hat.dtype.element_ty), mask=mask)


@triton.jit
def blur(
    source, target, kernel, table, pixels, grid_height, grid_width, out_pixels, out_height, out_width,
    F: tl.constexpr, KERNEL_SIZE: tl.constexpr, COLS: tl.constexpr, IS_BACKWARD: tl.constexpr,
):  # fmt: skip
    """Sum the weighted neighbours of every second pixel within the border; IS_BACKWARD: the transpose.

    Source and target lie on the larger grid and on the one described by `out_...`, or the other way round.
    """
    row, n = tl.program_id(0), tl.program_id(1) * COLS + tl.arange(0, COLS)
    pixel, field = n // F, n % F
    before, beside, place = tl.load(table + 3 * row), tl.load(table + 3 * row + 1), tl.load(table + 3 * row + 2)
    height, width = (grid_height, grid_width) if IS_BACKWARD else (out_height, out_width)
    total, other = (pixels, out_pixels) if IS_BACKWARD else (out_pixels, pixels)
    image, at = pixel // (height * width), pixel % (height * width)
    down, right = at // width - 1, at % width - 1
    held = is_interior(pixel, total, height, width)
    sum = tl.zeros((COLS,), tl.float32)
    for tap in range(KERNEL_SIZE * KERNEL_SIZE):
        y, x = tap // KERNEL_SIZE - KERNEL_SIZE // 2, tap % KERNEL_SIZE - KERNEL_SIZE // 2
        if IS_BACKWARD:  # sum over the pixels that read this one
            near, beyond = down - y, right - x
            there = held & (near % 2 == 0) & (beyond % 2 == 0) & (near >= 0) & (beyond >= 0)
            near, beyond = near // 2, beyond // 2
            there = there & (near < out_height - 2) & (beyond < out_width - 2)
            seen = (image * out_height + near + 1) * out_width + beyond + 1
        else:
            near, beyond = 2 * down + y, 2 * right + x
            there = held & (near >= 0) & (beyond >= 0) & (near < grid_height - 2) & (beyond < grid_width - 2)
            seen = (image * grid_height + near + 1) * grid_width + beyond + 1
        value = tl.load(source + (before * other + place + seen * beside) * F + field, mask=there, other=0.0)
        sum += value.to(tl.float32) * tl.load(kernel + tap)
    at = (before * total + place + pixel * beside) * F + field
    tl.store(target + at, sum.to(target.dtype.element_ty), mask=pixel < total)
