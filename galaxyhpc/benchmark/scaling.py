"""What a second process brings: the images per second of 2 processes over twice those of one, each with its batch.

On a CPU every process has one thread, or half of the threads where there are more; on GPUs each has its own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from galaxyhpc.benchmark.implementations import Case
from galaxyhpc.benchmark.timing import Effort
from galaxyhpc.models import build_model
from galaxyhpc.runtime.malloc import keep_freed

WORLD = 2
PATIENCE = 600.0  # s

Found = dict[str, Any]


def measured(case: Case, effort: Effort) -> Found:
    """Train a network in one process and in two that add their gradients up."""
    if case.device == "cuda" and torch.cuda.device_count() < WORLD:
        count = torch.cuda.device_count()
        return {"failed": f"found {count} GPU; two processes need a GPU each, so {WORLD}"}
    case = replace(case, threads=max(1, case.threads // WORLD))
    found: Found = {"network": case.name, "size": case.size, "batch_per_process": case.batch, "threads": case.threads}
    seconds = {}
    for world in (1, WORLD):
        try:
            seconds[world] = _seconds(case, world, effort)
        except RuntimeError as error:
            return found | {"failed": str(error)}
        found[f"images_per_second_{world}"] = world * case.batch / seconds[world]
    return found | {"efficiency": seconds[1] / seconds[WORLD]}


def _seconds(case: Case, world: int, effort: Effort) -> float:
    """Return the s of a step, the fastest turn.

    Raises
    ------
    RuntimeError
        where a process ended without an answer
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        processes = [
            context.Process(target=_train, args=(case, rank, world, place, effort), daemon=True)
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        if codes != [0] * world:
            raise RuntimeError(f"of {world} processes some failed: exit statuses {codes}")
        return float(json.loads((place / "seconds.json").read_text()))


def _train(case: Case, rank: int, world: int, place: Path, effort: Effort) -> None:
    """Take turns of steps; rank 0 writes down the fastest."""
    keep_freed()
    torch.set_num_threads(case.threads)
    if Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "nccl" if case.device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{place}/meeting", rank=rank, world_size=world)
    device = torch.device("cuda", rank) if case.device == "cuda" else torch.device("cpu")
    torch.manual_seed(0)
    network = build_model(case.model, case.size).to(device)
    model = DistributedDataParallel(network, [device] if device.type == "cuda" else None, gradient_as_bucket_view=True)
    images = torch.rand(case.batch, 3, case.size, case.size, device=device)
    labels = torch.randint(10, (case.batch,), device=device)

    def step() -> None:
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bfloat16"):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()

    for _ in range(2):  # DDP arranges its buckets anew after its first pass
        once = _timed(step, 1, device)
    count = torch.tensor(max(1.0, min(200.0, effort.seconds / once)), device=device)
    dist.broadcast(count, 0)  # as many steps in all processes, or one would wait for ever
    best = min(_timed(step, int(count.item()), device) for _ in range(effort.turns))
    dist.destroy_process_group()
    if rank == 0:
        (place / "seconds.json").write_text(json.dumps(best))


def _timed(step: Any, count: int, device: torch.device) -> float:
    """Return the mean s of so many steps, begun and ended together."""
    dist.barrier()
    begun = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()
    return (time.perf_counter() - begun) / count
