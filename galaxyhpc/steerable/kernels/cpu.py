"""The harmonic convolution on a CPU: z is computed for one tile of pixels at a time and multiplied while in the cache.

Only x is kept for the backward pass. The gradient of x is the same function with the transposed blocks, and the maps z
that it computes from the gradient give the weights' gradient, too. The compiled part is `harmonic.cpp`.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from galaxyhpc.runtime import native
from galaxyhpc.steerable.kernels.harmonic import BasisSpec, HarmonicBasis, Term, get_harmonic_basis

SOURCE = "steerable/kernels/harmonic.cpp"
TILE_BYTES = 1 << 20  # of z, per thread: about the size of a core's own cache
MIN_PIXELS_PER_THREAD = 16  # every thread sums a gradient of all weights of its own
ADDITIONS_PER_STORE = 9  # in time, from layers of 3 and 5 px
MIN_FILTER_ENTRY = 1e-9  # smaller entries of a filter count as zero

Summands = list[tuple[int, float]]  # of a sum: (index of the source, factor)


def is_available() -> bool:
    """Whether this machine can compile the library."""
    return native.load_library(SOURCE) is not None


def forward(x: Tensor, weight: Tensor, basis_spec: BasisSpec, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), channels last."""
    x_nhwc = _to_nhwc(x)
    plan, shape = _make_forward_plan(x_nhwc, weight, basis_spec, stride, padding)
    channels = shape.out_fields * len(plan.basis.outputs.change_of_basis)
    # not a view of another tensor, so that what follows may work in place
    y = torch.empty(
        len(x), channels, shape.out_rows, shape.out_columns, dtype=x.dtype, memory_format=torch.channels_last
    )
    _convolve(plan, shape, x_nhwc, weight, out=y)
    return y


def _make_forward_plan(
    x_nhwc: Tensor, weight: Tensor, basis_spec: BasisSpec, stride: int, padding: int
) -> tuple[_Plan, _CShape]:
    plan = _make_plan(basis_spec, x_nhwc.dtype, False)
    shape = _make_shape(plan, x_nhwc, weight)
    shape.by_field, shape.by_out_field = plan.basis.num_weights, plan.basis.num_weights * shape.fields
    shape.pad, shape.step = padding, stride
    sides = [(side + 2 * padding - plan.basis.kernel_size) // stride + 1 for side in x_nhwc.shape[1:3]]
    shape.out_rows, shape.out_columns = sides
    return plan, shape


def backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    basis_spec: BasisSpec,
    stride: int,
    padding: int,
    needs_input_grad: bool,
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x, where it is needed, and of the weights."""
    grad_nhwc, x_nhwc = _to_nhwc(gradient), _to_nhwc(x)
    grad_x, grad_weight = torch.empty_like(x_nhwc) if needs_input_grad else None, weight.new_empty(weight.shape)
    if stride > 1:  # z of the gradient would be made at every pixel of x, mostly from zeros
        plan, shape = _make_forward_plan(x_nhwc, weight, basis_spec, stride, padding)
        _convolve(plan, shape, x_nhwc, weight, grad_nhwc, grad_weight=grad_weight)
        if grad_x is not None:
            shape.threads = max(1, min(shape.threads, len(x)))  # an image is summed by one, in the same tiles
            _call(plan.differentiate, plan, shape, grad_nhwc, weight.detach().contiguous(), grad_x)
    else:
        plan = _make_plan(basis_spec, x.dtype, True)
        shape = _make_shape(plan, grad_nhwc, weight)
        shape.by_field, shape.by_out_field = plan.basis.num_weights * shape.out_fields, plan.basis.num_weights
        shape.pad, shape.step = plan.basis.kernel_size - 1 - padding, 1
        shape.out_rows, shape.out_columns = x_nhwc.shape[1:3]
        _convolve(plan, shape, grad_nhwc, weight, x_nhwc, grad_x, grad_weight)
    return None if grad_x is None else grad_x.permute(0, 3, 1, 2), grad_weight


class _CShape(ctypes.Structure):
    """`Shape` of harmonic.cpp."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("images", "rows", "columns", "pad", "out_rows", "out_columns", "step"),
            *("fields", "out_fields", "by_field", "by_out_field", "tile", "threads"),
        )
    ]


def _to_nhwc(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).contiguous()


def _make_shape(plan: _Plan, x_nhwc: Tensor, weight: Tensor) -> _CShape:
    images, rows, columns, channels = x_nhwc.shape
    fields = channels // len(plan.basis.inputs.change_of_basis)
    out_fields = weight.numel() // (fields * plan.basis.num_weights)
    return _CShape(images=images, rows=rows, columns=columns, fields=fields, out_fields=out_fields)


def _convolve(
    plan: _Plan,
    shape: _CShape,
    inputs: Tensor,
    weight: Tensor,
    x: Tensor | None = None,
    out: Tensor | None = None,
    grad_weight: Tensor | None = None,
) -> None:
    pixels = max(1, shape.images * shape.out_rows * shape.out_columns)
    shape.threads = max(1, min(torch.get_num_threads(), pixels // MIN_PIXELS_PER_THREAD))
    max_tile = max(1, TILE_BYTES // (inputs.element_size() * shape.fields * len(plan.basis.terms)))
    num_tiles = -(-pixels // min(max_tile, -(-pixels // shape.threads)))
    num_tiles = -(-num_tiles // shape.threads) * shape.threads  # equally many per thread
    shape.tile = -(-pixels // num_tiles)
    _call(plan.convolve, plan, shape, inputs, weight.detach().contiguous(), x, out, grad_weight)


def _call(function: Any, plan: _Plan, shape: _CShape, *tensors: Tensor | None) -> None:
    pointers = [None if tensor is None else ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    if not function(ctypes.byref(plan.c_plan), ctypes.byref(shape), *pointers):
        sides = f"{shape.out_rows} x {shape.out_columns}"
        raise MemoryError(f"harmonic convolution: out of memory for {shape.images} images of {sides} pixels")


class _CPlan(ctypes.Structure):
    """`Plan` of harmonic.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("size", "rows_in", "rows_out")),
        *((name, ctypes.c_void_p) for name in ("turn_in", "turn_out")),
        *((name, ctypes.c_int64) for name in ("steps", "parts", "maps")),
        *((name, ctypes.c_void_p) for name in ("target", "of_parts", "start", "source", "factor")),
        ("kinds", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("kind", "row", "number")),
    ]


@dataclass(frozen=True, eq=False)
class _Plan:
    basis: HarmonicBasis
    c_plan: _CPlan
    arrays: list[NDArray[Any]]  # kept alive: `c_plan` points to them
    convolve: Any
    differentiate: Any


@cache
def _make_plan(basis_spec: BasisSpec, dtype: torch.dtype, is_transposed: bool) -> _Plan:
    basis, library = get_harmonic_basis(basis_spec, is_transposed), native.load_library(SOURCE)
    assert library is not None, native.explain_missing(SOURCE)
    arrays: list[NDArray[Any]] = []

    def keep_array(values: ArrayLike, dtype_name: Any = np.int64) -> int:
        arrays.append(np.ascontiguousarray(values, dtype=dtype_name))
        return arrays[-1].ctypes.data

    dtype_name = str(dtype).removeprefix("torch.")
    steps, num_parts = _plan_sums(basis)
    all_summands = [summand for _, _, summands in steps for summand in summands]
    c_plan = _CPlan(
        *(basis.kernel_size, len(basis.inputs.change_of_basis), len(basis.outputs.change_of_basis)),
        *(keep_array(irreps.change_of_basis.T, dtype_name) for irreps in (basis.inputs, basis.outputs)),
        *(len(steps), num_parts, len(basis.terms)),
        keep_array([target for target, _, _ in steps]),
        keep_array([sums_parts for _, sums_parts, _ in steps]),
        keep_array(np.cumsum([0, *(len(summands) for _, _, summands in steps)])),
        keep_array([source for source, _ in all_summands]),
        keep_array([factor for _, factor in all_summands], dtype_name),
        len(basis.irreps),
        keep_array([(irrep.size, *irrep.weight_indices.shape) for irrep in basis.irreps]),
        keep_array(np.concatenate([irrep.components.flatten() for irrep in basis.irreps])),
        keep_array(np.concatenate([irrep.weight_indices.flatten() for irrep in basis.irreps])),
    )
    functions = [getattr(library, f"{name}_{dtype_name}") for name in ("convolve", "differentiate")]
    for function in functions:
        function.restype = ctypes.c_bool
    return _Plan(basis, c_plan, arrays, *functions)


@cache
def _plan_sums(basis: HarmonicBasis) -> tuple[list[tuple[int, bool, Summands]], int]:
    """Return the sums (target, whether of parts, summands) that make z of a pixel, and the largest number of parts.

    A part is a component of x' filtered by a spatial filter, stored because several sums share it (target ~n for part
    n). A term that needs a part of its own is summed from the pixels directly.
    """
    begins = np.cumsum([0, *(irrep.size * len(irrep.weight_indices) for irrep in basis.irreps)])
    taps = [
        [(pixel, float(value)) for pixel, value in enumerate(values) if abs(value) > MIN_FILTER_ENTRY]
        for values in basis.spatial_filters
    ]

    def filter_summands(component: int, filter_index: int, factor: float = 1.0) -> Summands:
        start = component * basis.kernel_size**2
        return [(start + pixel, value * factor) for pixel, value in taps[filter_index]]

    steps: list[tuple[int, bool, Summands]] = []
    max_parts = 1
    ends = np.searchsorted([term.in_irrep for term in basis.terms], range(len(basis.inputs.sizes) + 1))
    for begin, end in pairwise(ends):
        terms = basis.terms[begin:end]
        shared = _list_shared_parts(terms)
        max_parts = max(max_parts, len(shared))
        steps += [(~index, False, filter_summands(*part)) for index, part in enumerate(shared)]
        for term in terms:
            num_blocks = len(basis.irreps[term.out_irrep].weight_indices)
            target = int(begins[term.out_irrep]) + term.component * num_blocks + term.block
            sources = list(zip(_list_parts(term), term.factors, strict=True))
            if sources[0][0] in shared:
                steps.append((target, True, [(shared.index(part), factor) for part, factor in sources]))
            else:
                part, factor = sources[0]
                steps.append((target, False, filter_summands(*part, factor)))
    return steps, max_parts


def count_additions(basis: HarmonicBasis) -> int:
    """Count the additions that make z of one pixel and one field, or take as long as storing the sums."""
    return sum(ADDITIONS_PER_STORE + len(summands) for _, _, summands in _plan_sums(basis)[0])


def _list_shared_parts(terms: Sequence[Term]) -> list[tuple[int, int]]:
    """Return the parts that are stored: those of several terms, and those of a term that adds several."""
    counts = Counter(part for term in terms for part in _list_parts(term))
    summed = {part for term in terms if len(term.in_components) > 1 for part in _list_parts(term)}
    return sorted(part for part in counts if counts[part] > 1 or part in summed)


def _list_parts(term: Term) -> list[tuple[int, int]]:
    """Return (component of x', index of the spatial filter) of every summand."""
    return list(zip(term.in_components, term.filter_indices, strict=True))
