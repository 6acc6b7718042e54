"""Slurm through submitit: arrays of each resource class, evaluation and report chained behind them.

A job is given the path of a run and nothing else, so what waits in the queue never goes stale. Each array carries a
token that its runs noted BEFORE it was submitted: a launch that dies in between is not repeated by the next one.
"""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import _make_sbatch_string

from galaxyhpc.config.schema import ResourcesConfig
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.child_python import format_assignments
from galaxyhpc.storage.run_dir import RunDir
from jobs.evaluate import EvaluateJob
from jobs.report import ReportJob
from jobs.train import CanaryJob, TrainJob

SIGNAL_DELAY_SECONDS = 90  # USR2 comes this long before the time limit
REPORT_RESOURCES = ResourcesConfig(cpus_per_task=2, time_minutes=60)

STAGES = ("canary", "train", "evaluate", "report")

JobType = Callable[[str], Callable[[], str]]
RunsByResources = dict[ResourcesConfig, list[RunDir]]


class SubmissionError(ValueError):
    """Slurm refused a part of the sweep; nothing of it is left in the queue."""


def group_by_resources(runs: dict[RunDir, ResourcesConfig]) -> RunsByResources:
    """Divide runs into classes that ask for the same resources."""
    classes: RunsByResources = {}
    for run, resources in runs.items():
        classes.setdefault(resources, []).append(run)
    return classes


@dataclass(frozen=True)
class JobArray:
    """Runs that are submitted together, numbered from 0: Slurm limits the index."""

    resources: ResourcesConfig
    runs: list[RunDir]
    max_parallel: int | None  # most of them at the same time
    depends_on: int | None  # number of the array that has to end first


def make_arrays(runs_by_resources: RunsByResources, max_parallel: int | None, max_size: int) -> list[JobArray]:
    """Divide classes into arrays of at most `most` elements, which share `parallel` jobs at the same time."""
    parts = [
        (resources, runs[start : start + max_size])
        for resources, runs in runs_by_resources.items()
        for start in range(0, len(runs), max_size)
    ]
    shares = split_concurrency([len(runs) for _, runs in parts], max_parallel)
    return [JobArray(*part, *share) for part, share in zip(parts, shares, strict=True)]


def split_concurrency(sizes: Sequence[int], max_parallel: int | None) -> list[tuple[int | None, int | None]]:
    """Share `parallel` jobs at the same time among arrays: how many each may run, and which one it waits for.

    The shares of arrays that may run together never add up to more. Where there are more arrays than jobs allowed,
    arrays queue up behind each other, one job at a time in each lane.
    """
    if max_parallel is None:
        return [(None, None)] * len(sizes)
    if len(sizes) > max_parallel:
        return [(1, number - max_parallel if number >= max_parallel else None) for number in range(len(sizes))]
    shares, left = [1] * len(sizes), max_parallel - len(sizes)
    while left > 0 and any(share < size for share, size in zip(shares, sizes, strict=True)):
        neediest = max(range(len(sizes)), key=lambda n: sizes[n] / shares[n])
        shares[neediest], left = shares[neediest] + 1, left - 1
    return [(share, None) for share in shares]


def make_submitit_parameters(job_name: str, resources: ResourcesConfig, max_parallel: int | None) -> dict[str, Any]:
    """Return what submitit needs to ask Slurm for these resources."""
    asked = {
        "job_name": job_name,
        "time": resources.time_minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "gpus_per_node": resources.gpus_per_node or None,
        "mem": None if resources.memory_gb is None else f"{round(resources.memory_gb * 1024)}M",
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclude": ",".join(resources.exclude_nodes) or None,
        "setup": list(resources.setup) or None,
        "array_parallelism": max_parallel,
        "signal_delay_s": SIGNAL_DELAY_SECONDS,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True},
        # srun does not inherit cpus-per-task since Slurm 22.05; a lost process must not leave the others waiting
        "srun_args": [f"--cpus-per-task={resources.cpus_per_task}", "--kill-on-bad-exit=1"],
    }
    return {key: value for key, value in asked.items() if value is not None}


def make_python_command() -> str:
    """Return the shell words that start Python in a job.

    A USR2 that comes before Python listens would kill it: it is ignored until then, and the time limit and TERM still
    stop the job.
    """
    return f'sh -c \'trap "" USR2; exec "$@"\' sh env {format_assignments()} {shlex.quote(sys.executable)}'


def make_sbatch_script(sweep: Path, resources: ResourcesConfig, num_runs: int, max_parallel: int | None) -> str:
    """Return the file that sbatch is given for a class of `count` runs, whether or not there is a Slurm here."""
    asked = make_submitit_parameters(f"{sweep.name}-train", resources, max_parallel)
    log = sweep.resolve() / "log"
    command = f"{make_python_command()} -u -m submitit.core._submit {shlex.quote(str(log))}"
    text: str = _make_sbatch_string(command, log, map_count=num_runs if num_runs > 1 else None, **asked)
    return text


@contextmanager
def _clean_slurm_environment() -> Iterator[None]:
    """Hide the variables of the Slurm job that this may run in; what a user set for sbatch stays."""
    kept = {name: text for name, text in os.environ.items() if name == "SLURM_CONF" or name.startswith("SBATCH_")}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


@dataclass
class Submission:
    """What a launch has handed to Slurm so far."""

    sweep: Path
    job_ids: dict[str, list[str]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    tokens: set[str] = field(default_factory=set)
    runs: list[RunDir] = field(default_factory=list)

    def submit_array(
        self, stage: str, jobs: Sequence[Callable[[], str]], parameters: dict[str, Any], *dependencies: str
    ) -> list[str]:
        """Submit jobs as one array and return their ids; `after` are dependencies that all have to hold."""
        wait = ",".join(filter(None, dependencies))
        extra = {"dependency": wait, "kill-on-invalid-dep": "yes"} if wait else {}
        extra |= {"comment": parameters["comment"]} if "comment" in parameters else {}
        parameters = {**parameters, "additional_parameters": {**parameters["additional_parameters"], **extra}}
        executor = submitit.SlurmExecutor(self.sweep / "log", python=make_python_command())  # one for each array
        executor.update_parameters(**parameters)
        with executor.batch():
            handles = [executor.submit(job) for job in jobs]
        found = [str(handle.job_id) for handle in handles]
        self.job_ids[stage] += found
        return found

    def submit_stage(
        self, stage: str, job_type: JobType, arrays: Sequence[JobArray], dependencies: Sequence[str]
    ) -> list[list[str]]:
        """Submit arrays of runs, each with a dependency of its own, and return the ids of each."""
        found: list[list[str]] = []
        for part, wait in zip(arrays, dependencies, strict=True):
            behind = "" if part.depends_on is None else _make_end_dependency(found[part.depends_on])
            found.append(self._submit_runs(stage, job_type, part, wait, behind))
        return found

    def _submit_runs(self, stage: str, job_type: JobType, array: JobArray, *dependencies: str) -> list[str]:
        """Submit one job for each run, which notes the array's token before and its job's id afterwards."""
        token = secrets.token_hex(6)
        self.tokens.add(token)
        self.runs += array.runs if stage == "train" else []
        for run in array.runs:
            run.record("submitting", token=token)
        asked = make_submitit_parameters(f"{self.sweep.name}-{stage}", array.resources, array.max_parallel) | {
            "comment": token
        }
        found = self.submit_array(stage, [job_type(str(run.path)) for run in array.runs], asked, *dependencies)
        noted = "submitted" if stage == "train" else "evaluation submitted"
        for run, one in zip(array.runs, found, strict=True):
            run.record(noted, job=one, executor="slurm", token=token)
        return found

    def cancel_all(self) -> None:
        """Take back what was submitted: half a sweep in the queue is worse than none."""
        jobs = {job for found in self.job_ids.values() for job in found}
        jobs |= {job for job, queued in (slurm.get_queue() or {}).items() if queued.comment in self.tokens}
        if jobs:
            subprocess.run(["scancel", *get_array_ids(jobs)], check=False, timeout=60)
        for run in self.runs:
            run.record("stopped", why="withdrawn, because a part of the sweep could not be submitted")


def submit(
    sweep: Path,
    untrained: RunsByResources,
    trained: RunsByResources,
    max_parallel: int | None,
    canary: RunDir | None = None,
) -> dict[str, list[str]]:
    """Submit what is to be trained and evaluated, and the report behind all of it; return at once.

    Parameters
    ----------
    train : untrained runs; each is evaluated when it is trained
    evaluate : runs that are trained already
    parallel : most jobs of a stage at the same time, over all classes
    canary : one of the untrained runs, whose first steps have to succeed before any other training starts

    Returns
    -------
    job ids by stage: canary, train, evaluate, report

    Raises
    ------
    SubmissionError
    """
    submission = Submission(sweep)
    try:
        with _clean_slurm_environment():
            _submit_all(submission, untrained, trained, max_parallel, canary)
    except FailedJobError as error:
        submission.cancel_all()
        raise SubmissionError(f"sbatch: {str(error).strip()}; what was submitted before is withdrawn") from error
    except BaseException:
        submission.cancel_all()
        raise
    return submission.job_ids


def _submit_all(
    submission: Submission,
    untrained: RunsByResources,
    trained: RunsByResources,
    max_parallel: int | None,
    canary: RunDir | None,
) -> None:
    """Submit stage by stage, noting every id as soon as there is one."""
    name, most, first = submission.sweep.name, slurm.get_max_array_size(), ""
    if canary is not None:
        resources = next(resources for resources, runs in untrained.items() if canary in runs)
        asked = make_submitit_parameters(f"{name}-canary", resources, None)
        first = _make_success_dependency(submission.submit_array("canary", [CanaryJob(str(canary.path))], asked))
    fresh, again = make_arrays(untrained, max_parallel, most), make_arrays(trained, max_parallel, most)
    ids = submission.submit_stage("train", TrainJob, fresh, [first] * len(fresh))
    ids += submission.submit_stage(
        "evaluate", EvaluateJob, list(map(_single_process, fresh)), list(map(_make_success_dependency, ids))
    )
    ids += submission.submit_stage("evaluate", EvaluateJob, list(map(_single_process, again)), [""] * len(again))
    asked = make_submitit_parameters(f"{name}-report", _make_report_resources(untrained or trained), None)
    submission.submit_array("report", [ReportJob(str(submission.sweep))], asked, _make_end_dependency(*ids))


def _make_success_dependency(job_ids: Sequence[str]) -> str:
    """Return the dependency on jobs of one array that succeed, element by element where there are several."""
    (array,) = get_array_ids(job_ids)
    return f"aftercorr:{array}" if "_" in job_ids[0] else f"afterok:{array}"


def _make_end_dependency(*arrays: Sequence[str]) -> str:
    return "afterany:" + ":".join(get_array_ids(job for jobs in arrays for job in jobs))


def get_array_ids(job_ids: Iterable[str]) -> list[str]:
    """Return the ids of the arrays that these jobs are elements of, each once, in the order of submission."""
    return sorted({job.partition("_")[0] for job in job_ids}, key=int)


def _single_process(array: JobArray) -> JobArray:
    """Return what evaluating these runs needs: one process each, and one GPU where there are some."""
    alone = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": min(1, array.resources.gpus_per_node)}
    return replace(array, resources=array.resources.model_copy(update=alone))


def _make_report_resources(runs_by_resources: RunsByResources) -> ResourcesConfig:
    """Ask for a small machine where the runs are allowed to be."""
    first = next(iter(runs_by_resources))
    return REPORT_RESOURCES.model_copy(
        update={name: getattr(first, name) for name in ("partition", "account", "qos", "setup")}
    )
