"""Parallel map over processes, on the cores that this process may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TypeVar

from rich.console import Console
from rich.progress import track
from threadpoolctl import threadpool_limits

from galaxyhpc.runtime.child_python import die_with_parent

T = TypeVar("T")
R = TypeVar("R")

MAX_PROCESSES = 8  # reports are made on login nodes, which others use too


def parallel_map(function: Callable[[T], R], items: Sequence[T], title: str, min_per_process: int = 1) -> list[R]:
    """Apply a module's function to each item; return the results in order.

    A process gets at least `min_per_process` items. A terminal shows a progress bar with the title.
    """
    console = Console()
    bar = partial(track, description=title, total=len(items), transient=True, disable=not console.is_terminal)
    processes = min(count_cores(), MAX_PROCESSES, len(items) // min_per_process)
    if processes < 2:
        return [function(item) for item in bar(items)]
    chunk_size = max(1, len(items) // (8 * processes))  # small: a process that is done early takes more
    with ProcessPoolExecutor(processes, initializer=init_worker, initargs=(os.getpid(),)) as pool:
        return list(bar(pool.map(function, items, chunksize=chunk_size)))


def count_cores() -> int:
    """Return the number of cores that this process may use: a job or a container may use fewer than a node has."""
    import joblib  # slow to load

    num_cores: int = joblib.cpu_count()  # affinity, and the quota of a cgroup
    return num_cores


def init_worker(parent_pid: int) -> None:
    """Use one core, end with the parent, and leave Ctrl-C, which all processes of a terminal get, to it."""
    die_with_parent(parent_pid)
    threadpool_limits(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
