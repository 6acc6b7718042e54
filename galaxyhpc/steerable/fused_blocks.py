"""Blocks of a GPU's network that stay in irreps from one convolution to the next: x' -> y' -> x', never a field.

Batch norm and ReLU turn each tile to the field and back on the chip; a field's mean is its trivial component, its mean
square that of all its rows (Parseval); the blur of an anti-aliased pool knows nothing of channels. So nothing but x'
and y' is written, and z by and by. 3x3 convolutions with regular fields, padding 1 and stride 1, in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import triton
from torch import Tensor, nn

from galaxyhpc.steerable.batch_norm import FieldBatchNorm, get_world_size
from galaxyhpc.steerable.kernels import triton_kernels as kernels
from galaxyhpc.steerable.kernels.gpu import (
    TILE_COLUMNS,
    FieldLayout,
    Grid,
    Plan,
    gather_weights,
    get_constexprs,
    get_plan,
    reshape_weights,
    scatter_gradients,
    split_into_chunks,
    split_irrep_batches,
)
from galaxyhpc.steerable.kernels.harmonic import BasisSpec
from galaxyhpc.steerable.layers import SteerableConv, get_compute_dtype

TILES_PER_PROGRAM = 8  # tiles that a program adds up
TILE_PIXELS = 64  # pixels of one of these tiles, where all fields are in it


@dataclass(frozen=True)
class IrrepMaps:
    """Maps as rows."""

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
        """Where they lie, without them."""
        return replace(self, values=self.values.new_empty(0))


def is_fusable(layer: nn.Module) -> bool:
    """Whether a convolution goes from rows to rows."""
    if not isinstance(layer, SteerableConv) or not layer.harmonic:
        return False
    _, size, kind, out_kind, _ = layer.basis_spec
    return (size, kind, out_kind, layer.stride, layer.padding) == (3, "regular", "regular", 1, 1)


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
            maps = _to_irrep_maps(maps.to(get_compute_dtype(maps)), convolution)
        y: Tensor = _Convolution.apply(maps.values, convolution.weight, convolution.basis_spec, maps)  # type: ignore[no-untyped-call]
        field = get_plan(convolution.basis_spec, False, y, (maps.fields, norm.fields)).outputs
        maps = IrrepMaps(y, maps.batch_size, maps.grid, field, norm.fields)
        values = _Normalisation.apply(y, norm.weight, norm.bias, norm, maps.without_values)  # type: ignore[no-untyped-call]
        maps = replace(maps, values=values)
        for pool in pools:
            grid = Grid(*((side - 1) // 2 + 2 for side in maps.grid))
            values = _Blur.apply(maps.values, pool.kernel, maps.without_values, grid)  # type: ignore[no-untyped-call]
            maps = replace(maps, values=values, grid=grid)
    return _to_field_tensor(maps)


def _to_irrep_maps(x: Tensor, convolution: SteerableConv) -> IrrepMaps:
    fields = (convolution.in_fields, convolution.out_fields)
    field = get_plan(convolution.basis_spec, False, x, fields).inputs
    maps = IrrepMaps(x, len(x), Grid(x.shape[2] + 2, x.shape[3] + 2), field, fields[0])
    return replace(maps, values=_FieldToIrreps.apply(x, maps.without_values))  # type: ignore[no-untyped-call]


def _to_field_tensor(maps: Tensor | IrrepMaps) -> Tensor:
    if isinstance(maps, Tensor):
        return maps
    found: Tensor = _IrrepsToField.apply(maps.values, maps.without_values)  # type: ignore[no-untyped-call]
    return found


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
    """x' -> y'; what the border of y' holds is nobody's."""

    @staticmethod
    def forward(ctx: Any, x_hat: Tensor, weight: Tensor, basis_spec: BasisSpec, maps: IrrepMaps) -> Tensor:
        ctx.save_for_backward(x_hat, weight)
        ctx.asked = (basis_spec, maps.without_values)
        given = reshape_weights(weight, basis_spec, maps.fields, x_hat.dtype)
        plan = get_plan(basis_spec, False, x_hat, (maps.fields, len(given)))
        rows = x_hat.new_empty(plan.outputs.num_planes * maps.pixels * len(given))
        weights, parts = gather_weights(plan, given), split_irrep_batches(plan, rows, maps.pixels)
        for some, z in _compute_z_chunks(plan, x_hat, maps, maps.fields):
            for one, product, found in zip(z, weights, parts, strict=True):
                _multiply_into(one, product, found, some, maps.pixels)
        return rows

    @staticmethod
    def backward(ctx: Any, grad_y_hat: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (hat, weight), (recipe, maps) = ctx.saved_tensors, ctx.asked
        given = reshape_weights(weight, recipe, maps.fields, hat.dtype).transpose(0, 1)
        plan = get_plan(recipe, True, hat, (given.shape[1], maps.fields))
        by_hat, weights = torch.empty_like(hat), gather_weights(plan, given)
        parts, seen = (split_irrep_batches(plan, each, maps.pixels) for each in (by_hat, hat))
        totals = [torch.zeros_like(each, dtype=weight.dtype) for each in weights]
        for some, z in _compute_z_chunks(plan, grad_y_hat, maps, given.shape[1]):
            for n, one in enumerate(z):
                _multiply_into(one, weights[n], parts[n], some, maps.pixels)
                mine = seen[n].unflatten(1, (-1, maps.pixels))[:, :, some].flatten(1, 2)
                totals[n] += torch.bmm(one.mT, mine)
        found = scatter_gradients(plan, totals, (maps.fields, given.shape[1])).transpose(0, 1)
        return by_hat, found.reshape(weight.shape), None, None


def _compute_z_chunks(plan: Plan, x_hat: Tensor, maps: IrrepMaps, fields: int) -> Iterator[tuple[slice, list[Tensor]]]:
    for begin, end in split_into_chunks(maps.pixels, plan.count_z_bytes(x_hat, fields)):
        yield slice(begin, end), maps.grid.compute_z(plan, x_hat, maps.pixels, begin, end - begin)


def _multiply_into(z: Tensor, weight: Tensor, out: Tensor, chunk: slice, pixels: int) -> None:
    """Multiply z of some pixels into their places."""
    if chunk.stop - chunk.start == pixels:
        torch.bmm(z, weight, out=out)
        return
    components = out.shape[1] // pixels
    several = z.unflatten(1, (components, -1)).flatten(0, 1)
    target = out.unflatten(1, (components, pixels)).flatten(0, 1)[:, chunk]
    torch.bmm(several, weight.repeat_interleave(components, 0), out=target)


class _Normalisation(torch.autograd.Function):
    """Batch norm and ReLU, y' -> x'."""

    @staticmethod
    def forward(ctx: Any, y_hat: Tensor, weight: Tensor, bias: Tensor, norm: FieldBatchNorm, maps: IrrepMaps) -> Tensor:
        field, sides = maps.field, get_constexprs(maps.field, maps.fields)
        programs = triton.cdiv(maps.pixels, TILE_PIXELS * TILES_PER_PROGRAM)
        found = torch.empty(programs, 2, maps.fields, device=y_hat.device)
        together = field.to_field.double().sum((0, 1)).float()  # what all channels have of a row
        kernels.sum_moments[(programs,)](
            y_hat, together, field.table, found, maps.pixels, *maps.grid, F=maps.fields,
            FP=triton.next_power_of_2(maps.fields), R=len(field.table), BP=TILE_PIXELS, TILES=TILES_PER_PROGRAM,
        )  # fmt: skip
        own = float(maps.batch_size * (maps.grid.height - 2) * (maps.grid.width - 2) * field.channels)
        first, second, count = _all_reduce_sums(norm, found.double().sum(0), own)
        mean = first / count
        variance = (second / count - mean.square()).clamp_min(0.0)
        norm.running_mean.lerp_(mean.float(), norm.momentum)
        norm.running_var.lerp_((variance * count / (count - 1)).float(), norm.momentum)
        rstd = (variance + norm.eps).rsqrt()
        scale = weight.double() * rstd
        factors = torch.stack([scale, bias.double() - mean * scale]).float()
        hat = torch.empty_like(y_hat)
        kernels.normalise[(triton.cdiv(maps.pixels * maps.fields, TILE_COLUMNS),)](
            y_hat,
            hat,
            field.to_field,
            field.to_irreps,
            field.table,
            factors,
            maps.pixels,
            *maps.grid,
            COLS=TILE_COLUMNS,
            **sides,
        )
        ctx.save_for_backward(y_hat, factors, mean, rstd, scale)
        ctx.asked = (norm, maps.without_values, own)
        return hat

    @staticmethod
    def backward(ctx: Any, grad_x_hat: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        rows, factors, mean, rstd, scale = ctx.saved_tensors
        norm, maps, own = ctx.asked
        field, sides = maps.field, get_constexprs(maps.field, maps.fields)
        wide = 16 if maps.fields % 32 else 32
        programs = triton.cdiv(maps.pixels, TILE_COLUMNS // wide * TILES_PER_PROGRAM)
        found = torch.empty(programs, 2, maps.fields, device=rows.device)
        kernels.sum_normalise_gradients[(programs, triton.cdiv(maps.fields, wide))](
            rows, grad_x_hat, field.to_field, field.table, factors, found, maps.pixels, *maps.grid,
            BP=TILE_COLUMNS // wide, BF=wide, TILES=TILES_PER_PROGRAM, **sides,
        )  # fmt: skip
        mine = found.double().sum(0)
        by_bias, by_weight = mine[0], rstd * (mine[1] - mean * mine[0])
        first, second, count = _all_reduce_sums(norm, mine, own)
        along = rstd.square() * (second - mean * first) / count
        parts = torch.stack([scale, -scale * along, scale * (mean * along - first / count)]).float()
        by_rows = torch.empty_like(rows)
        kernels.normalise_backward[(triton.cdiv(maps.pixels * maps.fields, TILE_COLUMNS),)](
            rows, grad_x_hat, by_rows, field.to_field, field.to_irreps, field.table, torch.cat([factors, parts]), maps.pixels,
            *maps.grid, COLS=TILE_COLUMNS, **sides,
        )  # fmt: skip
        return by_rows, by_weight.float(), by_bias.float(), None, None


def _all_reduce_sums(norm: FieldBatchNorm, sums: Tensor, count: float) -> tuple[Tensor, Tensor, float]:
    """Return two sums (fields,) float64 and the number of values, of all processes where the norm asks for it."""
    if norm.sync and get_world_size() > 1:
        together = torch.cat([sums.flatten(), sums.new_tensor([count])])
        dist.all_reduce(together)
        sums, count = together[:-1].view_as(sums), float(together[-1])
    return sums[0], sums[1], count


class _Blur(torch.autograd.Function):
    """`AntialiasedPool`, x' -> x' on a smaller grid."""

    @staticmethod
    def forward(ctx: Any, x_hat: Tensor, kernel: Tensor, maps: IrrepMaps, small_grid: Grid) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.asked = (maps, small_grid)
        return _apply_blur(x_hat, kernel, maps, small_grid, False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (kernel,), (maps, grid) = ctx.saved_tensors, ctx.asked
        return _apply_blur(gradient, kernel, maps, grid, True), None, None, None


def _apply_blur(values: Tensor, kernel: Tensor, maps: IrrepMaps, small_grid: Grid, is_backward: bool) -> Tensor:
    """Go from the grid of `maps` to a smaller one, or back."""
    pixels = maps.batch_size * (maps.grid if is_backward else small_grid).size
    found = values.new_empty(maps.field.num_planes * pixels * maps.fields)
    kernels.blur[(len(maps.field.table), triton.cdiv(pixels * maps.fields, 4 * TILE_COLUMNS))](
        values, found, kernel, maps.field.table, maps.pixels, *maps.grid, maps.batch_size * small_grid.size, *small_grid,
        F=maps.fields, KERNEL_SIZE=kernel.shape[-1], COLS=4 * TILE_COLUMNS, IS_BACKWARD=is_backward,
    )  # fmt: skip
    return found
