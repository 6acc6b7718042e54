"""What Slurm says, asked with as few calls as possible. No answer is None: it is evidence of nothing."""

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
    """A job that waits or runs, or is just ending."""

    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it waits, in Slurm's words
    nodes: str
    comment: str  # the token that `cluster` submitted it with


def is_up() -> bool:
    """Whether this machine can submit to a Slurm that answers."""
    return "is UP" in _ping()


def is_down() -> bool:
    """Whether this machine belongs to a Slurm that does not answer at the moment."""
    return not is_up() and "is DOWN" in _ping()


@functools.cache
def _ping() -> str:
    """Return what Slurm says of its controllers; nothing where there is no Slurm, or none that is set up."""
    if shutil.which("sbatch") is None:
        return ""
    try:
        return subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20).stdout
    except subprocess.TimeoutExpired:
        return "scontrol ping: no answer in 20 s: as good as one that is DOWN"


def _query(*command: str) -> str | None:
    """Return what a command prints, None where it fails or is not there."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=QUERY_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if answer.returncode else answer.stdout


def get_queue() -> dict[str, QueuedJob] | None:
    """Return all of this user's jobs that wait or run by their ids, array elements as 12_3; one call for a sweep."""
    answer = _query("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%N|%k")
    if answer is None:
        return None
    rows = (line.split("|", 4) for line in answer.splitlines())
    return {row[0].strip(): QueuedJob(*row[1:]) for row in rows if len(row) == 5}


def get_end_time(job_id: str) -> float | None:
    """Return when a running job's time limit ends, in seconds since 1970."""
    text = (_query("squeue", "--noheader", f"--jobs={job_id}", "--format=%e") or "").strip()
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def get_max_array_size() -> int:
    """Return how many elements an array may have here: MaxArraySize caps the INDEX, so 0 .. MaxArraySize - 1."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _query("scontrol", "show", "config") or "", re.MULTILINE)
    return int(found[1]) if found else 1001  # Slurm's own default


def get_job_state(job_id: str) -> tuple[str, str]:
    """Return a job's state and its reason in Slurm's words, empty where Slurm does not say."""
    answer = _query("scontrol", "--oneliner", "show", "job", job_id) or ""
    found = re.search(r"\bJobState=(\w+) Reason=(\w+)", answer)
    return (found[1], found[2]) if found else ("", "")


def final_states(job_ids: Iterable[str]) -> dict[str, str]:
    """Return the last states of jobs that left the queue, as far as accounting or the controller still knows."""
    accounts = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State")
    known = ("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T")
    answer = _query(*accounts, f"--jobs={','.join(job_ids)}") or _query(*known) or ""
    found = (line.split("|", 1) for line in answer.splitlines())
    return {row[0].strip(): row[1].split()[0] for row in found if len(row) == 2 and row[1].strip()}


def test_submit(script: str) -> tuple[float | None, str]:
    """Ask when sbatch would start this script, in seconds since 1970, or why it refuses it; nothing is submitted."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}  # of any job
    command = ["sbatch", "--test-only"]
    try:
        answer = subprocess.run(
            command,
            input=script,
            env=outside,
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
    found = re.search(r"to start at (\S+)", answer.stderr)
    return (time.mktime(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S")) if found else None), ""
