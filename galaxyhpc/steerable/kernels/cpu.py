"""The harmonic convolution on a CPU: z is computed for one tile of pixels at a time and multiplied while in the cache.

Only x is kept for the backward pass. The gradient of x is the same function with the transposed blocks, and the maps z
that it computes from the gradient give the weights' gradient, too. The compiled part is `harmonic.cpp`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from galaxyhpc.runtime import native
from galaxyhpc.steerable.kernels.harmonic import FILTER_TOLERANCE, BasisSpec, HarmonicBasis, Term, get_harmonic_basis

SOURCE = "steerable/kernels/harmonic.cpp"
VECTOR_BYTES = 64  # at most; rows of fields are whole vectors
TILE_BYTES = 1 << 20  # of z, per thread: about the size of a core's own cache
MIN_PIXELS_PER_THREAD = 16  # every thread sums a gradient of all weights of its own
ADDITIONS_PER_STORE = 3  # in time, from layers of 3 and 5 px
MIN_FILTER_ENTRY = 1e-9  # smaller entries of a filter count as zero

Part = tuple[int, int]  # component of x', index of the spatial filter
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
    row, out_row = (round_up(n * inputs.element_size(), VECTOR_BYTES) for n in (shape.fields, shape.out_fields))
    pixel_bytes = row * plan.c_plan.maps + 2 * out_row * plan.c_plan.rows_out
    max_tile = max(1, TILE_BYTES // pixel_bytes)
    num_tiles = -(-pixels // min(max_tile, -(-pixels // shape.threads)))
    num_tiles = round_up(num_tiles, shape.threads)  # equally many per thread
    shape.tile = -(-pixels // num_tiles)
    _call(plan.convolve, plan, shape, inputs, weight.detach().contiguous(), x, out, grad_weight)


def round_up(count: int, unit: int) -> int:
    """Return the least multiple of a unit that is not below a count."""
    return -(-count // unit) * unit


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
        *((name, ctypes.c_void_p) for name in ("target", "of_results", "start", "source", "factor")),
        ("kinds", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("kind", "map", "row", "number")),
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
    sums = _plan_sums(basis)
    all_summands = [summand for _, _, summands in sums.steps for summand in summands]
    c_plan = _CPlan(
        *(basis.kernel_size, len(basis.inputs.change_of_basis), len(basis.outputs.change_of_basis)),
        *(keep_array(irreps.change_of_basis.T, dtype_name) for irreps in (basis.inputs, basis.outputs)),
        *(len(sums.steps), sums.num_parts, sums.num_maps),
        keep_array([target for target, _, _ in sums.steps]),
        keep_array([sums_results for _, sums_results, _ in sums.steps]),
        keep_array(np.cumsum([0, *(len(summands) for _, _, summands in sums.steps)])),
        keep_array([source for source, _ in all_summands]),
        keep_array([factor for _, factor in all_summands], dtype_name),
        len(basis.irreps),
        keep_array([(irrep.size, *irrep.weight_indices.shape) for irrep in basis.irreps]),
        keep_array(sums.map_indices),
        keep_array(np.concatenate([irrep.components.flatten() for irrep in basis.irreps])),
        keep_array(np.concatenate([irrep.weight_indices.flatten() for irrep in basis.irreps])),
    )
    functions = [getattr(library, f"{name}_{dtype_name}") for name in ("convolve", "differentiate")]
    for function in functions:
        function.restype = ctypes.c_bool
    return _Plan(basis, c_plan, arrays, *functions)


@dataclass(frozen=True)
class _Sums:
    """The sums that make z of a pixel: (result, whether it adds results of others or values of pixels, summands).

    A result is map n of z, or ~n, a part: a component of x' filtered by a spatial filter, which is no map but in a sum.
    """

    steps: list[tuple[int, bool, Summands]]
    num_parts: int  # at most, of one input irrep
    num_maps: int
    map_indices: list[int]  # by output irrep, component and block: map n, or ~n for its negative


@cache
def _plan_sums(basis: HarmonicBasis) -> _Sums:
    """Plan the sums; maps that are equal, or each other's negative, are made once.

    That halves those of a cyclic group, whose blocks of two components come in pairs that differ by a quarter turn.
    """
    begins = np.cumsum([0, *(irrep.size * len(irrep.weight_indices) for irrep in basis.irreps)])
    taps = [
        [(pixel, float(value)) for pixel, value in enumerate(values) if abs(value) > MIN_FILTER_ENTRY]
        for values in basis.spatial_filters
    ]
    steps: list[tuple[int, bool, Summands]] = []
    max_parts, num_maps, map_indices = 1, 0, [0] * len(basis.terms)
    ends = np.searchsorted([term.in_irrep for term in basis.terms], range(len(basis.inputs.sizes) + 1))
    for begin, end in pairwise(ends):
        maps: list[Term] = []
        for term in basis.terms[begin:end]:
            index, is_negative = _match_or_add_map(term, maps)
            num_blocks = len(basis.irreps[term.out_irrep].weight_indices)
            position = int(begins[term.out_irrep]) + term.component * num_blocks + term.block
            map_indices[position] = ~(num_maps + index) if is_negative else num_maps + index
        # part -> its result, and the factor in it; the first map of one part is where that is stored
        stored: dict[Part, tuple[int, float]] = {}
        for index, term in enumerate(maps, num_maps):
            if len(term.factors) == 1:
                stored.setdefault(_list_parts(term)[0], (index, term.factors[0]))
        parts = sorted({part for term in maps for part in _list_parts(term)} - stored.keys())
        stored |= {part: (~index, 1.0) for index, part in enumerate(parts)}
        max_parts = max(max_parts, len(parts))
        for (component, filter_index), (result, scale) in stored.items():
            start = component * basis.kernel_size**2
            steps.append((result, False, [(start + pixel, value * scale) for pixel, value in taps[filter_index]]))
        made = {result for result, _ in stored.values()}
        for index, term in enumerate(maps, num_maps):
            sources = [(*stored[part], factor) for part, factor in zip(_list_parts(term), term.factors, strict=True)]
            if index not in made:
                steps.append((index, True, [(result, factor / scale) for result, scale, factor in sources]))
        num_maps += len(maps)
    return _Sums(steps, max_parts, num_maps, map_indices)


def _match_or_add_map(term: Term, maps: list[Term]) -> tuple[int, bool]:
    """Return the index of the map that a term equals, and whether as its negative; add the term where it is new."""
    for index, other in enumerate(maps):
        for sign in (1.0, -1.0):
            if _list_parts(term) == _list_parts(other) and np.allclose(
                term.factors, sign * np.array(other.factors), FILTER_TOLERANCE, 0.0
            ):
                return index, sign < 0
    maps.append(term)
    return len(maps) - 1, False


def count_additions(basis: HarmonicBasis) -> int:
    """Count the additions that make z of one pixel and one field, or take as long as storing the sums."""
    return sum(ADDITIONS_PER_STORE + len(summands) for _, _, summands in _plan_sums(basis).steps)


def _list_parts(term: Term) -> list[Part]:
    return list(zip(term.in_components, term.filter_indices, strict=True))
