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
    index = tl.arange(0, M)[:, None] * K + tl.arange(0, K)[None, :]
    product = tl.dot(tl.load(constants + offset + index), values, input_precision="ieee")
    if LOW_OFFSET:
        product += tl.dot(tl.load(constants + LOW_OFFSET + offset + index), values, input_precision="ieee")
    return product


@triton.jit
def load_place(table, row, pixels):
    """Return a component's first pixel among all planes, and the copies between its pixels; int64, as all offsets."""
    planes_before, copies, copy = tl.load(table + 3 * row), tl.load(table + 3 * row + 1), tl.load(table + 3 * row + 2)
    return planes_before.to(tl.int64) * pixels + copy, copies


@triton.jit
def compute_offsets(table, row, pixel, field, pixels, F: tl.constexpr):
    """Return the memory offsets of values (components, pixels x fields), int64."""
    start, copies = load_place(table, row, pixels)
    return (start[:, None] + pixel.to(tl.int64)[None, :] * copies[:, None]) * F + field[None, :]


@triton.jit
def field_to_irreps(
    x, x_hat, matrix, table, pixels, grid_height, grid_width, height, width, origin, stride,
    F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, COLS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Channels-last maps -> irreps: the first pixel at `origin` of the grid, `stride` apart; zeros elsewhere."""
    n, d, r = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, DP), tl.arange(0, RP)
    pixel = n // F
    image, grid_index = pixel // (grid_height * grid_width), pixel % (grid_height * grid_width)
    down, right = grid_index // grid_width - origin, grid_index % grid_width - origin
    is_inside = (down >= 0) & (right >= 0) & (down % stride == 0) & (right % stride == 0) & (n < pixels * F)
    is_inside = is_inside & (down < height * stride) & (right < width * stride)
    source = ((image * height + down // stride) * width + right // stride).to(tl.int64) * F + n % F
    mask = is_inside[:, None] & (d < D)[None, :]
    values = tl.load(x + source[:, None] * D + d[None, :], mask=mask, other=0.0)
    x_hat_values = matmul_constants(matrix, tl.trans(values), SPLIT, RP, DP, 0)
    x_hat_mask = (r < R)[:, None] & (n < pixels * F)[None, :]
    offsets = compute_offsets(table, tl.minimum(r, R - 1), pixel, n % F, pixels, F)
    tl.store(x_hat + offsets, x_hat_values.to(x_hat.dtype.element_ty), mask=x_hat_mask)


@triton.jit
def irreps_to_field(
    y_hat, y, matrix, table, pixels, grid_height, grid_width, height, width, origin, stride, batch_size,
    F: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, COLS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Irreps -> channels-last maps, the inverse of `field_to_irreps`."""
    n, d, r = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, DP), tl.arange(0, RP)
    pixel, is_inside = n // F, n < batch_size * height * width * F
    image, pixel_index = pixel // (height * width), pixel % (height * width)
    source = (
        (image * grid_height + pixel_index // width * stride + origin) * grid_width
        + pixel_index % width * stride
        + origin
    )
    offsets = compute_offsets(table, tl.minimum(r, R - 1), source, n % F, pixels, F)
    values = tl.load(y_hat + offsets, mask=(r < R)[:, None] & is_inside[None, :], other=0.0)
    y_values = tl.trans(matmul_constants(matrix, values, SPLIT, DP, RP, 0))
    mask = is_inside[:, None] & (d < D)[None, :]
    tl.store(y + n.to(tl.int64)[:, None] * D + d[None, :], y_values.to(y.dtype.element_ty), mask=mask)


@triton.jit
def compute_z(
    x_hat, z, constants, slot_table, source_table, target_table, slots, pixels, begin, count, grid_width,
    F: tl.constexpr, SIZE: tl.constexpr, MP: tl.constexpr, KP: tl.constexpr, COLS: tl.constexpr, SPLIT: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """Compute the maps of z that come from one irrep of x', for TILES tiles; z holds `count` pixels from `begin`."""
    # neighbouring programs share cache lines; one axis, since the others end at 65,535 programs
    slot, first_tile = tl.program_id(0) % slots, tl.program_id(0) // slots * TILES
    m, k = tl.arange(0, MP), tl.arange(0, KP)
    first_row, num_rows, num_maps = (
        tl.load(slot_table + 3 * slot),
        tl.load(slot_table + 3 * slot + 1),
        tl.load(slot_table + 3 * slot + 2),
    )
    row, tap = k // (SIZE * SIZE), k % (SIZE * SIZE)
    neighbour_offset = (tap // SIZE - SIZE // 2) * grid_width + tap % SIZE - SIZE // 2 + begin
    is_used = row < num_rows
    row = first_row + tl.minimum(row, num_rows - 1)
    start, copies = load_place(source_table, row, pixels)
    start = (start + neighbour_offset * copies) * F
    for tile in tl.range(TILES):
        n = (first_tile + tile) * COLS + tl.arange(0, COLS)
        source_columns = n[None, :] + neighbour_offset[:, None] * F
        offsets = start[:, None] + (n // F).to(tl.int64)[None, :] * (copies * F)[:, None] + (n % F)[None, :]
        values = tl.load(
            x_hat + offsets, mask=is_used[:, None] & (source_columns >= 0) & (source_columns < pixels * F), other=0.0
        )
        z_values = matmul_constants(constants, values, SPLIT, MP, KP, slot * MP * KP)
        offsets = compute_offsets(target_table, slot * MP + m, n // F, n % F, count, F)
        mask = (m < num_maps)[:, None] & (n < count * F)[None, :]
        tl.store(z + offsets, z_values.to(z.dtype.element_ty), mask=mask)
