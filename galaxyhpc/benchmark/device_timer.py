"""Seconds of function calls on a device, by the GPU's own clock where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

MIN_CALLS = 3


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
