"""Queries to Slurm, with as few calls as possible. None means no answer, which is evidence of nothing."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass

QUERY_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue: waiting, running or completing."""

    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # of waiting, in Slurm's words
    nodes: str
    comment: str  # the token that `launch.slurm_executor` submitted it with


def is_up() -> bool:
    """Whether this machine can submit jobs to a Slurm that answers."""
    return "is UP" in _ping()


def is_down() -> bool:
    """Whether this machine has a Slurm that does not answer at the moment."""
    return not is_up() and "is DOWN" in _ping()


@functools.cache
def _ping() -> str:
    """Return the output of `scontrol ping`; empty where Slurm is not installed or not configured."""
    if shutil.which("sbatch") is None:
        return ""
    try:
        return subprocess.run(["scontrol", "ping"], capture_output=True, text=True, errors="replace", timeout=20).stdout
    except subprocess.TimeoutExpired:
        return "scontrol ping: no answer in 20 s: treated as DOWN"


def _query(*command: str) -> str | None:
    """Return the output of a command; None where it fails or does not exist."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=QUERY_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if answer.returncode else answer.stdout


def get_queue() -> dict[str, QueuedJob] | None:
    """Return this user's jobs in the queue by id, array tasks as 12_3; one call serves a whole sweep."""
    answer = _query("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%N|%k")
    if answer is None:
        return None
    rows = (line.split("|", 4) for line in answer.splitlines())
    return {row[0].strip(): QueuedJob(*row[1:]) for row in rows if len(row) == 5}


def get_end_time(job_id: str) -> float | None:
    """Return the end of a running job's time limit in seconds since 1970; None where Slurm does not tell."""
    text = (_query("squeue", "--noheader", f"--jobs={job_id}", "--format=%e") or "").strip()
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def get_max_array_size() -> int:
    """Return the largest number of tasks of an array: MaxArraySize limits the INDEX, 0 .. MaxArraySize - 1."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", _query("scontrol", "show", "config") or "", re.MULTILINE)
    return int(match[1]) if match else 1001  # Slurm's own default


def get_job_state(job_id: str) -> tuple[str, str]:
    """Return a job's state and reason in Slurm's words; empty where Slurm does not tell."""
    answer = _query("scontrol", "--oneliner", "show", "job", job_id) or ""
    match = re.search(r"\bJobState=(\w+) Reason=(\w+)", answer)
    return (match[1], match[2]) if match else ("", "")


def final_states(job_ids: Iterable[str]) -> dict[str, str]:
    """Return the last states of jobs that left the queue, as far as accounting or the controller knows them."""
    sacct = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State")
    squeue = ("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T")
    answer = _query(*sacct, f"--jobs={','.join(job_ids)}") or _query(*squeue) or ""
    rows = (line.split("|", 1) for line in answer.splitlines())
    return {row[0].strip(): row[1].split()[0] for row in rows if len(row) == 2 and row[1].strip()}


def test_submit(script: str) -> tuple[float | None, str]:
    """Ask sbatch when it would start this script (seconds since 1970), or why it refuses; nothing is submitted."""
    # without the variables of the job that this may run in
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    command = ["sbatch", "--test-only"]
    try:
        answer = subprocess.run(
            command,
            input=script,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=QUERY_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"no answer: {error}"
    if answer.returncode:
        lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in answer.stderr.splitlines()]
        return None, "; ".join(filter(None, lines)) or f"exit status {answer.returncode}"
    match = re.search(r"to start at (\S+)", answer.stderr)
    return (time.mktime(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S")) if match else None), ""
