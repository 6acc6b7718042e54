"""Jobs that run at the same time on one machine."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
import torch

from galaxyhpc.config.schema import ResourcesConfig
from galaxyhpc.launch import local_executor
from galaxyhpc.launch.local_executor import Machine, RunningJob, count_cpus
from galaxyhpc.storage.run_dir import RunDir


def job(cpus: int, *gpus: str) -> RunningJob:
    return RunningJob(RunDir(Path("/r")), SimpleNamespace(), True, cpus, gpus)


@pytest.mark.parametrize(
    ("machine", "resources", "running", "gpu_ids"),
    [
        (Machine(2, (), None), ResourcesConfig(), [job(1)], ()),
        (Machine(2, (), None), ResourcesConfig(), [job(1), job(1)], None),
        (Machine(2, (), None), ResourcesConfig(cpus_per_task=8), [], ()),  # one job always fits
        (Machine(2, (), None), ResourcesConfig(cpus_per_task=8), [job(1)], None),
        (Machine(16, (), 1), ResourcesConfig(), [job(1)], None),  # max_jobs
        (Machine(2, (), None), ResourcesConfig(gpus_per_node=4), [], ()),  # no GPU here: on the CPU
        (Machine(16, ("0", "1"), None), ResourcesConfig(gpus_per_node=1), [job(1, "0")], ("1",)),
        (Machine(16, ("0", "1"), None), ResourcesConfig(gpus_per_node=1), [job(1, "0"), job(1, "1")], None),
        (Machine(16, ("0", "1", "2", "3"), None), ResourcesConfig(gpus_per_node=2), [job(1, "1")], ("0", "2")),
    ],
)
def test_a_job_starts_when_it_fits_on_the_machine(
    machine: Machine, resources: ResourcesConfig, running: list[RunningJob], gpu_ids: tuple[str, ...] | None
) -> None:
    assert machine.assign_gpus(resources, running) == gpu_ids


def test_every_process_of_a_job_counts() -> None:
    assert count_cpus(ResourcesConfig(nodes=2, tasks_per_node=3, cpus_per_task=4)) == 24


@pytest.mark.parametrize(
    ("selection", "num_visible", "gpu_ids"),
    [
        (None, 2, ("0", "1")),
        ("2,3", 2, ("2", "3")),
        ("2, 3", 2, ("2", "3")),
        ("GPU-8932f937-d72c,GPU-12aa", 2, ("GPU-8932f937-d72c", "GPU-12aa")),
        ("MIG-1ff1c0de,MIG-2ff1c0de", 1, ("MIG-1ff1c0de", "MIG-2ff1c0de")),  # a process sees only the first
        ("0,1,7", 2, ("0", "1")),  # there is no GPU 7
        ("0,-1,1", 1, ("0",)),
        ("", 0, ()),
        ("-1", 0, ()),
    ],
)
def test_gpus_are_those_the_user_selected_by_the_names_the_user_gave_them(
    monkeypatch: pytest.MonkeyPatch, selection: str | None, num_visible: int, gpu_ids: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_visible > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_visible)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if selection is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", selection)
    assert local_executor.detect_machine(None).gpu_ids == gpu_ids


def test_the_gpus_of_amd_are_selected_by_their_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "4,5")
    assert local_executor.detect_machine(None).gpu_ids == ("4", "5")
    monkeypatch.delenv("HIP_VISIBLE_DEVICES")
    assert local_executor.detect_machine(None).gpu_ids == ("0", "1")


@pytest.mark.parametrize("gpu_ids", [(), ("MIG-1ff1c0de", "GPU-8932f937")])
def test_a_job_sees_its_gpus_and_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu_ids: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    run = RunDir(tmp_path / "a run")
    job = local_executor.start_job(
        partial(os.getenv, "CUDA_VISIBLE_DEVICES"), run, ResourcesConfig(gpus_per_node=2), gpu_ids
    )
    assert job.handle.result() == ",".join(gpu_ids)


def test_the_time_limit_sends_the_signal_that_jobs_wait_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    call = partial(getattr, submitit.JobEnvironment, "USR_SIG")
    assert local_executor.start_job(call, RunDir(tmp_path), ResourcesConfig(), ()).handle.result() == "USR2"
