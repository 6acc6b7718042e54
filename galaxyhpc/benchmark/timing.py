"""One network in several ways, in turns on one machine.

On a CPU every way lives in a process of its own, or its peak of memory and its start could not be told from the
others'; while one computes, the others wait. On a GPU, whose allocator counts by itself, all share this process.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch

from galaxyhpc.benchmark.implementations import Case, TimedNetwork
from galaxyhpc.runtime.malloc import keep_heap

PARTS = ("training", "inference")
IMPORT_TIMEOUT_SECONDS = 120.0
JsonDict = dict[str, Any]


class ImplementationError(RuntimeError):
    """Why a way could not be measured, in one line."""


@dataclass(frozen=True)
class TimingBudget:
    """How often, and how long a turn lasts at least, s."""

    num_rounds: int
    round_seconds: float


def call_method(timed_network: TimedNetwork, method: str, *arguments: float) -> Any:
    """Let a subject do something.

    Raises
    ------
    WayError
    """
    try:
        return getattr(timed_network, method)(*arguments)
    except Exception as error:  # whatever it is, the other ways go on
        lines = str(error).strip().splitlines() or [""]
        said = f"{type(error).__name__}: {lines[0][:300]}"
    timed_network.release()  # now that no traceback holds its tensors
    raise ImplementationError(said)


class InProcessRunner:
    """A way in this process."""

    def __init__(self, case: Case, implementation: str) -> None:
        self.timed_network = TimedNetwork(case, implementation)

    def wait_until_ready(self) -> None:
        """Return at once."""

    def call(self, method: str, *arguments: float) -> Any:
        return call_method(self.timed_network, method, *arguments)

    def close(self) -> None:
        self.timed_network.release()


class SubprocessRunner:
    """A way in a process of its own."""

    def __init__(self, case: Case, implementation: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve_calls, args=(theirs, case, implementation), daemon=True)
        self.process.start()
        theirs.close()
        self.is_ready = False

    def wait_until_ready(self) -> None:
        """Return when it has imported what it needs, which takes cores from whoever computes."""
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
                f"its process ended with status {code}; -9 is the kernel's where memory runs out"
            ) from None
        if isinstance(answer, ImplementationError):
            raise answer
        return answer

    def close(self) -> None:
        self.connection.close()
        self.process.join()


def serve_calls(connection: Connection, case: Case, implementation: str) -> None:
    """Answer until nobody asks any more."""
    keep_heap()  # as the trainer does
    torch.set_num_threads(case.num_threads)
    subject = TimedNetwork(case, implementation)
    connection.send("ready")
    while True:
        try:
            verb, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(call_method(subject, verb, *arguments))
        except ImplementationError as error:
            connection.send(error)


Runners = dict[str, InProcessRunner | SubprocessRunner]


@contextmanager
def _open_runners(case: Case, implementations: Sequence[str]) -> Iterator[Runners]:
    if case.device == "cuda" and case.should_compile:
        torch._dynamo.reset()  # it compiles one function for few networks only, then leaves it as it is
    subjects: Runners = {}
    try:
        for way in implementations:
            subjects[way] = InProcessRunner(case, way) if case.device == "cuda" else SubprocessRunner(case, way)
        for subject in subjects.values():
            subject.wait_until_ready()
        yield subjects
    finally:
        for subject in subjects.values():
            subject.close()


def compare_implementations(
    case: Case,
    implementations: Sequence[str],
    parts: Sequence[str],
    budget: TimingBudget,
    on_result: Callable[[JsonDict], None],
) -> JsonDict:
    """Measure one network in all ways; `note` is given what is known after every measured item."""
    of: dict[str, JsonDict] = {way: {} for way in implementations}
    found: JsonDict = {"model": case.model.model_dump(mode="json"), "size": case.image_size, "batch": case.batch_size}
    found |= {"precision": case.precision, "compiled": case.should_compile, "ratios": {}, "ways": of}
    with _open_runners(case, implementations) as subjects:
        for way, subject in subjects.items():
            with _record_failure(of[way]):
                of[way] |= subject.call("start")
            on_result(found)
        for part in parts:
            _time_part(subjects, of, part, budget, case.batch_size)
            found["ratios"] = compute_ratios(of, parts)
            on_result(found)
        if "training" in parts and "failed" not in of.get("ours", {"failed": ""}):
            with _record_failure(of["ours"]):
                of["ours"]["optimizer_seconds"] = subjects["ours"].call("optimizer", budget.round_seconds / 4)
            on_result(found)
    return found


def _time_part(
    runners: Runners, results: dict[str, JsonDict], part: str, budget: TimingBudget, batch_size: int
) -> None:
    """Let all ways that still work do one thing by turns."""
    times: dict[str, list[float]] = {way: [] for way in runners}
    for _ in range(budget.num_rounds):
        for way, subject in runners.items():
            if "failed" not in results[way]:
                with _record_failure(results[way]):
                    times[way].append(subject.call(part, budget.round_seconds))
    for way, some in times.items():
        if some:
            results[way][part] = summarize_times(some, batch_size)


@contextmanager
def _record_failure(results: JsonDict) -> Iterator[None]:
    """Note why a way failed; the others go on."""
    try:
        yield
    except ImplementationError as error:
        results["failed"] = str(error)


def summarize_times(times: Sequence[float], num_images: int) -> JsonDict:
    """Describe the turns of one way; the fastest counts, for what slows one down is not its own."""
    best = min(times)
    return {
        "seconds": best,
        "median_seconds": median(times),
        "turns": len(times),
        "images_per_second": num_images / best,
    }


def compute_ratios(results: dict[str, JsonDict], parts: Sequence[str]) -> JsonDict:
    """Return how many times the last way is faster, or smaller, than each of the others."""
    found: JsonDict = {}
    *others, last = results
    for part in (*parts, "startup_seconds", "peak_bytes"):
        numbers = {way: _get_number(results[way].get(part)) for way in results}
        found[part] = {
            f"{way}_to_{last}": numbers[way] / numbers[last] for way in others if numbers[way] and numbers[last]
        }
    return {part: quotients for part, quotients in found.items() if quotients}


def _get_number(measurement: Any) -> float:
    """Return s or bytes, 0 where nothing was measured."""
    if isinstance(measurement, dict):
        return float(measurement["seconds"])
    return float(measurement or 0.0)
