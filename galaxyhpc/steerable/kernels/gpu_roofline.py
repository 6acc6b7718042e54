"""Seconds of a block on a GPU - convolution, batch norm, ReLU and pool - by a dense filter and harmonic.

Each part reads or writes some maps a number of times (`PASSES`) and takes operations; what a card does at most in a
second is measured once, and kept on the disk. The fractions of that which are reached come from an H100 and an H200
(tests/benchmarks/gpu_layers.json; norms: tests/benchmarks/gpu/h100-2026-11-28.json). Launches are counted for harmonic
layers, which have many more than dense ones: whole steps of D16, D8, C16, D4 and C8 with 128 images took 0.94, 0.96,
1.06, 1.14 and 1.12 times the estimate. All is counted for the maps of a batch; the layer's input is x, the
convolution's output y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from galaxyhpc.steerable.kernels.cpu_timing import (
    LayerInput,
    get_field_sizes,
    get_synchronized_time,
    load_or_measure,
)
from galaxyhpc.steerable.kernels.harmonic import get_harmonic_basis

FORMAT_VERSION = 1  # raised when what is measured changes
MATMUL_SIZE, COPY_BYTES = 8192, 1 << 30  # side of a matrix; bytes
NUM_REPEATS = 5
PRODUCT_EFFICIENCY = 0.88  # of a product of large matrices, in cuDNN's convolutions and batched products
FIELD_EFFICIENCY = 0.75  # of a copy, in kernels on maps of fields
HARMONIC_EFFICIENCY, NARROW_EFFICIENCY = 0.6, 0.41  # of a copy, on maps in irreps; where an end has few fields
MIN_WIDE_FIELDS = 16
LAUNCH_SECONDS = 1.5e-4  # of a harmonic layer in training: 40 to 90 more kernels than a dense one, from a graph
MARGIN = 1.1  # by which a harmonic block has to be estimated faster
FIELD_BYTES = 16  # to which the fields of a pixel are padded in irreps: what is read at once


class Passes(NamedTuple):
    """How many times maps are read or written."""

    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    grad_z: float = 0.0  # z of the gradient


# (part, is_training); norms include the ReLU; a pooled map is a quarter of y
PASSES = {
    ("dense", False): Passes(x=1, y=1),
    ("dense", True): Passes(x=3, y=3),  # forward, gradient of x, gradient of the filter
    ("norm", False): Passes(y=4),  # torch's layers, one after the other
    ("norm, pool", False): Passes(y=5.25),
    ("norm", True): Passes(y=8),  # moments 1, output 2, sums of the gradient 2, gradient 3
    ("norm, pool", True): Passes(y=10),  # 5.75 are moved (1, 1.25, 1.25, 2.25); the pool's sums take as long again
    ("harmonic", False): Passes(x=1, y=1, z=2),
    ("harmonic", True): Passes(x=3, y=2, z=2, grad_z=3),
    ("norm in irreps", False): Passes(y=2),
    ("norm in irreps, pool", False): Passes(y=1.25),
    ("norm in irreps", True): Passes(y=8),
    ("norm in irreps, pool", True): Passes(y=16),  # 5.75 are moved
    ("change of layout", False): Passes(x=2),
    ("change of layout", True): Passes(x=4),
    ("operator", False): Passes(x=2, y=2),  # a harmonic layer from field to field changes the layout of all its maps
    ("operator", True): Passes(x=6, y=4),  # that of x again in the backward pass
}

# in inference, by whether a pool follows: changes between a pixel's irreps and its field; a pooled pixel has 25 sources
BASIS_CHANGES = {False: 2.0, True: 6.5}


class Ceilings(NamedTuple):
    """What a card does at most in a second."""

    product: float  # operations, two for each multiply-add, of a product in the precision of the network
    full_product: float  # in full float32
    copy: float  # bytes, read and written


class Block(NamedTuple):
    """A convolution and what follows it before the next one."""

    layer_input: LayerInput
    has_norm: bool = False
    has_pool: bool = False
    can_stay_in_irreps: bool = False


class CostModel(NamedTuple):
    """Estimates for one card, type of maps and phase, s."""

    ceilings: Ceilings
    dtype: torch.dtype
    is_training: bool

    def estimate(self, block: Block, is_harmonic: bool) -> float:
        """Estimate a block, without a change of layout at its ends."""
        if not is_harmonic:
            products = count_dense_flops(block.layer_input, self.is_training) / self.ceilings.product
            convolution = max(self._move("dense", block), products / PRODUCT_EFFICIENCY)
            expansion = count_expansion_flops(block.layer_input) if self.is_training else 0.0
            return convolution + expansion / self.ceilings.full_product + self._normalise("norm", block)
        products, constants = count_harmonic_flops(block.layer_input, self.is_training)
        seconds = self._move("harmonic", block) + products / (PRODUCT_EFFICIENCY * self.ceilings.product)
        seconds += LAUNCH_SECONDS if self.is_training else 0.0
        if self.dtype.itemsize > 2:  # these products have no tensor cores
            seconds += constants / (PRODUCT_EFFICIENCY * self.ceilings.full_product)
        if block.can_stay_in_irreps:
            if self.dtype.itemsize > 2:
                changes = BASIS_CHANGES[block.has_pool] * count_basis_flops(block.layer_input)
                seconds += changes / (PRODUCT_EFFICIENCY * self.ceilings.full_product)
            return seconds + self._normalise("norm in irreps", block)
        return seconds + self._move("operator", block) + self._normalise("norm", block)

    def estimate_change(self, block: Block) -> float:
        """Estimate the change of layout before a block, from fields to irreps or back."""
        return self._move("change of layout", block)

    def estimate_chain(self, blocks: Sequence[Block], choice: Sequence[bool]) -> float:
        """Estimate blocks that follow each other."""
        seconds, is_in_irreps = 0.0, False
        for block, is_harmonic in zip(blocks, choice, strict=True):
            stays = is_harmonic and block.can_stay_in_irreps
            seconds += self.estimate(block, is_harmonic) + (stays != is_in_irreps) * self.estimate_change(block)
            is_in_irreps = stays
        return seconds

    def choose(self, blocks: Sequence[Block]) -> list[bool]:
        """Choose for blocks that follow each other: the way of least seconds through both layouts (Viterbi)."""
        best: dict[bool, tuple[float, list[bool]]] = {False: (0.0, [])}  # by whether the last map is in irreps
        for block in blocks:
            change, ways = self.estimate_change(block), dict[bool, tuple[float, list[bool]]]()
            for is_harmonic in (False, True):
                stays = is_harmonic and block.can_stay_in_irreps
                cost = self.estimate(block, is_harmonic) * (MARGIN if is_harmonic else 1.0)
                for was_in_irreps, (seconds, choice) in best.items():
                    way = (seconds + (stays != was_in_irreps) * change + cost, [*choice, is_harmonic])
                    ways[stays] = min(ways.get(stays, way), way)
            best = ways
        return min(best.values())[1]

    def _normalise(self, part: str, block: Block) -> float:
        if not block.has_norm:
            return 0.0
        return self._move(f"{part}, pool" if block.has_pool else part, block)

    def _move(self, part: str, block: Block) -> float:
        """Return the seconds that the reads and writes of a part take."""
        is_field = part in ("dense", "norm", "norm, pool")
        sizes = count_values(block.layer_input, 1 if is_field else FIELD_BYTES // self.dtype.itemsize)
        values = sum(a * b for a, b in zip(PASSES[part, self.is_training], sizes, strict=True))
        is_narrow = min(block.layer_input.fields) < MIN_WIDE_FIELDS
        in_irreps = NARROW_EFFICIENCY if is_narrow else HARMONIC_EFFICIENCY
        efficiency = FIELD_EFFICIENCY if is_field else in_irreps
        return values * self.dtype.itemsize / (efficiency * self.ceilings.copy)


def count_values(layer_input: LayerInput, field_multiple: int) -> Passes:
    """Return the numbers of values of all maps, whose fields are padded to a multiple."""
    basis, transposed = get_harmonic_basis(layer_input.basis_spec), get_harmonic_basis(layer_input.basis_spec, True)
    padding = [-(-fields // field_multiple) * field_multiple / fields for fields in layer_input.fields]
    d_in, d_out = get_field_sizes(basis)
    x, y = (count * factor for count, factor in zip(layer_input.num_elements, padding, strict=True))
    grad_z = y * layer_input.stride**2 / d_out * len(transposed.terms)
    return Passes(x, y, x / d_in * len(basis.terms), grad_z)


def count_dense_flops(layer_input: LayerInput, is_training: bool) -> float:
    """Count operations of the dense convolution, two for each multiply-add."""
    passes = 2 + layer_input.needs_input_grad if is_training else 1
    return 2.0 * passes * layer_input.num_output_pixels * _count_filter_entries(layer_input)


def count_expansion_flops(layer_input: LayerInput) -> float:
    """Count operations of the expansion of a dense filter and of its gradient, per pass of a training step."""
    num_weights = get_harmonic_basis(layer_input.basis_spec).num_weights
    return 4.0 * _count_filter_entries(layer_input) * num_weights / layer_input.num_micro_batches


def _count_filter_entries(layer_input: LayerInput) -> int:
    basis, pairs = get_harmonic_basis(layer_input.basis_spec), math.prod(layer_input.fields)
    return pairs * math.prod(get_field_sizes(basis)) * basis.kernel_size**2


def count_harmonic_flops(layer_input: LayerInput, is_training: bool) -> tuple[float, float]:
    """Count operations of products with weights, and of those with the constants that give z.

    The constants of an irrep of the input lie in a matrix (terms, components x taps) of sides that are powers of two.
    """
    input_pixels = layer_input.batch_size * math.prod(layer_input.input_size)
    passes = [(False, 1, layer_input.fields[0])]
    if is_training:
        passes.append((True, 1 + layer_input.needs_input_grad, layer_input.fields[1]))
    products = constants = 0.0
    for is_transposed, num_products, fields in passes:
        basis = get_harmonic_basis(layer_input.basis_spec, is_transposed)
        weights = sum(irrep.size * irrep.weight_indices.size for irrep in basis.irreps)
        products += 2.0 * num_products * input_pixels * math.prod(layer_input.fields) * weights
        slots = range(len(basis.inputs.sizes))
        num_terms = max(sum(term.in_irrep == slot for term in basis.terms) for slot in slots)
        sides = (num_terms, max(basis.inputs.sizes) * basis.kernel_size**2)
        matrix = math.prod(max(16, 1 << (side - 1).bit_length()) for side in sides)
        constants += 2.0 * input_pixels * fields * len(slots) * matrix
    return products, constants


def count_basis_flops(layer_input: LayerInput) -> float:
    """Count operations of a change of basis of the output."""
    return 2.0 * layer_input.num_elements[1] * get_field_sizes(get_harmonic_basis(layer_input.basis_spec))[1]


def get_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Return what this card does at most, with torch's setting of TF32; measured where it is not on the disk."""
    return _get_ceilings(device, dtype, torch.backends.cuda.matmul.allow_tf32)


@cache
def _get_ceilings(device: torch.device, dtype: torch.dtype, allow_tf32: bool) -> Ceilings:
    key = [FORMAT_VERSION, torch.__version__, torch.cuda.get_device_name(device), _read_driver_version()]
    values = load_or_measure(
        [*key, str(dtype), allow_tf32], lambda: dict(measure_ceilings(device, dtype)._asdict()), _are_ceilings
    )
    return Ceilings(**values)


def _are_ceilings(values: dict[str, float]) -> bool:
    """Whether a file holds ceilings."""
    return set(values) == set(Ceilings._fields) and all(type(v) is float and v > 0 for v in values.values())


def _read_driver_version() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # in some containers


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Time products of large matrices and a copy."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_seconds = _time_fastest(lambda: target.copy_(source), device)
    product = _measure_product(device, dtype)
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        full_product = _measure_product(device, torch.float32)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    return Ceilings(product, full_product, 2.0 * COPY_BYTES / copy_seconds)


def _measure_product(device: torch.device, dtype: torch.dtype) -> float:
    factor = torch.ones(MATMUL_SIZE, MATMUL_SIZE, device=device, dtype=dtype)
    return 2.0 * MATMUL_SIZE**3 / _time_fastest(lambda: factor @ factor, device)


def _time_fastest(function: Callable[[], object], device: torch.device) -> float:
    shortest = math.inf
    for _ in range(NUM_REPEATS):
        start = get_synchronized_time(device)
        function()
        shortest = min(shortest, get_synchronized_time(device) - start)
    return shortest
