"""Slurm through submitit: one array per resource class, evaluation and report chained behind it.

A job is given the path of a run and nothing else, so what waits in the queue never goes stale.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import _make_sbatch_string

from galaxyhpc.config import ResourcesConfig
from galaxyhpc.rundir import RunDir
from jobs.evaluate import EvaluateJob
from jobs.report import ReportJob
from jobs.train import TrainJob

SIGNAL_SECONDS = 90  # USR2 comes this long before the time limit
REPORT = ResourcesConfig(cpus_per_task=2, time_minutes=60)

Classes = dict[ResourcesConfig, list[RunDir]]


class SubmissionError(ValueError):
    """Slurm refused a part of the sweep; nothing of it is left in the queue."""


def by_resources(runs: dict[RunDir, ResourcesConfig]) -> Classes:
    """Divide runs into classes that ask for the same resources."""
    classes: Classes = {}
    for run, resources in runs.items():
        classes.setdefault(resources, []).append(run)
    return classes


def share_of(parallel: int | None, runs: int, total: int) -> int | None:
    """Divide the most jobs at the same time among the classes, at least one each."""
    return None if parallel is None else max(1, parallel * runs // total)


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
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(log))}"
    text: str = _make_sbatch_string(command, log, map_count=count if count > 1 else None, **asked)
    return text


@contextmanager
def _outside_any_job() -> Iterator[None]:
    """Hide the variables of the Slurm job that this may run in; what a user set for sbatch stays."""
    kept = {name: text for name, text in os.environ.items() if name == "SLURM_CONF" or name.startswith("SBATCH_")}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


def _submit(sweep: Path, jobs: Sequence[Callable[[], str]], asked: dict[str, Any], after: str = "") -> list[str]:
    """Submit jobs as one array and return their ids."""
    extra = {"dependency": after, "kill-on-invalid-dep": "yes"} if after else {}
    asked = {**asked, "additional_parameters": {**asked["additional_parameters"], **extra}}
    executor = submitit.SlurmExecutor(sweep / "log")  # parameters stick to an executor, so each stage has its own
    executor.update_parameters(**asked)
    with executor.batch():
        handles = [executor.submit(job) for job in jobs]
    return [str(handle.job_id) for handle in handles]


def submit(sweep: Path, train: Classes, evaluate: Classes, parallel: int | None) -> dict[str, list[str]]:
    """Submit what is to be trained and evaluated, and the report behind all of it; return at once.

    Parameters
    ----------
    train : untrained runs; each is evaluated when it is trained
    evaluate : runs that are trained already
    parallel : most jobs of a stage at the same time, over all classes

    Returns
    -------
    job ids by stage: train, evaluate, report

    Raises
    ------
    SubmissionError
    """
    ids: dict[str, list[str]] = {"train": [], "evaluate": [], "report": []}
    try:
        with _outside_any_job():
            _submit_all(ids, sweep, train, evaluate, parallel)
    except FailedJobError as error:
        _withdraw(ids, [run for runs in train.values() for run in runs])
        raise SubmissionError(f"sbatch: {str(error).strip()}; what was submitted before is withdrawn") from error
    return ids


def _submit_all(
    ids: dict[str, list[str]], sweep: Path, train: Classes, evaluate: Classes, parallel: int | None
) -> None:
    """Submit stage by stage, noting every id as soon as there is one."""
    total = sum(map(len, train.values()))
    for resources, runs in train.items():
        share = share_of(parallel, len(runs), total)
        asked = parameters(f"{sweep.name}-train", resources, share)
        found = _submit(sweep, [TrainJob(str(run.path)) for run in runs], asked)
        ids["train"] += found
        for run, job in zip(runs, found, strict=True):
            run.record("submitted", job=job, executor="slurm")
        after = f"aftercorr:{found[0].split('_')[0]}" if len(found) > 1 else f"afterok:{found[0]}"
        ids["evaluate"] += _evaluation(sweep, resources, runs, share, after)
    for resources, runs in evaluate.items():
        ids["evaluate"] += _evaluation(sweep, resources, runs, parallel, "")
    everything = sorted({job.split("_")[0] for job in ids["train"] + ids["evaluate"]}, key=int)
    asked = parameters(f"{sweep.name}-report", _report_resources(train or evaluate), None)
    ids["report"] = _submit(sweep, [ReportJob(str(sweep))], asked, f"afterany:{':'.join(everything)}")


def _withdraw(ids: dict[str, list[str]], runs: Sequence[RunDir]) -> None:
    """Take back what was submitted: half a sweep in the queue is worse than none."""
    if arrays := sorted({job.split("_")[0] for jobs in ids.values() for job in jobs}):
        subprocess.run(["scancel", *arrays], check=False, timeout=60)
    for run in runs[: len(ids["train"])]:
        run.record("stopped", why="withdrawn, because sbatch refused another part of the sweep")


def _evaluation(
    sweep: Path, resources: ResourcesConfig, runs: list[RunDir], share: int | None, after: str
) -> list[str]:
    alone = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": min(1, resources.gpus_per_node)}
    asked = parameters(f"{sweep.name}-evaluate", resources.model_copy(update=alone), share)
    found = _submit(sweep, [EvaluateJob(str(run.path)) for run in runs], asked, after)
    for run, job in zip(runs, found, strict=True):
        run.record("evaluation submitted", job=job)
    return found


def _report_resources(classes: Classes) -> ResourcesConfig:
    """Ask for a small machine where the runs are allowed to be."""
    first = next(iter(classes))
    return REPORT.model_copy(update={name: getattr(first, name) for name in ("partition", "account", "qos", "setup")})
