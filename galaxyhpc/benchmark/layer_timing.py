"""Time of one block's parts in a training step on a GPU: its convolution, dense and harmonic, and its normalisation.

Each time is of forward and backward, except `z` and `product`, which are the two parts of the harmonic forward pass.
Rates are of the bytes that a kernel has to read and write at least; torch's own layers, which read and write a map more
often, are held against the bytes of the fused kernels. Without a GPU the kernels run in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galaxyhpc.benchmark.device_timer import measure_calls
from galaxyhpc.steerable import groups
from galaxyhpc.steerable.batch_norm import FieldBatchNorm
from galaxyhpc.steerable.kernels.gpu_roofline import PASSES
from galaxyhpc.steerable.kernels.selection import BatchShape, trace_layer_inputs
from galaxyhpc.steerable.layers import AntialiasedPool, SteerableConv

if TYPE_CHECKING:
    from galaxyhpc.steerable import fused_blocks

NORM_PASSES, NORM_POOL_PASSES = PASSES["norm", True].y, PASSES["norm, pool", True].y

JsonDict = dict[str, Any]
Timer = Callable[[Callable[[], object]], float]  # milliseconds of a call


class LayerCase(NamedTuple):
    """A 3x3 convolution between regular fields, with its batch norm."""

    group: str
    in_fields: int
    out_fields: int
    side: int  # px
    batch_size: int

    @property
    def name(self) -> str:
        return f"{self.group} {self.in_fields}->{self.out_fields} @{self.side}"


def list_layers(network: nn.Module, batch_shape: BatchShape) -> list[LayerCase]:
    """Return the layers of a network that can stay in irreps, each shape once."""
    layer_inputs = trace_layer_inputs(network, batch_shape).values()
    cases = [
        LayerCase(layer.basis_spec[0], *layer.fields, layer.input_size[0], batch_shape.batch_size)
        for layer in layer_inputs
        if layer.basis_spec[1:4] == (3, "regular", "regular") and (layer.stride, layer.padding) == (1, 1)
    ]
    return list(dict.fromkeys(cases))


def time_layer(case: LayerCase, device: torch.device, dtype: torch.dtype, round_seconds: float) -> JsonDict:
    """Time all parts of a layer; return milliseconds and rates."""

    def time_call(function: Callable[[], object]) -> float:
        return measure_calls(function, device, round_seconds).median_ms

    layer = SteerableConv(case.group, case.in_fields, case.out_fields, padding=1).to(device)
    layer.harmonic = True
    x = _make_map(case, case.in_fields, device, dtype)
    results: JsonDict = {"layer": case.name, "batch": case.batch_size}
    results |= _time_dense(layer, x, time_call)
    results |= _time_harmonic(layer, x, time_call)
    del x
    return results | _time_norms(case, device, dtype, time_call)


def _make_map(case: LayerCase, fields: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    shape = (case.batch_size, fields * groups.group_order(case.group), case.side, case.side)
    values = torch.randn(shape, device=device, dtype=dtype)
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


def _time_backward(function: Callable[[], Tensor], inputs: tuple[Tensor, ...], time_call: Timer) -> float:
    """Return the milliseconds of forward and backward."""
    gradient = torch.ones_like(function())
    return time_call(lambda: torch.autograd.grad(function(), inputs, gradient))


@contextmanager
def _search_algorithms() -> Iterator[None]:
    """Let cuDNN take its fastest algorithm, as the dense limit does."""
    flags = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = flags


def _time_dense(layer: SteerableConv, x: Tensor, time_call: Timer) -> JsonDict:
    """Time cuDNN with the expanded filter."""
    filters = layer.expand_filter(x.dtype).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    with _search_algorithms():
        milliseconds = _time_backward(lambda: F.conv2d(x, filters, padding=1), (x, filters), time_call)
    flops = 3 * 2 * x.shape[0] * x.shape[2] * x.shape[3] * filters.numel()
    return {"dense_ms": milliseconds, "dense_tflops": _divide(flops, milliseconds)}


def _time_harmonic(layer: SteerableConv, x: Tensor, time_call: Timer) -> JsonDict:
    """Time the convolution x' -> y', then norm and pool in the basis of irreps."""
    from galaxyhpc.steerable import fused_blocks  # Triton is not everywhere

    maps = fused_blocks.to_irrep_maps(x.detach(), layer)
    x_hat = maps.values.clone().requires_grad_()
    maps = replace(maps, values=x_hat)
    milliseconds = _time_backward(lambda: fused_blocks.convolve(maps, layer).values, (x_hat, layer.weight), time_call)
    output = fused_blocks.convolve(maps, layer)
    output = replace(output, values=output.values.detach().requires_grad_())
    results = {"harmonic_ms": milliseconds} | _time_forward_parts(layer, maps, time_call)
    return results | _time_harmonic_norms(output, time_call)


def _time_forward_parts(layer: SteerableConv, maps: fused_blocks.IrrepMaps, time_call: Timer) -> JsonDict:
    """Time z of a chunk of pixels, and its product with the weights."""
    from galaxyhpc.steerable.kernels import gpu

    values, plan = maps.values.detach(), gpu.get_plan(layer.basis_spec, False, maps.values)
    _, pixels = next(gpu.split_into_chunks(plan, values, maps.fields))
    weights = gpu.reshape_weights(layer.weight.detach(), layer.basis_spec, layer.in_fields)
    matrices = plan.gather_weights(weights.to(values.dtype))
    z_ms = time_call(lambda: maps.grid.compute_z(plan, values, maps.fields, 0, pixels))
    z = maps.grid.compute_z(plan, values, maps.fields, 0, pixels)
    product_ms = time_call(lambda: [torch.bmm(a, b) for a, b in zip(z, matrices, strict=True)])
    z_bytes = pixels * plan.count_z_bytes(values, maps.fields)
    rates = {"z_tbs": _divide(z_bytes, z_ms), "product_tbs": _divide(z_bytes, product_ms)}
    return {"z_ms": z_ms, "product_ms": product_ms, "chunk_fraction": round(pixels / maps.pixels, 3)} | rates


def _time_harmonic_norms(maps: fused_blocks.IrrepMaps, time_call: Timer) -> JsonDict:
    """Time batch norm and ReLU, without and with an anti-aliased pool, in the basis of irreps."""
    from galaxyhpc.steerable import fused_blocks

    norm = FieldBatchNorm(maps.used_fields, maps.field.channels).to(maps.values.device).train()
    pool = AntialiasedPool().to(maps.values.device)
    map_bytes = maps.values.numel() * maps.values.element_size()
    results: JsonDict = {}

    def apply(layer: AntialiasedPool | None) -> Tensor:
        return fused_blocks.normalise(maps, norm, layer).values

    for suffix, layer, passes in (("norm", None, NORM_PASSES), ("norm_pool", pool, NORM_POOL_PASSES)):
        milliseconds = _time_backward(partial(apply, layer), (maps.values,), time_call)
        rate = _divide(passes * map_bytes, milliseconds)
        results |= {f"harmonic_{suffix}_ms": milliseconds, f"harmonic_{suffix}_tbs": rate}
    return results


def _time_norms(case: LayerCase, device: torch.device, dtype: torch.dtype, time_call: Timer) -> JsonDict:
    """Time batch norm and ReLU, with and without a pool, fused and by torch's own layers, on a map of fields."""
    from galaxyhpc.steerable import fused_norm  # Triton is not everywhere

    norm = FieldBatchNorm(case.out_fields, groups.group_order(case.group)).to(device).train()
    pool = AntialiasedPool().to(device)
    x = _make_map(case, case.out_fields, device, dtype)
    map_bytes = x.numel() * x.element_size()
    inputs = (x, norm.weight, norm.bias)
    results: JsonDict = {}
    for suffix, layer, passes in (("norm", None, NORM_PASSES), ("norm_pool", pool, NORM_POOL_PASSES)):
        functions = {
            f"fused_{suffix}": lambda layer=layer: fused_norm.normalise(x, norm, True, layer),
            f"torch_{suffix}": lambda layer=layer: _apply_layers(x, norm, layer),
        }
        for name, function in functions.items():
            milliseconds = _time_backward(function, inputs, time_call)
            results |= {f"{name}_ms": milliseconds, f"{name}_tbs": _divide(passes * map_bytes, milliseconds)}
    return results


def _apply_layers(x: Tensor, norm: FieldBatchNorm, pool: nn.Module | None) -> Tensor:
    """Apply the layers one after the other, in torch's own functions."""
    with torch.autocast(x.device.type, x.dtype, enabled=x.dtype != torch.float32):
        y = F.relu(norm(x), inplace=True)
        return y if pool is None else pool(y)


def _divide(amount: float, milliseconds: float) -> float:
    """Return the rate of bytes or operations, 10^12 per second."""
    return round(amount / milliseconds / 1e9, 3)
