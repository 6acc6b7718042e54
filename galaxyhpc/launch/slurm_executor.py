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
from galaxyhpc.storage.run_dir import RunDir
from jobs.evaluate import EvaluateJob
from jobs.report import ReportJob
from jobs.train import CanaryJob, TrainJob

SIGNAL_SECONDS = 90  # USR2 comes this long before the time limit
# a USR2 that comes before Python listens would kill it; what is lost by ignoring it, the job's end and TERM still say
PYTHON = f'sh -c \'trap "" USR2; exec "$@"\' sh {shlex.quote(sys.executable)}'
REPORT = ResourcesConfig(cpus_per_task=2, time_minutes=60)

STAGES = ("canary", "train", "evaluate", "report")

Job = Callable[[str], Callable[[], str]]
Classes = dict[ResourcesConfig, list[RunDir]]


class SubmissionError(ValueError):
    """Slurm refused a part of the sweep; nothing of it is left in the queue."""


def by_resources(runs: dict[RunDir, ResourcesConfig]) -> Classes:
    """Divide runs into classes that ask for the same resources."""
    classes: Classes = {}
    for run, resources in runs.items():
        classes.setdefault(resources, []).append(run)
    return classes


@dataclass(frozen=True)
class Array:
    """Runs that are submitted together, numbered from 0: Slurm limits the index."""

    resources: ResourcesConfig
    runs: list[RunDir]
    share: int | None  # most of them at the same time
    behind: int | None  # number of the array that has to end first


def arrays(classes: Classes, parallel: int | None, most: int) -> list[Array]:
    """Divide classes into arrays of at most `most` elements, which share `parallel` jobs at the same time."""
    parts = [
        (resources, runs[start : start + most])
        for resources, runs in classes.items()
        for start in range(0, len(runs), most)
    ]
    shares = lanes([len(runs) for _, runs in parts], parallel)
    return [Array(*part, *share) for part, share in zip(parts, shares, strict=True)]


def lanes(sizes: Sequence[int], parallel: int | None) -> list[tuple[int | None, int | None]]:
    """Share `parallel` jobs at the same time among arrays: how many each may run, and which one it waits for.

    The shares of arrays that may run together never add up to more. Where there are more arrays than jobs allowed,
    arrays queue up behind each other, one job at a time in each lane.
    """
    if parallel is None:
        return [(None, None)] * len(sizes)
    if len(sizes) > parallel:
        return [(1, number - parallel if number >= parallel else None) for number in range(len(sizes))]
    shares, left = [1] * len(sizes), parallel - len(sizes)
    while left > 0 and any(share < size for share, size in zip(shares, sizes, strict=True)):
        neediest = max(range(len(sizes)), key=lambda n: sizes[n] / shares[n])
        shares[neediest], left = shares[neediest] + 1, left - 1
    return [(share, None) for share in shares]


def parameters(name: str, resources: ResourcesConfig, parallel: int | None) -> dict[str, Any]:
    """Return what submitit needs to ask Slurm for these resources."""
    asked = {
        "job_name": name,
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
        "array_parallelism": parallel,
        "signal_delay_s": SIGNAL_SECONDS,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True},
        # srun does not inherit cpus-per-task since Slurm 22.05; a lost process must not leave the others waiting
        "srun_args": [f"--cpus-per-task={resources.cpus_per_task}", "--kill-on-bad-exit=1"],
    }
    return {key: value for key, value in asked.items() if value is not None}


def sbatch_text(sweep: Path, resources: ResourcesConfig, count: int, parallel: int | None) -> str:
    """Return the file that sbatch is given for a class of `count` runs, whether or not there is a Slurm here."""
    asked = parameters(f"{sweep.name}-train", resources, parallel)
    log = sweep.resolve() / "log"
    command = f"{PYTHON} -u -m submitit.core._submit {shlex.quote(str(log))}"
    text: str = _make_sbatch_string(command, log, map_count=count if count > 1 else None, **asked)
    return text


@contextmanager
def _outside_any_job() -> Iterator[None]:
    """Hide the variables of the Slurm job that this may run in; what a user set for sbatch stays."""
    kept = {name: text for name, text in os.environ.items() if name == "SLURM_CONF" or name.startswith("SBATCH_")}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


@dataclass
class Submission:
    """What a launch has handed to Slurm so far."""

    sweep: Path
    ids: dict[str, list[str]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    tokens: set[str] = field(default_factory=set)
    runs: list[RunDir] = field(default_factory=list)

    def array(self, stage: str, jobs: Sequence[Callable[[], str]], asked: dict[str, Any], *after: str) -> list[str]:
        """Submit jobs as one array and return their ids; `after` are dependencies that all have to hold."""
        wait = ",".join(filter(None, after))
        extra = {"dependency": wait, "kill-on-invalid-dep": "yes"} if wait else {}
        extra |= {"comment": asked["comment"]} if "comment" in asked else {}
        asked = {**asked, "additional_parameters": {**asked["additional_parameters"], **extra}}
        executor = submitit.SlurmExecutor(self.sweep / "log", python=PYTHON)  # parameters stick to an executor
        executor.update_parameters(**asked)
        with executor.batch():
            handles = [executor.submit(job) for job in jobs]
        found = [str(handle.job_id) for handle in handles]
        self.ids[stage] += found
        return found

    def stage(self, stage: str, job: Job, parts: Sequence[Array], after: Sequence[str]) -> list[list[str]]:
        """Submit arrays of runs, each with a dependency of its own, and return the ids of each."""
        found: list[list[str]] = []
        for part, wait in zip(parts, after, strict=True):
            behind = "" if part.behind is None else _ended(found[part.behind])
            found.append(self._runs(stage, job, part, wait, behind))
        return found

    def _runs(self, stage: str, job: Job, part: Array, *after: str) -> list[str]:
        """Submit one job for each run, which notes the array's token before and its job's id afterwards."""
        token = secrets.token_hex(6)
        self.tokens.add(token)
        self.runs += part.runs if stage == "train" else []
        for run in part.runs:
            run.record("submitting", token=token)
        asked = parameters(f"{self.sweep.name}-{stage}", part.resources, part.share) | {"comment": token}
        found = self.array(stage, [job(str(run.path)) for run in part.runs], asked, *after)
        noted = "submitted" if stage == "train" else "evaluation submitted"
        for run, one in zip(part.runs, found, strict=True):
            run.record(noted, job=one, executor="slurm", token=token)
        return found

    def withdraw(self) -> None:
        """Take back what was submitted: half a sweep in the queue is worse than none."""
        jobs = {job for found in self.ids.values() for job in found}
        jobs |= {job for job, queued in (slurm.queue() or {}).items() if queued.comment in self.tokens}
        if jobs:
            subprocess.run(["scancel", *array_ids(jobs)], check=False, timeout=60)
        for run in self.runs:
            run.record("stopped", why="withdrawn, because a part of the sweep could not be submitted")


def submit(
    sweep: Path, train: Classes, evaluate: Classes, parallel: int | None, canary: RunDir | None = None
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
        with _outside_any_job():
            _submit_all(submission, train, evaluate, parallel, canary)
    except FailedJobError as error:
        submission.withdraw()
        raise SubmissionError(f"sbatch: {str(error).strip()}; what was submitted before is withdrawn") from error
    except BaseException:
        submission.withdraw()
        raise
    return submission.ids


def _submit_all(
    submission: Submission, train: Classes, evaluate: Classes, parallel: int | None, canary: RunDir | None
) -> None:
    """Submit stage by stage, noting every id as soon as there is one."""
    name, most, first = submission.sweep.name, slurm.most_elements(), ""
    if canary is not None:
        resources = next(resources for resources, runs in train.items() if canary in runs)
        asked = parameters(f"{name}-canary", resources, None)
        first = _succeeded(submission.array("canary", [CanaryJob(str(canary.path))], asked))
    fresh, again = arrays(train, parallel, most), arrays(evaluate, parallel, most)
    ids = submission.stage("train", TrainJob, fresh, [first] * len(fresh))
    ids += submission.stage("evaluate", EvaluateJob, list(map(_on_one, fresh)), list(map(_succeeded, ids)))
    ids += submission.stage("evaluate", EvaluateJob, list(map(_on_one, again)), [""] * len(again))
    asked = parameters(f"{name}-report", _report_resources(train or evaluate), None)
    submission.array("report", [ReportJob(str(submission.sweep))], asked, _ended(*ids))


def _succeeded(jobs: Sequence[str]) -> str:
    """Return the dependency on jobs of one array that succeed, element by element where there are several."""
    (array,) = array_ids(jobs)
    return f"aftercorr:{array}" if "_" in jobs[0] else f"afterok:{array}"


def _ended(*arrays: Sequence[str]) -> str:
    return "afterany:" + ":".join(array_ids(job for jobs in arrays for job in jobs))


def array_ids(jobs: Iterable[str]) -> list[str]:
    """Return the ids of the arrays that these jobs are elements of, each once, in the order of submission."""
    return sorted({job.partition("_")[0] for job in jobs}, key=int)


def _on_one(part: Array) -> Array:
    """Return what evaluating these runs needs: one process each, and one GPU where there are some."""
    alone = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": min(1, part.resources.gpus_per_node)}
    return replace(part, resources=part.resources.model_copy(update=alone))


def _report_resources(classes: Classes) -> ResourcesConfig:
    """Ask for a small machine where the runs are allowed to be."""
    first = next(iter(classes))
    return REPORT.model_copy(update={name: getattr(first, name) for name in ("partition", "account", "qos", "setup")})
