"""Blocks of a network on a GPU that stay in irreps from one convolution to the next: x' -> y' -> x', never a field.

Batch norm and ReLU transform each tile to the field and back on the chip; a field's mean is its trivial component, its
mean square that of all its components (Parseval); the blur of an anti-aliased pool acts on each channel alone. So only
x' and y' are written, and z in chunks. For 3x3 convolutions with regular fields, padding 1 and stride 1; in training,
and in evaluation without gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor, nn

from galaxyhpc.steerable.batch_norm import FieldBatchNorm, all_reduce_sums
from galaxyhpc.steerable.blocks import can_stay_in_irreps
from galaxyhpc.steerable.kernels import triton_kernels as kernels
from galaxyhpc.steerable.kernels.gpu import (
    TILE_COLUMNS,
    FieldLayout,
    Grid,
    Plan,
    gather_weights,
    get_constexprs,
    get_plan,
    multiply_in_float32,
    reshape_weights,
    scatter_gradients,
    split_into_chunks,
    split_irrep_batches,
)
from galaxyhpc.steerable.kernels.harmonic import BasisSpec
from galaxyhpc.steerable.layers import AntialiasedPool, SteerableConv, get_compute_dtype

TILES_PER_PROGRAM = 8  # of a program that sums moments or gradients
TILE_PIXELS = 64  # of a tile that holds all fields
FLOAT32_TILE_VALUES = 2048  # whose products, without tensor cores, take less than the registers


@dataclass(frozen=True)
class IrrepMaps:
    """Maps in the basis of irreps, see `triton_kernels`."""

    values: Tensor
    batch_size: int
    grid: Grid
    field: FieldLayout
    fields: int

    @property
    def pixels(self) -> int:
        return self.batch_size * self.grid.size

    @property
    def without_values(self) -> IrrepMaps:
        """The layout alone."""
        return replace(self, values=self.values.new_empty(0))


def is_fusable(layer: nn.Module) -> bool:
    """Whether a convolution goes from irreps to irreps."""
    return can_stay_in_irreps(layer) and bool(layer.harmonic)


def run_blocks(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Apply blocks of convolution, `FieldBatchNorm`, ReLU and, perhaps, `AntialiasedPool` to channels-last maps."""
    maps: Tensor | IrrepMaps = x
    for block in layers:
        parts: list[Any] = list(block.children())
        convolution, norm, _, *pools = parts
        if not is_fusable(convolution):
            maps = block(_to_field_tensor(maps))
            continue
        if isinstance(maps, Tensor):
            maps = to_irrep_maps(maps.to(get_compute_dtype(maps)), convolution)
        maps = normalise(convolve(maps, convolution), norm)
        for pool in pools:
            maps = blur(maps, pool)
    return _to_field_tensor(maps)


def convolve(maps: IrrepMaps, convolution: SteerableConv) -> IrrepMaps:
    """Apply a convolution, x' -> y'."""
    y: Tensor = _Convolution.apply(maps.values, convolution.weight, convolution.basis_spec, maps)  # type: ignore[no-untyped-call]
    field = get_plan(convolution.basis_spec, False, y, (maps.fields, convolution.out_fields)).outputs
    return IrrepMaps(y, maps.batch_size, maps.grid, field, convolution.out_fields)


def normalise(maps: IrrepMaps, norm: FieldBatchNorm) -> IrrepMaps:
    """Apply a batch norm and a ReLU, y' -> x'."""
    if not norm.training:
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        factors = torch.stack([scale, norm.bias - norm.running_mean * scale]).float()
        return replace(maps, values=_scale_and_rectify(maps.values, factors, maps))
    values = _Normalisation.apply(maps.values, norm.weight, norm.bias, norm, maps.without_values)  # type: ignore[no-untyped-call]
    return replace(maps, values=values)


def blur(maps: IrrepMaps, pool: AntialiasedPool) -> IrrepMaps:
    """Apply an anti-aliased pool, x' -> x' on a smaller grid."""
    grid = Grid(*((side - 1) // 2 + 2 for side in maps.grid))
    values = _Blur.apply(maps.values, pool.kernel, maps.without_values, grid)  # type: ignore[no-untyped-call]
    return replace(maps, values=values, grid=grid)


def to_irrep_maps(x: Tensor, convolution: SteerableConv) -> IrrepMaps:
    """Change channels-last maps of fields to the basis of irreps, for a convolution."""
    fields = (convolution.in_fields, convolution.out_fields)
    field = get_plan(convolution.basis_spec, False, x, fields).inputs
    maps = IrrepMaps(x, len(x), Grid(x.shape[2] + 2, x.shape[3] + 2), field, fields[0])
    return replace(maps, values=_FieldToIrreps.apply(x, maps.without_values))  # type: ignore[no-untyped-call]


def _to_field_tensor(maps: Tensor | IrrepMaps) -> Tensor:
    if isinstance(maps, Tensor):
        return maps
    x: Tensor = _IrrepsToField.apply(maps.values, maps.without_values)  # type: ignore[no-untyped-call]
    return x


def _field_to_irreps(x: Tensor, maps: IrrepMaps) -> Tensor:
    return maps.grid.field_to_irreps(x.contiguous(memory_format=torch.channels_last), maps.field, 1, 1)


def _irreps_to_field(values: Tensor, maps: IrrepMaps) -> Tensor:
    shape = (maps.batch_size, maps.fields * maps.field.channels, maps.grid.height - 2, maps.grid.width - 2)
    y = torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=torch.channels_last)
    maps.grid.irreps_to_field(values, y, maps.field, 1, 1)
    return y


class _FieldToIrreps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, maps: IrrepMaps) -> Tensor:
        ctx.maps = maps
        return _field_to_irreps(x, maps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _irreps_to_field(gradient, ctx.maps), None


class _IrrepsToField(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, maps: IrrepMaps) -> Tensor:
        ctx.maps = maps
        return _irreps_to_field(values, maps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _field_to_irreps(gradient, ctx.maps), None


class _Convolution(torch.autograd.Function):
    """x' -> y'; the border of y' is undefined."""

    @staticmethod
    def forward(ctx: Any, x_hat: Tensor, weight: Tensor, basis_spec: BasisSpec, maps: IrrepMaps) -> Tensor:
        ctx.save_for_backward(x_hat, weight)
        ctx.basis_spec, ctx.maps = basis_spec, maps.without_values
        weight_3d = reshape_weights(weight, basis_spec, maps.fields, x_hat.dtype)
        plan = get_plan(basis_spec, False, x_hat, (maps.fields, len(weight_3d)))
        y_hat = x_hat.new_empty(plan.outputs.num_planes * maps.pixels * len(weight_3d))
        weights, outputs = gather_weights(plan, weight_3d), split_irrep_batches(plan, y_hat, maps.pixels)
        for chunk, z in _compute_z_chunks(plan, x_hat, maps, maps.fields):
            for z_batch, matrix, out in zip(z, weights, outputs, strict=True):
                _multiply_into(z_batch, matrix, out, chunk, maps.pixels)
        return y_hat

    @staticmethod
    def backward(ctx: Any, grad_y_hat: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (x_hat, weight), maps = ctx.saved_tensors, ctx.maps
        weight_3d = reshape_weights(weight, ctx.basis_spec, maps.fields, x_hat.dtype).transpose(0, 1)
        plan = get_plan(ctx.basis_spec, True, x_hat, (weight_3d.shape[1], maps.fields))
        grad_x_hat, weights = torch.empty_like(x_hat), gather_weights(plan, weight_3d)
        outputs, inputs = (split_irrep_batches(plan, values, maps.pixels) for values in (grad_x_hat, x_hat))
        totals = [torch.zeros_like(matrix, dtype=weight.dtype) for matrix in weights]
        for chunk, z in _compute_z_chunks(plan, grad_y_hat, maps, weight_3d.shape[1]):
            for n, z_batch in enumerate(z):
                _multiply_into(z_batch, weights[n], outputs[n], chunk, maps.pixels)
                x_chunk = inputs[n].unflatten(1, (-1, maps.pixels))[:, :, chunk].flatten(1, 2)
                totals[n] += multiply_in_float32(z_batch.mT, x_chunk)
        grad_weight = scatter_gradients(plan, totals, (maps.fields, weight_3d.shape[1])).transpose(0, 1)
        return grad_x_hat, grad_weight.reshape(weight.shape), None, None


def _compute_z_chunks(plan: Plan, x_hat: Tensor, maps: IrrepMaps, fields: int) -> Iterator[tuple[slice, list[Tensor]]]:
    for begin, end in split_into_chunks(maps.pixels, plan.count_z_bytes(x_hat, fields)):
        yield slice(begin, end), maps.grid.compute_z(plan, x_hat, maps.pixels, begin, end - begin)


def _multiply_into(z: Tensor, weight: Tensor, out: Tensor, chunk: slice, pixels: int) -> None:
    """Multiply z of a chunk of pixels by the weights, into their places in `out`."""
    if chunk.stop - chunk.start == pixels:
        torch.bmm(z, weight, out=out)
        return
    components = out.shape[1] // pixels
    by_component = z.unflatten(1, (components, -1)).flatten(0, 1)
    target = out.unflatten(1, (components, pixels)).flatten(0, 1)[:, chunk]
    torch.bmm(by_component, weight.repeat_interleave(components, 0), out=target)


class _Normalisation(torch.autograd.Function):
    """Batch norm and ReLU, y' -> x'."""

    @staticmethod
    def forward(ctx: Any, y_hat: Tensor, weight: Tensor, bias: Tensor, norm: FieldBatchNorm, maps: IrrepMaps) -> Tensor:
        field = maps.field
        num_programs = triton.cdiv(maps.pixels, TILE_PIXELS * TILES_PER_PROGRAM)
        partial_sums = torch.empty(num_programs, 2, maps.fields, device=y_hat.device)
        channel_sums = field.to_field.double().sum((0, 1)).float()  # of each component over all channels
        kernels.sum_moments[(num_programs,)](
            y_hat, channel_sums, field.table, partial_sums, maps.pixels, *maps.grid, F=maps.fields,
            FP=triton.next_power_of_2(maps.fields), R=len(field.table), BP=TILE_PIXELS, TILES=TILES_PER_PROGRAM,
        )  # fmt: skip
        local_count = float(maps.batch_size * (maps.grid.height - 2) * (maps.grid.width - 2) * field.channels)
        first, second, count = _all_reduce_sums(norm, partial_sums.double().sum(0), local_count)
        mean = first / count
        variance = (second / count - mean.square()).clamp_min(0.0)
        norm.update_statistics(mean, variance, count)
        rstd = (variance + norm.eps).rsqrt()
        scale = weight.double() * rstd
        factors = torch.stack([scale, bias.double() - mean * scale]).float()
        x_hat = _scale_and_rectify(y_hat, factors, maps)
        ctx.save_for_backward(y_hat, factors, mean, rstd, scale)
        ctx.norm, ctx.maps, ctx.local_count = norm, maps.without_values, local_count
        return x_hat

    @staticmethod
    def backward(ctx: Any, grad_x_hat: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        y_hat, factors, mean, rstd, scale = ctx.saved_tensors
        maps = ctx.maps
        field, constexprs = maps.field, get_constexprs(maps.field, maps.fields)
        tile_fields = 16 if maps.fields % 32 else 32
        num_programs = triton.cdiv(maps.pixels, TILE_COLUMNS // tile_fields * TILES_PER_PROGRAM)
        partial_sums = torch.empty(num_programs, 2, maps.fields, device=y_hat.device)
        kernels.sum_normalise_gradients[(num_programs, triton.cdiv(maps.fields, tile_fields))](
            y_hat, grad_x_hat, field.to_field, field.table, factors, partial_sums, maps.pixels, *maps.grid,
            BP=TILE_COLUMNS // tile_fields, BF=tile_fields, TILES=TILES_PER_PROGRAM, **constexprs,
        )  # fmt: skip
        sums = partial_sums.double().sum(0)
        grad_bias, grad_weight = sums[0], rstd * (sums[1] - mean * sums[0])
        first, second, count = _all_reduce_sums(ctx.norm, sums, ctx.local_count)
        slope = rstd.square() * (second - mean * first) / count
        gradient_factors = torch.stack([scale, -scale * slope, scale * (mean * slope - first / count)]).float()
        grad_y_hat = torch.empty_like(y_hat)
        kernels.normalise_backward[(triton.cdiv(maps.pixels * maps.fields, TILE_COLUMNS),)](
            y_hat, grad_x_hat, grad_y_hat, field.to_field, field.to_irreps, field.table,
            torch.cat([factors, gradient_factors]), maps.pixels, *maps.grid, COLS=TILE_COLUMNS, **constexprs,
        )  # fmt: skip
        return grad_y_hat, grad_weight.float(), grad_bias.float(), None, None


def _all_reduce_sums(norm: FieldBatchNorm, sums: Tensor, count: float) -> tuple[Tensor, Tensor, float]:
    """Return two sums (fields,) float64 and the number of values, of all processes if the norm is synchronised."""
    if norm.is_synchronised:
        packed = all_reduce_sums(torch.cat([sums.flatten(), sums.new_tensor([count])]))
        sums, count = packed[:-1].view_as(sums), float(packed[-1])
    return sums[0], sums[1], count


def _scale_and_rectify(y_hat: Tensor, factors: Tensor, maps: IrrepMaps) -> Tensor:
    """Apply scale and shift (2, fields) and a ReLU to the field, y' -> x'."""
    constexprs, x_hat = get_constexprs(maps.field, maps.fields), torch.empty_like(y_hat)
    columns = TILE_COLUMNS if y_hat.dtype.itemsize == 2 else max(16, FLOAT32_TILE_VALUES // constexprs["DP"])
    kernels.normalise[(triton.cdiv(maps.pixels * maps.fields, columns),)](
        y_hat, x_hat, maps.field.to_field, maps.field.to_irreps, maps.field.table, factors, maps.pixels, *maps.grid,
        COLS=columns, **constexprs,
    )  # fmt: skip
    return x_hat


class _Blur(torch.autograd.Function):
    """`AntialiasedPool`, x' -> x' on a smaller grid."""

    @staticmethod
    def forward(ctx: Any, x_hat: Tensor, kernel: Tensor, maps: IrrepMaps, small_grid: Grid) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.maps, ctx.small_grid = maps, small_grid
        return _apply_blur(x_hat, kernel, maps, small_grid, False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (kernel,) = ctx.saved_tensors
        return _apply_blur(gradient, kernel, ctx.maps, ctx.small_grid, True), None, None, None


def _apply_blur(values: Tensor, kernel: Tensor, maps: IrrepMaps, small_grid: Grid, is_backward: bool) -> Tensor:
    """Go from the grid of `maps` to a smaller one, or back."""
    pixels = maps.batch_size * (maps.grid if is_backward else small_grid).size
    blurred = values.new_empty(maps.field.num_planes * pixels * maps.fields)
    rows = len(maps.field.table)
    kernels.blur[(rows * triton.cdiv(pixels * maps.fields, 4 * TILE_COLUMNS),)](
        values, blurred, kernel, maps.field.table, rows, maps.pixels, *maps.grid,
        maps.batch_size * small_grid.size, *small_grid,
        F=maps.fields, KERNEL_SIZE=kernel.shape[-1], COLS=4 * TILE_COLUMNS, IS_BACKWARD=is_backward,
    )  # fmt: skip
    return blurred
