"""Queries to Slurm, with as few calls as possible. None means no answer, which is evidence of nothing.

Slurm's commands take options from the environment, too: `SQUEUE_STATES=RUNNING` leaves the waiting jobs out of an
answer. They all run in an environment without such variables.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

QUERY_TIMEOUT_SECONDS = 60
OPTION_VARIABLES = re.compile("(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SACCT|SCONTROL|SINFO|SCANCEL)_")
CONNECTION_VARIABLES = ("SLURM_CONF", "SLURM_JWT")  # which Slurm answers, and who asks
# where a job runs and who pays is the user's wish; any other SBATCH_* would override a line of the job's script
PLACEMENT_OPTIONS = ("account", "constraint", "partition", "qos", "reservation", "wckey")
ENDED_STATES = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
)


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue: waiting, running or completing."""

    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # of waiting, in Slurm's words
    nodes: str
    comment: str  # the token that `launch.slurm_executor` submitted it with


@dataclass(frozen=True)
class UnavailableNode:
    """A node that starts no jobs at the moment, with what it has."""

    name: str
    state: str  # down, drained, ... in Slurm's words
    num_cpus: int
    memory_gb: float
    num_gpus: int

    def __str__(self) -> str:
        return f"{self.name} ({self.state})"


def make_environment() -> dict[str, str]:
    """Return the environment of this process without the variables that Slurm's commands read as options."""
    hidden = {name for name in os.environ if OPTION_VARIABLES.match(name)} - set(CONNECTION_VARIABLES)
    return {name: text for name, text in os.environ.items() if name not in hidden}


def get_sbatch_variables(options: Collection[str]) -> dict[str, str]:
    """Return the variables of Slurm that sbatch may see; a script with these options overrides the user's wishes."""
    kept = {f"SBATCH_{option.upper()}" for option in PLACEMENT_OPTIONS if option not in options}
    kept |= set(CONNECTION_VARIABLES)
    return {name: text for name, text in os.environ.items() if name in kept}


def list_ignored_variables() -> list[str]:
    """Return the names of the user's variables for sbatch that no job follows."""
    followed = get_sbatch_variables(())
    return sorted(name for name in os.environ if name.startswith("SBATCH_") and name not in followed)


def find_other_cluster() -> str:
    """Return the variable that sends commands to other clusters, `NAME=value`; '' without one."""
    names = ("SBATCH_CLUSTERS", "SLURM_CLUSTERS")
    return next((f"{name}={os.environ[name]}" for name in names if os.environ.get(name)), "")


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm in an environment without the user's options; return its output as text.

    Raises
    ------
    OSError, subprocess.TimeoutExpired
    """
    settings: dict[str, Any] = {"env": make_environment(), "timeout": QUERY_TIMEOUT_SECONDS, **options}
    return subprocess.run(command, capture_output=True, text=True, errors="replace", **settings)


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
        return run("scontrol", "ping", timeout=20).stdout
    except subprocess.TimeoutExpired:
        return "scontrol ping: no answer in 20 s: treated as DOWN"


def _query(*command: str) -> str | None:
    """Return the output of a command; None where it fails or does not exist."""
    try:
        answer = run(*command)
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
    """Return the largest number of tasks of an array: MaxArraySize limits the INDEX, 0 .. MaxArraySize - 1.

    A cluster without arrays (0) gets jobs, arrays of one.
    """
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", _query("scontrol", "show", "config") or "", re.MULTILINE)
    return max(1, int(match[1])) if match else 1001  # Slurm's own default


def list_unavailable_nodes(partition: str | None) -> list[UnavailableNode]:
    """Return the nodes of a partition, by default Slurm's own, that start no jobs at the moment."""
    states = "--states=down,drain,fail,maint,no_respond,resv,unknown"
    answer = _query("sinfo", "--noheader", "--Node", states, "--format=%N|%P|%T|%c|%m|%G") or ""
    rows = [row for line in answer.splitlines() if len(row := line.split("|")) == 6]
    partitions = (partition or os.environ.get("SBATCH_PARTITION") or "").split(",")
    return [
        UnavailableNode(name, state, int(cpus.rstrip("+")), int(megabytes.rstrip("+")) / 1024, _count_gpus(gres))
        for name, of, state, cpus, megabytes, gres in rows
        if (of.rstrip("*") in partitions if partitions != [""] else of.endswith("*"))
    ]


def _count_gpus(gres: str) -> int:
    """Count the GPUs in the generic resources of a node, such as `gpu:a100:4(S:0-1),nvme:2`."""
    return sum(int(number) for number in re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres))


def get_job_state(job_id: str) -> tuple[str, str]:
    """Return a job's state and reason in Slurm's words; empty where Slurm does not tell."""
    answer = _query("scontrol", "--oneliner", "show", "job", job_id) or ""
    match = re.search(r"\bJobState=(\w+) Reason=(\w+)", answer)
    return (match[1], match[2]) if match else ("", "")


def get_final_states(job_ids: Collection[str]) -> dict[str, str]:
    """Return the states in which jobs ended, of those that the controller or, later, accounting still knows."""
    states = _parse_states(_query("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T"))
    if missing := {job.partition("_")[0] for job in job_ids if job not in states}:
        sacct = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State")
        states |= _parse_states(_query(*sacct, f"--jobs={','.join(sorted(missing))}"))
    return {job: states[job] for job in job_ids if job in states}


def _parse_states(answer: str | None) -> dict[str, str]:
    """Return the final states in lines `id|state`, such as `7_1|CANCELLED by 1000`."""
    rows = (line.split("|", 1) for line in (answer or "").splitlines())
    states = {row[0].strip(): row[1].split()[0] for row in rows if len(row) == 2 and row[1].strip()}
    return {job: state for job, state in states.items() if state in ENDED_STATES}


def test_submit(script: str) -> tuple[float | None, str]:
    """Ask sbatch when it would start this script (seconds since 1970), or why it refuses; nothing is submitted."""
    environment = make_environment() | get_sbatch_variables(re.findall("^#SBATCH --([a-z-]+)", script, re.MULTILINE))
    try:
        answer = run("sbatch", "--test-only", input=script, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"no answer: {error}"
    if answer.returncode:
        lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in answer.stderr.splitlines()]
        return None, "; ".join(filter(None, lines)) or f"exit status {answer.returncode}"
    match = re.search(r"to start at (\S+)", answer.stderr)
    return (time.mktime(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S")) if match else None), ""


def get_configuration() -> dict[str, str]:
    """Return the settings of slurm.conf that are in force, by name; empty where Slurm does not answer."""
    lines = (_query("scontrol", "show", "config") or "").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def does_accounting_answer() -> bool:
    """Whether sacct reaches the accounting storage."""
    return _query("sacct", "--noheader", "--allocations", "--starttime=now-1minutes") is not None
