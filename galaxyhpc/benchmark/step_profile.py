"""Profile of one training step: the kernels that its time goes to, and how busy the GPU is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity

NUM_KERNELS = 25  # that are listed, those of the longest time

JsonDict = dict[str, Any]


def profile_step(step: Callable[[], object], device: torch.device) -> JsonDict:
    """Run a step twice, then profile it: milliseconds of the clock and of all kernels, and the longest kernels."""
    for _ in range(2):
        step()
    _synchronize(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    start = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profiler:
        step()
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
