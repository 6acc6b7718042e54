"""The harmonic convolution x' -> y' on a GPU in one kernel, which makes z on the chip and never writes it.

    y'[l, copy] = sum over m of W[copy, m] z[l, m]

Each z leads to one irrep l of the output, so a program that computes all copies of l makes each z once. It is made from
x' by the spatial filters of 3x3 pixels. These are six, of four kinds by angular frequency (Weiler and Cesa 2019,
arXiv:1911.08251, appendix B); all blocks of all groups have one of two forms, p and q being the filters of its kind and
a and b the components of the input irrep, in either order:

    kinds 0 and 1    z = (f0 p(a), f3 p(b))
    kinds 2 and 3    z = (f0 p(a) + f1 q(b), f2 q(a) + f3 p(b))

For maps of half precision: tensor cores take the products with the weights, sums are in float32. The gradient of x' is
the same function of the transposed plan, but is taken in two steps, by `gpu.convolve_backward`: the gradient of the
weights needs z in memory, and from there that of x' takes no longer than here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from galaxyhpc.steerable.kernels import gpu_plan, triton_kernels
from galaxyhpc.steerable.kernels.gpu import Grid
from galaxyhpc.steerable.kernels.gpu_plan import Place, Plan
from galaxyhpc.steerable.kernels.harmonic import FILTER_TOLERANCE, HarmonicBasis, Term

DTYPES = (torch.float16, torch.bfloat16)
TILE_SIDE = 8  # px
STEP_VALUES = 16  # of z at a pixel; 32 touch fewer cache lines at once, but leave room for fewer sums
MAX_WEIGHTS = 4096  # of a step: with more, z and sums do not fit into registers
WEIGHTS_PER_WARP = 512

P, Q = 0, 1  # the filters of a kind


class SpatialFilter(NamedTuple):
    """A spatial filter as a multiple of one that the kernel applies."""

    kind: int
    which: int  # P or Q
    scale: float


class Constants(NamedTuple):
    """What the spatial filters have at edges and centre, relative to corners."""

    edge: float  # of the ring
    centre: float
    slope: float  # edges of both gradients


@dataclass(frozen=True, eq=False)
class StepTable:
    """The steps of one launch, which computes irreps of the output of one shape."""

    size: int  # components of an irrep
    begins: Tensor  # (irreps, 5) int32, first step of each kind and the end of the last
    steps: Tensor  # (steps, 5) int32: planes of a and of b, copies, step of the block, row of the weights
    factors: Tensor  # (steps, 4) float32


def convolve(plan: Plan, x_hat: Tensor, weight: Tensor, grid: Grid, step_values: int = STEP_VALUES) -> Tensor:
    """x', weights (fields of the output, of the input, basis) -> y', as `gpu.convolve`; the border is not written."""
    fields_out, fields = plan.outputs.pad_fields(len(weight)), plan.inputs.pad_fields(weight.shape[1])
    pixels = plan.inputs.count_pixels(x_hat, fields)
    y_hat = x_hat.new_empty(plan.outputs.num_planes * pixels * fields_out)
    matrices = plan.gather_weights(weight.to(x_hat.dtype))
    sizes = [
        len(matrix) * batch.size * pixels * matrix.shape[2]
        for batch, matrix in zip(plan.output_batches, matrices, strict=True)
    ]
    tables, constants = make_step_tables(plan, fields, step_values)
    for irreps, table, matrix in zip(y_hat.split(sizes), tables, matrices, strict=True):
        _launch(x_hat, irreps, matrix, table, constants, fields, grid.width, step_values)
    return y_hat


def _launch(
    x_hat: Tensor,
    y_hat: Tensor,
    matrix: Tensor,
    table: StepTable,
    constants: Constants,
    fields: int,
    width: int,
    step_values: int,
) -> None:
    """Compute the irreps of the output of one shape; the matrix is (irreps, blocks x fields, copies x fields)."""
    (num_irreps, _, values), size = matrix.shape, table.size
    columns = min(MAX_WEIGHTS // step_values, max(16, 1 << (values - 1).bit_length()))
    num_tiles = triton.cdiv(values, columns)
    padded = pad(matrix, (0, num_tiles * columns - values, 0, step_values))  # the last step reads beyond the last block
    rows = len(y_hat) // (num_irreps * size * values * width)
    tile_rows, tile_columns = (triton.cdiv(max(0, side - 2), TILE_SIDE) for side in (rows, width))
    if num_programs := num_irreps * num_tiles * tile_rows * tile_columns:
        triton_kernels.convolve[(num_programs,)](
            x_hat, y_hat, padded, table.begins, table.steps, table.factors,
            num_irreps, rows, width, tile_columns, padded.shape[1],
            F=fields, N=values, SIZE=size, EDGE=constants.edge, CENTRE=constants.centre, SLOPE=constants.slope,
            MASKED=fields % step_values != 0, TILE_SIDE=TILE_SIDE, BK=step_values, BN=columns, N_TILES=num_tiles,
            num_warps=max(4, columns * step_values // WEIGHTS_PER_WARP),
        )  # fmt: skip


@cache
def make_step_tables(plan: Plan, fields: int, step_values: int) -> tuple[list[StepTable], Constants]:
    """Return the steps of each batch of irreps of the output, for this number of fields in memory."""
    filters, constants = get_spatial_filters(plan.basis)
    places = gpu_plan.place_components(plan.transposed)
    orders = gpu_plan.order_blocks(plan.basis, plan.transposed)
    tables = []
    for batch, indices in zip(plan.output_batches, gpu_plan.group_irreps_by_shape(plan.basis), strict=True):
        steps = [
            list_steps(plan.basis, index, orders[index], filters, places, fields, step_values) for index in indices
        ]
        counts = np.array([np.bincount([step.kind for step in some], minlength=4) for some in steps])
        ends = counts.cumsum().reshape(counts.shape)
        begins = np.hstack([ends[:, :1] - counts[:, :1], ends])
        ordered = [step for some in steps for step in sorted(some, key=lambda step: step.kind)]
        device = plan.inputs.table.device
        tables.append(
            StepTable(
                batch.size,
                torch.tensor(begins, dtype=torch.int32, device=device),
                torch.tensor([step.numbers for step in ordered], dtype=torch.int32, device=device),
                torch.tensor([step.factors for step in ordered], dtype=torch.float32, device=device),
            )
        )
    return tables, constants


class Step(NamedTuple):
    """Some values of a block, and of those of its input's copies, which lie beside them."""

    kind: int
    numbers: tuple[int, ...]  # see StepTable
    factors: list[float]


def list_steps(
    basis: HarmonicBasis,
    irrep: int,
    block_order: list[int],
    filters: list[SpatialFilter],
    places: dict[int, Place],
    fields: int,
    step_values: int,
) -> list[Step]:
    """Return the steps of an irrep of the output."""
    steps = []
    for number, block in enumerate(block_order):
        terms = [term for term in basis.terms if (term.out_irrep, term.block) == (irrep, block)]
        kind, a, b, factors = match_form(basis, sorted(terms, key=lambda term: term.component), filters)
        (plane_a, copies, copy), (plane_b, *_) = places[a], places[b]
        if copy == 0:
            for k in range(triton.cdiv(copies * fields, step_values)):
                numbers = (plane_a, plane_b, copies, k, number * fields + k * step_values)
                steps.append(Step(kind, numbers, factors))
    return steps


def match_form(
    basis: HarmonicBasis, terms: list[Term], filters: list[SpatialFilter]
) -> tuple[int, int, int, list[float]]:
    """Return a block's kind, the components a and b of x', and the four factors.

    Raises
    ------
    ValueError
        where the block has another form
    """
    end = int(np.cumsum(basis.inputs.sizes)[terms[0].in_irrep])
    first, last = end - basis.inputs.sizes[terms[0].in_irrep], end - 1
    kinds, factors_by_place = set(), {}  # factors_by_place: (row of z, component of x', P or Q) -> factor
    for row, term in enumerate(terms):
        for component, index, factor in zip(term.in_components, term.filter_indices, term.factors, strict=True):
            kind, which, scale = filters[index]
            kinds.add(kind)
            factors_by_place[row, component, which] = factor * scale
    for a, b in ((first, last), (last, first)):
        form = [(0, a, P), (0, b, Q), (1, a, Q), (1, b, P)]
        if len(kinds) == 1 and set(factors_by_place) <= set(form):
            return kinds.pop(), a, b, [factors_by_place.get(place, 0.0) for place in form]
    raise ValueError(
        f"fused convolution: got a block of kinds {kinds} and factors {factors_by_place}; expected one of two forms"
    )


def get_spatial_filters(basis: HarmonicBasis) -> tuple[list[SpatialFilter], Constants]:
    """Return what each spatial filter of a basis is, and the constants of all.

    Raises
    ------
    ValueError
        where there is another filter
    """
    if (side := basis.kernel_size) != 3:
        raise ValueError(f"fused convolution: got filters of {side}x{side} px; expected 3x3")
    filters = basis.spatial_filters / np.abs(basis.spatial_filters).max(1, keepdims=True)
    wide = filters[(np.abs(filters[:, [0, 1]]) > FILTER_TOLERANCE).all(1)]  # ring and first gradient
    (ring,), (gradient,) = wide[wide[:, 0] * wide[:, 8] > 0], wide[wide[:, 0] * wide[:, 8] < 0]
    constants = Constants(
        *(round(float(value), 6) for value in (ring[1] / ring[0], ring[4] / ring[0], gradient[1] / gradient[0]))
    )
    patterns = _make_patterns(constants)
    return [_match_filter(spatial_filter, patterns) for spatial_filter in basis.spatial_filters], constants


def _make_patterns(constants: Constants) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Return the filters that the kernel applies, by kind and p (0) or q (1)."""
    edge, centre, slope = constants
    return {
        (0, P): np.array([0.0, 0, 0, 0, 1, 0, 0, 0, 0]),
        (1, P): np.array([1, edge, 1, edge, centre, edge, 1, edge, 1]),
        (2, P): np.array([1, slope, 1, 0, 0, 0, -1, -slope, -1]),
        (2, Q): np.array([1, 0, -1, slope, 0, -slope, 1, 0, -1]),
        (3, P): np.array([0.0, 1, 0, -1, 0, -1, 0, 1, 0]),
        (3, Q): np.array([1.0, 0, -1, 0, 0, 0, -1, 0, 1]),
    }


def _match_filter(
    spatial_filter: NDArray[np.float64], patterns: dict[tuple[int, int], NDArray[np.float64]]
) -> SpatialFilter:
    for (kind, which), pattern in patterns.items():
        scale = float(spatial_filter @ pattern / (pattern @ pattern))
        if np.abs(spatial_filter - scale * pattern).max() < FILTER_TOLERANCE:
            return SpatialFilter(kind, which, scale)
    raise ValueError(f"fused convolution: got a filter {spatial_filter}; expected one of {len(patterns)}")
