"""Slurm checks a sweep before anything is submitted."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.slurm import desk, queue, started

from galaxyhpc.config.schema import DataConfig, DemoConfig, ModelConfig, ResourcesConfig, RunConfig
from galaxyhpc.launch import preflight
from galaxyhpc.runtime import slurm

RESUME = ("scontrol", "update", "nodename=node[1-4]", "state=resume")


def run(seed: int, cache: Path, **resources: object) -> RunConfig:
    data = DataConfig(image_size=33, cache=str(cache), demo=DemoConfig(galaxies=300, size=32))
    model = ModelConfig(architecture="cnn", scale=0.1)
    return RunConfig(model=model, data=data, seed=seed, resources=ResourcesConfig(**resources))


def jobs() -> str:
    return subprocess.run(["squeue", "--me", "--noheader"], capture_output=True, text=True, check=True).stdout


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    slurm._ping.cache_clear()


def test_each_class_is_refused_in_slurms_own_words_all_at_once(tmp_path: Path) -> None:
    runs = [run(0, tmp_path), run(1, tmp_path, partition="nowhere"), run(2, tmp_path, partition="nowhere")]
    runs += [run(3, tmp_path, memory_gb=9000.0), run(4, tmp_path, gpus_per_node=9, tasks_per_node=9)]
    with pytest.raises(preflight.PreflightError) as caught:
        preflight.check_sweep(runs, tmp_path / "my sweep", "slurm")
    messages = {problem.location: problem.message for problem in caught.value.problems}
    assert len(messages) == 3 and not (tmp_path / "my sweep").exists()
    assert "nvalid partition" in messages["sbatch for 2 runs, partition nowhere"]
    assert "not available" in messages["sbatch for 1 run, memory_gb 9000.0"]


def test_the_expected_start_of_each_class_is_slurms_and_nothing_is_submitted(tmp_path: Path) -> None:
    runs = [run(0, tmp_path), run(1, tmp_path), run(2, tmp_path, partition="low")]
    before = {line.split()[0] for line in jobs().splitlines()}
    starts = preflight.check_sweep(runs, tmp_path / "my sweep", "slurm").start_times
    assert set(starts) == {run.resources.resolved for run in runs}
    assert all(time.time() - 60 < start < time.time() + 24 * 3600 for start in starts.values())
    assert {line.split()[0] for line in jobs().splitlines()} <= before


def test_without_the_slurm_executor_slurm_is_not_queried(tmp_path: Path) -> None:
    assert preflight.check_sweep([run(0, tmp_path, partition="nowhere")], tmp_path / "sweep", "local").start_times == {}


def control(*command: str) -> str:
    return subprocess.run(["scontrol", *command], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def drained() -> Iterator[None]:
    """No node starts a job."""
    control("update", "nodename=node[1-4]", "state=drain", "reason=test")
    yield
    subprocess.run(RESUME, capture_output=True)  # refused where a test has done it


@pytest.mark.usefixtures("drained")
def test_what_sbatch_queues_although_no_node_starts_jobs_is_a_warning_and_what_it_refuses_is_not(
    tmp_path: Path,
) -> None:
    runs = [run(0, tmp_path), run(1, tmp_path, partition="low"), run(2, tmp_path, partition="low", gpus_per_node=4)]
    warnings = list(map(str, preflight.check_sweep(runs, tmp_path / "my sweep", "slurm").warnings))
    warnings = [warning for warning in warnings if warning.startswith("sbatch for ")]
    nodes = "the jobs wait: no jobs start on node1 (drained), node2 (drained), node3 (drained), node4 (drained)"
    refusal = "allocation failure: Requested node configuration is not available"
    assert warnings[0] == f"sbatch for 1 run, defaults: {refusal}; {nodes}"
    assert len(warnings) == 3 and all(nodes in warning for warning in warnings)
    impossible: list[dict[str, object]] = [{"memory_gb": 9000.0}, {"gpus_per_node": 9}, {"cpus_per_task": 99}]
    impossible += [{"partition": "nowhere"}, {"constraint": "nope"}, {"sbatch": {"licenses": "nothing:1"}}]
    for resources in impossible:
        with pytest.raises(preflight.PreflightError):
            preflight.check_sweep([run(0, tmp_path, **resources)], tmp_path / "my sweep", "slurm")


def test_a_reservation_that_has_not_begun_is_a_warning(tmp_path: Path) -> None:
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    time_and_place = ("starttime=now+2hours", "duration=60", "nodes=node1", f"users={user}")
    control("create", "reservation=galaxies", *time_and_place)
    try:
        config = run(0, tmp_path, sbatch={"reservation": "galaxies"})
        (warning,) = preflight.check_sweep([config], tmp_path / "my sweep", "slurm").warnings
        assert str(warning).endswith("Invalid time specified; the jobs wait: the reservation has not begun")
        with pytest.raises(preflight.PreflightError, match="reservation is invalid"):
            config = run(0, tmp_path, sbatch={"reservation": "none"})
            preflight.check_sweep([config], tmp_path / "my sweep", "slurm")
    finally:
        control("delete", "reservation=galaxies")


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"sbatch": {"no-such-option": 1}}, "no-such-option"),
        ({"sbatch": {"gres": "gpu:9"}}, "not available"),
        ({"requeue": "expedite"}, "needs Slurm >= 25.11"),
    ],
)
def test_options_that_this_slurm_does_not_have_are_refused(
    tmp_path: Path, resources: dict[str, object], message: str
) -> None:
    with pytest.raises(preflight.PreflightError, match=message):
        preflight.check_sweep([run(0, tmp_path, **resources)], tmp_path / "my sweep", "slurm")


def test_jobs_wait_for_drained_nodes_with_all_options_and_start_when_the_nodes_return(
    place: Path, drained: None
) -> None:
    ours = desk(place / "drained", tiny="blocks: [points: [{model.architecture: cnn}]]\n")
    options = ("--set", "resources.sbatch={gres: 'gpu:2', nice: 77, hold: false}")
    assert "warning: sbatch for 1 run" in ours.launch("tiny", "--dry-run", *options)
    output = ours.launch("tiny", *options)
    assert "warning: sbatch for 1 run" in output and "report: 1 job submitted" in output
    jobs = {name: control("show", "job", job) for job, _, name in queue(ours.path)}
    assert {state for _, state, _ in queue(ours.path)} == {"PENDING"}
    assert [jobs[f"tiny-{stage}"].count(" Nice=77") for stage in ("train", "evaluate", "report")] == [1, 1, 0]
    assert "TresPerNode=gres:gpu:2" in jobs["tiny-train"] and "TresPerNode=gres:gpu:1" in jobs["tiny-evaluate"]
    assert "gpu" not in jobs["tiny-report"] and all("WCKey" not in job for job in jobs.values())
    subprocess.run(RESUME, check=True)
    (planned,) = ours.runs("tiny")
    ours.wait(lambda: bool(started(planned)), "a training that has started")
