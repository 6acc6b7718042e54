"""Seconds that a steerable convolution takes on a GPU in training, dense and harmonic, from two measured rates.

The dense kernel is limited by arithmetic, the harmonic one by the bytes of x', z and y' that are written and read. Both
rates take a moment to measure; the fractions of them that are reached come from an H200 (`tests/benchmarks`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch

from galaxyhpc.steerable.kernels.cpu_timing import LayerInput, get_field_sizes, get_synchronized_time
from galaxyhpc.steerable.kernels.harmonic import get_harmonic_basis

MATMUL_SIZE, COPY_BYTES = 8192, 1 << 30  # side of a matrix; bytes
DENSE_EFFICIENCY, HARMONIC_EFFICIENCY = 0.88, 0.6  # fractions of the rates of a matrix product and of a copy
NUM_REPEATS = 5


def estimate_seconds(layer_input: LayerInput, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Estimate the time of forward and backward, dense and harmonic, s."""
    flops_per_second, bytes_per_second = _measure_rates(device, dtype)
    dense = count_dense_flops(layer_input) / (DENSE_EFFICIENCY * flops_per_second)
    harmonic = count_harmonic_bytes(layer_input, dtype) / (HARMONIC_EFFICIENCY * bytes_per_second)
    return dense, harmonic


def count_dense_flops(layer_input: LayerInput) -> float:
    """Count operations of the dense convolution, two for each multiply-add."""
    basis, pairs = get_harmonic_basis(layer_input.basis_spec), layer_input.fields[0] * layer_input.fields[1]
    d_in, d_out = get_field_sizes(basis)
    entries = d_in * d_out * basis.kernel_size**2
    return 2.0 * (2 + layer_input.needs_input_grad) * layer_input.num_output_pixels * pairs * entries


def count_harmonic_bytes(layer_input: LayerInput, dtype: torch.dtype) -> float:
    """Count the bytes written and read: x' to z to y', and y' to z to x' and to the gradient of the weights."""
    basis, transposed = get_harmonic_basis(layer_input.basis_spec), get_harmonic_basis(layer_input.basis_spec, True)
    (d_in, d_out), (x, y) = get_field_sizes(basis), layer_input.num_elements
    z = x / d_in * len(basis.terms)
    grad_z = y * layer_input.stride**2 / d_out * len(transposed.terms)
    forward = x + 2 * z + y
    backward = y + grad_z + (1 + layer_input.needs_input_grad) * (grad_z + x)
    return float(dtype.itemsize * (forward + backward))


@cache
def _measure_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Return operations and bytes per second."""
    factor = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device, dtype=dtype)
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    matmul_seconds = _time_fastest(lambda: factor @ factor, device)
    copy_seconds = _time_fastest(lambda: target.copy_(source), device)
    return 2.0 * MATMUL_SIZE**3 / matmul_seconds, 2.0 * COPY_BYTES / copy_seconds


def _time_fastest(function: Callable[[], object], device: torch.device) -> float:
    shortest = math.inf
    for _ in range(NUM_REPEATS):
        start = get_synchronized_time(device)
        function()
        shortest = min(shortest, get_synchronized_time(device) - start)
    return shortest
