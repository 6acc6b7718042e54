"""The same jobs as real processes on this machine, never more at a time than it carries.

Ctrl-C reaches the processes as a signal that they only note: each saves at its next step and ends.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import submitit
from rich.console import Console
from rich.live import Live

from galaxyhpc.config import ResourcesConfig
from galaxyhpc.rundir import RunDir, state
from galaxyhpc.status import table
from jobs.evaluate import EvaluateJob
from jobs.train import TrainJob

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Running:
    """A job that was started, and what it takes."""

    run: RunDir
    handle: submitit.LocalJob[str]
    cpus: int
    gpus: tuple[int, ...]


@dataclass(frozen=True)
class Machine:
    """What this machine carries."""

    cpus: int
    gpus: int
    jobs: int | None  # most at the same time, where the user says so

    def room(self, resources: ResourcesConfig, running: Sequence[Running]) -> tuple[int, ...] | None:
        """Return the GPUs that a further job may have, or None while there is no room; one job always fits."""
        taken = {gpu for job in running for gpu in job.gpus}
        free = [gpu for gpu in range(self.gpus) if gpu not in taken]
        wanted = min(resources.gpus_per_node, self.gpus)
        if self.jobs is not None and len(running) >= self.jobs:
            return None
        fits = sum(job.cpus for job in running) + cpus_of(resources) <= self.cpus and wanted <= len(free)
        return tuple(free[:wanted]) if fits or not running else None


def cpus_of(resources: ResourcesConfig) -> int:
    """Return the CPUs that a job keeps busy."""
    return resources.tasks * resources.cpus_per_task


def this_machine(jobs: int | None) -> Machine:
    """Look at what this process may use."""
    import torch

    return Machine(len(os.sched_getaffinity(0)), torch.cuda.device_count(), jobs)


def start(job: TrainJob | EvaluateJob, run: RunDir, resources: ResourcesConfig, gpus: tuple[int, ...]) -> Running:
    """Start a job's processes; they log into the run's own directory."""
    executor = submitit.LocalExecutor(run.log)
    executor.update_parameters(
        timeout_min=resources.time_minutes,
        tasks_per_node=resources.tasks if isinstance(job, TrainJob) else 1,
        gpus_per_node=len(gpus),
        visible_gpus=gpus,
        stderr_to_stdout=True,
    )
    with _deaf_to_interrupts():
        handle = executor.submit(job)
    return Running(run, handle, cpus_of(resources), gpus)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Start children that ignore Ctrl-C: submitit's controller would otherwise kill what is about to save."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def carry_out(runs: dict[RunDir, ResourcesConfig], machine: Machine, console: Console, title: str) -> bool:
    """Train and evaluate runs in their order, with one live view; False where Ctrl-C ended it."""
    waiting: list[tuple[Callable[[str], TrainJob | EvaluateJob], RunDir]] = [
        (EvaluateJob if run.best_file.exists() else TrainJob, run) for run in runs
    ]
    running: list[Running] = []
    with _view(list(runs), console, title) as show:
        try:
            while waiting or running:
                for job in [job for job in running if job.handle.done()]:
                    running.remove(job)
                    if state(job.run).name == "trained":
                        waiting.insert(0, (EvaluateJob, job.run))
                while waiting and (gpus := machine.room(runs[waiting[0][1]], running)) is not None:
                    kind, run = waiting.pop(0)
                    running.append(start(kind(str(run.path)), run, runs[run], gpus))
                show()
                time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            console.print("stopping: every process saves at its next step; Ctrl-C again kills them")
            _stop(running)
            return False
    return True


def _stop(running: Sequence[Running]) -> None:
    """Ask again and again, since a process that is only starting does not listen yet; a second Ctrl-C kills."""
    number = signal.SIGTERM
    while alive := [job for job in running if not job.handle.done()]:
        for job in alive:
            os.kill(int(job.handle.job_id), number)  # submitit's controller passes it on to the processes
        try:
            time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            number = signal.SIGKILL


@contextmanager
def _view(runs: list[RunDir], console: Console, title: str) -> Iterator[Callable[[], None]]:
    """Show a table that lives on a terminal, and a line for each change of state elsewhere."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2) as live:
            yield lambda: live.update(table(runs, title))
        return
    known = dict.fromkeys(runs, "planned")

    def show() -> None:
        for run in runs:
            found = state(run)
            if known[run] != found.name:
                known[run] = found.name
                console.print(f"{run.run_id}: {found.name} {found.why}".strip(), highlight=False, soft_wrap=True)

    yield show
