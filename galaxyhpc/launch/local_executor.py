"""Runs the jobs as processes on this machine, as many at a time as its CPUs and GPUs allow.

Ctrl-C only sets a flag in the processes: each saves a checkpoint at its next step and exits.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
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
from galaxyhpc.runtime.child_python import make_child_environment, name_parent
from galaxyhpc.runtime.parallel import count_cores
from galaxyhpc.status.table import get_max_rows, make_table_from_records
from galaxyhpc.storage.events import RunState
from galaxyhpc.storage.run_dir import RunDir, read_state
from jobs.evaluate import EvaluateJob
from jobs.predict import PredictJob
from jobs.train import TrainJob

POLL_SECONDS = 0.5

Job = TrainJob | EvaluateJob | PredictJob


@dataclass(frozen=True)
class RunningJob:
    """A started job with the CPUs and GPUs it uses."""

    run: RunDir
    handle: submitit.LocalJob[str]
    is_training: bool
    num_cpus: int
    gpu_ids: tuple[str, ...]


@dataclass(frozen=True)
class Machine:
    """CPUs and GPUs of this machine, and the limit that the user set."""

    num_cpus: int
    gpu_ids: tuple[str, ...]
    max_jobs: int | None  # at the same time; None: no limit

    def assign_gpus(self, resources: ResourcesConfig, running_jobs: Sequence[RunningJob]) -> tuple[str, ...] | None:
        """Return the GPUs for another job, or None while it does not fit; the first job always fits."""
        gpus_in_use = {gpu for job in running_jobs for gpu in job.gpu_ids}
        free = [gpu for gpu in self.gpu_ids if gpu not in gpus_in_use]
        num_gpus = min(resources.gpus_per_node, len(self.gpu_ids))
        if self.max_jobs is not None and len(running_jobs) >= self.max_jobs:
            return None
        num_cpus = sum(job.num_cpus for job in running_jobs) + count_cpus(resources)
        fits = num_cpus <= self.num_cpus and num_gpus <= len(free)
        return tuple(free[:num_gpus]) if fits or not running_jobs else None


def count_cpus(resources: ResourcesConfig) -> int:
    """Return the number of CPUs of a job."""
    return resources.num_tasks * resources.cpus_per_task


def detect_machine(max_jobs: int | None) -> Machine:
    """Count the CPUs and list the GPUs this process may use."""
    return Machine(count_cores(), _list_gpu_ids(), max_jobs)


def _get_gpu_variables() -> tuple[str, ...]:
    """Return the environment variables that select GPUs; the first one is obeyed, and the others where it is unset."""
    import torch

    return (*(["HIP_VISIBLE_DEVICES"] if torch.version.hip else []), "CUDA_VISIBLE_DEVICES")


def _list_gpu_ids() -> tuple[str, ...]:
    """Return the ids of the visible GPUs as the user wrote them: numbers, or `GPU-` or `MIG-` and a UUID."""
    import torch

    if not torch.cuda.is_available():
        return ()
    num_gpus = torch.cuda.device_count()
    selection = next((os.environ[name] for name in _get_gpu_variables() if name in os.environ), None)
    if selection is None:
        return tuple(map(str, range(num_gpus)))
    ids = tuple(filter(None, map(str.strip, selection.split(","))))
    # CUDA ignores what follows an id that does not exist, and shows a process only its first MIG device
    return ids if selection.strip().startswith("MIG-") else ids[:num_gpus]


def start_job(job: Job, run: RunDir, resources: ResourcesConfig, gpu_ids: tuple[str, ...]) -> RunningJob:
    """Start the processes of a job, one per GPU if it has GPUs; they log into the run directory."""
    is_training = isinstance(job, TrainJob)
    num_tasks = 1 if isinstance(job, EvaluateJob) else min(resources.num_tasks, len(gpu_ids) or resources.num_tasks)
    command = f"env {_get_gpu_variables()[0]}={shlex.quote(','.join(gpu_ids))} {shlex.quote(sys.executable)}"
    executor = submitit.LocalExecutor(run.log_dir, python=command)  # submitit's visible_gpus takes numbers only
    executor.update_parameters(timeout_min=resources.time_minutes, tasks_per_node=num_tasks, stderr_to_stdout=True)
    # jobs wait for USR2, whatever submitit was told to send
    variables = make_child_environment() | name_parent() | {"SUBMITIT_PREEMPT_SIGNAL": "USR2"}
    with _ignore_sigint(), environment_variables(**variables):
        handle = executor.submit(job)
    return RunningJob(run, handle, is_training, count_cpus(resources), gpu_ids)


@contextmanager
def _ignore_sigint() -> Iterator[None]:
    """Start children that ignore Ctrl-C: submitit's controller would kill processes that are about to save."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def choose_job(run: RunDir) -> Job:
    """Return the next job of a sweep's run."""
    path = str(run.path)
    return EvaluateJob(path) if run.best_file.exists() else TrainJob(path)


def run_all(
    pending_runs: dict[RunDir, ResourcesConfig],
    machine: Machine,
    console: Console,
    title: str,
    choose_job: Callable[[RunDir], Job] = choose_job,
) -> bool:
    """Run the jobs of runs in the given order under one live view; False if Ctrl-C stopped them.

    An evaluation follows a training that succeeded.
    """
    pending = [(choose_job(run), run) for run in pending_runs]
    running: list[RunningJob] = []
    with _live_view(list(pending_runs), console, title) as update_view:
        try:
            while pending or running:
                for job in [job for job in running if job.handle.done()]:
                    running.remove(job)
                    if job.is_training and job.run.best_file.exists():
                        pending.insert(0, (choose_job(job.run), job.run))
                while pending and (gpus := machine.assign_gpus(pending_runs[pending[0][1]], running)) is not None:
                    next_job, run = pending.pop(0)
                    running.append(start_job(next_job, run, pending_runs[run], gpus))
                update_view()
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            console.print("stopping: every process saves at its next step; press Ctrl-C again to kill them")
            _stop_jobs(running)
            return False
    return True


def _stop_jobs(running_jobs: Sequence[RunningJob]) -> None:
    """Send TERM until all jobs end: a process that is starting does not handle it yet; a second Ctrl-C sends KILL."""
    number = signal.SIGTERM
    while alive := [job for job in running_jobs if not job.handle.done()]:
        for job in alive:
            controller = int(job.handle.job_id)  # submitit's; it forwards TERM to the job's processes, but not KILL
            children = _get_child_pids(controller) if number == signal.SIGKILL else []
            for pid in [controller, *children]:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        try:
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            number = signal.SIGKILL


def _get_child_pids(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
    except OSError:
        return []


@contextmanager
def _live_view(runs: list[RunDir], console: Console, title: str) -> Iterator[Callable[[], None]]:
    """Yield a function that updates a live table on a terminal, or prints each change of state elsewhere."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2) as live:
            yield lambda: live.update(make_table_from_records(runs, title, get_max_rows(console)))
        return
    names = dict.fromkeys(runs, RunState.PLANNED)

    def print_changes() -> None:
        for run in runs:
            state = read_state(run)
            if names[run] != state.name:
                names[run] = state.name
                console.print(f"{run.run_id}: {': '.join(filter(None, (state.name, state.reason)))}", soft_wrap=True)

    yield print_changes
