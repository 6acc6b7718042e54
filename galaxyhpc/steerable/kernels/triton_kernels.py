"""The Triton kernels of `gpu` and `fused_convolution`. Each processes a tile of pixels and fields.

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


@triton.jit
def load_tap(plane, offset, mask, MASKED: tl.constexpr):
    """Load neighbours of a tile of values, float32; those of bfloat16 as pairs, from a pointer to int32."""
    values = tl.load(plane + offset, mask=mask, other=0) if MASKED else tl.load(plane + offset)
    if plane.dtype.element_ty == tl.int32:  # half the instructions of Triton's own conversion
        low, high = (values << 16).to(tl.float32, bitcast=True), (values & -65536).to(tl.float32, bitcast=True)
        return tl.join(low, high)
    else:
        return values.to(tl.float32)


@triton.jit
def apply_filters(
    plane, offset, down, right, mask, KIND: tl.constexpr, EDGE: tl.constexpr, CENTRE: tl.constexpr, SLOPE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Apply both spatial filters of a kind to a tile, see `fused_convolution.get_spatial_filters`."""
    north, south = load_tap(plane - down, offset, mask, MASKED), load_tap(plane + down, offset, mask, MASKED)
    west, east = load_tap(plane - right, offset, mask, MASKED), load_tap(plane + right, offset, mask, MASKED)
    northwest = load_tap(plane - down - right, offset, mask, MASKED)
    northeast = load_tap(plane - down + right, offset, mask, MASKED)
    southwest = load_tap(plane + down - right, offset, mask, MASKED)
    southeast = load_tap(plane + down + right, offset, mask, MASKED)
    if KIND == 1:
        centre = load_tap(plane, offset, mask, MASKED)
        ring = (northwest + southeast) + (northeast + southwest) + EDGE * ((north + south) + (west + east))
        ring += CENTRE * centre
        return ring, ring
    elif KIND == 2:
        falling, rising = northwest - southeast, northeast - southwest
        return falling + rising + SLOPE * (north - south), falling - rising + SLOPE * (west - east)
    else:
        return (north + south) - (west + east), (northwest + southeast) - (northeast + southwest)


@triton.jit
def add_product(sums, z, weights, ROWS: tl.constexpr, K: tl.constexpr):
    """Add the product of a tile of z, rounded to the type of the weights."""
    return tl.dot(tl.reshape(z, (ROWS, K)).to(weights.dtype), weights, sums, input_precision="ieee")


@triton.jit(do_not_specialize=["irreps", "rows", "width", "column_tiles", "weight_rows"])
def convolve(
    x_hat, y_hat, weights, begins, steps, factors, irreps, rows, width, column_tiles, weight_rows,
    F: tl.constexpr, N: tl.constexpr, SIZE: tl.constexpr, EDGE: tl.constexpr, CENTRE: tl.constexpr, SLOPE: tl.constexpr,
    MASKED: tl.constexpr, TILE_SIDE: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, N_TILES: tl.constexpr,
):  # fmt: skip
    """x' -> irreps of y' of SIZE components with N values (copies x fields) at a pixel; z stays on the chip.

    A program computes BN of the values of one irrep for a square of pixels. A step makes z of BK values of a block, for
    all components of the irrep, and multiplies it by the weights. The rows of all images, with their borders, are one
    image; its border is left out.
    """
    # pairs of bfloat16 are read as int32
    PACK: tl.constexpr = 2 if x_hat.dtype.element_ty == tl.bfloat16 else 1
    KP: tl.constexpr = BK // PACK
    ROWS: tl.constexpr = TILE_SIDE * TILE_SIDE
    COLUMNS: tl.constexpr = N_TILES * BN
    source = x_hat.to(tl.pointer_type(tl.int32), bitcast=True) if PACK == 2 else x_hat
    # programs that read the same pixels are neighbours
    irrep, program = tl.program_id(0) % irreps, tl.program_id(0) // irreps
    first_column, tile = program % N_TILES * BN, program // N_TILES
    top, left = tile // column_tiles * TILE_SIDE, tile % column_tiles * TILE_SIDE
    pixel, k, n = tl.arange(0, ROWS), tl.arange(0, KP), first_column + tl.arange(0, BN)
    # beyond the last row and column, pixels are computed again
    row = tl.minimum(top + 1 + pixel // TILE_SIDE, rows - 2)
    column = tl.minimum(left + 1 + pixel % TILE_SIDE, width - 2)
    local = (row - top) * width + column - left
    first, pixels = top.to(tl.int64) * width + left, rows.to(tl.int64) * width
    weights += (irrep * weight_rows + tl.arange(0, BK))[:, None] * COLUMNS + n[None, :]
    sums_0, sums_1 = tl.zeros((ROWS, BN), tl.float32), tl.zeros((ROWS, BN), tl.float32)
    for KIND in tl.static_range(4):
        begin, end = tl.load(begins + 5 * irrep + KIND), tl.load(begins + 5 * irrep + KIND + 1)
        # asynchronous copies, of more stages, would read each neighbour past the L1 cache
        for index in tl.range(begin, end, num_stages=1):
            step, factor = steps + 5 * index, factors + 4 * index
            values = tl.load(step + 2) * (F // PACK)  # at a pixel
            start, down = tl.load(step + 3) * KP, width * values
            offset, mask = local[:, None] * values + k[None, :], start + k[None, :] < values
            tile_weights = tl.load(weights + tl.load(step + 4) * COLUMNS)
            plane_a = source + (tl.load(step).to(tl.int64) * (F // PACK) * pixels + first * values) + start
            plane_b = source + (tl.load(step + 1).to(tl.int64) * (F // PACK) * pixels + first * values) + start
            if KIND == 0:
                z_0 = tl.load(factor) * load_tap(plane_a, offset, mask, MASKED)
                z_1 = tl.load(factor + 3) * load_tap(plane_b, offset, mask, MASKED)
            else:
                a, other_a = apply_filters(plane_a, offset, down, values, mask, KIND, EDGE, CENTRE, SLOPE, MASKED)
                other_b, b = apply_filters(plane_b, offset, down, values, mask, KIND, EDGE, CENTRE, SLOPE, MASKED)
                if KIND == 1:
                    z_0, z_1 = tl.load(factor) * a, tl.load(factor + 3) * b
                else:
                    z_0 = tl.load(factor) * a + tl.load(factor + 1) * b
                    z_1 = tl.load(factor + 2) * other_a + tl.load(factor + 3) * other_b
            sums_0 = add_product(sums_0, z_0, tile_weights, ROWS, BK)
            if SIZE == 2:
                sums_1 = add_product(sums_1, z_1, tile_weights, ROWS, BK)
    target = y_hat + (irrep * SIZE * pixels + first) * N + local[:, None] * N + n[None, :]
    tl.store(target, sums_0.to(y_hat.dtype.element_ty), mask=(n < N)[None, :])
    if SIZE == 2:
        tl.store(target + pixels * N, sums_1.to(y_hat.dtype.element_ty), mask=(n < N)[None, :])
