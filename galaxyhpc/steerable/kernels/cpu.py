"""The harmonic convolution of a CPU: z is made a tile of pixels at a time, multiplied in the cache, and forgotten.

Nothing but x is kept for the backward, whose gradient by x is the same function with the transposed blocks; the maps z
that it makes of the gradient give the weights' gradient, too. All of it is compiled (`harmonic.cpp`).
"""

from __future__ import annotations

import ctypes
import math
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
TILE_BYTES = 1 << 20  # of z, of each thread: about what a core's own cache holds
MIN_PIXELS_PER_THREAD = 16  # pixels of a thread, which adds up a gradient of all weights for itself
MIN_FILTER_ENTRY = 1e-9  # a smaller entry of a filter is none

Summands = list[tuple[int, float]]  # of a sum: what, how many times


def is_available() -> bool:
    """Whether this machine can compile what is needed."""
    return native.load_library(SOURCE) is not None


def forward(x: Tensor, weight: Tensor, basis_spec: BasisSpec, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), channels last."""
    plan, given = _make_plan(basis_spec, x.dtype, False), _to_nhwc(x)
    shape = _make_shape(plan, given, weight)
    shape.by_field, shape.by_out_field = plan.basis.num_weights, plan.basis.num_weights * shape.fields
    shape.spread, shape.pad, shape.step = 1, padding, stride
    sides = [(side + 2 * padding - plan.basis.kernel_size) // stride + 1 for side in given.shape[1:3]]
    y = x.new_empty(len(x), *sides, shape.out_fields * len(plan.basis.outputs.change_of_basis))
    _convolve(plan, shape, sides, given, weight, out=y)
    return y.permute(0, 3, 1, 2)


def backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    basis_spec: BasisSpec,
    stride: int,
    padding: int,
    needs_input_grad: bool,
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients by x, where it is asked for, and by the weights."""
    plan, given, other = _make_plan(basis_spec, x.dtype, True), _to_nhwc(gradient), _to_nhwc(x)
    shape = _make_shape(plan, given, weight)
    shape.by_field, shape.by_out_field = plan.basis.num_weights * shape.out_fields, plan.basis.num_weights
    shape.spread, shape.pad, shape.step = stride, plan.basis.kernel_size - 1 - padding, 1
    by_x, by_weight = torch.empty_like(other) if needs_input_grad else None, weight.new_empty(weight.shape)
    _convolve(plan, shape, other.shape[1:3], given, weight, other, by_x, by_weight)
    return None if by_x is None else by_x.permute(0, 3, 1, 2), by_weight


class _CShape(ctypes.Structure):
    """`Shape` of harmonic.cpp."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("images", "rows", "columns", "spread", "pad", "out_rows", "out_columns", "step"),
            *("fields", "out_fields", "by_field", "by_out_field", "tile", "threads"),
        )
    ]


def _to_nhwc(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).contiguous()


def _make_shape(plan: _Plan, x_nhwc: Tensor, weight: Tensor) -> _CShape:
    *maps, channels = x_nhwc.shape
    fields = channels // len(plan.basis.inputs.change_of_basis)
    of_maps = dict(zip(("images", "rows", "columns"), maps, strict=True))
    return _CShape(**of_maps, fields=fields, out_fields=weight.numel() // (fields * plan.basis.num_weights))


def _convolve(
    plan: _Plan,
    shape: _CShape,
    out_size: Sequence[int],
    inputs: Tensor,
    weight: Tensor,
    x: Tensor | None = None,
    out: Tensor | None = None,
    grad_weight: Tensor | None = None,
) -> None:
    shape.out_rows, shape.out_columns = out_size
    pixels = max(1, len(inputs) * math.prod(out_size))
    shape.threads = max(1, min(torch.get_num_threads(), pixels // MIN_PIXELS_PER_THREAD))
    most = max(1, TILE_BYTES // (inputs.element_size() * shape.fields * len(plan.basis.terms)))
    tiles = -(-pixels // min(most, -(-pixels // shape.threads)))
    tiles = -(-tiles // shape.threads) * shape.threads  # as many for each
    shape.tile = -(-pixels // tiles)
    tensors = (inputs, weight.detach().contiguous(), x, out, grad_weight)
    pointers = [None if each is None else ctypes.c_void_p(each.data_ptr()) for each in tensors]
    if not plan.convolve(ctypes.byref(plan.c_plan), ctypes.byref(shape), *pointers):
        raise MemoryError(f"a convolution of {pixels} pixels")


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
    arrays: list[NDArray[Any]]  # that `read` points to
    convolve: Any


@cache
def _make_plan(basis_spec: BasisSpec, dtype: torch.dtype, is_transposed: bool) -> _Plan:
    of, library = get_harmonic_basis(basis_spec, is_transposed), native.load_library(SOURCE)
    assert library is not None, "no C++ compiler"
    arrays: list[NDArray[Any]] = []

    def kept(values: ArrayLike, kind: Any = np.int64) -> int:
        arrays.append(np.ascontiguousarray(values, dtype=kind))
        return arrays[-1].ctypes.data

    name = str(dtype).removeprefix("torch.")
    steps, parts = _plan_sums(of)
    terms = [term for _, _, some in steps for term in some]
    read = _CPlan(
        *(of.kernel_size, len(of.inputs.change_of_basis), len(of.outputs.change_of_basis)),
        *(kept(each.change_of_basis.T, name) for each in (of.inputs, of.outputs)),
        *(len(steps), parts, len(of.terms)),
        kept([target for target, _, _ in steps]),
        kept([of_parts for _, of_parts, _ in steps]),
        kept(np.cumsum([0, *(len(some) for _, _, some in steps)])),
        kept([source for source, _ in terms]),
        kept([factor for _, factor in terms], name),
        len(of.irreps),
        kept([(irrep.size, *irrep.weight_indices.shape) for irrep in of.irreps]),
        kept(np.concatenate([irrep.components.flatten() for irrep in of.irreps])),
        kept(np.concatenate([irrep.weight_indices.flatten() for irrep in of.irreps])),
    )
    convolve = getattr(library, f"convolve_{name}")
    convolve.restype = ctypes.c_bool
    return _Plan(of, read, arrays, convolve)


@cache
def _plan_sums(basis: HarmonicBasis) -> tuple[list[tuple[int, bool, Summands]], int]:
    """Return the sums that make a pixel's maps, and the most parts at a time.

    A part is a row of x' seen through a filter. What needs one that nothing else needs is made without it.
    """
    begins = np.cumsum([0, *(irrep.size * len(irrep.weight_indices) for irrep in basis.irreps)])
    taps = [
        [(n, float(value)) for n, value in enumerate(one) if abs(value) > MIN_FILTER_ENTRY]
        for one in basis.spatial_filters
    ]
    steps: list[tuple[int, bool, Summands]] = []
    most = 1
    for begin, end in pairwise(
        np.searchsorted([term.in_irrep for term in basis.terms], range(len(basis.inputs.sizes) + 1))
    ):
        mine = basis.terms[begin:end]
        seen = [part for term in mine for part in _list_parts(term)]
        shared = sorted(
            {part for term in mine for part in _list_parts(term) if len(term.in_components) > 1 or seen.count(part) > 1}
        )
        most = max(most, len(shared))
        for place, (row, number) in enumerate(shared):
            steps.append((~place, False, [(row * basis.kernel_size**2 + n, value) for n, value in taps[number]]))
        for term in mine:
            target = (
                int(begins[term.out_irrep])
                + term.component * len(basis.irreps[term.out_irrep].weight_indices)
                + term.block
            )
            sources = list(zip(_list_parts(term), term.factors, strict=True))
            if sources[0][0] in shared:
                steps.append((target, True, [(shared.index(part), factor) for part, factor in sources]))
            else:
                (row, number), factor = sources[0]
                steps.append(
                    (target, False, [(row * basis.kernel_size**2 + n, value * factor) for n, value in taps[number]])
                )
    return steps, most


def count_additions(basis: HarmonicBasis) -> int:
    """Return how many values are added up, and sums kept, to make a pixel's maps of one field."""
    return sum(1 + len(some) for _, _, some in _plan_sums(basis)[0])


def _list_parts(term: Term) -> list[tuple[int, int]]:
    return list(zip(term.in_components, term.filter_indices, strict=True))
