"""Processes of a job find each other and no others."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.warm_processes import WarmProcess, run_two, start_python
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from galaxyhpc.runtime.distributed import _choose_backend, join_group
from galaxyhpc.runtime.rank import RankInfo

CODE = """
import sys
from pathlib import Path
from galaxyhpc.runtime.distributed import process_group
from galaxyhpc.storage.run_dir import RunDir
with process_group(RunDir(Path(sys.argv[1]))) as process:
    print(process.rank, process.world_size, *process.all_reduce_sum([1.0, process.rank]))
"""


def start(path: Path, job: str, rank: int, world: int) -> WarmProcess:
    ranks = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "GROUP_WORLD_SIZE": 1}
    environment = {name: str(value) for name, value in ranks.items()} | {"TORCHELASTIC_RUN_ID": job}
    return start_python("-c", CODE, str(path), **environment)


def read_outputs(processes: list[WarmProcess]) -> list[str]:
    assert all(process.wait(timeout=120) == 0 for process in processes)
    return [process.output.strip() for process in processes]


def test_one_process_is_a_group_of_its_own(tmp_path: Path) -> None:
    assert read_outputs([start(tmp_path, "a", 0, 1)]) == ["0 1 1.0 0.0"]
    assert list(tmp_path.iterdir()) == []


def test_jobs_that_start_together_on_one_node_do_not_mix_and_leave_nothing_behind(tmp_path: Path) -> None:
    jobs = [(tmp_path / f"run{number}", f"job{number}") for number in range(3)]
    for path, _ in jobs:
        path.mkdir()
    processes = [start(path, job, rank, 2) for path, job in jobs for rank in (1, 0)]
    assert read_outputs(processes) == ["1 2 2.0 1.0", "0 2 2.0 1.0"] * 3
    assert all(list(path.iterdir()) == [] for path, _ in jobs)


@pytest.mark.slow
def test_the_address_of_a_killed_start_is_replaced(tmp_path: Path) -> None:
    address_file = tmp_path / ".meeting-a.0.json"
    address_file.write_text(json.dumps({"host": "127.0.0.1", "port": 9}))  # where nobody listens
    assert read_outputs([start(tmp_path, "a", rank, 2) for rank in (1, 0)]) == ["1 2 2.0 1.0", "0 2 2.0 1.0"]


def train(fails: bool) -> None:
    model = DistributedDataParallel(nn.Linear(2, 2))
    model(torch.zeros(1, 2)).sum().backward()
    if fails:
        raise ArithmeticError


def end_groups(rank: int, folder: str) -> None:
    for number in range(40):  # without its care one in twenty hangs
        meeting = f"file://{folder}/{number}"
        with suppress(ArithmeticError), join_group("gloo", init_method=meeting, rank=rank, world_size=2):
            train(fails=number % 2 == 0)


@pytest.mark.slow
def test_a_group_ends_at_once_after_a_sum_of_gradients_and_after_an_error(tmp_path: Path) -> None:
    run_two(end_groups, str(tmp_path))


@pytest.mark.parametrize(("gpu_ids", "backend"), [("ab", "cpu:gloo,cuda:nccl"), ("aa", "gloo")])
def test_processes_that_share_a_gpu_do_without_nccl(gpu_ids: str, backend: str) -> None:
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as ranks:
        chosen = ranks.map(lambda rank: _choose_backend(store, RankInfo(rank, 2), gpu_ids[rank]), range(2))
    assert list(chosen) == [backend] * 2
