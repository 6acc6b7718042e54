"""The harmonic convolution of a CPU: z is made a tile of pixels at a time, multiplied in the cache, and forgotten.

Nothing but x is kept for the backward. Making z and its adjoint are compiled (`harmonic.cpp`); products are torch's.
x' is held as (d, padded pixels x fields), z as (component, pixel, block, fields) for each irrep of the output, so that
everything runs along fields and a product is one matrix.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from galaxyhpc.models import compiled
from galaxyhpc.models.harmonic import Blocks, Recipe, blocks

TILE_BYTES = 4 << 20  # of z
ZERO = 1e-9  # a smaller entry of a filter is none

Lists = list[list[tuple[int, float]]]  # of numbers and factors
Packed = tuple[Tensor, Tensor, Tensor]


def available() -> bool:
    """Whether this machine can compile what is needed."""
    return compiled.library() is not None


def forward(x: Tensor, weight: Tensor, recipe: Recipe, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), channels last."""
    walk = _Walk(_plan(recipe, x.dtype), x, weight, stride, padding)
    to_field, fields = walk.plan.to_field, walk.out_fields
    hat = walk.into_irreps(x)
    y = x.new_empty(len(walk.first) * fields, len(to_field))
    for begin, count in walk.tiles():
        z = walk.make(hat, begin, count)
        hats = x.new_zeros(len(to_field), count, fields)  # irreps that nothing leads to stay zero
        for irrep, maps, product in zip(walk.irreps, walk.split(z, count), walk.weights, strict=True):
            each = (maps @ product).view(irrep.size, count, -1, fields)
            hats[irrep.rows.T] = each.transpose(1, 2)
        torch.mm(hats.flatten(1).T, to_field.T, out=y[begin * fields : (begin + count) * fields])
    return y.view(len(x), *walk.out_grid, -1).permute(0, 3, 1, 2)


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, recipe: Recipe, stride: int, padding: int, for_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients by x, where it is asked for, and by the weights; z is made again."""
    walk = _Walk(_plan(recipe, x.dtype), x, weight, stride, padding)
    to_field = walk.plan.to_field
    hat = walk.into_irreps(x)
    by_hat = torch.zeros_like(hat) if for_x else None
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, len(to_field))
    by_hats = (to_field.T @ rows.T).view(len(to_field), -1, walk.out_fields)
    by_weights = [torch.zeros_like(product) for product in walk.weights]
    for begin, count in walk.tiles():
        z = walk.make(hat, begin, count)
        by_z = torch.empty_like(z) if for_x else None
        for place, maps in enumerate(walk.split(z, count)):
            each = by_hats[walk.irreps[place].rows.T, begin : begin + count].transpose(1, 2).reshape(len(maps), -1)
            by_weights[place].addmm_(maps.T, each)
            if by_z is not None:
                torch.mm(each, walk.weights[place].T, out=walk.split(by_z, count)[place])
        if by_hat is not None and by_z is not None:
            walk.unmake(by_hat, by_z, begin, count)
    by_x = None if by_hat is None else walk.out_of_irreps(by_hat, x)
    return by_x, walk.together(by_weights, weight)


class _Sums(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("start", "source", "factor")]


class _Read(ctypes.Structure):
    """`Plan` of harmonic.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("slots", "filters", "taps")),
        *((name, ctypes.c_void_p) for name in ("slot_row", "slot_map")),
        *((name, _Sums) for name in ("filter", "tap", "map", "part")),
        *((name, ctypes.c_void_p) for name in ("offset", "base", "step")),
    ]


@dataclass(frozen=True, eq=False)
class _Plan:
    """The blocks of a recipe as harmonic.cpp reads them; maps, the rows of z, come by input irrep."""

    of: Blocks
    to_irreps: Tensor  # (d_in, d_in) Q^-1 of the input
    to_field: Tensor  # (d_out, d_out) Q of the output
    slots: tuple[Tensor, Tensor]  # first row and first map of each input irrep, and where the last end
    sums: tuple[Packed, ...]  # filter, tap, map, part
    make: Any
    unmake: Any


@cache
def _plan(recipe: Recipe, dtype: torch.dtype) -> _Plan:
    of, library = blocks(recipe), compiled.library()
    assert library is not None, "no C++ compiler"
    count, slots = len(of.filters), len(of.inputs.sizes)
    rows = np.cumsum([0, *of.inputs.sizes])
    maps_of = np.searchsorted([term.slot for term in of.terms], range(slots + 1))
    taps: Lists = [[(n, float(value)) for n, value in enumerate(one) if abs(value) > ZERO] for one in of.filters]
    maps: Lists = []
    for term in of.terms:
        near = [count * (row - int(rows[term.slot])) + f for row, f in zip(term.rows, term.filters, strict=True)]
        maps.append(list(zip(near, term.factors, strict=True)))
    parts: Lists = []
    for begin, end in pairwise(maps_of):
        parts += _transposed(maps[begin:end], 2 * count)
    name = str(dtype).removeprefix("torch.")
    return _Plan(
        of,
        torch.tensor(of.inputs.change.T.copy(), dtype=dtype),
        torch.tensor(of.outputs.change, dtype=dtype),
        (torch.tensor(rows), torch.tensor(maps_of)),
        tuple(_packed(each, dtype) for each in (taps, _transposed(taps, of.size**2), maps, parts)),
        getattr(library, f"forward_{name}"),
        getattr(library, f"adjoint_{name}"),
    )


def _transposed(lists: Lists, count: int) -> Lists:
    found: Lists = [[] for _ in range(count)]
    for number, some in enumerate(lists):
        for source, factor in some:
            found[source].append((number, factor))
    return found


def _packed(lists: Lists, dtype: torch.dtype) -> Packed:
    flat = [one for some in lists for one in some]
    factors = torch.tensor([factor for _, factor in flat], dtype=dtype)
    return torch.tensor(np.cumsum([0, *map(len, lists)])), torch.tensor([n for n, _ in flat]), factors


class _Walk:
    """One pass over the pixels of an output, in tiles."""

    def __init__(self, plan: _Plan, x: Tensor, weight: Tensor, stride: int, padding: int) -> None:
        self.plan, self.irreps, self.padding = plan, plan.of.irreps, padding
        self.fields = x.shape[1] // len(plan.to_irreps)
        given = weight.detach().view(-1, self.fields, plan.of.weights)
        self.out_fields = len(given)
        rows, columns = (side + 2 * padding for side in x.shape[2:])
        self.grid = (len(x), rows, columns)
        ys, xs = (torch.arange(0, side - plan.of.size + 1, stride) for side in (rows, columns))
        self.out_grid = (len(ys), len(xs))
        corners = (torch.arange(len(x))[:, None, None] * rows + ys[:, None]) * columns + xs
        self.first = (corners * self.fields).flatten()  # where the first neighbour of each pixel lies in x'
        near = torch.arange(plan.of.size)
        self.offset = ((near[:, None] * columns + near) * self.fields).flatten()
        self.per_pixel = self.fields * len(plan.of.terms)
        self.tile = max(1, min(len(self.first), TILE_BYTES // (self.per_pixel * x.element_size())))
        gathered = [given[:, :, torch.from_numpy(irrep.weights)] for irrep in self.irreps]
        # (blocks x fields, copies x out_fields)
        self.weights = [each.permute(2, 1, 3, 0).flatten(2).flatten(0, 1) for each in gathered]
        self._read: dict[int, tuple[_Read, Tensor, Tensor]] = {}  # of whole tiles and of the last one

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Return where tiles begin and how many pixels they have."""
        for begin in range(0, len(self.first), self.tile):
            yield begin, min(self.tile, len(self.first) - begin)

    def into_irreps(self, x: Tensor) -> Tensor:
        """(N, fields x d, H, W) -> (d, padded pixels x fields)."""
        p, size = self.padding, len(self.plan.to_irreps)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, p, p, p, p))
        return self.plan.to_irreps @ padded.reshape(-1, size).T

    def out_of_irreps(self, hat: Tensor, like: Tensor) -> Tensor:
        """Apply the transpose of `into_irreps`."""
        p, (rows, columns) = self.padding, like.shape[2:]
        padded = (hat.T @ self.plan.to_irreps).view(*self.grid, -1)
        return padded[:, p : p + rows, p : p + columns].permute(0, 3, 1, 2)

    def make(self, hat: Tensor, begin: int, count: int) -> Tensor:
        """Make z of a tile, its irreps one after the other."""
        z = hat.new_empty(count * self.per_pixel)
        self._call(self.plan.make, hat, z, begin, count)
        return z

    def unmake(self, hat: Tensor, z: Tensor, begin: int, count: int) -> None:
        """Add to x' what z has of it."""
        self._call(self.plan.unmake, hat, z, begin, count)

    def split(self, z: Tensor, count: int) -> list[Tensor]:
        """Return z as matrices (components x pixels, blocks x fields)."""
        shapes = [(irrep.size * count, len(irrep.weights) * self.fields) for irrep in self.irreps]
        parts = z.split([rows * columns for rows, columns in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def together(self, by_weights: list[Tensor], weight: Tensor) -> Tensor:
        """Put the gradients of `weights` in their places."""
        found = weight.new_empty(self.out_fields, self.fields, self.plan.of.weights)
        for irrep, each in zip(self.irreps, by_weights, strict=True):
            one = each.view(len(irrep.weights), self.fields, -1, self.out_fields)
            found[:, :, torch.from_numpy(irrep.weights)] = one.permute(3, 1, 0, 2)
        return found.view_as(weight)

    def _call(self, function: Any, hat: Tensor, z: Tensor, begin: int, count: int) -> None:
        if count not in self._read:
            self._read[count] = self._packed(count)
        first = self.first[begin : begin + count]
        pointers = (ctypes.c_void_p(each.data_ptr()) for each in (hat, z, first))
        numbers = (ctypes.c_int64(number) for number in (count, self.fields, hat.shape[1]))
        function(ctypes.byref(self._read[count][0]), *pointers, *numbers, ctypes.c_int(torch.get_num_threads()))

    def _packed(self, count: int) -> tuple[_Read, Tensor, Tensor]:
        """Return what harmonic.cpp reads of a tile of so many pixels, and what has to live as long as it does."""
        base, step = self._places(count)
        sums = [_Sums(*(each.data_ptr() for each in some)) for some in self.plan.sums]
        places = [each.data_ptr() for each in (self.offset, base, step)]
        slots = [each.data_ptr() for each in self.plan.slots]
        sizes = (len(self.plan.of.inputs.sizes), len(self.plan.of.filters), len(self.offset))
        return _Read(*sizes, *slots, *sums, *places), base, step

    def _places(self, count: int) -> tuple[Tensor, Tensor]:
        """Return where each map's first pixel lies in z, and how far it is to the next pixel."""
        steps = [len(irrep.weights) * self.fields for irrep in self.irreps]
        begins = np.cumsum([0, *(irrep.size * count * step for irrep, step in zip(self.irreps, steps, strict=True))])
        base = [
            begins[term.kind] + term.component * count * steps[term.kind] + term.block * self.fields
            for term in self.plan.of.terms
        ]
        return torch.tensor(base), torch.tensor([steps[term.kind] for term in self.plan.of.terms])
