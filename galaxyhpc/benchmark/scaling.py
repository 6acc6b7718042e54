"""Scaling efficiency: the images per second of two processes over twice those of one, each with its own batch.

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
from galaxyhpc.benchmark.timing import TimingBudget
from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime.child_python import die_with_parent
from galaxyhpc.runtime.distributed import join_group
from galaxyhpc.runtime.process import keep_heap

WORLD_SIZE = 2
TIMEOUT_SECONDS = 600.0  # s

JsonDict = dict[str, Any]


def measure_scaling(case: Case, budget: TimingBudget) -> JsonDict:
    """Time the training of a network in one process and in two that add their gradients."""
    if case.device == "cuda" and torch.cuda.device_count() < WORLD_SIZE:
        count = torch.cuda.device_count()
        return {"failed": f"got {count} GPU; expected {WORLD_SIZE}, one for each process"}
    case = replace(case, num_threads=max(1, case.num_threads // WORLD_SIZE))
    results: JsonDict = {
        "network": case.name,
        "size": case.image_size,
        "batch_per_process": case.batch_size,
        "threads": case.num_threads,
    }
    seconds = {}
    for world_size in (1, WORLD_SIZE):
        try:
            seconds[world_size] = _measure_step_seconds(case, world_size, budget)
        except RuntimeError as error:
            return results | {"failed": str(error)}
        results[f"images_per_second_{world_size}"] = world_size * case.batch_size / seconds[world_size]
    return results | {"efficiency": seconds[1] / seconds[WORLD_SIZE]}


def _measure_step_seconds(case: Case, world_size: int, budget: TimingBudget) -> float:
    """Return the seconds of a step, the fastest round.

    Raises
    ------
    RuntimeError
        where a process failed
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        processes = [
            context.Process(
                target=_run_worker, args=(os.getpid(), case, rank, world_size, directory, budget), daemon=True
            )
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT_SECONDS)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        if codes != [0] * world_size:
            raise RuntimeError(f"some of {world_size} processes failed: exit statuses {codes}")
        return float(json.loads((directory / "seconds.json").read_text(encoding="utf-8")))


def _run_worker(parent_pid: int, case: Case, rank: int, world_size: int, directory: Path, budget: TimingBudget) -> None:
    """Time rounds of steps; rank 0 writes the fastest."""
    die_with_parent(parent_pid)
    keep_heap()
    torch.set_num_threads(case.num_threads)
    backend = "nccl" if case.device == "cuda" else "gloo"
    meeting = f"file://{directory}/meeting"
    with join_group(backend, init_method=meeting, rank=rank, world_size=world_size):
        fastest = _time_ddp(case, rank, budget)
    if rank == 0:
        (directory / "seconds.json").write_text(json.dumps(fastest), encoding="utf-8")


def _time_ddp(case: Case, rank: int, budget: TimingBudget) -> float:
    """Return the seconds of the fastest round's steps."""
    device = torch.device("cuda", rank) if case.device == "cuda" else torch.device("cpu")
    torch.manual_seed(0)
    network = build_model(case.model, case.image_size).to(device)
    model = DistributedDataParallel(network, [device] if device.type == "cuda" else None, gradient_as_bucket_view=True)
    images = torch.rand(case.batch_size, 3, case.image_size, case.image_size, device=device)
    labels = torch.randint(len(GALAXY10_CLASSES), (case.batch_size,), device=device)

    def step() -> None:
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bfloat16"):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()

    for _ in range(2):  # DDP rebuilds its buckets after the first pass
        step_seconds = _time_steps(step, 1, device)
    count = torch.tensor(max(1.0, min(200.0, budget.round_seconds / step_seconds)), device=device)
    dist.broadcast(count, 0)  # equal numbers of steps, or one process would wait for ever
    return min(_time_steps(step, int(count.item()), device) for _ in range(budget.num_rounds))


def _time_steps(step: Any, num_steps: int, device: torch.device) -> float:
    """Return the mean seconds of a step, between barriers."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(num_steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()
    return (time.perf_counter() - start) / num_steps
