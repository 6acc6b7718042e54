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
from submitit.core.utils import environment_variables

from galaxyhpc.config.schema import ResourcesConfig
from galaxyhpc.runtime.child_python import make_child_environment
from galaxyhpc.runtime.parallel import count_cores
from galaxyhpc.status.table import get_max_rows, make_table_from_records
from galaxyhpc.storage.run_dir import RunDir, read_state
from jobs.evaluate import EvaluateJob
from jobs.train import TrainJob

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class RunningJob:
    """A job that was started, and what it takes."""

    run: RunDir
    handle: submitit.LocalJob[str]
    is_training: bool
    num_cpus: int
    gpu_ids: tuple[int, ...]


@dataclass(frozen=True)
class Machine:
    """What this machine carries."""

    num_cpus: int
    gpu_ids: tuple[int, ...]
    max_jobs: int | None  # most at the same time, where the user says so

    def assign_gpus(self, resources: ResourcesConfig, running_jobs: Sequence[RunningJob]) -> tuple[int, ...] | None:
        """Return the GPUs that a further job may have, or None while there is no room; one job always fits."""
        taken = {gpu for job in running_jobs for gpu in job.gpu_ids}
        free = [gpu for gpu in self.gpu_ids if gpu not in taken]
        wanted = min(resources.gpus_per_node, len(self.gpu_ids))
        if self.max_jobs is not None and len(running_jobs) >= self.max_jobs:
            return None
        fits = sum(job.num_cpus for job in running_jobs) + count_cpus(resources) <= self.num_cpus and wanted <= len(
            free
        )
        return tuple(free[:wanted]) if fits or not running_jobs else None


def count_cpus(resources: ResourcesConfig) -> int:
    """Return the CPUs that a job keeps busy."""
    return resources.num_tasks * resources.cpus_per_task


def detect_machine(max_jobs: int | None) -> Machine:
    """Look at what this process may use; the GPUs that CUDA_VISIBLE_DEVICES numbers, else all."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    numbers = tuple(map(int, visible)) if all(map(str.isdecimal, visible)) else tuple(range(torch.cuda.device_count()))
    return Machine(count_cores(), numbers if torch.cuda.is_available() else (), max_jobs)


def start_job(
    job: TrainJob | EvaluateJob, run: RunDir, resources: ResourcesConfig, gpu_ids: tuple[int, ...]
) -> RunningJob:
    """Start a job's processes, one per GPU where it has any; they log into the run's own directory."""
    training = isinstance(job, TrainJob)
    tasks = min(resources.num_tasks, len(gpu_ids) or resources.num_tasks) if training else 1
    executor = submitit.LocalExecutor(run.log_dir)
    executor.update_parameters(
        timeout_min=resources.time_minutes,
        tasks_per_node=tasks,
        gpus_per_node=len(gpu_ids),
        visible_gpus=gpu_ids,
        stderr_to_stdout=True,
    )
    with _ignore_sigint(), environment_variables(**make_child_environment()):
        handle = executor.submit(job)
    return RunningJob(run, handle, training, count_cpus(resources), gpu_ids)


@contextmanager
def _ignore_sigint() -> Iterator[None]:
    """Start children that ignore Ctrl-C: submitit's controller would otherwise kill what is about to save."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_all(pending_runs: dict[RunDir, ResourcesConfig], machine: Machine, console: Console, title: str) -> bool:
    """Train and evaluate runs in their order, with one live view; False where Ctrl-C ended it."""
    waiting: list[tuple[Callable[[str], TrainJob | EvaluateJob], RunDir]] = [
        (EvaluateJob if run.best_file.exists() else TrainJob, run) for run in pending_runs
    ]
    running: list[RunningJob] = []
    with _live_view(list(pending_runs), console, title) as show:
        try:
            while waiting or running:
                for job in [job for job in running if job.handle.done()]:
                    running.remove(job)
                    if job.is_training and job.run.best_file.exists():
                        waiting.insert(0, (EvaluateJob, job.run))
                while waiting and (gpus := machine.assign_gpus(pending_runs[waiting[0][1]], running)) is not None:
                    kind, run = waiting.pop(0)
                    running.append(start_job(kind(str(run.path)), run, pending_runs[run], gpus))
                show()
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            console.print("stopping: every process saves at its next step; Ctrl-C again kills them")
            _stop_jobs(running)
            return False
    return True


def _stop_jobs(running_jobs: Sequence[RunningJob]) -> None:
    """Ask again and again, since a process that is only starting does not listen yet; a second Ctrl-C kills."""
    number = signal.SIGTERM
    while alive := [job for job in running_jobs if not job.handle.done()]:
        for job in alive:
            controller = int(job.handle.job_id)  # of submitit; it passes TERM on to its processes, but not KILL
            children = _get_child_pids(controller) if number == signal.SIGKILL else []
            for process in [controller, *children]:
                with suppress(ProcessLookupError):
                    os.kill(process, number)
        try:
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            number = signal.SIGKILL


def _get_child_pids(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@contextmanager
def _live_view(runs: list[RunDir], console: Console, title: str) -> Iterator[Callable[[], None]]:
    """Show a table that lives on a terminal, and a line for each change of state elsewhere."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2) as live:
            yield lambda: live.update(make_table_from_records(runs, title, get_max_rows(console)))
        return
    known = dict.fromkeys(runs, "planned")

    def show() -> None:
        for run in runs:
            found = read_state(run)
            if known[run] != found.name:
                known[run] = found.name
                text = f"{run.run_id}: {found.name} {found.reason}".strip()
                console.print(text, soft_wrap=True)

    yield show
