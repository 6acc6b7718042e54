"""The rank of this process in its job, from the environment: rank, world size, job id."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

import submitit


@dataclass(frozen=True)
class RankInfo:
    """The rank of this process in its job, known before any communication."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    num_nodes: int = 1
    node_names: str = field(default_factory=socket.gethostname)  # as Slurm writes them: node[1-2]
    job_attempt: str = "by hand"  # JOB_ID.START: unique to each start of a requeued job


def get_rank_info() -> RankInfo:
    """Read the environment of submitit (Slurm or local) or of torchrun; without either this process is alone."""
    try:
        job = submitit.JobEnvironment()
    except RuntimeError:
        job = None
    if job is not None:
        start = os.environ.get("SLURM_RESTART_COUNT", "0")
        names = os.environ.get("SLURM_JOB_NODELIST", socket.gethostname())
        return RankInfo(job.global_rank, job.num_tasks, job.local_rank, job.num_nodes, names, f"{job.job_id}.{start}")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        rank, world, local, nodes = (
            int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_WORLD_SIZE")
        )
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return RankInfo(rank, world, local, nodes, job_attempt=f"{os.environ['TORCHELASTIC_RUN_ID']}.{start}")
    return RankInfo(job_attempt=f"by hand, process {os.getpid()}")
