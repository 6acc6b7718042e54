"""The harmonic convolution on a GPU: Triton kernels of `triton_kernels` and batched matrix products.

    field_to_irreps    x  -> x'      Q^-1
    compute_z          x' -> z       the blocks
    torch.bmm          z  -> y'      the weights; one product for all irreps of the output of one shape
    irreps_to_field    y' -> y       Q

Backward keeps only x, and z is held for a chunk of pixels at a time. The gradient of x is the same function with the
transposed filters, and its z gives the weights' gradient, too: z of y' times x' equals z of x' times y'. All maps lie
on one grid, the padded input; a stride skips pixels of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from galaxyhpc.steerable.kernels import gpu_plan
from galaxyhpc.steerable.kernels import triton_kernels as kernels
from galaxyhpc.steerable.kernels.gpu_plan import ACCESS_BYTES, FieldLayout, Plan
from galaxyhpc.steerable.kernels.harmonic import BasisSpec, get_harmonic_basis

CHUNK_BYTES = 1 << 30  # of z
TILE_COLUMNS = 256  # pixels x fields of a tile
TILES_PER_PROGRAM = 8  # of `compute_z`: while one tile is computed, the next are loaded
MAX_LOADED_BYTES = 1 << 14  # of a tile's neighbours: more spill registers
_HAS_FLOAT32_PRODUCTS = "dtype" in torch.ops.aten.bmm.overloads()  # torch >= 2.8


class Grid(NamedTuple):
    """The pixel grid of a padded input."""

    height: int
    width: int

    @property
    def size(self) -> int:
        return self.height * self.width

    def field_to_irreps(self, x: Tensor, field: FieldLayout, origin: int, step: int) -> Tensor:
        """Channels-last maps (n, fields x d, H, W) -> irreps; the first pixel is the grid's (origin, origin)."""
        pixels, fields = len(x) * self.size, x.shape[1] // field.channels
        padded_fields = field.pad_fields(fields)
        x_hat = x.new_empty(field.num_planes * pixels * padded_fields)
        kernels.field_to_irreps[(_count_tiles(pixels * padded_fields),)](
            x, x_hat, field.to_irreps, field.table, pixels, *self, *x.shape[2:], origin, step,
            F=fields, PADDED_F=padded_fields, COLS=TILE_COLUMNS, **_get_constexprs(field),
        )  # fmt: skip
        return x_hat

    def irreps_to_field(self, y_hat: Tensor, y: Tensor, field: FieldLayout, origin: int, step: int) -> None:
        """Irreps -> channels-last maps, written to y."""
        pixels, fields = len(y) * y.shape[2] * y.shape[3], y.shape[1] // field.channels
        padded_fields = field.pad_fields(fields)
        kernels.irreps_to_field[(_count_tiles(pixels * padded_fields),)](
            y_hat, y, field.to_field, field.table, len(y) * self.size, *self, *y.shape[2:], origin, step, len(y),
            F=fields, PADDED_F=padded_fields, COLS=TILE_COLUMNS, **_get_constexprs(field),
        )  # fmt: skip

    def compute_z(self, plan: Plan, x_hat: Tensor, fields: int, begin: int, end: int) -> list[Tensor]:
        """Compute z of some of the pixels as batches of matrices (irreps, components x pixels, blocks x fields)."""
        pixels, count = plan.inputs.count_pixels(x_hat, fields), end - begin
        z = x_hat.new_empty(len(plan.basis.terms) * count * fields)
        sizes = [batch.num_irreps * batch.size * batch.copies * pixels * fields for batch in plan.input_batches]
        for batch, irreps in zip(plan.input_batches, x_hat.split(sizes), strict=True):
            _, parts, m, k = batch.constants.shape
            values_per_pixel = batch.copies * fields
            access = math.gcd(batch.alignment * fields, ACCESS_BYTES // x_hat.element_size())
            columns = max(16, min(TILE_COLUMNS, MAX_LOADED_BYTES // (k * x_hat.element_size())))
            num_tiles = triton.cdiv(count * values_per_pixel, columns * TILES_PER_PROGRAM)
            kernels.compute_z[(batch.num_irreps * num_tiles,)](
                irreps, z, batch.constants, batch.targets, batch.num_irreps, pixels, begin, count, self.width,
                values_per_pixel // access, ACCESS=access, COPIES=batch.copies, SIZE=batch.size,
                KERNEL_SIZE=plan.basis.kernel_size, MP=m, KP=k, COLS=columns, SPLIT=(parts - 1) * m * k,
                TILES=TILES_PER_PROGRAM,
            )  # fmt: skip
        shapes = [
            (len(batch.weight_indices), batch.size * count, batch.weight_indices.shape[1] * fields)
            for batch in plan.output_batches
        ]
        return _view_as_matrices(z, shapes)


def _count_tiles(columns: int) -> int:
    """Return the tiles of a component of all fields and pixels, whose numbers are 32-bit; offsets in memory are not."""
    if columns > (1 << 31) - TILE_COLUMNS:
        raise ValueError(f"harmonic convolution: got {columns} pixels x fields; expected < 2^31: use a smaller batch")
    return -(-columns // TILE_COLUMNS)


def _get_constexprs(field: FieldLayout) -> dict[str, int]:
    """Return the compile-time constants of the kernels that change between a field and its irreps."""
    parts, rows, channels = field.to_irreps.shape
    sides = {"D": field.channels, "R": len(field.table), "DP": channels, "RP": rows}
    return sides | {"SPLIT": (parts - 1) * rows * channels}


def convolve(plan: Plan, x_hat: Tensor, weight: Tensor, grid: Grid) -> Tensor:
    """x', weights (fields of the output, of the input, basis) -> y'; the border of y' is undefined."""
    fields_out, fields = plan.outputs.pad_fields(len(weight)), plan.inputs.pad_fields(weight.shape[1])
    matrices = plan.gather_weights(weight.to(x_hat.dtype))
    pixels = plan.inputs.count_pixels(x_hat, fields)
    y_hat = x_hat.new_empty(plan.outputs.num_planes * pixels * fields_out)
    outputs = _split_output_batches(plan, y_hat, fields_out)
    for begin, end in split_into_chunks(plan, x_hat, fields):
        z = grid.compute_z(plan, x_hat, fields, begin, end)
        for maps, matrix, output in zip(z, matrices, outputs, strict=True):
            _multiply_into(maps, matrix, output[:, :, begin:end])
    return y_hat


def convolve_backward(
    plan: Plan, grad_y_hat: Tensor, x_hat: Tensor, weight: Tensor, grid: Grid, needs_input_grad: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x', where it is needed, and of the weights as in `convolve`; the plan is transposed."""
    fields_in, fields = plan.outputs.pad_fields(weight.shape[1]), plan.inputs.pad_fields(len(weight))
    matrices = plan.gather_weights(weight.transpose(0, 1).to(x_hat.dtype))
    totals = [torch.zeros_like(matrix, dtype=weight.dtype) for matrix in matrices]
    grad_x_hat = torch.empty_like(x_hat) if needs_input_grad else x_hat.new_empty(0)
    inputs = _split_output_batches(plan, x_hat, fields_in)
    outputs = _split_output_batches(plan, grad_x_hat, fields_in) if needs_input_grad else inputs
    for begin, end in split_into_chunks(plan, grad_y_hat, fields):
        z = grid.compute_z(plan, grad_y_hat, fields, begin, end)
        for maps, total, x, matrix, output in zip(z, totals, inputs, matrices, outputs, strict=True):
            total += _multiply_in_float32(maps.mT, x[:, :, begin:end].flatten(1, 2))
            if needs_input_grad:
                _multiply_into(maps, matrix, output[:, :, begin:end])
    grad_weight = plan.scatter_gradients(totals, (weight.shape[1], len(weight))).transpose(0, 1)
    return grad_x_hat if needs_input_grad else None, grad_weight


def split_into_chunks(plan: Plan, x_hat: Tensor, fields: int) -> Iterator[tuple[int, int]]:
    """Yield the begin and end of chunks of pixels whose z takes at most CHUNK_BYTES."""
    pixels = plan.inputs.count_pixels(x_hat, fields)
    chunk_size = max(1, CHUNK_BYTES // plan.count_z_bytes(x_hat, fields))
    return ((begin, min(begin + chunk_size, pixels)) for begin in range(0, pixels, chunk_size))


def _multiply_into(z: Tensor, matrix: Tensor, output: Tensor) -> None:
    """Multiply z of a chunk of pixels by the weights, into (irreps, components, pixels, copies x fields)."""
    components = output.shape[1]
    if output.is_contiguous():
        torch.bmm(z, matrix, out=output.flatten(1, 2))
        return
    by_component = z.unflatten(1, (components, -1)).flatten(0, 1)
    torch.bmm(by_component, matrix.repeat_interleave(components, 0), out=output.flatten(0, 1))


def _multiply_in_float32(a: Tensor, b: Tensor) -> Tensor:
    """Return a batch of products, of half precision in float32: rounded, their sum over chunks would lose digits."""
    if a.dtype.itemsize > 2 or (a.is_cuda and not _HAS_FLOAT32_PRODUCTS):
        return torch.bmm(a, b)
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.bmm(a.float(), b.float())


def _split_output_batches(plan: Plan, y_hat: Tensor, fields: int) -> list[Tensor]:
    """Return y' as batches of maps (irreps, components, pixels, copies x fields)."""
    pixels = plan.outputs.count_pixels(y_hat, fields)
    sizes = [(*batch.weight_indices.shape[::2], batch.size) for batch in plan.output_batches]
    return _view_as_matrices(y_hat, [(irreps, size, pixels, copies * fields) for irreps, copies, size in sizes])


def _view_as_matrices(values: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    parts = values.split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def is_available() -> bool:
    """Whether there is a GPU."""
    return torch.cuda.is_available()


def forward(x: Tensor, weight: Tensor, basis_spec: BasisSpec, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), channels last."""
    x, grid = x.contiguous(memory_format=torch.channels_last), _make_padded_grid(x, padding)
    plan = get_plan(basis_spec, False, x)
    weight = reshape_weights(weight, basis_spec, x.shape[1] // plan.inputs.channels)
    sides = [(side - plan.basis.kernel_size) // stride + 1 for side in grid]
    shape = (len(x), len(weight) * plan.outputs.channels, *sides)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    y_hat = convolve(plan, grid.field_to_irreps(x, plan.inputs, padding, 1), weight, grid)
    grid.irreps_to_field(y_hat, y, plan.outputs, plan.basis.kernel_size // 2, stride)
    return y


def backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    basis_spec: BasisSpec,
    stride: int,
    padding: int,
    needs_input_grad: bool,
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x, where it is needed, and of the weights."""
    x, gradient = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, gradient))
    plan, grid = get_plan(basis_spec, True, x), _make_padded_grid(x, padding)
    weight_3d = reshape_weights(weight, basis_spec, x.shape[1] // plan.outputs.channels)
    grad_y_hat = grid.field_to_irreps(gradient, plan.inputs, plan.basis.kernel_size // 2, stride)
    x_hat = grid.field_to_irreps(x, plan.outputs, padding, 1)
    grad_x_hat, grad_weight = convolve_backward(plan, grad_y_hat, x_hat, weight_3d, grid, needs_input_grad)
    if grad_x_hat is None:
        return None, grad_weight.reshape(weight.shape)
    grad_x = torch.empty_like(x)
    grid.irreps_to_field(grad_x_hat, grad_x, plan.outputs, padding, 1)
    return grad_x, grad_weight.reshape(weight.shape)


def _make_padded_grid(x: Tensor, padding: int) -> Grid:
    return Grid(*(int(side) + 2 * padding for side in x.shape[2:]))


def get_plan(basis_spec: BasisSpec, is_transposed: bool, x: Tensor) -> Plan:
    """Return the plan for maps of this type and device."""
    return gpu_plan.get_plan(basis_spec, is_transposed, x.device, x.dtype)


def reshape_weights(weight: Tensor, basis_spec: BasisSpec, fields: int) -> Tensor:
    """Return weights (fields of the output, fields of the input, basis)."""
    return weight.view(-1, fields, get_harmonic_basis(basis_spec).num_weights)
