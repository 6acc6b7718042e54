"""The Triton kernels of `gpu` and `fused_blocks`. Each processes a tile of pixels and fields.

Maps are stored as planes of (pixels, fields), one per component; a table (components, 3) gives for each component the
planes before its group of copies, the copies in the group, and its index in the group (`gpu_plan.Place`). Pixels are
those of a grid with a border, on which a neighbour is a constant distance away. Matrices of constants come in two parts
where the maps are of a half type: the sum of both is as exact as float32. Products are added in float32, or float64.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_matrix(constants, LOW_OFFSET: tl.constexpr, M: tl.constexpr, K: tl.constexpr):
    """Load the two parts of a matrix (M, K), the second of which lies LOW_OFFSET behind; 0: there is one part."""
    index = tl.arange(0, M)[:, None] * K + tl.arange(0, K)[None, :]
    return tl.load(constants + index), tl.load(constants + LOW_OFFSET + index)


@triton.jit
def matmul_parts(high, low, values, LOW_OFFSET: tl.constexpr):
    """Multiply by the sum of both parts."""
    product = tl.dot(high, values, input_precision="ieee")
    if LOW_OFFSET:
        product += tl.dot(low, values, input_precision="ieee")
    return product


@triton.jit
def matmul_constants(constants, values, LOW_OFFSET: tl.constexpr, M: tl.constexpr, K: tl.constexpr, offset):
    """Multiply by the matrix of `load_matrix`."""
    high, low = load_matrix(constants + offset, LOW_OFFSET, M, K)
    return matmul_parts(high, low, values, LOW_OFFSET)


@triton.jit
def clamp_to_int32(accesses, ACCESS: tl.constexpr):
    """Return int64 accesses x ACCESS in int32, the nearest multiple of ACCESS where it has more digits."""
    largest: tl.constexpr = 0x7FFFFFFF // ACCESS
    return tl.minimum(tl.maximum(accesses, -largest), largest).to(tl.int32) * ACCESS


@triton.jit
def load_place(table, row, pixels):
    """Return a component's first pixel among all planes, and the copies between its pixels; int64, as all offsets."""
    planes_before, copies, copy = tl.load(table + 3 * row), tl.load(table + 3 * row + 1), tl.load(table + 3 * row + 2)
    return planes_before.to(tl.int64) * pixels + copy, copies


@triton.jit
def compute_offsets(table, row, pixel, field, pixels, fields):
    """Return the memory offsets of values (components, pixels x fields), int64."""
    start, copies = load_place(table, row, pixels)
    return (start[:, None] + pixel.to(tl.int64)[None, :] * copies[:, None]) * fields + field[None, :]


@triton.jit
def field_to_irreps(
    x, x_hat, matrix, table, pixels, grid_height, grid_width, height, width, origin, stride,
    F: tl.constexpr, PADDED_F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr,
    COLS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Channels-last maps -> irreps: the first pixel at `origin` of the grid, `stride` apart; zeros elsewhere."""
    n, d, r = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, DP), tl.arange(0, RP)
    pixel, field = n // PADDED_F, n % PADDED_F
    image, grid_index = pixel // (grid_height * grid_width), pixel % (grid_height * grid_width)
    down, right = grid_index // grid_width - origin, grid_index % grid_width - origin
    is_inside = (down >= 0) & (right >= 0) & (down % stride == 0) & (right % stride == 0) & (pixel < pixels)
    is_inside = is_inside & (down < height * stride) & (right < width * stride) & (field < F)
    source = ((image * height + down // stride) * width + right // stride).to(tl.int64) * F + field
    mask = is_inside[:, None] & (d < D)[None, :]
    values = tl.load(x + source[:, None] * D + d[None, :], mask=mask, other=0.0)
    x_hat_values = matmul_constants(matrix, tl.trans(values), SPLIT, RP, DP, 0)
    x_hat_mask = (r < R)[:, None] & (pixel < pixels)[None, :]
    offsets = compute_offsets(table, tl.minimum(r, R - 1), pixel, field, pixels, PADDED_F)
    tl.store(x_hat + offsets, x_hat_values.to(x_hat.dtype.element_ty), mask=x_hat_mask)


@triton.jit
def irreps_to_field(
    y_hat, y, matrix, table, pixels, grid_height, grid_width, height, width, origin, stride, batch_size,
    F: tl.constexpr, PADDED_F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr,
    COLS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Irreps -> channels-last maps, the inverse of `field_to_irreps`."""
    n, d, r = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, DP), tl.arange(0, RP)
    pixel, field = n // PADDED_F, n % PADDED_F
    is_inside = pixel < batch_size * height * width
    image, pixel_index = pixel // (height * width), pixel % (height * width)
    source = (
        (image * grid_height + pixel_index // width * stride + origin) * grid_width
        + pixel_index % width * stride
        + origin
    )
    offsets = compute_offsets(table, tl.minimum(r, R - 1), source, field, pixels, PADDED_F)
    values = tl.load(y_hat + offsets, mask=(r < R)[:, None] & is_inside[None, :], other=0.0)
    y_values = tl.trans(matmul_constants(matrix, values, SPLIT, DP, RP, 0))
    mask = (is_inside & (field < F))[:, None] & (d < D)[None, :]
    target = y + (pixel.to(tl.int64) * F + field)[:, None] * D + d[None, :]
    tl.store(target, y_values.to(y.dtype.element_ty), mask=mask)


# chunks and layers share what is compiled
@triton.jit(do_not_specialize=["irreps", "pixels", "begin", "count", "grid_width", "accesses"])
def compute_z(
    x_hat, z, constants, targets, irreps, pixels, begin, count, grid_width, accesses,
    ACCESS: tl.constexpr, COPIES: tl.constexpr, SIZE: tl.constexpr, KERNEL_SIZE: tl.constexpr, MP: tl.constexpr,
    KP: tl.constexpr, COLS: tl.constexpr, SPLIT: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Compute the maps of z that come from one irrep of x', for TILES tiles; z holds `count` pixels from `begin`.

    The irreps are neighbours in memory and have equal sizes. All copies of a component have accesses x ACCESS values at
    a pixel; ACCESS divides all places in z.
    """
    # neighbouring programs share cache lines; one axis, since the others end at 65,535 programs
    irrep, first_tile = tl.program_id(0) % irreps, tl.program_id(0) // irreps * TILES
    values_per_pixel = accesses * ACCESS
    k = tl.arange(0, KP)
    component, tap = k // (KERNEL_SIZE * KERNEL_SIZE), k % (KERNEL_SIZE * KERNEL_SIZE)
    shift = (tap // KERNEL_SIZE - KERNEL_SIZE // 2) * grid_width + tap % KERNEL_SIZE - KERNEL_SIZE // 2 + begin
    shift = shift.to(tl.int64) * accesses
    plane = (irrep * SIZE + tl.minimum(component, SIZE - 1)).to(tl.int64) * pixels * accesses
    sources = x_hat + ((plane + shift) * ACCESS)[:, None]
    first = clamp_to_int32(-shift, ACCESS)[:, None]
    plane_size = tl.where(component < SIZE, pixels.to(tl.int64) * accesses, 0)
    last = clamp_to_int32(plane_size - shift, ACCESS)[:, None]
    start, blocks = load_place(targets, irrep * MP + tl.arange(0, MP), count)
    fields = values_per_pixel // COPIES
    target, stride = z + tl.multiple_of(start * fields, ACCESS)[:, None], tl.multiple_of(blocks * fields, ACCESS)
    high, low = load_matrix(constants + irrep * (MP * KP + SPLIT), SPLIT, MP, KP)
    for tile in tl.range(first_tile, tl.minimum(first_tile + TILES, tl.cdiv(count * values_per_pixel, COLS))):
        n = tile * COLS + tl.arange(0, COLS)
        values = tl.load(sources + n[None, :], mask=(n[None, :] >= first) & (n[None, :] < last), other=0.0)
        z_values = matmul_parts(high, low, values, SPLIT)
        pixel, value = n // values_per_pixel, n % values_per_pixel
        offsets = pixel.to(tl.int64)[None, :] * stride[:, None] + value[None, :]
        mask = (blocks > 0)[:, None] & (pixel < count)[None, :]
        tl.store(target + offsets, z_values.to(z.dtype.element_ty), mask=mask)


@triton.jit
def is_interior(pixel, pixels, grid_height, grid_width):
    """Whether a pixel is not on the border, one pixel wide."""
    grid_index = pixel % (grid_height * grid_width)
    down, right = grid_index // grid_width, grid_index % grid_width
    is_inside = (down > 0) & (down < grid_height - 1) & (right > 0) & (right < grid_width - 1)
    return is_inside & (pixel < pixels)


@triton.jit
def sum_moments(
    y_hat, weights, table, partial_sums, pixels, grid_height, grid_width,
    F: tl.constexpr, FP: tl.constexpr, R: tl.constexpr, BP: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Sum components times their weights, and their squares, by field: partial sums (programs, 2, F)."""
    field = tl.arange(0, FP)
    first = tl.zeros((FP,), tl.float32)
    second = tl.zeros((FP,), tl.float32)
    for tile in range(TILES):
        pixel = (tl.program_id(0) * TILES + tile) * BP + tl.arange(0, BP)
        mask = is_interior(pixel, pixels, grid_height, grid_width)[:, None] & (field < F)[None, :]
        for row in range(R):
            start, copies = load_place(table, row, pixels)
            offsets = start * F + pixel.to(tl.int64)[:, None] * (copies * F) + field[None, :]
            value = tl.load(y_hat + offsets, mask=mask, other=0.0).to(tl.float32)
            first += tl.sum(value, 0) * tl.load(weights + row)
            second += tl.sum(value * value, 0)
    offsets = partial_sums + tl.program_id(0) * 2 * F + field
    tl.store(offsets, first, mask=field < F)
    tl.store(offsets + F, second, mask=field < F)


@triton.jit
def normalise(
    y_hat, x_hat, to_field, to_irreps, table, factors, pixels, grid_height, grid_width,
    F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, COLS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """y' -> x': to the field, factors (2, F) [scale, shift], ReLU, and back; the border becomes zero."""
    n, r = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, RP)
    pixel, field = n // F, n % F
    offsets = compute_offsets(table, tl.minimum(r, R - 1), pixel, field, pixels, F)
    mask = (r < R)[:, None] & (pixel < pixels)[None, :]
    is_inside = is_interior(pixel, pixels, grid_height, grid_width)
    values = matmul_constants(to_field, tl.load(y_hat + offsets, mask=mask, other=0.0), SPLIT, DP, RP, 0)
    values = values * tl.load(factors + field)[None, :] + tl.load(factors + F + field)[None, :]
    values = tl.where(is_inside[None, :] & (values > 0), values, 0.0)
    x_hat_values = matmul_constants(to_irreps, values.to(y_hat.dtype.element_ty), SPLIT, RP, DP, 0)
    tl.store(x_hat + offsets, x_hat_values.to(x_hat.dtype.element_ty), mask=mask)


@triton.jit
def relu_backward(
    y_hat, grad_x_hat, to_field, table, factors, pixel, field, pixels, grid_height, grid_width,
    F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Return y, and the gradient that passes the ReLU, both (DP, columns) float32."""
    r = tl.arange(0, RP)
    offsets = compute_offsets(table, tl.minimum(r, R - 1), pixel, field, pixels, F)
    is_inside = is_interior(pixel, pixels, grid_height, grid_width) & (field < F)
    mask = (r < R)[:, None] & is_inside[None, :]
    y = matmul_constants(to_field, tl.load(y_hat + offsets, mask=mask, other=0.0), SPLIT, DP, RP, 0)
    gradient = matmul_constants(to_field, tl.load(grad_x_hat + offsets, mask=mask, other=0.0), SPLIT, DP, RP, 0)
    scale = tl.load(factors + field, mask=field < F, other=0.0)
    shift = tl.load(factors + F + field, mask=field < F, other=0.0)
    is_active = (y * scale[None, :] + shift[None, :] > 0) & is_inside[None, :]
    return y, tl.where(is_active & (tl.arange(0, DP) < D)[:, None], gradient, 0.0)


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
    for tile in range(TILES):
        pixel = (tl.program_id(0) * TILES + tile) * BP + column // BF
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
    offsets = partial_sums + tl.program_id(0) * 2 * F + field
    tl.store(offsets, tl.sum(tl.reshape(first, (BP, BF)), 0), mask=field < F)
    tl.store(offsets + F, tl.sum(tl.reshape(second, (BP, BF)), 0), mask=field < F)


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
    gradient_factor, y_factor, constant = (
        tl.load(factors + 2 * F + field),
        tl.load(factors + 3 * F + field),
        tl.load(factors + 4 * F + field),
    )
    is_inside = is_interior(pixel, pixels, grid_height, grid_width)[None, :] & (tl.arange(0, DP) < D)[:, None]
    values = tl.where(is_inside, gradient * gradient_factor[None, :] + y * y_factor[None, :] + constant[None, :], 0.0)
    grad_values = matmul_constants(to_irreps, values.to(y_hat.dtype.element_ty), SPLIT, RP, DP, 0)
    mask = (r < R)[:, None] & (pixel < pixels)[None, :]
    offsets = compute_offsets(table, tl.minimum(r, R - 1), pixel, field, pixels, F)
    tl.store(grad_y_hat + offsets, grad_values.to(grad_y_hat.dtype.element_ty), mask=mask)


@triton.jit
def blur(
    source, target, kernel, table, rows, pixels, grid_height, grid_width, out_pixels, out_height, out_width,
    F: tl.constexpr, KERNEL_SIZE: tl.constexpr, COLS: tl.constexpr, IS_BACKWARD: tl.constexpr,
):  # fmt: skip
    """Sum the weighted neighbours of every second pixel within the border; IS_BACKWARD: the transpose.

    Source and target lie on the larger grid and on the one described by `out_...`, or the other way round.
    """
    row, n = tl.program_id(0) % rows, tl.program_id(0) // rows * COLS + tl.arange(0, COLS)
    pixel, field = n // F, n % F
    height, width = (grid_height, grid_width) if IS_BACKWARD else (out_height, out_width)
    total, other = (pixels, out_pixels) if IS_BACKWARD else (out_pixels, pixels)
    image, grid_index = pixel // (height * width), pixel % (height * width)
    down, right = grid_index // width - 1, grid_index % width - 1
    is_inside = is_interior(pixel, total, height, width)
    source_start, copies = load_place(table, row, other)
    target_start, copies = load_place(table, row, total)
    weighted_sum = tl.zeros((COLS,), tl.float32)
    for tap in range(KERNEL_SIZE * KERNEL_SIZE):
        y, x = tap // KERNEL_SIZE - KERNEL_SIZE // 2, tap % KERNEL_SIZE - KERNEL_SIZE // 2
        if IS_BACKWARD:  # sum over the pixels that read this one
            source_down, source_right = down - y, right - x
            is_valid = (
                is_inside & (source_down % 2 == 0) & (source_right % 2 == 0) & (source_down >= 0) & (source_right >= 0)
            )
            source_down, source_right = source_down // 2, source_right // 2
            is_valid = is_valid & (source_down < out_height - 2) & (source_right < out_width - 2)
            source_pixel = (image * out_height + source_down + 1) * out_width + source_right + 1
        else:
            source_down, source_right = 2 * down + y, 2 * right + x
            is_valid = (
                is_inside
                & (source_down >= 0)
                & (source_right >= 0)
                & (source_down < grid_height - 2)
                & (source_right < grid_width - 2)
            )
            source_pixel = (image * grid_height + source_down + 1) * grid_width + source_right + 1
        value = tl.load(
            source + (source_start + source_pixel.to(tl.int64) * copies) * F + field, mask=is_valid, other=0.0
        )
        weighted_sum += value.to(tl.float32) * tl.load(kernel + tap)
    offsets = (target_start + pixel.to(tl.int64) * copies) * F + field
    tl.store(target + offsets, weighted_sum.to(target.dtype.element_ty), mask=pixel < total)
