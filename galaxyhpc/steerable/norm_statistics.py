"""The Triton kernels of `fused_norm` between its passes over maps: from partial sums to factors of columns.

Training steps of small networks take the time of their launches, so one launch does all that lies between two passes,
a program per field. With several processes there are two: with SUMS for the sums of a process, with FACTORS for what
follows from those of all. They are float64, where the difference of two sums loses nothing that float32 held.

Partial sums are float32, (kinds, rows, F, programs), so that those of a field are adjacent. With R a map is in irreps:
rows are R components, columns are fields, and zeros after the last field. Without R there is one row, and a field has
SIZE columns. A field's factors stand in each of its REPEATS columns, float32, (kinds, F). Sums are in a fixed order, so
that two runs have the same bits.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_number(numbers, kind: tl.constexpr, field, fields):
    """Load a field's number from (kinds, fields) as float64, zero for a column of no field."""
    return tl.load(numbers + kind * fields + field, mask=field < fields, other=0.0).to(tl.float64)


@triton.jit
def store_number(numbers, kind: tl.constexpr, value, field, fields):
    """Store a field's number in (kinds, fields)."""
    tl.store(numbers + kind * fields + field, value, mask=field < fields)


@triton.jit
def store_factor(factors, kind: tl.constexpr, value, field, F, REPEATS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store a factor for each column of a field."""
    column = tl.arange(0, COLUMNS)
    values = tl.zeros((COLUMNS,), tl.float32) + value.to(tl.float32)
    tl.store(factors + kind * F + field * REPEATS + column, values, mask=column < REPEATS)


@triton.jit
def locate_partial_sums(index, field, programs, F, R: tl.constexpr, SIZE: tl.constexpr):
    """Return offsets of a field's partial sums: those of its first component or channel, of its second and so on."""
    part = index // programs
    return (part * F + field if R else field * SIZE + part) * programs + index % programs


@triton.jit
def sum_moments_of_field(
    moments, constant, field, fields, programs, F, R: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Return the number of a field's values, their sum, and that of their squares, of `norm_kernels.sum_moments`.

    In irreps values have the sum of the components along the constant field, and squares that of all (Parseval).
    """
    parts: tl.constexpr = R if R else SIZE
    kind = (R if R else 1) * F * programs
    counts = tl.zeros((BLOCK,), tl.float64)
    firsts = tl.zeros((BLOCK,), tl.float64)
    seconds = tl.zeros((BLOCK,), tl.float64)
    norms = tl.zeros((BLOCK,), tl.float64)
    num_sums = tl.where(field < fields, parts * programs, 0)
    for start in range(0, num_sums, BLOCK):
        index = start + tl.arange(0, BLOCK)
        mask = index < num_sums
        offsets = moments + locate_partial_sums(index, field, programs, F, R, SIZE)
        pixels = tl.load(offsets, mask=mask, other=0.0).to(tl.float64)
        means = tl.load(offsets + kind, mask=mask, other=0.0).to(tl.float64)
        along = tl.load(constant + index // programs, mask=mask, other=0.0) if R else 1.0
        counts += pixels
        firsts += pixels * means * along
        seconds += pixels * means * means + tl.load(offsets + 2 * kind, mask=mask, other=0.0)
        norms += pixels * along * along
    count, first, second = tl.sum(counts) / parts * SIZE, tl.sum(firsts), tl.sum(seconds)
    if R:  # of rounded matrices: the squares of a constant field are not quite those of its components
        mean = first / tl.maximum(count, 1.0)
        second += (tl.sum(norms) - count) * mean * mean
    return count, first, second


@triton.jit
def store_scale_and_shift(
    factors, mean, variance, weight, bias, eps, field, fields, F, REPEATS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Store scale and shift, so that x * scale + shift is the normalised x; return inverse std and scale."""
    inverse_std = tl.rsqrt(variance + eps)
    scale = load_number(weight, 0, field, fields) * inverse_std
    store_factor(factors, 0, scale, field, F, REPEATS, COLUMNS)
    store_factor(factors, 1, load_number(bias, 0, field, fields) - mean * scale, field, F, REPEATS, COLUMNS)
    return inverse_std, scale


@triton.jit
def update_statistic(running, value, momentum, field, fields):
    """Move a running statistic towards that of a batch, in float32 as torch's lerp does."""
    before = load_number(running, 0, field, fields).to(tl.float32)
    store_number(running, 0, before + momentum * (value.to(tl.float32) - before), field, fields)


@triton.jit
def make_factors(
    moments, sums, constant, weight, bias, running_mean, running_var, statistics, factors, momentum, eps,
    programs, fields, F, R: tl.constexpr, SIZE: tl.constexpr, REPEATS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, SUMS: tl.constexpr, FACTORS: tl.constexpr,
):  # fmt: skip
    """Write the factors scale, shift and mean, and statistics for the gradient; update the running statistics.

    Statistics, (4, fields) float64, are the number of values (at least 1), mean, inverse std and scale. Sums,
    (3, fields) float64, are those that `sum_moments_of_field` returns.
    """
    field = tl.program_id(0)
    if SUMS:
        count, first, second = sum_moments_of_field(moments, constant, field, fields, programs, F, R, SIZE, BLOCK)
    else:
        count, first = load_number(sums, 0, field, fields), load_number(sums, 1, field, fields)
        second = load_number(sums, 2, field, fields)
    if FACTORS:
        divisor = tl.maximum(count, 1.0)
        mean = first / divisor
        variance = tl.maximum(second / divisor - mean * mean, 0.0)
        update_statistic(running_mean, mean, momentum, field, fields)
        update_statistic(running_var, variance * (count / tl.maximum(count - 1.0, 1.0)), momentum, field, fields)
        inverse_std, scale = store_scale_and_shift(
            factors, mean, variance, weight, bias, eps, field, fields, F, REPEATS, COLUMNS
        )
        store_factor(factors, 2, mean, field, F, REPEATS, COLUMNS)
        store_number(statistics, 0, divisor, field, fields)
        store_number(statistics, 1, mean, field, fields)
        store_number(statistics, 2, inverse_std, field, fields)
        store_number(statistics, 3, scale, field, fields)
    else:
        store_number(sums, 0, count, field, fields)
        store_number(sums, 1, first, field, fields)
        store_number(sums, 2, second, field, fields)


@triton.jit
def make_running_factors(
    running_mean, running_var, weight, bias, factors, eps,
    fields, F, REPEATS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the factors scale and shift of the running statistics."""
    field = tl.program_id(0)
    mean, variance = load_number(running_mean, 0, field, fields), load_number(running_var, 0, field, fields)
    store_scale_and_shift(factors, mean, variance, weight, bias, eps, field, fields, F, REPEATS, COLUMNS)


@triton.jit
def sum_gradients_of_field(
    partial_sums, field, fields, programs, F, R: tl.constexpr, SIZE: tl.constexpr, REPEATS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Return both sums of a field, of `norm_kernels.sum_gradients`, which in irreps are already over its channels."""
    firsts = tl.zeros((BLOCK,), tl.float64)
    seconds = tl.zeros((BLOCK,), tl.float64)
    num_sums = tl.where(field < fields, REPEATS * programs, 0)
    for start in range(0, num_sums, BLOCK):
        index = start + tl.arange(0, BLOCK)
        mask = index < num_sums
        offsets = partial_sums + locate_partial_sums(index, field, programs, F, R, SIZE)
        firsts += tl.load(offsets, mask=mask, other=0.0)
        seconds += tl.load(offsets + F * programs, mask=mask, other=0.0)
    return tl.sum(firsts), tl.sum(seconds)


@triton.jit
def make_gradient_factors(
    partial_sums, sums, statistics, factors, grad_weight, grad_bias, gradient_factors,
    programs, fields, F, R: tl.constexpr, SIZE: tl.constexpr, REPEATS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, SUMS: tl.constexpr, FACTORS: tl.constexpr,
):  # fmt: skip
    """Write the factors scale, shift, slope and offset of `norm_kernels.normalise_backward`, and gradients.

    Gradients of weight and bias are of this process: the trainer adds those of all processes. Sums, (2, fields)
    float64, are the same; slope and offset are explained in `compute_gradient_factors`.
    """
    field = tl.program_id(0)
    inverse_std = load_number(statistics, 2, field, fields)
    if SUMS:
        first, second = sum_gradients_of_field(partial_sums, field, fields, programs, F, R, SIZE, REPEATS, BLOCK)
        second *= inverse_std
        store_number(grad_bias, 0, first, field, fields)
        store_number(grad_weight, 0, second, field, fields)
    else:
        first, second = load_number(sums, 0, field, fields), load_number(sums, 1, field, fields)
    if FACTORS:
        count = tl.maximum(load_number(statistics, 0, field, fields), 1.0)
        mean, scale = load_number(statistics, 1, field, fields), load_number(statistics, 3, field, fields)
        slope = -scale * inverse_std * second / count
        for kind in tl.static_range(2):  # scale and shift
            factor = tl.load(factors + kind * F + field * REPEATS)
            store_factor(gradient_factors, kind, factor, field, F, REPEATS, COLUMNS)
        store_factor(gradient_factors, 2, slope, field, F, REPEATS, COLUMNS)
        store_factor(gradient_factors, 3, -scale * first / count - mean * slope, field, F, REPEATS, COLUMNS)
    else:
        store_number(sums, 0, first, field, fields)
        store_number(sums, 1, second, field, fields)
