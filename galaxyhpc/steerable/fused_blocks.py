"""Blocks of a network on a GPU that stay in irreps from one convolution to the next: x' -> y' -> x', never a field.

Batch norm, ReLU and anti-aliased pool transform each tile to the field and back on the chip (`fused_norm`). So only x'
and y' are written, and z in chunks. For 3x3 convolutions with regular fields, padding 1 and stride 1; in training, and
in evaluation without gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from galaxyhpc.steerable import fused_convolution
from galaxyhpc.steerable.batch_norm import FieldBatchNorm
from galaxyhpc.steerable.blocks import can_stay_in_irreps
from galaxyhpc.steerable.fused_norm import MapLayout, normalise_map
from galaxyhpc.steerable.kernels import gpu
from galaxyhpc.steerable.kernels.gpu import Grid, get_plan
from galaxyhpc.steerable.kernels.gpu_plan import FieldLayout
from galaxyhpc.steerable.kernels.harmonic import BasisSpec
from galaxyhpc.steerable.layers import AntialiasedPool, SteerableConv, get_compute_dtype


@dataclass(frozen=True)
class IrrepMaps:
    """Maps in the basis of irreps, see `triton_kernels`."""

    values: Tensor
    batch_size: int
    grid: Grid
    field: FieldLayout
    fields: int  # in memory
    used_fields: int  # the others, the last ones, are zero

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
        maps = normalise(convolve(maps, convolution), norm, *pools)
    return _to_field_tensor(maps)


def convolve(maps: IrrepMaps, convolution: SteerableConv) -> IrrepMaps:
    """Apply a convolution, x' -> y'."""
    is_fused = convolution.is_fused and maps.values.dtype in fused_convolution.DTYPES
    arguments = (maps.values, convolution.weight, convolution.basis_spec, maps, is_fused)
    y: Tensor = _Convolution.apply(*arguments)  # type: ignore[no-untyped-call]
    field, fields = get_plan(convolution.basis_spec, False, y).outputs, convolution.out_fields
    return IrrepMaps(y, maps.batch_size, maps.grid, field, field.pad_fields(fields), fields)


def normalise(maps: IrrepMaps, norm: FieldBatchNorm, pool: AntialiasedPool | None = None) -> IrrepMaps:
    """Apply a batch norm, a ReLU and, perhaps, an anti-aliased pool, y' -> x'."""
    layout = MapLayout(maps.batch_size, maps.grid, maps.fields, norm.size, maps.field)
    values = normalise_map(maps.values, layout, norm, True, pool)
    return replace(maps, values=values, grid=maps.grid if pool is None else layout.pool().grid)


def to_irrep_maps(x: Tensor, convolution: SteerableConv) -> IrrepMaps:
    """Change channels-last maps of fields to the basis of irreps, for a convolution."""
    field, fields = get_plan(convolution.basis_spec, False, x).inputs, convolution.in_fields
    maps = IrrepMaps(x, len(x), Grid(x.shape[2] + 2, x.shape[3] + 2), field, field.pad_fields(fields), fields)
    return replace(maps, values=_FieldToIrreps.apply(x, maps.without_values))  # type: ignore[no-untyped-call]


def _to_field_tensor(maps: Tensor | IrrepMaps) -> Tensor:
    if isinstance(maps, Tensor):
        return maps
    x: Tensor = _IrrepsToField.apply(maps.values, maps.without_values)  # type: ignore[no-untyped-call]
    return x


def _field_to_irreps(x: Tensor, maps: IrrepMaps) -> Tensor:
    return maps.grid.field_to_irreps(x.contiguous(memory_format=torch.channels_last), maps.field, 1, 1)


def _irreps_to_field(values: Tensor, maps: IrrepMaps) -> Tensor:
    shape = (maps.batch_size, maps.used_fields * maps.field.channels, maps.grid.height - 2, maps.grid.width - 2)
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
    def forward(
        ctx: Any, x_hat: Tensor, weight: Tensor, basis_spec: BasisSpec, maps: IrrepMaps, is_fused: bool
    ) -> Tensor:
        ctx.save_for_backward(x_hat, weight)
        ctx.basis_spec, ctx.maps = basis_spec, maps.without_values
        weight_3d = gpu.reshape_weights(weight, basis_spec, maps.used_fields)
        convolve = fused_convolution.convolve if is_fused else gpu.convolve
        return convolve(get_plan(basis_spec, False, x_hat), x_hat, weight_3d, maps.grid)

    @staticmethod
    def backward(ctx: Any, grad_y_hat: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        (x_hat, weight), maps = ctx.saved_tensors, ctx.maps
        weight_3d = gpu.reshape_weights(weight, ctx.basis_spec, maps.used_fields)
        plan = get_plan(ctx.basis_spec, True, x_hat)
        grad_x_hat, grad_weight = gpu.convolve_backward(
            plan, grad_y_hat, x_hat, weight_3d, maps.grid, ctx.needs_input_grad[0]
        )
        return grad_x_hat, grad_weight.reshape(weight.shape), None, None, None
