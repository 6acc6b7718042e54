"""The same jobs as real processes on this machine, never more at a time than it carries.

Ctrl-C reaches the processes as a signal that they only note: each saves at its next step and ends.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import submitit
from rich.console import Console
from rich.live import Live

from galaxyhpc.config.schema import ResourcesConfig
from galaxyhpc.runtime.parallel import cores
from galaxyhpc.status.table import room, table
from galaxyhpc.storage.run_dir import RunDir, state
from jobs.evaluate import EvaluateJob
from jobs.train import TrainJob

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Running:
    """A job that was started, and what it takes."""

    run: RunDir
    handle: submitit.LocalJob[str]
    training: bool
    cpus: int
    gpus: tuple[int, ...]


@dataclass(frozen=True)
class Machine:
    """What this machine carries."""

    cpus: int
    gpus: tuple[int, ...]
    jobs: int | None  # most at the same time, where the user says so

    def room(self, resources: ResourcesConfig, running: Sequence[Running]) -> tuple[int, ...] | None:
        """Return the GPUs that a further job may have, or None while there is no room; one job always fits."""
        taken = {gpu for job in running for gpu in job.gpus}
        free = [gpu for gpu in self.gpus if gpu not in taken]
        wanted = min(resources.gpus_per_node, len(self.gpus))
        if self.jobs is not None and len(running) >= self.jobs:
            return None
        fits = sum(job.cpus for job in running) + cpus_of(resources) <= self.cpus and wanted <= len(free)
        return tuple(free[:wanted]) if fits or not running else None


def cpus_of(resources: ResourcesConfig) -> int:
    """Return the CPUs that a job keeps busy."""
    return resources.tasks * resources.cpus_per_task


def this_machine(jobs: int | None) -> Machine:
    """Look at what this process may use; the GPUs that CUDA_VISIBLE_DEVICES numbers, else all."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    numbers = tuple(map(int, visible)) if all(map(str.isdecimal, visible)) else tuple(range(torch.cuda.device_count()))
    return Machine(cores(), numbers if torch.cuda.is_available() else (), jobs)


def start(job: TrainJob | EvaluateJob, run: RunDir, resources: ResourcesConfig, gpus: tuple[int, ...]) -> Running:
    """Start a job's processes, one per GPU where it has any; they log into the run's own directory."""
    training = isinstance(job, TrainJob)
    tasks = min(resources.tasks, len(gpus) or resources.tasks) if training else 1
    executor = submitit.LocalExecutor(run.log)
    executor.update_parameters(
        timeout_min=resources.time_minutes,
        tasks_per_node=tasks,
        gpus_per_node=len(gpus),
        visible_gpus=gpus,
        stderr_to_stdout=True,
    )
    with _deaf_to_interrupts():
        handle = executor.submit(job)
    return Running(run, handle, training, cpus_of(resources), gpus)


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
                    if job.training and job.run.best_file.exists():
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
            controller = int(job.handle.job_id)  # of submitit; it passes TERM on to its processes, but not KILL
            children = _children(controller) if number == signal.SIGKILL else []
            for process in [controller, *children]:
                with suppress(ProcessLookupError):
                    os.kill(process, number)
        try:
            time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            number = signal.SIGKILL


def _children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


@contextmanager
def _view(runs: list[RunDir], console: Console, title: str) -> Iterator[Callable[[], None]]:
    """Show a table that lives on a terminal, and a line for each change of state elsewhere."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2) as live:
            yield lambda: live.update(table(runs, title, room(console)))
        return
    known = dict.fromkeys(runs, "planned")

    def show() -> None:
        for run in runs:
            found = state(run)
            if known[run] != found.name:
                known[run] = found.name
                text = f"{run.run_id}: {found.name} {found.why}".strip()
                console.print(text, soft_wrap=True)

    yield show
