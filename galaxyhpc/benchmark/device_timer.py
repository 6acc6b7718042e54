"""Times of function calls on a device, by the GPU's own clock where there is one, and the profile of one call."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity

MIN_CALLS = 3
NUM_KERNELS = 25  # that a profile lists, those of the longest time

JsonDict = dict[str, Any]


class CallTimes(NamedTuple):
    """The times of single calls, ms."""

    median_ms: float
    min_ms: float
    max_ms: float


def measure_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call."""
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    function()
    end_event.record()
    end_event.synchronize()
    return float(start_event.elapsed_time(end_event)) / 1000


def measure_calls(
    function: Callable[[], object],
    device: torch.device,
    round_seconds: float,
    max_calls: int = 20,
    num_warmup_calls: int = 2,
) -> CallTimes:
    """Time single calls after untimed ones, for about `round_seconds`; at least 3, or 1 where `round_seconds` is 0."""
    for _ in range(num_warmup_calls if round_seconds else 0):
        function()
    min_calls = MIN_CALLS if round_seconds else 1
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < min_calls or (len(times) < max_calls and time.perf_counter() - start < round_seconds):
        times.append(1000 * measure_seconds(function, device))
    return CallTimes(*(round(value, 4) for value in (median(times), min(times), max(times))))


def profile_call(function: Callable[[], object], device: torch.device) -> JsonDict:
    """Call a function twice, then profile it: milliseconds of the clock and of all kernels, and the longest kernels."""
    for _ in range(2):
        function()
    _synchronize(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    start = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profiler:
        function()
        _synchronize(device)
        wall_ms = 1000 * (time.perf_counter() - start)
    kernels = _list_kernels(profiler, device)
    return {
        "wall_ms": round(wall_ms, 2),
        "busy_ms": round(sum(milliseconds for _, _, milliseconds in kernels), 2),
        "num_launches": sum(count for _, count, _ in kernels),
        "longest_kernels": [
            [name[:80], count, round(milliseconds, 3)] for name, count, milliseconds in kernels[:NUM_KERNELS]
        ],
    }


def _list_kernels(profiler: torch.profiler.profile, device: torch.device) -> list[tuple[str, int, float]]:
    """Return name, calls and milliseconds of all kernels of a GPU, or of all operators of a CPU, longest first."""
    kernels = []
    for event in profiler.key_averages():
        if device.type != "cuda":
            kernels.append((event.key, event.count, event.self_cpu_time_total / 1000))
        elif event.device_type.name == "CUDA":
            kernels.append((event.key, event.count, event.self_device_time_total / 1000))
    return sorted(kernels, key=lambda kernel: kernel[2], reverse=True)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
