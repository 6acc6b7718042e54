"""Jobs that run at the same time on one machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from galaxyhpc.config.schema import ResourcesConfig
from galaxyhpc.launch.local_executor import Machine, RunningJob, count_cpus
from galaxyhpc.storage.run_dir import RunDir


def job(cpus: int, *gpus: int) -> RunningJob:
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
        (Machine(16, (0, 1), None), ResourcesConfig(gpus_per_node=1), [job(1, 0)], (1,)),
        (Machine(16, (0, 1), None), ResourcesConfig(gpus_per_node=1), [job(1, 0), job(1, 1)], None),
        (Machine(16, (0, 1, 2, 3), None), ResourcesConfig(gpus_per_node=2), [job(1, 1)], (0, 2)),
    ],
)
def test_a_job_starts_when_it_fits_on_the_machine(
    machine: Machine, resources: ResourcesConfig, running: list[RunningJob], gpu_ids: tuple[int, ...] | None
) -> None:
    assert machine.assign_gpus(resources, running) == gpu_ids


def test_every_process_of_a_job_counts() -> None:
    assert count_cpus(ResourcesConfig(nodes=2, tasks_per_node=3, cpus_per_task=4)) == 24
