"""The context of a step in its process: where it records, how long it may take, on what it computes."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import results
import torch
from results import JsonDict
from schedule import FULL, TINY, Scale

from galaxyhpc.benchmark.device_timer import measure_calls

MIN_BATCH_SIZE = 8  # with which it is tried again where memory runs out


@dataclass
class Campaign:
    """What a step is given; it can be sent to other processes."""

    out_dir: Path
    step: str
    deadline: float  # s, as time.time()
    is_tiny: bool
    sample: Path | None
    networks: str = ""  # of those whose training steps are timed, with commas

    @property
    def is_cuda(self) -> bool:
        return torch.cuda.is_available() and not self.is_tiny

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.is_cuda else "cpu")

    @property
    def precision(self) -> str:
        """Precision of training, as `train.precision`; the interpreter cannot multiply bfloat16."""
        return "bfloat16" if self.is_cuda else "float32"

    @property
    def scale(self) -> Scale:
        return TINY if self.is_tiny else FULL

    def list_networks(self) -> list[str]:
        """Return the networks whose training steps are timed."""
        return [name for name in self.scale.networks if not self.networks or name in self.networks.split(",")]

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.time()

    def record(self, **values: Any) -> None:
        """Write a result."""
        results.record(self.out_dir, self.step, **values)

    def record_failure(self, error: Exception, **values: Any) -> None:
        """Write why something has no result; raise the error again where the device is lost to this process."""
        self.record(**values, failed=f"{type(error).__name__}: {error}"[:300])
        if not self.is_device_usable():
            raise error

    def is_device_usable(self) -> bool:
        """Whether the device still computes: after an illegal access to memory it does not in this process."""
        try:
            self.synchronize()
            return float(torch.ones(2, device=self.device).sum()) == 2.0
        except Exception:  # of any kind, from a driver
            return False

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def run_side_by_side(self, function: Callable[[Campaign, str], None], names: Iterable[str]) -> None:
        """Call a function with this and each name, in a process each; write which of them failed."""
        context = multiprocessing.get_context("spawn")
        processes = {name: context.Process(target=function, args=(self, name)) for name in names}
        for process in processes.values():
            process.start()
        for name, process in processes.items():
            process.join()
            if process.exitcode != 0:
                self.record(network=name, failed=f"its process ended with status {process.exitcode}")

    def free_memory(self) -> None:
        """Return unused memory to the device, and start to record its peak."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def measure(self, function: Callable[[], object], max_calls: int = 20, num_warmup_calls: int = 2) -> JsonDict:
        """Time calls of a function: median, least and most, ms; with the peak of memory since `free_memory`."""
        times = measure_calls(function, self.device, self.scale.round_seconds, max_calls, num_warmup_calls)
        peak_gb = torch.cuda.max_memory_allocated() / 1e9 if self.is_cuda else 0.0
        return {"ms": times.median_ms, "min_ms": times.min_ms, "max_ms": times.max_ms, "peak_gb": round(peak_gb, 2)}

    def measure_batch(self, batch_size: int, measure: Callable[[int], JsonDict]) -> JsonDict:
        """Measure with a batch, or with half of it as often as memory runs out.

        Raises
        ------
        MemoryError
        """
        while True:
            try:
                return {"batch": batch_size, **measure(batch_size)}
            except torch.cuda.OutOfMemoryError as error:
                message = str(error)[:100]
            self.free_memory()  # now that no traceback holds tensors
            batch_size //= 2
            if batch_size < MIN_BATCH_SIZE:
                raise MemoryError(message)
