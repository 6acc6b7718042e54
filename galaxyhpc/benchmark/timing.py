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

from galaxyhpc.benchmark.implementations import Case, Subject
from galaxyhpc.runtime.malloc import keep_freed

PARTS = ("training", "inference")
IMPORT_SECONDS = 120.0
Found = dict[str, Any]


class WayError(RuntimeError):
    """Why a way could not be measured, in one line."""


@dataclass(frozen=True)
class Effort:
    """How often, and how long a turn lasts at least, s."""

    turns: int
    seconds: float


def answered(subject: Subject, verb: str, *arguments: float) -> Any:
    """Let a subject do something.

    Raises
    ------
    WayError
    """
    try:
        return getattr(subject, verb)(*arguments)
    except Exception as error:  # whatever it is, the other ways go on
        lines = str(error).strip().splitlines() or [""]
        said = f"{type(error).__name__}: {lines[0][:300]}"
    subject.release()  # now that no traceback holds its tensors
    raise WayError(said)


class Here:
    """A way in this process."""

    def __init__(self, case: Case, way: str) -> None:
        self.subject = Subject(case, way)

    def wait(self) -> None:
        """Return at once."""

    def ask(self, verb: str, *arguments: float) -> Any:
        return answered(self.subject, verb, *arguments)

    def close(self) -> None:
        self.subject.release()


class Apart:
    """A way in a process of its own."""

    def __init__(self, case: Case, way: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, case, way), daemon=True)
        self.process.start()
        theirs.close()
        self.greeted = False

    def wait(self) -> None:
        """Return when it has imported what it needs, which takes cores from whoever computes."""
        self.connection.poll(IMPORT_SECONDS)

    def ask(self, verb: str, *arguments: float) -> Any:
        try:
            if not self.greeted:
                self.greeted = bool(self.connection.recv())
            self.connection.send((verb, arguments))
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            raise WayError(f"its process ended with status {code}; -9 is the kernel's where memory runs out") from None
        if isinstance(answer, WayError):
            raise answer
        return answer

    def close(self) -> None:
        self.connection.close()
        self.process.join()


def serve(connection: Connection, case: Case, way: str) -> None:
    """Answer until nobody asks any more."""
    keep_freed()  # as the trainer does
    torch.set_num_threads(case.threads)
    subject = Subject(case, way)
    connection.send("ready")
    while True:
        try:
            verb, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(answered(subject, verb, *arguments))
        except WayError as error:
            connection.send(error)


Subjects = dict[str, Here | Apart]


@contextmanager
def _open(case: Case, ways: Sequence[str]) -> Iterator[Subjects]:
    if case.device == "cuda" and case.compiled:
        torch._dynamo.reset()  # it compiles one function for few networks only, then leaves it as it is
    subjects: Subjects = {}
    try:
        for way in ways:
            subjects[way] = Here(case, way) if case.device == "cuda" else Apart(case, way)
        for subject in subjects.values():
            subject.wait()
        yield subjects
    finally:
        for subject in subjects.values():
            subject.close()


def compare(
    case: Case, ways: Sequence[str], parts: Sequence[str], effort: Effort, note: Callable[[Found], None]
) -> Found:
    """Measure one network in all ways; `note` is given what is known after every measured item."""
    of: dict[str, Found] = {way: {} for way in ways}
    found: Found = {"model": case.model.model_dump(mode="json"), "size": case.size, "batch": case.batch}
    found |= {"precision": case.precision, "compiled": case.compiled, "ratios": {}, "ways": of}
    with _open(case, ways) as subjects:
        for way, subject in subjects.items():
            with _failing(of[way]):
                of[way] |= subject.ask("start")
            note(found)
        for part in parts:
            _take_turns(subjects, of, part, effort, case.batch)
            found["ratios"] = ratios(of, parts)
            note(found)
        if "training" in parts and "failed" not in of.get("ours", {"failed": ""}):
            with _failing(of["ours"]):
                of["ours"]["optimizer_seconds"] = subjects["ours"].ask("optimizer", effort.seconds / 4)
            note(found)
    return found


def _take_turns(subjects: Subjects, of: dict[str, Found], part: str, effort: Effort, batch: int) -> None:
    """Let all ways that still work do one thing by turns."""
    times: dict[str, list[float]] = {way: [] for way in subjects}
    for _ in range(effort.turns):
        for way, subject in subjects.items():
            if "failed" not in of[way]:
                with _failing(of[way]):
                    times[way].append(subject.ask(part, effort.seconds))
    for way, some in times.items():
        if some:
            of[way][part] = summary(some, batch)


@contextmanager
def _failing(found: Found) -> Iterator[None]:
    """Note why a way failed; the others go on."""
    try:
        yield
    except WayError as error:
        found["failed"] = str(error)


def summary(times: Sequence[float], images: int) -> Found:
    """Describe the turns of one way; the fastest counts, for what slows one down is not its own."""
    best = min(times)
    return {"seconds": best, "median_seconds": median(times), "turns": len(times), "images_per_second": images / best}


def ratios(of: dict[str, Found], parts: Sequence[str]) -> Found:
    """Return how many times the last way is faster, or smaller, than each of the others."""
    found: Found = {}
    *others, last = of
    for part in (*parts, "startup_seconds", "peak_bytes"):
        numbers = {way: _number(of[way].get(part)) for way in of}
        found[part] = {
            f"{way}_to_{last}": numbers[way] / numbers[last] for way in others if numbers[way] and numbers[last]
        }
    return {part: quotients for part, quotients in found.items() if quotients}


def _number(measured: Any) -> float:
    """Return s or bytes, 0 where nothing was measured."""
    if isinstance(measured, dict):
        return float(measured["seconds"])
    return float(measured or 0.0)
