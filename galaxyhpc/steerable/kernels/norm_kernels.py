"""The Triton kernels of `fused_norm`: batch norm, ReLU and anti-aliased pool of channels-last maps, one pass each.

A map is (pixels, C) in memory. A program computes tiles of BP pixels and BC channels; memory offsets are 64-bit, sums
float32 and in a fixed order, so that two runs have the same bits. The pool is described by `geometry`, the sides of the
map and of the pooled one (H, W, H', W').
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_factor(factors, row: tl.constexpr, channel, C):
    """Load a row of numbers per channel, (rows, C) float32, as (1, BC)."""
    return tl.load(factors + row * C + channel, mask=channel < C, other=0.0)[None, :]


@triton.jit
def sum_moments(x, moments, pixels, C, BP: tl.constexpr, BC: tl.constexpr, TILES: tl.constexpr):
    """Write (programs, 2, C): the mean of a program's pixels, and the sum of squared deviations from it.

    Every place of a tile has its own moments (Welford 1962), merged at the end: no difference of nearly equal sums.
    """
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    first = tl.program_id(0).to(tl.int64) * TILES * BP + tl.arange(0, BP)
    mean = tl.zeros((BP, BC), tl.float32)
    squares = tl.zeros((BP, BC), tl.float32)
    for tile in range(TILES):
        pixel = first + tile * BP
        mask = (pixel < pixels)[:, None] & (channel < C)[None, :]
        value = tl.load(x + pixel[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        difference = tl.where(mask, value - mean, 0.0)
        mean += difference * (1.0 / (tile + 1))
        squares += difference * tl.where(mask, value - mean, 0.0)
    counts = tl.minimum(tl.maximum((pixels - first + BP - 1) // BP, 0), TILES).to(tl.float32)[:, None]
    total_mean = tl.sum(counts * mean, 0) / tl.maximum(tl.sum(counts, 0), 1.0)
    deviation = mean - total_mean[None, :]
    offsets = moments + tl.program_id(0) * 2 * C + channel
    tl.store(offsets, total_mean, mask=channel < C)
    tl.store(offsets + C, tl.sum(squares + counts * deviation * deviation, 0), mask=channel < C)


@triton.jit
def normalise(
    x, y, factors, kernel, pixels, H, W, H_POOLED, W_POOLED, C,
    HAS_RELU: tl.constexpr, RADIUS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y = x * scale + shift, of factors (scale, shift), then ReLU; with RADIUS >= 0 also blur and keep every second."""
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    pixel = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    is_inside = (pixel < pixels)[:, None] & (channel < C)[None, :]
    scale, shift = load_factor(factors, 0, channel, C), load_factor(factors, 1, channel, C)
    if RADIUS < 0:
        result = tl.load(x + pixel[:, None] * C + channel[None, :], mask=is_inside, other=0.0).to(tl.float32)
        result = result * scale + shift
        if HAS_RELU:
            result = tl.maximum(result, 0.0)
    else:
        image, down, right = pixel // (H_POOLED * W_POOLED), pixel // W_POOLED % H_POOLED, pixel % W_POOLED
        result = tl.zeros((BP, BC), tl.float32)
        for tap_y in range(2 * RADIUS + 1):  # unrolled, it would load 25 tiles at once and fill the registers
            for tap_x in tl.static_range(2 * RADIUS + 1):
                source_y, source_x = 2 * down + tap_y - RADIUS, 2 * right + tap_x - RADIUS
                is_valid = (source_y >= 0) & (source_y < H) & (source_x >= 0) & (source_x < W)
                source = (image * H + source_y) * W + source_x
                mask = is_inside & is_valid[:, None]
                value = tl.load(x + source[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
                value = value * scale + shift
                if HAS_RELU:
                    value = tl.maximum(value, 0.0)
                weight = tl.load(kernel + tap_y * (2 * RADIUS + 1) + tap_x)
                result += tl.where(mask, value, 0.0) * weight
    tl.store(y + pixel[:, None] * C + channel[None, :], result.to(y.dtype.element_ty), mask=is_inside)


@triton.jit
def load_gradient(
    x, gradient, factors, kernel, pixel, channel, pixels, H, W, H_POOLED, W_POOLED, C,
    HAS_RELU: tl.constexpr, RADIUS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Return x, and the gradient that reaches x * scale + shift through pool and ReLU, both (BP, BC) float32."""
    is_inside = (pixel < pixels)[:, None] & (channel < C)[None, :]
    value = tl.load(x + pixel[:, None] * C + channel[None, :], mask=is_inside, other=0.0).to(tl.float32)
    if RADIUS < 0:
        result = tl.load(gradient + pixel[:, None] * C + channel[None, :], mask=is_inside, other=0.0).to(tl.float32)
    else:
        image, down, right = pixel // (H * W), pixel // W % H, pixel % W
        first_y, first_x = (
            (down - RADIUS + 1) // 2,
            (right - RADIUS + 1) // 2,
        )  # of the pooled pixels that read this one
        result = tl.zeros((BP, BC), tl.float32)
        for step_y in range(RADIUS + 1):
            for step_x in tl.static_range(RADIUS + 1):
                pooled_y, pooled_x = first_y + step_y, first_x + step_x
                tap_y, tap_x = down - 2 * pooled_y + RADIUS, right - 2 * pooled_x + RADIUS
                is_valid = (pooled_y >= 0) & (pooled_y < H_POOLED) & (pooled_x >= 0) & (pooled_x < W_POOLED)
                is_valid = is_valid & (tap_y >= 0) & (tap_y <= 2 * RADIUS) & (tap_x >= 0) & (tap_x <= 2 * RADIUS)
                weight = tl.load(kernel + tap_y * (2 * RADIUS + 1) + tap_x, mask=is_valid, other=0.0)
                source = (image * H_POOLED + pooled_y) * W_POOLED + pooled_x
                mask = is_inside & is_valid[:, None]
                part = tl.load(gradient + source[:, None] * C + channel[None, :], mask=mask, other=0.0)
                result += part.to(tl.float32) * weight[:, None]
    if HAS_RELU:
        scale, shift = load_factor(factors, 0, channel, C), load_factor(factors, 1, channel, C)
        result = tl.where(value * scale + shift > 0, result, 0.0)
    return value, tl.where(is_inside, result, 0.0)


@triton.jit
def sum_gradients(
    x, gradient, factors, sums, kernel, pixels, H, W, H_POOLED, W_POOLED, C,
    HAS_RELU: tl.constexpr, RADIUS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Write (programs, 2, C): sums of the gradient, and of its products with x - mean, factors' third row."""
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    mean = load_factor(factors, 2, channel, C)
    first = tl.zeros((BP, BC), tl.float32)
    second = tl.zeros((BP, BC), tl.float32)
    for tile in range(TILES):
        pixel = (tl.program_id(0).to(tl.int64) * TILES + tile) * BP + tl.arange(0, BP)
        value, part = load_gradient(
            x, gradient, factors, kernel, pixel, channel, pixels, H, W, H_POOLED, W_POOLED, C, HAS_RELU, RADIUS, BP, BC
        )
        first += part
        second += part * (value - mean)
    offsets = sums + tl.program_id(0) * 2 * C + channel
    tl.store(offsets, tl.sum(first, 0), mask=channel < C)
    tl.store(offsets + C, tl.sum(second, 0), mask=channel < C)


@triton.jit
def normalise_backward(
    x, gradient, grad_x, factors, kernel, pixels, H, W, H_POOLED, W_POOLED, C,
    HAS_RELU: tl.constexpr, RADIUS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradient of x = gradient * scale + x * slope + offset; factors (4, C): scale, shift, slope, offset."""
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    pixel = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    value, part = load_gradient(
        x, gradient, factors, kernel, pixel, channel, pixels, H, W, H_POOLED, W_POOLED, C, HAS_RELU, RADIUS, BP, BC
    )
    scale, slope = load_factor(factors, 0, channel, C), load_factor(factors, 2, channel, C)
    result = part * scale + value * slope + load_factor(factors, 3, channel, C)
    mask = (pixel < pixels)[:, None] & (channel < C)[None, :]
    tl.store(grad_x + pixel[:, None] * C + channel[None, :], result.to(grad_x.dtype.element_ty), mask=mask)
