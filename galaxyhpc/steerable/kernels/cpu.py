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
from galaxyhpc.steerable.kernels.harmonic import Blocks, Recipe, Term, blocks

SOURCE = "steerable/kernels/harmonic.cpp"
TILE_BYTES = 1 << 20  # of z, of each thread: about what a core's own cache holds
FEWEST = 16  # pixels of a thread, which adds up a gradient of all weights for itself
ZERO = 1e-9  # a smaller entry of a filter is none

Terms = list[tuple[int, float]]  # of a sum: what, how many times


def available() -> bool:
    """Whether this machine can compile what is needed."""
    return native.library(SOURCE) is not None


def forward(x: Tensor, weight: Tensor, recipe: Recipe, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), channels last."""
    plan, given = _plan(recipe, x.dtype, False), _pixels(x)
    shape = _shape(plan, given, weight)
    shape.by_field, shape.by_out_field = plan.of.weights, plan.of.weights * shape.fields
    shape.spread, shape.pad, shape.step = 1, padding, stride
    sides = [(side + 2 * padding - plan.of.size) // stride + 1 for side in given.shape[1:3]]
    y = x.new_empty(len(x), *sides, shape.out_fields * len(plan.of.outputs.change))
    _convolve(plan, shape, sides, given, weight, out=y)
    return y.permute(0, 3, 1, 2)


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, recipe: Recipe, stride: int, padding: int, for_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients by x, where it is asked for, and by the weights."""
    plan, given, other = _plan(recipe, x.dtype, True), _pixels(gradient), _pixels(x)
    shape = _shape(plan, given, weight)
    shape.by_field, shape.by_out_field = plan.of.weights * shape.out_fields, plan.of.weights
    shape.spread, shape.pad, shape.step = stride, plan.of.size - 1 - padding, 1
    by_x, by_weight = torch.empty_like(other) if for_x else None, weight.new_empty(weight.shape)
    _convolve(plan, shape, other.shape[1:3], given, weight, other, by_x, by_weight)
    return None if by_x is None else by_x.permute(0, 3, 1, 2), by_weight


class _Shape(ctypes.Structure):
    """`Shape` of harmonic.cpp."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("images", "rows", "columns", "spread", "pad", "out_rows", "out_columns", "step"),
            *("fields", "out_fields", "by_field", "by_out_field", "tile", "threads"),
        )
    ]


def _pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).contiguous()


def _shape(plan: _Plan, given: Tensor, weight: Tensor) -> _Shape:
    *maps, channels = given.shape
    fields = channels // len(plan.of.inputs.change)
    of_maps = dict(zip(("images", "rows", "columns"), maps, strict=True))
    return _Shape(**of_maps, fields=fields, out_fields=weight.numel() // (fields * plan.of.weights))


def _convolve(
    plan: _Plan,
    shape: _Shape,
    sides: Sequence[int],
    given: Tensor,
    weight: Tensor,
    other: Tensor | None = None,
    out: Tensor | None = None,
    by_weights: Tensor | None = None,
) -> None:
    shape.out_rows, shape.out_columns = sides
    pixels = max(1, len(given) * math.prod(sides))
    shape.threads = max(1, min(torch.get_num_threads(), pixels // FEWEST))
    most = max(1, TILE_BYTES // (given.element_size() * shape.fields * len(plan.of.terms)))
    tiles = -(-pixels // min(most, -(-pixels // shape.threads)))
    tiles = -(-tiles // shape.threads) * shape.threads  # as many for each
    shape.tile = -(-pixels // tiles)
    tensors = (given, weight.detach().contiguous(), other, out, by_weights)
    pointers = [None if each is None else ctypes.c_void_p(each.data_ptr()) for each in tensors]
    if not plan.convolve(ctypes.byref(plan.read), ctypes.byref(shape), *pointers):
        raise MemoryError(f"a convolution of {pixels} pixels")


class _Read(ctypes.Structure):
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
    of: Blocks
    read: _Read
    arrays: list[NDArray[Any]]  # that `read` points to
    convolve: Any


@cache
def _plan(recipe: Recipe, dtype: torch.dtype, transposed: bool) -> _Plan:
    of, library = blocks(recipe, transposed), native.library(SOURCE)
    assert library is not None, "no C++ compiler"
    arrays: list[NDArray[Any]] = []

    def kept(values: ArrayLike, kind: Any = np.int64) -> int:
        arrays.append(np.ascontiguousarray(values, dtype=kind))
        return arrays[-1].ctypes.data

    name = str(dtype).removeprefix("torch.")
    steps, parts = _program(of)
    terms = [term for _, _, some in steps for term in some]
    read = _Read(
        *(of.size, len(of.inputs.change), len(of.outputs.change)),
        *(kept(each.change.T, name) for each in (of.inputs, of.outputs)),
        *(len(steps), parts, len(of.terms)),
        kept([target for target, _, _ in steps]),
        kept([of_parts for _, of_parts, _ in steps]),
        kept(np.cumsum([0, *(len(some) for _, _, some in steps)])),
        kept([source for source, _ in terms]),
        kept([factor for _, factor in terms], name),
        len(of.irreps),
        kept([(irrep.size, *irrep.weights.shape) for irrep in of.irreps]),
        kept(np.concatenate([irrep.rows.flatten() for irrep in of.irreps])),
        kept(np.concatenate([irrep.weights.flatten() for irrep in of.irreps])),
    )
    convolve = getattr(library, f"convolve_{name}")
    convolve.restype = ctypes.c_bool
    return _Plan(of, read, arrays, convolve)


@cache
def _program(of: Blocks) -> tuple[list[tuple[int, bool, Terms]], int]:
    """Return the sums that make a pixel's maps, and the most parts at a time.

    A part is a row of x' seen through a filter. What needs one that nothing else needs is made without it.
    """
    begins = np.cumsum([0, *(irrep.size * len(irrep.weights) for irrep in of.irreps)])
    taps = [[(n, float(value)) for n, value in enumerate(one) if abs(value) > ZERO] for one in of.filters]
    steps: list[tuple[int, bool, Terms]] = []
    most = 1
    for begin, end in pairwise(np.searchsorted([term.slot for term in of.terms], range(len(of.inputs.sizes) + 1))):
        mine = of.terms[begin:end]
        seen = [part for term in mine for part in _parts(term)]
        shared = sorted({part for term in mine for part in _parts(term) if len(term.rows) > 1 or seen.count(part) > 1})
        most = max(most, len(shared))
        for place, (row, number) in enumerate(shared):
            steps.append((~place, False, [(row * of.size**2 + n, value) for n, value in taps[number]]))
        for term in mine:
            target = int(begins[term.kind]) + term.component * len(of.irreps[term.kind].weights) + term.block
            sources = list(zip(_parts(term), term.factors, strict=True))
            if sources[0][0] in shared:
                steps.append((target, True, [(shared.index(part), factor) for part, factor in sources]))
            else:
                (row, number), factor = sources[0]
                steps.append((target, False, [(row * of.size**2 + n, value * factor) for n, value in taps[number]]))
    return steps, most


def terms(of: Blocks) -> int:
    """Return how many values are added up, and sums kept, to make a pixel's maps of one field."""
    return sum(1 + len(some) for _, _, some in _program(of)[0])


def _parts(term: Term) -> list[tuple[int, int]]:
    return list(zip(term.rows, term.filters, strict=True))
