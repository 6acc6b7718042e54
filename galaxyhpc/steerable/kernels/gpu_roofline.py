"""What a steerable convolution costs on a GPU in training, dense and harmonic, from two rates that are measured.

Dense it is arithmetic and harmonic it is bytes: x', z and y' are written and read. Both rates take a moment to measure,
and the shares of them that are reached come from an H200 (`tests/benchmarks`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch

from galaxyhpc.steerable.kernels.cpu_timing import LayerInput, get_synchronized_time
from galaxyhpc.steerable.kernels.harmonic import get_harmonic_basis

MATMUL_SIZE, COPY_BYTES = 8192, 1 << 30  # side of a matrix; bytes
DENSE_EFFICIENCY, HARMONIC_EFFICIENCY = 0.88, 0.6  # shares of the matrix products' and the copy's rates
NUM_REPEATS = 5


def estimate_seconds(layer_input: LayerInput, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Tell the time of forward and backward, dense and harmonic."""
    operations, transferred = _measure_rates(device, dtype)
    return count_dense_flops(layer_input) / (DENSE_EFFICIENCY * operations), count_harmonic_bytes(
        layer_input, dtype
    ) / (HARMONIC_EFFICIENCY * transferred)


def count_dense_flops(layer_input: LayerInput) -> float:
    """Count operations of the dense convolution, two for each multiply-add."""
    of, pairs = get_harmonic_basis(layer_input.basis_spec), layer_input.fields[0] * layer_input.fields[1]
    entries = len(of.inputs.change_of_basis) * len(of.outputs.change_of_basis) * of.kernel_size**2
    return 2.0 * (2 + layer_input.needs_input_grad) * layer_input.num_output_pixels * pairs * entries


def count_harmonic_bytes(layer_input: LayerInput, dtype: torch.dtype) -> float:
    """Count what is written and read: x' to z to y', and y' to z to x' and to the gradient of the weights."""
    of, back, (x, y) = (
        get_harmonic_basis(layer_input.basis_spec),
        get_harmonic_basis(layer_input.basis_spec, True),
        layer_input.num_elements,
    )
    z = x / len(of.inputs.change_of_basis) * len(of.terms)
    by_z = y * layer_input.stride**2 / len(of.outputs.change_of_basis) * len(back.terms)
    forward = x + 2 * z + y
    backward = y + by_z + (1 + layer_input.needs_input_grad) * (by_z + x)
    return float(dtype.itemsize * (forward + backward))


@cache
def _measure_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Return operations and bytes per second."""
    factor = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device, dtype=dtype)
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = _time_fastest(lambda: factor @ factor, device)
    copied = _time_fastest(lambda: target.copy_(source), device)
    return 2.0 * MATMUL_SIZE**3 / product, 2.0 * COPY_BYTES / copied


def _time_fastest(function: Callable[[], object], device: torch.device) -> float:
    found = math.inf
    for _ in range(NUM_REPEATS):
        begun = get_synchronized_time(device)
        function()
        found = min(found, get_synchronized_time(device) - begun)
    return found
