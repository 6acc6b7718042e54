"""Worker processes that apply one task to many items, a few of them ahead of the results, which come in order.

They start from a server that has imported all modules: a fork of this process would have the locks of its threads.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, get_context
from typing import Any

from galaxyhpc.runtime.child_python import make_child_environment
from galaxyhpc.runtime.parallel import init_worker
from galaxyhpc.runtime.process import keep_heap

ITEMS_PER_WORKER = 2  # that are in work, or wait for it or for the reader of the results
SERVER_MODULES = ["galaxyhpc.prediction.pipeline"]  # with all that its tasks need

_task: Callable[[Any], Any]  # of this process, if it is a worker


class WorkerError(RuntimeError):
    """A worker process that ended before its item was done."""


class Workers:
    """Processes for one task, which start with the first item and last until they are closed.

    After a WorkerError they may be used again: others start. With `num_workers` 0 this process does the work.
    """

    def __init__(self, task: Callable[[Any], Any], num_workers: int) -> None:
        self.task, self.num_workers = task, num_workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the results in order; what a worker raises is raised here.

        Raises
        ------
        WorkerError
            If a worker was killed.
        """
        if not self.num_workers:
            yield from map(self.task, items)
            return
        pool = self._pool = self._pool or _start_pool(self.task, self.num_workers)
        pending: deque[Future[Any]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(_run_task, item))
                if len(pending) > ITEMS_PER_WORKER * self.num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            self.close()
            advice = "where memory was short, ask for more or use fewer workers"
            raise WorkerError(
                f"worker process: got one that was killed; expected it to end by itself: {advice}"
            ) from error
        finally:
            for future in pending:
                future.cancel()

    def list_pids(self) -> list[int]:
        """Return the ids of the processes that have started."""
        return [] if self._pool is None else list(self._pool._processes)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _start_pool(task: Callable[[Any], Any], num_workers: int) -> ProcessPoolExecutor:
    """Start the server, and processes when there are items.

    The signal that asks a job to stop goes to all its processes: this one sets a flag, and the workers go on.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(SERVER_MODULES)
    previous, environment = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2}), dict(os.environ)
    os.environ.update(make_child_environment())
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(environment)
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    # as bytes: torch would move tensors to shared memory, of which a container may have little
    return ProcessPoolExecutor(num_workers, context, _start_worker, (os.getpid(), pickle.dumps(task)))


def _start_worker(parent_pid: int, task: bytes) -> None:
    global _task
    init_worker(parent_pid)
    keep_heap()
    _task = pickle.loads(task)


def _run_task(item: Any) -> Any:
    return _task(item)
