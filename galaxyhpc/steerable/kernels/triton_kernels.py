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
def matmul_constants(constants, values, LOW_OFFSET: tl.constexpr, M: tl.constexpr, K: tl.constexpr):
    """Multiply by the matrix of `load_matrix`."""
    high, low = load_matrix(constants, LOW_OFFSET, M, K)
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
    x_hat_values = matmul_constants(matrix, tl.trans(values), SPLIT, RP, DP)
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
    y_values = tl.trans(matmul_constants(matrix, values, SPLIT, DP, RP))
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
