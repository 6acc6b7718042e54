"""What a steerable convolution costs on a GPU in training, dense and harmonic, from two rates that are measured.

Dense it is arithmetic and harmonic it is bytes: x', z and y' are written and read. Both rates take a moment to measure,
and the shares of them that are reached come from an H200 (`tests/benchmarks`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch

from galaxyhpc.steerable.kernels.cpu_timing import Use, now
from galaxyhpc.steerable.kernels.harmonic import blocks

PRODUCT, COPY = 8192, 1 << 30  # side of a matrix; bytes
DENSE, HARMONIC = 0.88, 0.6  # shares of the matrix products' and the copy's rates
REPEATS = 5


def seconds(use: Use, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Tell the time of forward and backward, dense and harmonic."""
    operations, transferred = _rates(device, dtype)
    return dense_operations(use) / (DENSE * operations), harmonic_bytes(use, dtype) / (HARMONIC * transferred)


def dense_operations(use: Use) -> float:
    """Count operations of the dense convolution, two for each multiply-add."""
    of, pairs = blocks(use.recipe), use.fields[0] * use.fields[1]
    entries = len(of.inputs.change) * len(of.outputs.change) * of.size**2
    return 2.0 * (2 + use.by_x) * use.pixels * pairs * entries


def harmonic_bytes(use: Use, dtype: torch.dtype) -> float:
    """Count what is written and read: x' to z to y', and y' to z to x' and to the gradient of the weights."""
    of, back, (x, y) = blocks(use.recipe), blocks(use.recipe, True), use.values
    z = x / len(of.inputs.change) * len(of.terms)
    by_z = y * use.stride**2 / len(of.outputs.change) * len(back.terms)
    forward = x + 2 * z + y
    backward = y + by_z + (1 + use.by_x) * (by_z + x)
    return float(dtype.itemsize * (forward + backward))


@cache
def _rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Return operations and bytes per second."""
    factor = torch.randn(PRODUCT, PRODUCT, device=device, dtype=dtype)
    source = torch.empty(COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = _fastest(lambda: factor @ factor, device)
    copied = _fastest(lambda: target.copy_(source), device)
    return 2.0 * PRODUCT**3 / product, 2.0 * COPY / copied


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    found = math.inf
    for _ in range(REPEATS):
        begun = now(device)
        work()
        found = min(found, now(device) - begun)
    return found
