"""Asks Slurm about a resource class before anything is submitted: when it would start, or why it is refused.

`sbatch --test-only` also refuses what sbatch itself queues: jobs whose nodes are drained, down or do not answer, in
the words for what no node can ever run, and jobs in a reservation that has not begun. Those wait; they are no mistakes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from galaxyhpc.config.schema import ResourcesConfig
from galaxyhpc.runtime import slurm

NO_ANSWER = ("no answer", "Unable to contact slurm controller", "Socket timed out")
NODES_REFUSED = "Requested node configuration is not available"
RESERVATION_REFUSED = "Invalid time specified"
REFUSED_ADVICE = "change resources in the sweep, by --profile or by --set resources...; sinfo shows what is available"
EXPEDITE_ADVICE = "resources.requeue: expedite needs Slurm >= 25.11 with enable_expedited_requeue; leave it at normal"
MAX_LISTED_NODES = 4


@dataclass(frozen=True)
class SlurmAnswer:
    """Slurm's answer about jobs that are not submitted yet."""

    start: float | None = None  # expected, in s since 1970
    refusal: str = ""  # in Slurm's words
    advice: str = ""
    can_wait: bool = False  # sbatch queues the jobs all the same


def ask_slurm(script: str, resources: ResourcesConfig) -> SlurmAnswer:
    """Ask Slurm about an sbatch script with these resources."""
    start, refusal = slurm.test_submit(script)
    if not refusal:
        return SlurmAnswer(start)
    if reason := _find_reason_to_wait(refusal, resources):
        return SlurmAnswer(None, refusal, f"the jobs wait: {reason}", can_wait=True)
    is_too_old = resources.requeue == "expedite" and re.search("requeue|not supported", refusal)
    return SlurmAnswer(None, refusal, EXPEDITE_ADVICE if is_too_old else REFUSED_ADVICE)


def _find_reason_to_wait(refusal: str, resources: ResourcesConfig) -> str:
    """Return why jobs that `sbatch --test-only` refuses may start later; '' where sbatch refuses them too."""
    if any(text in refusal for text in NO_ANSWER):
        return "Slurm is busy"
    if RESERVATION_REFUSED in refusal and "reservation" in resources.sbatch.requested:
        return "the reservation has not begun"
    if NODES_REFUSED not in refusal:
        return ""
    nodes = [str(node) for node in slurm.list_unavailable_nodes(resources.partition) if _is_enough(node, resources)]
    more = f" and {len(nodes) - MAX_LISTED_NODES} more" if len(nodes) > MAX_LISTED_NODES else ""
    return f"no jobs start on {', '.join(nodes[:MAX_LISTED_NODES])}{more}" if nodes else ""


def _is_enough(node: slurm.UnavailableNode, resources: ResourcesConfig) -> bool:
    """Whether a node could run its part of a job, if it were in service."""
    num_cpus = resources.tasks_per_node * resources.cpus_per_task
    has_cores = node.num_cpus >= num_cpus and node.num_gpus >= resources.gpus_per_node
    return has_cores and node.memory_gb >= (resources.memory_gb or 0)
