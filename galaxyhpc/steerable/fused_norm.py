"""Batch norm, ReLU and anti-aliased pool as one pass over a map in each direction, on a GPU in training.

A training step reads or writes a map 5.75 times in all for norm, ReLU and pool, and 8 times without the pool;
torch's own layers do so 10.5 times with the pool. Maps are channels-last, or in irreps (`fused_blocks`), where the
kernels change the basis of each tile on the chip. Each direction has three launches: programs sum over parts of a map,
one launch makes factors of columns from their sums (two if processes share statistics), and programs apply these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from galaxyhpc.steerable import norm_statistics
from galaxyhpc.steerable.batch_norm import FieldBatchNorm
from galaxyhpc.steerable.kernels import norm_kernels as kernels
from galaxyhpc.steerable.kernels.gpu import Grid
from galaxyhpc.steerable.kernels.gpu_plan import FieldLayout
from galaxyhpc.steerable.layers import AntialiasedPool

# a thread holds 16 bytes of a tile, or 32 in irreps, whose matrices take as many: more would fill its registers
NUM_WARPS = 8
TILE_BYTES = 32 * NUM_WARPS * 16
IRREPS_TILE_BYTES = 2 * TILE_BYTES
TILES_PER_PROGRAM = 16  # of a program that sums
BLOCK = 256 * NUM_WARPS  # partial sums that a program adds at once


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

    @property
    def field_columns(self) -> int:
        """Columns of a field."""
        return self.field_size if self.field is None else 1

    def pool(self) -> MapLayout:
        """Return the layout of the map that has every second pixel."""
        return replace(self, grid=Grid(*((side - self.border + 1) // 2 + self.border for side in self.grid)))

    def make_map(self, x: Tensor) -> Tensor:
        """Return room for a map of the type of x."""
        if self.field is not None:
            return x.new_empty(self.field.num_planes * self.pixels * self.columns)
        shape = (self.batch_size, self.columns, *self.grid)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


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

    def scale_and_shift(self, x: Tensor, factors: Tensor) -> Tensor:
        """Return x * scale + shift with ReLU and pool."""
        y = self.pooled.make_map(x)
        self.launch(kernels.normalise, self.pooled, x, y, factors)
        return y

    def launch_sums(self, function: Any, num_sums: int, *tensors: Tensor) -> Tensor:
        """Launch programs that sum over pixels; return (sums, columns, programs) float32."""
        tile = self._get_tile(tensors[0]) | {"TILES": TILES_PER_PROGRAM}
        num_programs = triton.cdiv(self.layout.pixels, tile["BP"] * TILES_PER_PROGRAM)
        sums = torch.empty(num_sums, self.layout.columns, num_programs, device=tensors[0].device)
        self._launch(function, num_programs, (*tensors, sums), tile)
        return sums

    def launch_moments(self, x: Tensor) -> Tensor:
        """Return (3, components, columns, programs) float32: pixels, means and sums of squared deviations."""
        components, tile = self.layout.num_components, _make_tile(TILE_BYTES // x.element_size(), 32)
        num_programs = triton.cdiv(self.layout.pixels, tile["BP"] * TILES_PER_PROGRAM)
        moments = torch.empty(3, components, self.layout.columns, num_programs, device=x.device)
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
        return step.scale_and_shift(x, _make_running_factors(layout, norm, x.device))
    y: Tensor = _Normalise.apply(x, norm.weight, norm.bias, norm, step)  # type: ignore[no-untyped-call]
    return y


def _make_running_factors(layout: MapLayout, norm: FieldBatchNorm, device: torch.device) -> Tensor:
    """Return the factors (scale and shift, columns) of running statistics."""
    factors = torch.empty(2, layout.columns, device=device)
    tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias, factors)
    grid, constants = _plan_launch(layout)
    norm_statistics.make_running_factors[grid](*tensors, norm.eps, norm.fields, layout.columns, **constants)
    return factors


def _make_factors(moments: Tensor, layout: MapLayout, norm: FieldBatchNorm) -> tuple[Tensor, Tensor]:
    """Update the running statistics; return factors (scale, shift and mean, columns) and statistics.

    Statistics are those of all processes, (number of values, mean, inverse std and scale, fields) float64.
    """
    factors = moments.new_empty(3, layout.columns)
    sums, statistics = (moments.new_empty(kinds, norm.fields, dtype=torch.float64) for kinds in (3, 4))
    constant = None if layout.field is None else layout.field.constant
    parameters = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    arguments = (constant, *parameters, statistics, factors, norm.momentum, norm.eps)
    _launch_statistics(norm_statistics.make_factors, layout, norm.is_synchronised, moments, sums, *arguments)
    return factors, statistics


def _launch_statistics(
    function: Any, layout: MapLayout, is_synchronised: bool, partial_sums: Tensor, sums: Tensor, *arguments: Any
) -> None:
    """Launch a kernel that sums, and makes factors; twice if sums (kinds, fields) are those of all processes."""
    arguments = (partial_sums, sums, *arguments, partial_sums.shape[-1], sums.shape[1], layout.columns)
    grid, constants = _plan_launch(layout)
    constants |= {"R": 0 if layout.field is None else layout.num_components, "SIZE": layout.field_size, "BLOCK": BLOCK}
    if is_synchronised:  # no process skips it, not even one without images
        function[grid](*arguments, SUMS=True, FACTORS=False, **constants)
        dist.all_reduce(sums)
    function[grid](*arguments, SUMS=not is_synchronised, FACTORS=True, **constants)


def _plan_launch(layout: MapLayout) -> tuple[tuple[int], dict[str, int]]:
    """Return the grid and the constants of kernels that have a program per field."""
    repeats = layout.field_columns
    constants = {"REPEATS": repeats, "COLUMNS": triton.next_power_of_2(repeats), "num_warps": NUM_WARPS}
    return (layout.columns // repeats,), constants


class _Normalise(torch.autograd.Function):
    """Normalise a map by its moments per field, over all processes if they share them; then ReLU and pool if asked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: FieldBatchNorm, step: _Pass) -> Tensor:
        factors, statistics = _make_factors(step.launch_moments(x), step.layout, norm)
        ctx.save_for_backward(x, factors, statistics)
        ctx.is_synchronised, ctx.step = norm.is_synchronised, step
        return step.scale_and_shift(x, factors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, factors, statistics), step = ctx.saved_tensors, ctx.step
        if gradient.dim() == 4:
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        partial_sums = step.launch_sums(kernels.sum_gradients, 2, x, gradient, factors)
        sums = torch.empty_like(statistics[:2])
        grad_weight, grad_bias = (partial_sums.new_empty(sums.shape[1]) for _ in range(2))
        gradient_factors = partial_sums.new_empty(4, step.layout.columns)
        tensors = (partial_sums, sums, statistics, factors, grad_weight, grad_bias, gradient_factors)
        _launch_statistics(norm_statistics.make_gradient_factors, step.layout, ctx.is_synchronised, *tensors)
        grad_x = torch.empty_like(x)
        step.launch(kernels.normalise_backward, step.layout, x, gradient, grad_x, gradient_factors)
        return grad_x, grad_weight, grad_bias, None, None
