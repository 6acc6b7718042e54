"""Submits jobs to Slurm through submitit: one array per resource class, then the evaluations and the report.

A job holds the path of a run and nothing else, so a waiting job is never out of date. The runs of an array record its
token BEFORE it is submitted: after a launch is killed in between, the next one finds the jobs by it and submits no
second ones.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import _make_sbatch_string

from galaxyhpc.config.schema import ResourcesConfig
from galaxyhpc.config.slurm_options import SbatchOptions, has_gpus, set_num_gpus
from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.child_python import format_assignments
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import get_report_records, refuse_symlinks
from jobs.evaluate import EvaluateJob
from jobs.report import ReportJob
from jobs.train import CanaryJob, TrainJob

SIGNAL_DELAY_SECONDS = 90  # USR2 is sent this long before the time limit
REPORT_RESOURCES = ResourcesConfig(cpus_per_task=2, time_minutes=60)
# whom a job is charged to, where it may run and who hears of it; the others are for the runs: licenses, whole nodes
REPORT_SBATCH_OPTIONS = ("wckey", "reservation", "mail-user", "mail-type")

# prints the line of the script that failed; in a file that is sourced, lines may fail
SETUP_TRAP = """\
trap 'status=$? line=$LINENO
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    echo "resources.setup: $(sed -n "${line}{s/^(exit .?) # //;p}" "$0"): got exit status $status; expected 0"
    exit $status
fi' ERR"""

STAGES = ("canary", "train", "evaluate", "predict", "report")

JobType = Callable[[str], Callable[[], str]]
RunsByResources = dict[ResourcesConfig, list[RunDir]]


class SubmissionError(ValueError):
    """Slurm refused a part of the sweep; all its jobs were cancelled."""


def group_by_resources(runs: dict[RunDir, ResourcesConfig]) -> RunsByResources:
    """Group runs by the resources that they request."""
    classes: RunsByResources = {}
    for run, resources in runs.items():
        classes.setdefault(resources, []).append(run)
    return classes


@dataclass(frozen=True)
class JobArray:
    """Runs that are submitted together as array tasks 0, 1, ...: Slurm limits the index."""

    resources: ResourcesConfig
    runs: list[RunDir]
    max_parallel: int | None  # tasks at the same time; None: no limit
    depends_on: int | None  # index of the array that has to end first


def make_arrays(runs_by_resources: RunsByResources, max_parallel: int | None, max_size: int) -> list[JobArray]:
    """Split classes into arrays of at most `max_size` tasks, which share `max_parallel` concurrent jobs."""
    parts = [
        (resources, runs[start : start + max_size])
        for resources, runs in runs_by_resources.items()
        for start in range(0, len(runs), max_size)
    ]
    limits = split_concurrency([len(runs) for _, runs in parts], max_parallel)
    return [JobArray(*part, *limit) for part, limit in zip(parts, limits, strict=True)]


def split_concurrency(sizes: Sequence[int], max_parallel: int | None) -> list[tuple[int | None, int | None]]:
    """Share `max_parallel` concurrent jobs among arrays: return the limit of each, and the array that it waits for.

    The limits of arrays that may run together add up to at most `max_parallel`. If there are more arrays than that,
    `max_parallel` arrays run one job at a time, and each further array waits for an earlier one to end.
    """
    if max_parallel is None:
        return [(None, None)] * len(sizes)
    if len(sizes) > max_parallel:
        return [(1, index - max_parallel if index >= max_parallel else None) for index in range(len(sizes))]
    limits, num_left = [1] * len(sizes), max_parallel - len(sizes)
    while num_left > 0 and any(limit < size for limit, size in zip(limits, sizes, strict=True)):
        slowest = max(range(len(sizes)), key=lambda n: sizes[n] / limits[n])
        limits[slowest], num_left = limits[slowest] + 1, num_left - 1
    return [(limit, None) for limit in limits]


def make_submitit_parameters(job_name: str, resources: ResourcesConfig, max_parallel: int | None) -> dict[str, Any]:
    """Return submitit's parameters for a job with these resources."""
    options, gpus_per_node = resources.sbatch.requested, resources.gpus_per_node or None
    if has_gpus(gres := options.get("gres")):  # asks for the GPUs already
        options, gpus_per_node = options | {"gres": set_num_gpus(str(gres), resources.gpus_per_node)}, None
    parameters = {
        "job_name": re.sub(r"[^\w.+-]", "_", job_name),  # written unquoted in an sbatch file
        "time": resources.time_minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "gpus_per_node": gpus_per_node,
        "mem": None if resources.memory_gb is None else f"{round(resources.memory_gb * 1024)}M",
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclude": ",".join(resources.exclude_nodes) or None,
        "setup": make_setup_lines(resources.setup),
        "array_parallelism": max_parallel,
        "stderr_to_stdout": True,
        "additional_parameters": {
            "export": "ALL",  # jobs need the environment, and a site's default may be NONE
            "signal": f"USR2@{SIGNAL_DELAY_SECONDS}",  # the one that jobs wait for; submitit's can be changed
            "requeue": "expedite" if resources.requeue == "expedite" else True,
            **options,
        },
        # since Slurm 22.05 srun does not inherit cpus-per-task; if one process dies, the others must not wait for it
        "srun_args": [
            f"--cpus-per-task={resources.cpus_per_task}",
            "--kill-on-bad-exit=1",
            "--export=ALL",
            *resources.srun,
        ],
    }
    # clusters that enforce wckeys refuse submitit's own
    return {key: value for key, value in parameters.items() if value is not None} | {"wckey": None}


def make_setup_lines(commands: Sequence[str]) -> list[str]:
    """Return the shell lines before srun: a command with an exit status other than 0 ends the job, and is named."""
    lines = ["export PATH  # bash sets it but does not export it in a job that got no environment"]
    if not commands:
        return lines
    lines.append(SETUP_TRAP)
    for command in commands:
        # the trap of bash ignores all commands of a && b but the last
        lines += [command, f"(exit $?) # {' '.join(command.split())}"] if "&&" in command else [command]
    return [*lines, "trap - ERR"]


def make_python_command() -> str:
    """Return the shell words that start Python in a job.

    A USR2 that comes before Python listens would kill it: it is ignored until then, and the time limit and TERM still
    stop the job.
    """
    return f'sh -c \'trap "" USR2; exec "$@"\' sh env {format_assignments()} {shlex.quote(sys.executable)}'


def make_sbatch_script(sweep: Path, resources: ResourcesConfig, num_runs: int, max_parallel: int | None) -> str:
    """Return the sbatch script of an array of `num_runs` runs; needs no Slurm."""
    parameters = make_submitit_parameters(f"{sweep.name}-train", resources, max_parallel)
    log = sweep.resolve() / "log"
    command = f"{make_python_command()} -u -m submitit.core._submit {shlex.quote(str(log))}"
    text: str = _make_sbatch_string(command, log, map_count=num_runs if num_runs > 1 else None, **parameters)
    return text


@contextmanager
def _set_sbatch_environment(options: Collection[str]) -> Iterator[None]:
    """Hide the variables of the Slurm job that this process may run in, and those that would override the script."""
    variables = slurm.get_sbatch_variables(options)
    with submitit.helpers.clean_env():
        os.environ.update(variables)
        yield


@dataclass
class Submission:
    """The jobs that a launch has submitted so far."""

    sweep: Path
    job_ids: dict[str, list[str]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    tokens: set[str] = field(default_factory=set)
    runs: list[RunDir] = field(default_factory=list)

    def submit_array(
        self, stage: str, jobs: Sequence[Callable[[], str]], parameters: dict[str, Any], *dependencies: str
    ) -> list[str]:
        """Submit jobs as one array and return their ids; all dependencies that are not empty have to hold."""
        dependency = ",".join(filter(None, dependencies))
        extra = {"dependency": dependency, "kill-on-invalid-dep": "yes"} if dependency else {}
        extra |= {"comment": parameters["comment"]} if "comment" in parameters else {}
        extra |= parameters["additional_parameters"]
        parameters = {**parameters, "additional_parameters": extra}
        requested = {name for name, value in (parameters | extra).items() if value is not None}
        executor = submitit.SlurmExecutor(self.sweep / "log", python=make_python_command())  # one for each array
        executor.update_parameters(**parameters)
        with _set_sbatch_environment(requested), executor.batch():
            handles = [executor.submit(job) for job in jobs]
        job_ids = [str(handle.job_id) for handle in handles]
        self.job_ids[stage] += job_ids
        return job_ids

    def submit_stage(
        self, stage: str, job_type: JobType, arrays: Sequence[JobArray], dependencies: Sequence[str]
    ) -> list[list[str]]:
        """Submit arrays of runs, each with its own dependency, and return the job ids of each array."""
        ids: list[list[str]] = []
        for array, dependency in zip(arrays, dependencies, strict=True):
            previous = "" if array.depends_on is None else make_end_dependency(ids[array.depends_on])
            ids.append(self._submit_runs(stage, job_type, array, dependency, previous))
        return ids

    def _submit_runs(self, stage: str, job_type: JobType, array: JobArray, *dependencies: str) -> list[str]:
        """Submit one job per run; record the array's token before the submission and the job ids after it."""
        token = secrets.token_hex(6)
        self.tokens.add(token)
        self.runs += array.runs if stage in ("train", "predict") else []
        for run in array.runs:
            run.record("submitting", token=token)
        parameters = make_submitit_parameters(f"{self.sweep.name}-{stage}", array.resources, array.max_parallel)
        parameters["comment"] = token
        job_ids = self.submit_array(stage, [job_type(str(run.path)) for run in array.runs], parameters, *dependencies)
        event = "evaluation submitted" if stage == "evaluate" else "submitted"
        for run, job_id in zip(array.runs, job_ids, strict=True):
            canary = {"canary": self.job_ids["canary"][0]} if stage == "train" and self.job_ids["canary"] else {}
            run.record(event, job=job_id, executor="slurm", token=token, **canary)
        return job_ids

    def cancel_all(self) -> None:
        """Cancel all submitted jobs: half a sweep in the queue is worse than none."""
        jobs = {job for job_ids in self.job_ids.values() for job in job_ids}
        jobs |= {job for job, queued in (slurm.get_queue() or {}).items() if queued.comment in self.tokens}
        if jobs:
            slurm.run("scancel", *get_array_ids(jobs))
        for run in self.runs:
            run.record("stopped", why="cancelled: a part of the sweep could not be submitted")


def submit(
    sweep: Path,
    untrained: RunsByResources,
    trained: RunsByResources,
    max_parallel: int | None,
    canary: RunDir | None = None,
) -> dict[str, list[str]]:
    """Submit training, evaluation and the report of a sweep, and return at once.

    Parameters
    ----------
    untrained : runs to train and then to evaluate
    trained : runs to evaluate
    max_parallel : concurrent jobs of a stage, over all arrays; None: no limit
    canary : an untrained run; its first steps have to succeed before any other training starts

    Returns
    -------
    job ids by stage: canary, train, evaluate, report

    Raises
    ------
    SubmissionError
    """
    submission = Submission(sweep)
    with cancel_after_error(submission):
        _submit_all(submission, untrained, trained, max_parallel, canary)
    return submission.job_ids


@contextmanager
def cancel_after_error(submission: Submission) -> Iterator[None]:
    """Cancel all jobs of a submission where one is refused or the launch is interrupted.

    Raises
    ------
    SubmissionError
    """
    try:
        yield
    except FailedJobError as error:
        submission.cancel_all()
        raise SubmissionError(f"sbatch: {str(error).strip()}; all jobs of this launch were cancelled") from error
    except BaseException:
        submission.cancel_all()
        raise


def _submit_all(
    submission: Submission,
    untrained: RunsByResources,
    trained: RunsByResources,
    max_parallel: int | None,
    canary: RunDir | None,
) -> None:
    """Submit stage by stage; `submission` holds every id as soon as there is one."""
    report = get_report_records(submission.sweep)
    refuse_symlinks(report.path)
    name, max_size, start = submission.sweep.name, slurm.get_max_array_size(), ""
    if canary is not None:
        resources = next(resources for resources, runs in untrained.items() if canary in runs)
        parameters = make_submitit_parameters(f"{name}-canary", resources, None)
        start = _make_success_dependency(submission.submit_array("canary", [CanaryJob(str(canary.path))], parameters))
    to_train, to_evaluate = make_arrays(untrained, max_parallel, max_size), make_arrays(trained, max_parallel, max_size)
    ids = submission.submit_stage("train", TrainJob, to_train, [start] * len(to_train))
    ids += submission.submit_stage(
        "evaluate", EvaluateJob, list(map(_single_process, to_train)), list(map(_make_success_dependency, ids))
    )
    after_nothing = [""] * len(to_evaluate)
    ids += submission.submit_stage("evaluate", EvaluateJob, list(map(_single_process, to_evaluate)), after_nothing)
    parameters = make_submitit_parameters(f"{name}-report", _make_report_resources(untrained or trained), None)
    (job_id,) = submission.submit_array(
        "report", [ReportJob(str(submission.sweep))], parameters, make_end_dependency(*ids)
    )
    report.record("submitted", job=job_id, executor="slurm")


def _make_success_dependency(job_ids: Sequence[str]) -> str:
    """Return the dependency on the success of one array: task by task, or of its only job."""
    (array,) = get_array_ids(job_ids)
    return f"aftercorr:{array}" if "_" in job_ids[0] else f"afterok:{array}"


def make_end_dependency(*arrays: Sequence[str]) -> str:
    """Return the dependency on the end of all these jobs, failed or not."""
    return "afterany:" + ":".join(get_array_ids(job for jobs in arrays for job in jobs))


def get_array_ids(job_ids: Iterable[str]) -> list[str]:
    """Return the ids of the arrays of these jobs, each once, in the order of submission."""
    return sorted({job.partition("_")[0] for job in job_ids}, key=int)


def _single_process(array: JobArray) -> JobArray:
    """Return the array that evaluates these runs."""
    return replace(array, resources=make_single_process(array.resources))


def make_single_process(resources: ResourcesConfig) -> ResourcesConfig:
    """Return the resources of one process, with one GPU if there are any."""
    values = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": min(1, resources.gpus_per_node)}
    return resources.model_copy(update=values)


def _make_report_resources(runs_by_resources: RunsByResources) -> ResourcesConfig:
    """Return a small job's resources in the partition and account of the runs."""
    first = next(iter(runs_by_resources))
    options = {name: value for name, value in first.sbatch.requested.items() if name in REPORT_SBATCH_OPTIONS}
    shared = {name: getattr(first, name) for name in ("partition", "account", "qos", "setup")}
    return REPORT_RESOURCES.model_copy(update=shared | {"sbatch": SbatchOptions.model_validate(options)})
