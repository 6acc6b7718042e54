"""Blocks of a GPU's network that stay in irreps from one convolution to the next: x' -> y' -> x', never a field.

Batch norm and ReLU turn each tile to the field and back on the chip; a field's mean is its trivial component, its mean
square that of all its rows (Parseval); the blur of an anti-aliased pool knows nothing of channels. So nothing but x'
and y' is written, and z by and by. 3x3 convolutions with regular fields, padding 1 and stride 1, in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import triton
from torch import Tensor, nn

from galaxyhpc.models import harmonic_kernels as kernels
from galaxyhpc.models.harmonic import Recipe
from galaxyhpc.models.harmonic_triton import (
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
)
from galaxyhpc.models.layers import FieldBatchNorm, SteerableConv

TURNS = 8  # tiles that a program adds up


@dataclass(frozen=True)
class Rows:
    """Maps as rows."""

    values: Tensor
    images: int
    grid: Grid

    @property
    def pixels(self) -> int:
        return self.images * self.grid.size


def is_fit(layer: nn.Module) -> bool:
    """Whether a convolution goes from rows to rows."""
    if not isinstance(layer, SteerableConv) or not layer.harmonic:
        return False
    _, size, kind, out_kind, _ = layer.recipe
    return (size, kind, out_kind, layer.stride, layer.padding) == (3, "regular", "regular", 1, 1)


def run(blocks: nn.Sequential, x: Tensor) -> Tensor:
    """Apply blocks of convolution, `FieldBatchNorm`, ReLU and, perhaps, `AntialiasedPool` to channels-last maps."""
    maps: Tensor | Rows = x
    recipe: Recipe | None = None
    for block in blocks:
        convolution, norm, _, *pools = block
        if not is_fit(convolution):
            maps = block(_field(maps, recipe))
            continue
        recipe = convolution.recipe
        if isinstance(maps, Tensor):
            grid = Grid(maps.shape[2] + 2, maps.shape[3] + 2)
            working = maps.to(_working_dtype(maps))
            maps = Rows(_IntoRows.apply(working, recipe, grid), len(maps), grid)  # type: ignore[no-untyped-call]
        y = _Convolution.apply(maps.values, convolution.weight, recipe, maps)  # type: ignore[no-untyped-call]
        maps = Rows(_normalised(y, norm, recipe, maps), maps.images, maps.grid)
        for pool in pools:
            grid = Grid(*((side - 1) // 2 + 2 for side in maps.grid))
            values = _Blur.apply(maps.values, pool.kernel, recipe, maps, grid, norm.fields)  # type: ignore[no-untyped-call]
            maps = Rows(values, maps.images, grid)
    return _field(maps, recipe)


def _working_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _field(maps: Tensor | Rows, recipe: Recipe | None) -> Tensor:
    if isinstance(maps, Tensor):
        return maps
    found: Tensor = _IntoField.apply(maps.values, recipe, maps)  # type: ignore[no-untyped-call]
    return found


def _from_field(x: Tensor, field: Field, grid: Grid) -> Tensor:
    return grid.into_irreps(x.contiguous(memory_format=torch.channels_last), field, 1, 1)


def _to_field(values: Tensor, field: Field, images: int, grid: Grid) -> Tensor:
    fields = len(values) // (len(field.table) * images * grid.size)
    shape = (images, fields * field.channels, grid.height - 2, grid.width - 2)
    y = torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=torch.channels_last)
    grid.into_field(values, y, field, 1, 1)
    return y


class _IntoRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, recipe: Recipe, grid: Grid) -> Tensor:
        ctx.asked = (plan_of(recipe, False, x).inputs, len(x), grid)
        return _from_field(x, ctx.asked[0], grid)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _to_field(gradient, *ctx.asked), None, None


class _IntoField(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, recipe: Recipe, maps: Rows) -> Tensor:
        ctx.asked = (plan_of(recipe, False, values).inputs, maps.grid)
        return _to_field(values, ctx.asked[0], maps.images, maps.grid)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _from_field(gradient, *ctx.asked), None, None


class _Convolution(torch.autograd.Function):
    """x' -> y'; what the border of y' holds is nobody's."""

    @staticmethod
    def forward(ctx: Any, hat: Tensor, weight: Tensor, recipe: Recipe, maps: Rows) -> Tensor:
        ctx.save_for_backward(hat, weight)
        ctx.asked = (recipe, Rows(hat.new_empty(0), maps.images, maps.grid))
        plan = plan_of(recipe, False, hat)
        given = _weights(plan, hat, weight, maps)
        rows = hat.new_empty(len(plan.outputs.table) * maps.pixels * len(given))
        weights, parts = gathered(plan, given), split(plan, rows, maps.pixels, 2, len(given))
        for some, z in _made(plan, hat, maps):
            for maps_, product, found in zip(z, weights, parts, strict=True):
                _product(maps_, product, found, some, maps.pixels)
        return rows

    @staticmethod
    def backward(ctx: Any, by_rows: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (hat, weight), (recipe, maps) = ctx.saved_tensors, ctx.asked
        plan = plan_of(recipe, True, hat)
        given = _weights(plan_of(recipe, False, hat), hat, weight, maps).transpose(0, 1)
        by_hat = torch.empty_like(hat)
        weights = gathered(plan, given)
        parts, seen = (split(plan, each, maps.pixels, 2, len(given)) for each in (by_hat, hat))
        totals = [torch.zeros_like(each, dtype=weight.dtype) for each in weights]
        for some, z in _made(plan, by_rows, maps):
            for n, one in enumerate(z):
                _product(one, weights[n], parts[n], some, maps.pixels)
                mine = seen[n].unflatten(1, (-1, maps.pixels))[:, :, some].flatten(1, 2)
                totals[n] += torch.bmm(one.mT, mine)
        found = scattered(plan, totals, (len(given), given.shape[1])).transpose(0, 1)
        return by_hat, found.reshape(weight.shape), None, None


def _weights(plan: Plan, hat: Tensor, weight: Tensor, maps: Rows) -> Tensor:
    fields = len(hat) // (len(plan.inputs.table) * maps.pixels)
    return weight.to(hat.dtype).view(-1, fields, plan.of.weights)


def _made(plan: Plan, hat: Tensor, maps: Rows) -> Iterator[tuple[slice, list[Tensor]]]:
    fields = len(hat) // (len(plan.inputs.table) * maps.pixels)
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


def _normalised(y: Tensor, norm: FieldBatchNorm, recipe: Recipe, maps: Rows) -> Tensor:
    found: Tensor = _Normalisation.apply(y, norm.weight, norm.bias, norm, recipe, maps)  # type: ignore[no-untyped-call]
    return found


class _Normalisation(torch.autograd.Function):
    """Batch norm and ReLU, y' -> x'."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, norm: FieldBatchNorm, recipe: Recipe, maps: Rows
    ) -> Tensor:
        field, grid, fields = plan_of(recipe, False, rows).outputs, maps.grid, norm.fields
        high = 64
        programs = triton.cdiv(maps.pixels, high * TURNS)
        found = torch.empty(programs, 2, fields, device=rows.device)
        each = field.out.double().sum((0, 1)).float()  # of a row, what all channels get together
        kernels.sums[(programs,)](
            rows, each, field.table, found, maps.pixels, *grid, F=fields, FP=triton.next_power_of_2(fields),
            R=len(field.table), BP=high, TURNS=TURNS,
        )  # fmt: skip
        count = float(maps.images * (grid.height - 2) * (grid.width - 2) * field.channels)
        first, second, count = _over_processes(norm, found, count)
        mean = first / count
        variance = (second / count - mean.square()).clamp_min(0.0)
        norm.running_mean.lerp_(mean.float(), norm.momentum)
        norm.running_var.lerp_((variance * count / (count - 1)).float(), norm.momentum)
        rstd = (variance + norm.eps).rsqrt()
        scale = weight.double() * rstd
        factors = torch.stack([scale, bias.double() - mean * scale]).float()
        hat = torch.empty_like(rows)
        kernels.normalise[(triton.cdiv(maps.pixels * fields, COLUMNS),)](
            rows, hat, field.out, field.into, field.table, factors, maps.pixels, *grid, **sides_of(field, fields)
        )
        ctx.save_for_backward(rows, factors, mean, rstd, scale)
        ctx.asked = (norm, field, grid, maps.pixels, count)
        return hat

    @staticmethod
    def backward(ctx: Any, by_hat: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        rows, factors, mean, rstd, scale = ctx.saved_tensors
        norm, field, grid, pixels, count = ctx.asked
        sides = sides_of(field, norm.fields)
        wide = 16 if norm.fields % 32 else 32
        high = COLUMNS // wide
        programs = triton.cdiv(pixels, high * TURNS)
        found = torch.empty(programs, 2, norm.fields, device=rows.device)
        added = {key: value for key, value in sides.items() if key != "COLS"} | {"BP": high, "BF": wide, "TURNS": TURNS}
        kernels.normalise_sums[(programs, triton.cdiv(norm.fields, wide))](
            rows, by_hat, field.out, field.table, factors, found, pixels, *grid, **added
        )
        own = found.double().sum(0)
        by_bias, by_weight = own[0], rstd * (own[1] - mean * own[0])
        first, second, _ = _over_processes(norm, found, count)
        along = rstd.square() * (second - mean * first) / count
        parts = [scale, -scale * along, scale * (mean * along - first / count)]
        by_rows = torch.empty_like(rows)
        kernels.normalise_back[(triton.cdiv(pixels * norm.fields, COLUMNS),)](
            rows, by_hat, by_rows, field.out, field.into, field.table,
            torch.cat([factors, torch.stack(parts).float()]), pixels, *grid, **sides,
        )  # fmt: skip
        return by_rows, by_weight.float(), by_bias.float(), None, None, None


def _over_processes(norm: FieldBatchNorm, found: Tensor, count: float) -> tuple[Tensor, Tensor, float]:
    """Return two sums (fields,) float64 and the number of values, of all processes where the norm asks for it."""
    sums = found.double().sum(0)
    if norm.sync and dist.is_initialized() and dist.get_world_size() > 1:
        together = torch.cat([sums.flatten(), sums.new_tensor([count])])
        dist.all_reduce(together)
        return *together[:-1].view_as(sums).unbind(), float(together[-1])
    return *sums.unbind(), count


class _Blur(torch.autograd.Function):
    """`AntialiasedPool`, x' -> x' on a smaller grid."""

    @staticmethod
    def forward(ctx: Any, hat: Tensor, kernel: Tensor, recipe: Recipe, maps: Rows, grid: Grid, fields: int) -> Tensor:
        field = plan_of(recipe, False, hat).inputs
        ctx.save_for_backward(kernel)
        ctx.asked = (field, maps.images, maps.grid, grid, fields)
        return _blurred(hat, kernel, *ctx.asked, back=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        return _blurred(gradient, *ctx.saved_tensors, *ctx.asked, back=True), None, None, None, None, None


def _blurred(
    values: Tensor, kernel: Tensor, field: Field, images: int, large: Grid, small: Grid, fields: int, back: bool
) -> Tensor:
    pixels = images * (large if back else small).size
    found = values.new_empty(len(field.table) * pixels * fields)
    kernels.blur[(len(field.table), triton.cdiv(pixels * fields, 4 * COLUMNS))](
        values, found, kernel, field.table, images * large.size, *large, images * small.size, *small,
        F=fields, WIDE=kernel.shape[-1], COLS=4 * COLUMNS, BACK=back,
    )  # fmt: skip
    return found
