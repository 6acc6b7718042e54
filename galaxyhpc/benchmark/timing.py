"""Timing of several implementations of one network, in alternating rounds on one machine.

Every implementation has its own process: peak memory and start-up are its own, and an error on a GPU, after which that
process cannot use it, leaves the others alone. While one computes, the others wait.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch

from galaxyhpc.benchmark.implementations import Case, TimedNetwork
from galaxyhpc.runtime.child_python import die_with_parent
from galaxyhpc.runtime.process import keep_heap

PARTS = ("training", "inference")
NETWORK_PARTS = (*PARTS, "profile")
IMPORT_TIMEOUT_SECONDS = 120.0
JsonDict = dict[str, Any]


class ImplementationError(RuntimeError):
    """The reason in one line why an implementation could not be measured."""


@dataclass(frozen=True)
class TimingBudget:
    """Number of rounds, their minimum duration, and the end of all measurements."""

    num_rounds: int
    round_seconds: float
    deadline: float = math.inf  # s, as time.monotonic(); no round but the first of each begins later

    @property
    def is_spent(self) -> bool:
        return time.monotonic() > self.deadline


def call_method(timed_network: TimedNetwork, method: str, *arguments: float) -> Any:
    """Call a method of a timed network.

    Raises
    ------
    ImplementationError
    """
    try:
        return getattr(timed_network, method)(*arguments)
    except Exception as error:  # the other implementations continue
        lines = str(error).strip().splitlines() or [""]
        message = f"{type(error).__name__}: {lines[0][:300]}"
    timed_network.release()  # now that no traceback holds its tensors
    raise ImplementationError(message)


class SubprocessRunner:
    """An implementation in its own process."""

    def __init__(self, case: Case, implementation: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, child_connection = context.Pipe()
        # not a daemon, which could not have the child that tries the kernels of a GPU; it ends with the connection
        self.process = context.Process(target=serve_calls, args=(os.getpid(), child_connection, case, implementation))
        self.process.start()
        child_connection.close()
        self.is_ready = False

    def wait_until_ready(self) -> None:
        """Wait for its imports, which take cores from a process that computes."""
        self.connection.poll(IMPORT_TIMEOUT_SECONDS)

    def call(self, method: str, *arguments: float) -> Any:
        try:
            if not self.is_ready:
                self.is_ready = bool(self.connection.recv())
            self.connection.send((method, arguments))
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            raise ImplementationError(
                f"its process ended with status {code}; -9: the kernel killed it, probably out of memory"
            ) from None
        if isinstance(answer, ImplementationError):
            raise answer
        return answer

    def close(self) -> None:
        self.connection.close()
        self.process.join()


def serve_calls(parent_pid: int, connection: Connection, case: Case, implementation: str) -> None:
    """Answer calls until the connection is closed."""
    die_with_parent(parent_pid)
    keep_heap()  # as the trainer does
    torch.set_num_threads(case.num_threads)
    timed_network = TimedNetwork(case, implementation)
    connection.send("ready")
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(call_method(timed_network, method, *arguments))
        except ImplementationError as error:
            connection.send(error)


Runners = dict[str, SubprocessRunner]


@contextmanager
def _open_runners(case: Case, implementations: Sequence[str]) -> Iterator[Runners]:
    runners: Runners = {}
    try:
        for implementation in implementations:
            runners[implementation] = SubprocessRunner(case, implementation)
        for runner in runners.values():
            runner.wait_until_ready()
        yield runners
    finally:
        for runner in runners.values():
            runner.close()


def compare_implementations(
    case: Case,
    implementations: Sequence[str],
    parts: Sequence[str],
    budget: TimingBudget,
    on_result: Callable[[JsonDict], None],
) -> JsonDict:
    """Measure all implementations of one network; `on_result` gets the results so far after every measurement."""
    results: dict[str, JsonDict] = {implementation: {} for implementation in implementations}
    network: JsonDict = {"model": case.model.model_dump(mode="json"), "size": case.image_size, "batch": case.batch_size}
    network |= {"precision": case.precision, "compiled": case.should_compile, "kernels": case.kernels}
    network |= {"ratios": {}, "implementations": results}
    timed_parts = [part for part in parts if part in PARTS]
    with _open_runners(case, implementations) as runners:
        for implementation, runner in runners.items():
            with _record_failure(results[implementation]):
                results[implementation] |= runner.call("start")
            on_result(network)
        for part in timed_parts:
            _time_part(runners, results, part, budget, case.batch_size)
            network["ratios"] = compute_ratios(results, timed_parts)
            on_result(network)
        if case.device == "cuda" and "failed" not in results.get("ours", {"failed": ""}):
            with _record_failure(results["ours"]):
                results["ours"]["estimated"] = runners["ours"].call("estimate")
        if "profile" in parts:
            for implementation, runner in runners.items():
                if "failed" not in results[implementation]:
                    with _record_failure(results[implementation]):
                        results[implementation]["profile"] = runner.call("profile")
            on_result(network)
        if "training" in parts and "failed" not in results.get("ours", {"failed": ""}):
            with _record_failure(results["ours"]):
                results["ours"]["optimizer_seconds"] = runners["ours"].call("optimizer", budget.round_seconds / 4)
            on_result(network)
    return network


def _time_part(
    runners: Runners, results: dict[str, JsonDict], part: str, budget: TimingBudget, batch_size: int
) -> None:
    """Time one part of all implementations that have not failed, in alternating rounds."""
    times: dict[str, list[float]] = {implementation: [] for implementation in runners}
    for round_number in range(budget.num_rounds):
        if round_number and budget.is_spent:
            break
        for implementation, runner in runners.items():
            if "failed" not in results[implementation]:
                with _record_failure(results[implementation]):
                    times[implementation].append(runner.call(part, budget.round_seconds))
    for implementation, round_times in times.items():
        if round_times:
            results[implementation][part] = summarize_times(round_times, batch_size)


@contextmanager
def _record_failure(results: JsonDict) -> Iterator[None]:
    """Record why an implementation failed; the others continue."""
    try:
        yield
    except ImplementationError as error:
        results["failed"] = str(error)


def summarize_times(times: Sequence[float], num_images: int) -> JsonDict:
    """Summarise the rounds of one implementation by the fastest: other load only slows them down."""
    fastest = min(times)
    return {
        "seconds": fastest,
        "median_seconds": median(times),
        "rounds": len(times),
        "images_per_second": num_images / fastest,
    }


def compute_ratios(results: dict[str, JsonDict], parts: Sequence[str]) -> JsonDict:
    """Return the ratios of each implementation's time and memory to those of the last."""
    ratios: JsonDict = {}
    *others, last = results
    for part in (*parts, "startup_seconds", "peak_bytes"):
        values = {name: _get_number(results[name].get(part)) for name in results}
        ratios[part] = {
            f"{name}_to_{last}": values[name] / values[last] for name in others if values[name] and values[last]
        }
    return {part: ratios_of_part for part, ratios_of_part in ratios.items() if ratios_of_part}


def _get_number(measurement: Any) -> float:
    """Return seconds or bytes, 0 where nothing was measured."""
    if isinstance(measurement, dict):
        return float(measurement["seconds"])
    return float(measurement or 0.0)
