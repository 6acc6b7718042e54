"""Batch norm, ReLU and anti-aliased pool as one pass over a map in each direction, on a GPU in training.

A training step reads or writes a map 5.75 times in all for norm, ReLU and pool, and 8 times without the pool;
torch's own layers do so 10.5 times with the pool. Maps are channels-last, or in irreps (`fused_blocks`), where the
kernels change the basis of each tile on the chip. In irreps, too, a field's mean is the component along the constant
field, and its variance the mean square of the deviation from it (Parseval).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from galaxyhpc.steerable.batch_norm import (
    FieldBatchNorm,
    all_reduce_moments,
    all_reduce_sums,
    compute_gradient_factors,
)
from galaxyhpc.steerable.kernels import norm_kernels as kernels
from galaxyhpc.steerable.kernels.gpu import Grid
from galaxyhpc.steerable.kernels.gpu_plan import FieldLayout
from galaxyhpc.steerable.layers import AntialiasedPool

# a thread holds 16 bytes of a tile, or 32 in irreps, whose matrices take as many: more would fill its registers
NUM_WARPS = 8
TILE_BYTES = 32 * NUM_WARPS * 16
IRREPS_TILE_BYTES = 2 * TILE_BYTES
TILES_PER_PROGRAM = 16  # of a program that sums


@dataclass(frozen=True)
class MapLayout:
    """The places of a map's values: channels last, or in irreps on a grid with a border one pixel wide."""

    batch_size: int
    grid: Grid  # sides in px, with the border
    columns: int  # channels; in irreps fields, and perhaps others that are zero
    field_size: int  # channels of a field
    field: FieldLayout | None = None  # in irreps

    @property
    def pixels(self) -> int:
        return self.batch_size * self.grid.size

    @property
    def border(self) -> int:
        """Pixels of a side that are not the map's."""
        return 0 if self.field is None else 2

    @property
    def num_components(self) -> int:
        """Components of a column."""
        return 1 if self.field is None else len(self.field.table)

    def pool(self) -> MapLayout:
        """Return the layout of the map that has every second pixel."""
        return replace(self, grid=Grid(*((side - self.border + 1) // 2 + self.border for side in self.grid)))

    def make_map(self, x: Tensor) -> Tensor:
        """Return room for a map of the type of x."""
        if self.field is not None:
            return x.new_empty(self.field.num_planes * self.pixels * self.columns)
        shape = (self.batch_size, self.columns, *self.grid)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    def make_constant_field(self, x: Tensor) -> Tensor:
        """Return the components of a field whose channels are one, (components, 1) float64."""
        if self.field is None:
            return x.new_ones(self.field_size, 1, dtype=torch.float64)
        return self.field.to_field.double().sum((0, 1))[: self.num_components, None]

    def group_by_field(self, values: Tensor, fields: int) -> Tensor:
        """(..., values of all components) -> (..., components, fields)."""
        if self.field is None:
            return values.view(*values.shape[:-1], fields, self.field_size).transpose(-1, -2)
        return values.view(*values.shape[:-1], values.shape[-1] // self.columns, self.columns)[..., :fields]

    def repeat_per_column(self, *per_field: Tensor) -> Tensor:
        """(fields,) each -> (number, columns) float32; zeros for columns that belong to no field."""
        repeats = self.field_size if self.field is None else 1
        columns = torch.stack(per_field).float().repeat_interleave(repeats, 1)
        return pad(columns, (0, self.columns - columns.shape[1]))


@dataclass(frozen=True)
class _Pass:
    """Norm of a map, ReLU if asked for, and a pool if its kernel is given."""

    layout: MapLayout
    has_relu: bool
    kernel: Tensor | None

    @property
    def pooled(self) -> MapLayout:
        return self.layout if self.kernel is None else self.layout.pool()

    def launch(self, function: Any, tiled: MapLayout, *tensors: Tensor) -> None:
        """Launch programs over the values of a map of this layout."""
        tile = self._get_tile(tensors[0])
        self._launch(function, triton.cdiv(tiled.pixels, tile["BP"]), tensors, tile)

    def launch_sums(self, function: Any, num_sums: int, *tensors: Tensor) -> Tensor:
        """Launch programs that sum over pixels; return (programs, sums, columns) float32."""
        tile = self._get_tile(tensors[0]) | {"TILES": TILES_PER_PROGRAM}
        num_programs = triton.cdiv(self.layout.pixels, tile["BP"] * TILES_PER_PROGRAM)
        sums = torch.empty(num_programs, num_sums, self.layout.columns, device=tensors[0].device)
        self._launch(function, num_programs, (*tensors, sums), tile)
        return sums

    def launch_moments(self, x: Tensor) -> Tensor:
        """Return (programs, 3, components x columns) float32: pixels, means and sums of squared deviations."""
        components, tile = self.layout.num_components, _make_tile(TILE_BYTES // x.element_size(), 32)
        num_programs = triton.cdiv(self.layout.pixels, tile["BP"] * TILES_PER_PROGRAM)
        moments = torch.empty(num_programs, 3, components * self.layout.columns, device=x.device)
        self._launch(kernels.sum_moments, num_programs * components, (x, moments), tile | {"TILES": TILES_PER_PROGRAM})
        return moments

    def _get_tile(self, x: Tensor) -> dict[str, int]:
        field = self.layout.field
        if field is None:
            return _make_tile(TILE_BYTES // x.element_size(), 32)
        num_rows = max(field.to_field.shape[1:])
        return _make_tile(IRREPS_TILE_BYTES // x.element_size() // num_rows, 16 if self.layout.columns % 32 else 32)

    def _launch(self, function: Any, num_programs: int, tensors: tuple[Tensor, ...], tile: dict[str, int]) -> None:
        if not num_programs:
            return  # a process without an image in this batch
        layout, field, columns = self.layout, self.layout.field, self.layout.columns
        matrices: tuple[Tensor | None, ...] = (None, None, None)
        sides = {"R": 0, "RP": 0, "DP": 0, "SPLIT": 0}
        if field is not None:
            parts, rows, channels = field.to_irreps.shape
            matrices = (field.table, field.to_field, field.to_irreps)
            sides = {"R": len(field.table), "RP": rows, "DP": channels, "SPLIT": (parts - 1) * rows * channels}
        function[(num_programs * triton.cdiv(columns, tile["BF"]),)](
            *tensors, self.kernel, *matrices, layout.batch_size, *layout.grid, *self.pooled.grid, columns,
            ALIGN=math.gcd(columns, 16), HAS_RELU=self.has_relu, num_warps=NUM_WARPS, **sides, **tile,
            RADIUS=-1 if self.kernel is None else len(self.kernel) // 2,
        )  # fmt: skip


def _make_tile(num_values: int, columns: int) -> dict[str, int]:
    """Return the pixels and columns of a tile."""
    return {"BP": max(num_values // columns, 1), "BF": columns}


def normalise(x: Tensor, norm: FieldBatchNorm, has_relu: bool, pool: AntialiasedPool | None) -> Tensor:
    """Apply a batch norm in training, ReLU and pool to (N, fields x size, H, W) in float32 or a half type."""
    x = x.contiguous(memory_format=torch.channels_last)
    return normalise_map(x, MapLayout(len(x), Grid(*x.shape[2:]), x.shape[1], norm.size), norm, has_relu, pool)


def normalise_map(
    x: Tensor, layout: MapLayout, norm: FieldBatchNorm, has_relu: bool, pool: AntialiasedPool | None
) -> Tensor:
    """Apply a batch norm, ReLU and pool to a map of any layout, whose border may be undefined.

    In evaluation there is no gradient.
    """
    step = _Pass(layout, has_relu, None if pool is None else pool.kernel)
    if not norm.training:
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return _scale_and_shift(x, norm.running_mean, scale, norm.bias, step)[0]
    mean, variance, count = _compute_field_moments(x.detach(), step, norm)
    norm.update_statistics(mean, variance, count)
    moments = (mean, (variance + norm.eps).rsqrt(), count)
    y: Tensor = _Normalise.apply(x, norm.weight, norm.bias, *moments, norm.is_synchronised, step)  # type: ignore[no-untyped-call]
    return y


def _compute_field_moments(x: Tensor, step: _Pass, norm: FieldBatchNorm) -> tuple[Tensor, Tensor, int | Tensor]:
    """Return mean and variance of every field, (fields,) float64, and the number of values, over all processes."""
    layout, constant = step.layout, step.layout.make_constant_field(x)
    moments = layout.group_by_field(step.launch_moments(x).double(), norm.fields)
    pixels, means, squares = moments.unbind(1)  # (programs, components, fields) each
    count = layout.batch_size * math.prod(side - layout.border for side in layout.grid) * layout.field_size
    mean = (constant * pixels * means).sum((0, 1)) / max(count, 1)
    variance = (squares + pixels * (means - constant * mean).square()).sum((0, 1)) / max(count, 1)
    return all_reduce_moments(mean, variance, count) if norm.is_synchronised else (mean, variance, count)


def _scale_and_shift(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, step: _Pass) -> tuple[Tensor, Tensor]:
    """Return (x - mean) * scale + bias with ReLU and pool, and its factors: scale, shift and mean by columns."""
    factors = step.layout.repeat_per_column(scale, bias.to(scale.dtype) - mean * scale, mean.to(scale.dtype))
    y = step.pooled.make_map(x)
    step.launch(kernels.normalise, step.pooled, x, y, factors)
    return y, factors


class _Normalise(torch.autograd.Function):
    """Normalise by moments per field, of `count` values over all processes; then ReLU and pool if asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        inverse_std: Tensor,
        count: int | Tensor,
        is_synchronised: bool,
        step: _Pass,
    ) -> Tensor:
        scale = weight.double() * inverse_std
        y, factors = _scale_and_shift(x, mean, scale, bias, step)
        ctx.save_for_backward(x, factors, mean, inverse_std, scale)
        ctx.count, ctx.is_synchronised, ctx.step = count, is_synchronised, step
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, factors, mean, inverse_std, scale), step = ctx.saved_tensors, ctx.step
        if gradient.dim() == 4:
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        partial_sums = step.launch_sums(kernels.sum_gradients, 2, x, gradient, factors)
        local_sums = step.layout.group_by_field(partial_sums.double().sum(0), len(mean)).sum(1)
        local_sums[1] *= inverse_std
        grad_bias, grad_weight = local_sums.float()  # of this process: the trainer adds those of all processes
        sums = all_reduce_sums(local_sums) if ctx.is_synchronised else local_sums
        slope, offset = compute_gradient_factors(sums / ctx.count, mean, inverse_std, scale)
        factors = torch.cat([factors[:2], step.layout.repeat_per_column(slope, offset)])
        grad_x = torch.empty_like(x)
        step.launch(kernels.normalise_backward, step.layout, x, gradient, grad_x, factors)
        return grad_x, grad_weight, grad_bias, *[None] * 5
