"""The Triton kernels of `fused_norm`: batch norm, ReLU and anti-aliased pool, one pass each over a map of any layout.

Without R a map is channels-last, and a tile (BP pixels, BF of F channels). With R it is in irreps, R components of F
fields as in `triton_kernels`, on a grid with a border one pixel wide; a tile is (components, BP pixels x BF fields),
and matrices bring it to the field, (channels, pixels x fields), and back. Factors are per column, F of each kind.
Offsets in memory are 64-bit; sums are float32 and in a fixed order, so that two runs have the same bits.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from galaxyhpc.steerable.kernels.triton_kernels import load_place, matmul_constants


@triton.jit
def make_tile(tile, F, R: tl.constexpr, BP: tl.constexpr, BF: tl.constexpr):
    """Return the pixel and the column of a tile's values, to be broadcast; tiles of the same pixels are adjacent."""
    first_pixel, first_column = tile // tl.cdiv(F, BF) * BP, tile % tl.cdiv(F, BF) * BF
    if R:
        index = tl.arange(0, BP * BF)[None, :]
        return first_pixel + index // BF, first_column + index % BF
    else:
        return first_pixel + tl.arange(0, BP)[:, None], first_column + tl.arange(0, BF)[None, :]


@triton.jit
def split_pixel(pixel, H, W, R: tl.constexpr):
    """Return the image of a pixel, and its place within the border."""
    border: tl.constexpr = 1 if R else 0
    return pixel // (H * W), pixel // W % H - border, pixel % W - border


@triton.jit
def join_pixel(image, down, right, H, W, R: tl.constexpr):
    """Return the pixel at a place within the border, and whether there is one; the inverse of `split_pixel`."""
    border: tl.constexpr = 1 if R else 0
    is_inside = (down >= 0) & (down < H - 2 * border) & (right >= 0) & (right < W - 2 * border)
    return (image * H + down + border) * W + right + border, is_inside


@triton.jit
def find_inside(pixel, images, H, W, R: tl.constexpr):
    """Whether a pixel is one of the maps', not of their border."""
    is_inside = pixel < images * H * W
    if R:
        image, down, right = split_pixel(pixel, H, W, R)
        _, is_within = join_pixel(image, down, right, H, W, R)
        is_inside = is_inside & is_within
    return is_inside


@triton.jit
def locate(table, pixel, column, pixels, mask, F, R: tl.constexpr, RP: tl.constexpr, ALIGN: tl.constexpr):
    """Return the offsets of a tile in memory, int64, and the mask of its values."""
    width = F // ALIGN * ALIGN  # of ALIGN values that are read at once
    mask = mask & (column < width)
    if R:
        row = tl.arange(0, RP)
        start, copies = load_place(table, tl.minimum(row, R - 1), pixels)
        return (start[:, None] + pixel.to(tl.int64) * copies[:, None]) * width + column, mask & (row < R)[:, None]
    else:
        return pixel.to(tl.int64) * width + column, mask


@triton.jit
def change_basis(values, matrix, R: tl.constexpr, M: tl.constexpr, K: tl.constexpr, SPLIT: tl.constexpr):
    """Multiply a tile in irreps by a matrix (M, K); float32."""
    if R:
        return matmul_constants(matrix, values, SPLIT, M, K)
    else:
        return values.to(tl.float32)


@triton.jit
def load_factor(factors, kind: tl.constexpr, column, F):
    """Load a number per column."""
    return tl.load(factors + kind * F + column, mask=column < F, other=0.0)


@triton.jit
def sum_moments(
    x, moments, kernel, table, to_field, to_irreps, images, H, W, H_POOLED, W_POOLED, F,
    R: tl.constexpr, RP: tl.constexpr, DP: tl.constexpr, SPLIT: tl.constexpr, ALIGN: tl.constexpr,
    HAS_RELU: tl.constexpr, RADIUS: tl.constexpr, BP: tl.constexpr, BF: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Write (3, rows, F, programs): a program's pixels, their mean, and the sum of squared deviations from it.

    A row is a component of irreps, or all channels. Every place of a tile has its own moments (Welford 1962), merged at
    the end: no difference of nearly equal sums.
    """
    rows: tl.constexpr = R if R else 1
    chunk, row = tl.program_id(0) // (tl.cdiv(F, BF) * rows), tl.program_id(0) // tl.cdiv(F, BF) % rows
    width = F // ALIGN * ALIGN
    column = tl.program_id(0) % tl.cdiv(F, BF) * BF + tl.arange(0, BF)
    start, copies = load_place(table, row, images * H * W) if R else (0, 1)
    count = tl.zeros((BP, 1), tl.float32)
    mean = tl.zeros((BP, BF), tl.float32)
    squares = tl.zeros((BP, BF), tl.float32)
    for tile in range(TILES):
        pixel = ((chunk * TILES + tile) * BP + tl.arange(0, BP))[:, None]
        is_inside = find_inside(pixel, images, H, W, R)
        mask = is_inside & (column < width)[None, :]
        offsets = (start + pixel.to(tl.int64) * copies) * width + column[None, :]
        value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        count += is_inside.to(tl.float32)
        difference = tl.where(mask, value - mean, 0.0)
        mean += difference / tl.maximum(count, 1.0)
        squares += difference * (value - mean)
    total = tl.sum(count)
    total_mean = tl.sum(count * mean, 0) / tl.maximum(total, 1.0)
    deviation = mean - total_mean[None, :]
    chunks = tl.num_programs(0) // (tl.cdiv(F, BF) * rows)
    offsets = moments + (row * F + column) * chunks + chunk
    kind = rows * F * chunks
    tl.store(offsets, tl.zeros_like(total_mean) + total, mask=column < F)
    tl.store(offsets + kind, total_mean, mask=column < F)
    tl.store(offsets + 2 * kind, tl.sum(squares + count * deviation * deviation, 0), mask=column < F)


@triton.jit
def normalise(
    x, y, factors, kernel, table, to_field, to_irreps, images, H, W, H_POOLED, W_POOLED, F,
    R: tl.constexpr, RP: tl.constexpr, DP: tl.constexpr, SPLIT: tl.constexpr, ALIGN: tl.constexpr,
    HAS_RELU: tl.constexpr, RADIUS: tl.constexpr, BP: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """y = x * scale + shift, of factors (scale, shift), then ReLU; with RADIUS >= 0 also blur and keep every second."""
    pixel, column = make_tile(tl.program_id(0), F, R, BP, BF)
    scale, shift = load_factor(factors, 0, column, F), load_factor(factors, 1, column, F)
    pixels = images * H_POOLED * W_POOLED
    is_inside = find_inside(pixel, images, H_POOLED, W_POOLED, R)
    image, down, right = split_pixel(pixel, H_POOLED, W_POOLED, R)
    taps: tl.constexpr = 1 if RADIUS < 0 else 2 * RADIUS + 1
    result = tl.zeros((DP if R else BP, BP * BF if R else BF), tl.float32)
    for tap_y in range(taps):  # unrolled, it would load all tiles at once and fill the registers
        for tap_x in range(taps):
            source, mask = pixel, is_inside
            if RADIUS >= 0:
                down_2, right_2 = 2 * down + tap_y - RADIUS, 2 * right + tap_x - RADIUS
                source, is_valid = join_pixel(image, down_2, right_2, H, W, R)
                mask = is_inside & is_valid
            offsets, value_mask = locate(table, source, column, images * H * W, mask, F, R, RP, ALIGN)
            value = change_basis(tl.load(x + offsets, mask=value_mask, other=0.0), to_field, R, DP, RP, SPLIT)
            value = value * scale + shift
            if HAS_RELU:
                value = tl.maximum(value, 0.0)
            weight = 1.0 if RADIUS < 0 else tl.load(kernel + tap_y * taps + tap_x)
            result += tl.where(mask, value, 0.0) * weight
    store_values(y, result, table, to_irreps, pixel, column, pixels, F, R, RP, DP, SPLIT, ALIGN)


@triton.jit
def store_values(
    y, values, table, to_irreps, pixel, column, pixels, F,
    R: tl.constexpr, RP: tl.constexpr, DP: tl.constexpr, SPLIT: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Store a tile of channels, in irreps if the map is."""
    values = change_basis(values.to(y.dtype.element_ty), to_irreps, R, RP, DP, SPLIT)
    offsets, mask = locate(table, pixel, column, pixels, pixel < pixels, F, R, RP, ALIGN)
    tl.store(y + offsets, values.to(y.dtype.element_ty), mask=mask)


@triton.jit
def load_gradient(
    x, gradient, factors, kernel, table, to_field, pixel, column, is_inside, images, H, W, H_POOLED, W_POOLED, F,
    R: tl.constexpr, RP: tl.constexpr, DP: tl.constexpr, SPLIT: tl.constexpr, ALIGN: tl.constexpr,
    HAS_RELU: tl.constexpr, RADIUS: tl.constexpr, BP: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Return x, and the gradient that reaches x * scale + shift through pool and ReLU, both float32."""
    if RADIUS < 0:
        offsets, mask = locate(table, pixel, column, images * H * W, is_inside, F, R, RP, ALIGN)
        result = tl.load(gradient + offsets, mask=mask, other=0.0)
    else:
        image, down, right = split_pixel(pixel, H, W, R)
        # of the pooled pixels that read this one
        first_y, first_x = (down - RADIUS + 1) // 2, (right - RADIUS + 1) // 2
        result = tl.zeros((RP if R else BP, BP * BF if R else BF), tl.float32)
        pixels = images * H_POOLED * W_POOLED
        for step_y in range(tl.minimum(RADIUS + 1, H + RADIUS)):  # a constant end would unroll it, and fill registers
            for step_x in tl.static_range(RADIUS + 1):
                down_2, right_2 = first_y + step_y, first_x + step_x
                source, is_valid = join_pixel(image, down_2, right_2, H_POOLED, W_POOLED, R)
                tap_y, tap_x = down - 2 * down_2 + RADIUS, right - 2 * right_2 + RADIUS
                is_valid = is_inside & is_valid & (tap_y >= 0) & (tap_x >= 0)
                weight = tl.load(kernel + tap_y * (2 * RADIUS + 1) + tap_x, mask=is_valid, other=0.0)
                offsets, mask = locate(table, source, column, pixels, is_valid, F, R, RP, ALIGN)
                result += tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32) * weight
    result = change_basis(result.to(gradient.dtype.element_ty) if R else result, to_field, R, DP, RP, SPLIT)
    offsets, mask = locate(table, pixel, column, images * H * W, is_inside, F, R, RP, ALIGN)
    value = change_basis(tl.load(x + offsets, mask=mask, other=0.0), to_field, R, DP, RP, SPLIT)
    if HAS_RELU:
        scale, shift = load_factor(factors, 0, column, F), load_factor(factors, 1, column, F)
        result = tl.where(value * scale + shift > 0, result, 0.0)
    return value, result


@triton.jit
def sum_gradients(
    x, gradient, factors, sums, kernel, table, to_field, to_irreps, images, H, W, H_POOLED, W_POOLED, F,
    R: tl.constexpr, RP: tl.constexpr, DP: tl.constexpr, SPLIT: tl.constexpr, ALIGN: tl.constexpr,
    HAS_RELU: tl.constexpr, RADIUS: tl.constexpr, BP: tl.constexpr, BF: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Write (2, F, programs): sums of the gradient, and of its products with x - mean, the third of the factors."""
    chunk, column_tile = tl.program_id(0) // tl.cdiv(F, BF), tl.program_id(0) % tl.cdiv(F, BF)
    first = tl.zeros((BP, BF), tl.float32)
    second = tl.zeros((BP, BF), tl.float32)
    for tile in tl.range(TILES, disable_licm=True):  # factors in registers would leave none
        pixel, column = make_tile((chunk * TILES + tile) * tl.cdiv(F, BF) + column_tile, F, R, BP, BF)
        is_inside = find_inside(pixel, images, H, W, R)
        value, part = load_gradient(
            x, gradient, factors, kernel, table, to_field, pixel, column, is_inside, images, H, W, H_POOLED, W_POOLED,
            F, R, RP, DP, SPLIT, ALIGN, HAS_RELU, RADIUS, BP, BF,
        )  # fmt: skip
        first += sum_field(part, R, BP, BF)
        second += sum_field(part * (value - load_factor(factors, 2, column, F)), R, BP, BF)
    column = column_tile * BF + tl.arange(0, BF)
    chunks = tl.num_programs(0) // tl.cdiv(F, BF)
    offsets = sums + column * chunks + chunk
    tl.store(offsets, tl.sum(first, 0), mask=column < F)
    tl.store(offsets + F * chunks, tl.sum(second, 0), mask=column < F)


@triton.jit
def sum_field(values, R: tl.constexpr, BP: tl.constexpr, BF: tl.constexpr):
    """Sum over the channels of a column: (BP, BF)."""
    if R:
        return tl.reshape(tl.sum(values, 0), (BP, BF))
    else:
        return values


@triton.jit
def normalise_backward(
    x, gradient, grad_x, factors, kernel, table, to_field, to_irreps, images, H, W, H_POOLED, W_POOLED, F,
    R: tl.constexpr, RP: tl.constexpr, DP: tl.constexpr, SPLIT: tl.constexpr, ALIGN: tl.constexpr,
    HAS_RELU: tl.constexpr, RADIUS: tl.constexpr, BP: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Gradient of x = gradient * scale + x * slope + offset; factors: scale, shift, slope, offset."""
    pixel, column = make_tile(tl.program_id(0), F, R, BP, BF)
    is_inside = find_inside(pixel, images, H, W, R)
    value, part = load_gradient(
        x, gradient, factors, kernel, table, to_field, pixel, column, is_inside, images, H, W, H_POOLED, W_POOLED, F,
        R, RP, DP, SPLIT, ALIGN, HAS_RELU, RADIUS, BP, BF,
    )  # fmt: skip
    scale, slope = load_factor(factors, 0, column, F), load_factor(factors, 2, column, F)
    result = tl.where(is_inside, part * scale + value * slope + load_factor(factors, 3, column, F), 0.0)
    store_values(grad_x, result, table, to_irreps, pixel, column, images * H * W, F, R, RP, DP, SPLIT, ALIGN)
