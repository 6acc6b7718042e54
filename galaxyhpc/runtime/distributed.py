"""The process group of a job: rendezvous, sums and barriers; one code path for one process and for many.

Processes meet at a port that rank 0 has already BOUND and publishes in the run's directory: a port that was only
probed, or computed from a job id, may belong to another job by the time it is used.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from galaxyhpc.runtime.rank import RankInfo, get_rank_info
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

RENDEZVOUS_TIMEOUT_SECONDS = 600  # nodes of a big job may start minutes apart


@dataclass(frozen=True)
class Process:
    """One process of a job, in the group with the others."""

    rank_info: RankInfo
    device: torch.device

    @property
    def rank(self) -> int:
        return self.rank_info.rank

    @property
    def world_size(self) -> int:
        return self.rank_info.world_size

    @property
    def device_name(self) -> str:
        """The name of the GPU, or `cpu`."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    @property
    def is_main(self) -> bool:
        """Whether this process writes; every process decides."""
        return self.rank == 0

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Add float64 numbers over all processes, in a fixed order and with the same result on each."""
        numbers = torch.tensor(values, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(numbers)
        result: list[float] = numbers.tolist()
        return result

    def barrier(self) -> None:
        """Wait for all processes."""
        self.all_reduce_sum([0.0])


@contextmanager
def process_group(run: RunDir) -> Iterator[Process]:
    """Join the process group of this job; destroy it at the end, also after an error."""
    rank_info = get_rank_info()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank_info.local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    address_file = run.path / f".meeting-{rank_info.job_attempt.replace('/', '_')}.json"
    store = _host_store(rank_info, address_file) if rank_info.rank == 0 else _connect_store(rank_info, address_file)
    backend = _choose_backend(store, rank_info, _get_gpu_id(device)) if cuda else "gloo"
    options = {"store": store, "rank": rank_info.rank, "world_size": rank_info.world_size}
    with join_group(backend, num_nodes=rank_info.num_nodes, **options):
        process = Process(rank_info, device)
        process.barrier()
        if process.is_main:
            address_file.unlink(missing_ok=True)
        yield process


@contextmanager
def join_group(backend: str, num_nodes: int = 1, **options: Any) -> Iterator[None]:
    """Be in a process group; DDP has to be made in a function that is called within, whose variables end with it.

    DDP that outlives its group destroys gloo's threads (torch 2.13) while it holds the GIL. A thread may need that to
    release its last sum: a deadlock, seen as a process that had finished and never exited. Torch's own destruction of
    the group releases the GIL.
    """
    if num_nodes == 1 and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host name of a laptop may not resolve
    dist.init_process_group(backend, **options)
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # their variables
        raise
    finally:
        gc.collect()  # DDP is in cycles
        dist.destroy_process_group()


def _get_gpu_id(device: torch.device) -> str:
    return f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}"


def _choose_backend(store: Store, rank_info: RankInfo, gpu_id: str) -> str:
    """Return NCCL for the GPUs' tensors, unless two processes share a GPU, which it refuses: then gloo."""
    store.set(f"gpu {rank_info.rank}", gpu_id)
    gpu_ids = {store.get(f"gpu {rank}") for rank in range(rank_info.world_size)}
    return "cpu:gloo,cuda:nccl" if len(gpu_ids) == rank_info.world_size else "gloo"


def _host_store(rank_info: RankInfo, address_file: Path) -> TCPStore:
    """Bind a free port and publish it to the other ranks."""
    host = "127.0.0.1" if rank_info.num_nodes == 1 else socket.gethostname()
    timeout = timedelta(seconds=RENDEZVOUS_TIMEOUT_SECONDS)
    store = TCPStore(host, 0, rank_info.world_size, is_master=True, timeout=timeout, wait_for_workers=False)
    if rank_info.world_size > 1:
        write_text(address_file, json.dumps({"host": host, "port": store.port}))
    return store


def _connect_store(rank_info: RankInfo, address_file: Path) -> TCPStore:
    """Connect to rank 0; the file of a killed start leads nowhere and is read again until rank 0 replaces it."""
    deadline = time.monotonic() + RENDEZVOUS_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        try:
            address = json.loads(address_file.read_text(encoding="utf-8"))
            store = TCPStore(
                address["host"],
                address["port"],
                rank_info.world_size,
                timeout=timedelta(seconds=5),
                wait_for_workers=False,
            )
        except (OSError, ValueError, dist.DistError):
            time.sleep(0.1)
            continue
        store.set_timeout(timedelta(seconds=RENDEZVOUS_TIMEOUT_SECONDS))
        return store
    raise TimeoutError(
        f"rank {rank_info.rank}: rank 0 did not publish {address_file} within {RENDEZVOUS_TIMEOUT_SECONDS} s"
    )
