"""How the processes of a job find each other, and what they decide together.

One code path for one process and for many. Processes meet at a port that rank 0 already HOLDS and publishes in the
run's directory: a port that was only probed, or computed from a job id, may belong to another job by then.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from galaxyhpc.runtime.rank import RankInfo, get_rank_info
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

RENDEZVOUS_TIMEOUT_SECONDS = 600  # nodes of a big job may start minutes apart
# Gloo's thread (torch 2.13) needs Python's lock to let go of the last sum; freeing the group holds it and waits for
# that thread. Seen as a process that had done all and never ended.
GLOO_RELEASE_SECONDS = 0.2


@dataclass(frozen=True)
class Process:
    """One process of a job that has met the others."""

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
        """What kind of device it computes on, as its maker calls it."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    @property
    def is_main(self) -> bool:
        """Every process decides; this one writes."""
        return self.rank == 0

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Add float64 numbers over all processes: the same result on each of them, in a fixed order."""
        numbers = torch.tensor(values, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(numbers)
        result: list[float] = numbers.tolist()
        return result

    def barrier(self) -> None:
        """Return when all processes are here."""
        self.all_reduce_sum([0.0])


@contextmanager
def process_group(run: RunDir) -> Iterator[Process]:
    """Meet the other processes of this job; leave the group at the end, whatever happened."""
    place = get_rank_info()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", place.local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if place.num_nodes == 1 and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a laptop's own name may not resolve
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    notice = run.path / f".meeting-{place.job_attempt.replace('/', '_')}.json"
    store = _host_store(place, notice) if place.rank == 0 else _connect_store(place, notice)
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size)
    try:
        process = Process(place, device)
        process.barrier()
        if process.is_main:
            notice.unlink(missing_ok=True)
        yield process
    finally:
        time.sleep(GLOO_RELEASE_SECONDS)
        dist.destroy_process_group()


def _host_store(rank_info: RankInfo, address_file: Path) -> TCPStore:
    host = "127.0.0.1" if rank_info.num_nodes == 1 else socket.gethostname()
    wait = timedelta(seconds=RENDEZVOUS_TIMEOUT_SECONDS)
    store = TCPStore(host, 0, rank_info.world_size, is_master=True, timeout=wait, wait_for_workers=False)
    if rank_info.world_size > 1:
        write_text(address_file, json.dumps({"host": host, "port": store.port}))
    return store


def _connect_store(rank_info: RankInfo, address_file: Path) -> TCPStore:
    """Connect to rank 0; a notice left by a killed start leads nowhere and is read again until it is replaced."""
    give_up = time.monotonic() + RENDEZVOUS_TIMEOUT_SECONDS
    while time.monotonic() < give_up:
        try:
            found = json.loads(address_file.read_text())
            wait = timedelta(seconds=5)
            store = TCPStore(found["host"], found["port"], rank_info.world_size, timeout=wait, wait_for_workers=False)
        except (OSError, ValueError, dist.DistError):
            time.sleep(0.1)
            continue
        store.set_timeout(timedelta(seconds=RENDEZVOUS_TIMEOUT_SECONDS))
        return store
    raise TimeoutError(
        f"rank {rank_info.rank}: rank 0 did not publish {address_file} within {RENDEZVOUS_TIMEOUT_SECONDS} s"
    )
