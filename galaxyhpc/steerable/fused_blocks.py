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

from galaxyhpc.steerable.batch_norm import FieldBatchNorm, world_size
from galaxyhpc.steerable.kernels import triton_kernels as kernels
from galaxyhpc.steerable.kernels.gpu import (
    COLUMNS,
    Field,
    Grid,
    Plan,
    chunks,
    gathered,
    plan_of,
    scattered,
    sides_of,
    split,
    weights_of,
)
from galaxyhpc.steerable.kernels.harmonic import Recipe
from galaxyhpc.steerable.layers import SteerableConv, working_dtype

TURNS = 8  # tiles that a program adds up
HIGH = 64  # pixels of one of these tiles, where all fields are in it


@dataclass(frozen=True)
class Rows:
    """Maps as rows."""

    values: Tensor
    images: int
    grid: Grid
    field: Field
    fields: int

    @property
    def pixels(self) -> int:
        return self.images * self.grid.size

    @property
    def place(self) -> Rows:
        """Where they lie, without them."""
        return replace(self, values=self.values.new_empty(0))


def is_fit(layer: nn.Module) -> bool:
    """Whether a convolution goes from rows to rows."""
    if not isinstance(layer, SteerableConv) or not layer.harmonic:
        return False
    _, size, kind, out_kind, _ = layer.recipe
    return (size, kind, out_kind, layer.stride, layer.padding) == (3, "regular", "regular", 1, 1)


def run(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Apply blocks of convolution, `FieldBatchNorm`, ReLU and, perhaps, `AntialiasedPool` to channels-last maps."""
    maps: Tensor | Rows = x
    for block in layers:
        parts: list[Any] = list(block.children())
        convolution, norm, _, *pools = parts
        if not is_fit(convolution):
            maps = block(_field(maps))
            continue
        if isinstance(maps, Tensor):
            maps = _into_rows(maps.to(working_dtype(maps)), convolution)
        y: Tensor = _Convolution.apply(maps.values, convolution.weight, convolution.recipe, maps)  # type: ignore[no-untyped-call]
        field = plan_of(convolution.recipe, False, y, (maps.fields, norm.fields)).outputs
        maps = Rows(y, maps.images, maps.grid, field, norm.fields)
        values = _Normalisation.apply(y, norm.weight, norm.bias, norm, maps.place)  # type: ignore[no-untyped-call]
        maps = replace(maps, values=values)
        for pool in pools:
            grid = Grid(*((side - 1) // 2 + 2 for side in maps.grid))
            values = _Blur.apply(maps.values, pool.kernel, maps.place, grid)  # type: ignore[no-untyped-call]
            maps = replace(maps, values=values, grid=grid)
    return _field(maps)


def _into_rows(x: Tensor, convolution: SteerableConv) -> Rows:
    fields = (convolution.in_fields, convolution.out_fields)
    field = plan_of(convolution.recipe, False, x, fields).inputs
    maps = Rows(x, len(x), Grid(x.shape[2] + 2, x.shape[3] + 2), field, fields[0])
    return replace(maps, values=_IntoRows.apply(x, maps.place))  # type: ignore[no-untyped-call]


def _field(maps: Tensor | Rows) -> Tensor:
    if isinstance(maps, Tensor):
        return maps
    found: Tensor = _IntoField.apply(maps.values, maps.place)  # type: ignore[no-untyped-call]
    return found


def _from_field(x: Tensor, maps: Rows) -> Tensor:
    return maps.grid.into_irreps(x.contiguous(memory_format=torch.channels_last), maps.field, 1, 1)


def _to_field(values: Tensor, maps: Rows) -> Tensor:
    shape = (maps.images, maps.fields * maps.field.channels, maps.grid.height - 2, maps.grid.width - 2)
    y = torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=torch.channels_last)
    maps.grid.into_field(values, y, maps.field, 1, 1)
    return y


class _IntoRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, maps: Rows) -> Tensor:
        ctx.maps = maps
        return _from_field(x, maps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _to_field(gradient, ctx.maps), None


class _IntoField(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, maps: Rows) -> Tensor:
        ctx.maps = maps
        return _to_field(values, maps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _from_field(gradient, ctx.maps), None


class _Convolution(torch.autograd.Function):
    """x' -> y'; what the border of y' holds is nobody's."""

    @staticmethod
    def forward(ctx: Any, hat: Tensor, weight: Tensor, recipe: Recipe, maps: Rows) -> Tensor:
        ctx.save_for_backward(hat, weight)
        ctx.asked = (recipe, maps.place)
        given = weights_of(weight, recipe, maps.fields, hat.dtype)
        plan = plan_of(recipe, False, hat, (maps.fields, len(given)))
        rows = hat.new_empty(plan.outputs.planes * maps.pixels * len(given))
        weights, parts = gathered(plan, given), split(plan, rows, maps.pixels)
        for some, z in _made(plan, hat, maps, maps.fields):
            for one, product, found in zip(z, weights, parts, strict=True):
                _product(one, product, found, some, maps.pixels)
        return rows

    @staticmethod
    def backward(ctx: Any, by_rows: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (hat, weight), (recipe, maps) = ctx.saved_tensors, ctx.asked
        given = weights_of(weight, recipe, maps.fields, hat.dtype).transpose(0, 1)
        plan = plan_of(recipe, True, hat, (given.shape[1], maps.fields))
        by_hat, weights = torch.empty_like(hat), gathered(plan, given)
        parts, seen = (split(plan, each, maps.pixels) for each in (by_hat, hat))
        totals = [torch.zeros_like(each, dtype=weight.dtype) for each in weights]
        for some, z in _made(plan, by_rows, maps, given.shape[1]):
            for n, one in enumerate(z):
                _product(one, weights[n], parts[n], some, maps.pixels)
                mine = seen[n].unflatten(1, (-1, maps.pixels))[:, :, some].flatten(1, 2)
                totals[n] += torch.bmm(one.mT, mine)
        found = scattered(plan, totals, (maps.fields, given.shape[1])).transpose(0, 1)
        return by_hat, found.reshape(weight.shape), None, None


def _made(plan: Plan, hat: Tensor, maps: Rows, fields: int) -> Iterator[tuple[slice, list[Tensor]]]:
    for begin, end in chunks(maps.pixels, plan.z_bytes(hat, fields)):
        yield slice(begin, end), maps.grid.make(plan, hat, maps.pixels, begin, end - begin)


def _product(z: Tensor, weight: Tensor, found: Tensor, some: slice, pixels: int) -> None:
    """Multiply z of some pixels into their places."""
    if some.stop - some.start == pixels:
        torch.bmm(z, weight, out=found)
        return
    components = found.shape[1] // pixels
    several = z.unflatten(1, (components, -1)).flatten(0, 1)
    target = found.unflatten(1, (components, pixels)).flatten(0, 1)[:, some]
    torch.bmm(several, weight.repeat_interleave(components, 0), out=target)


class _Normalisation(torch.autograd.Function):
    """Batch norm and ReLU, y' -> x'."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, norm: FieldBatchNorm, maps: Rows) -> Tensor:
        field, sides = maps.field, sides_of(maps.field, maps.fields)
        programs = triton.cdiv(maps.pixels, HIGH * TURNS)
        found = torch.empty(programs, 2, maps.fields, device=rows.device)
        together = field.out.double().sum((0, 1)).float()  # what all channels have of a row
        kernels.sums[(programs,)](
            rows, together, field.table, found, maps.pixels, *maps.grid, F=maps.fields,
            FP=triton.next_power_of_2(maps.fields), R=len(field.table), BP=HIGH, TURNS=TURNS,
        )  # fmt: skip
        own = float(maps.images * (maps.grid.height - 2) * (maps.grid.width - 2) * field.channels)
        first, second, count = _over_processes(norm, found.double().sum(0), own)
        mean = first / count
        variance = (second / count - mean.square()).clamp_min(0.0)
        norm.running_mean.lerp_(mean.float(), norm.momentum)
        norm.running_var.lerp_((variance * count / (count - 1)).float(), norm.momentum)
        rstd = (variance + norm.eps).rsqrt()
        scale = weight.double() * rstd
        factors = torch.stack([scale, bias.double() - mean * scale]).float()
        hat = torch.empty_like(rows)
        kernels.normalise[(triton.cdiv(maps.pixels * maps.fields, COLUMNS),)](
            rows, hat, field.out, field.into, field.table, factors, maps.pixels, *maps.grid, COLS=COLUMNS, **sides
        )
        ctx.save_for_backward(rows, factors, mean, rstd, scale)
        ctx.asked = (norm, maps.place, own)
        return hat

    @staticmethod
    def backward(ctx: Any, by_hat: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        rows, factors, mean, rstd, scale = ctx.saved_tensors
        norm, maps, own = ctx.asked
        field, sides = maps.field, sides_of(maps.field, maps.fields)
        wide = 16 if maps.fields % 32 else 32
        programs = triton.cdiv(maps.pixels, COLUMNS // wide * TURNS)
        found = torch.empty(programs, 2, maps.fields, device=rows.device)
        kernels.normalise_sums[(programs, triton.cdiv(maps.fields, wide))](
            rows, by_hat, field.out, field.table, factors, found, maps.pixels, *maps.grid,
            BP=COLUMNS // wide, BF=wide, TURNS=TURNS, **sides,
        )  # fmt: skip
        mine = found.double().sum(0)
        by_bias, by_weight = mine[0], rstd * (mine[1] - mean * mine[0])
        first, second, count = _over_processes(norm, mine, own)
        along = rstd.square() * (second - mean * first) / count
        parts = torch.stack([scale, -scale * along, scale * (mean * along - first / count)]).float()
        by_rows = torch.empty_like(rows)
        kernels.normalise_back[(triton.cdiv(maps.pixels * maps.fields, COLUMNS),)](
            rows, by_hat, by_rows, field.out, field.into, field.table, torch.cat([factors, parts]), maps.pixels,
            *maps.grid, COLS=COLUMNS, **sides,
        )  # fmt: skip
        return by_rows, by_weight.float(), by_bias.float(), None, None


def _over_processes(norm: FieldBatchNorm, sums: Tensor, count: float) -> tuple[Tensor, Tensor, float]:
    """Return two sums (fields,) float64 and the number of values, of all processes where the norm asks for it."""
    if norm.sync and world_size() > 1:
        together = torch.cat([sums.flatten(), sums.new_tensor([count])])
        dist.all_reduce(together)
        sums, count = together[:-1].view_as(sums), float(together[-1])
    return sums[0], sums[1], count


class _Blur(torch.autograd.Function):
    """`AntialiasedPool`, x' -> x' on a smaller grid."""

    @staticmethod
    def forward(ctx: Any, hat: Tensor, kernel: Tensor, maps: Rows, grid: Grid) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.asked = (maps, grid)
        return _blurred(hat, kernel, maps, grid, False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (kernel,), (maps, grid) = ctx.saved_tensors, ctx.asked
        return _blurred(gradient, kernel, maps, grid, True), None, None, None


def _blurred(values: Tensor, kernel: Tensor, maps: Rows, small: Grid, back: bool) -> Tensor:
    """Go from the grid of `maps` to a smaller one, or back."""
    pixels = maps.images * (maps.grid if back else small).size
    found = values.new_empty(maps.field.planes * pixels * maps.fields)
    kernels.blur[(len(maps.field.table), triton.cdiv(pixels * maps.fields, 4 * COLUMNS))](
        values, found, kernel, maps.field.table, maps.pixels, *maps.grid, maps.images * small.size, *small,
        F=maps.fields, WIDE=kernel.shape[-1], COLS=4 * COLUMNS, BACK=back,
    )  # fmt: skip
    return found
