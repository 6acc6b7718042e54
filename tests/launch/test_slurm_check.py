"""What Slurm's refusal of a test means for a launch; tests/slurm has the real commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from galaxyhpc.config.schema import ResourcesConfig
from galaxyhpc.launch.slurm_check import ask_slurm

NODES = "allocation failure: Requested node configuration is not available"
DRAINED = "node7|gpu|drained|16|64000|gpu:a100:4(S:0-1),nvme:2"
Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Set the refusal of sbatch, and what sinfo says about nodes that start no jobs."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def install(refusal: str, nodes: str) -> None:
        scripts = {"sbatch": f'echo "{refusal}" >&2; exit 1', "sinfo": f"cat <<END\n{nodes}\nEND"}
        for name, script in scripts.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)

    return install


@pytest.mark.parametrize(
    ("refusal", "nodes", "resources", "can_wait"),
    [
        (NODES, DRAINED, {}, True),
        (NODES, DRAINED, {"memory_gb": 60.0, "gpus_per_node": 4, "tasks_per_node": 4, "cpus_per_task": 4}, True),
        (NODES, DRAINED, {"partition": "cpu,gpu"}, True),
        (NODES, DRAINED, {"memory_gb": 9000.0}, False),  # no node in service would take it either
        (NODES, DRAINED, {"gpus_per_node": 8}, False),
        (NODES, DRAINED, {"cpus_per_task": 17}, False),
        (NODES, DRAINED, {"partition": "cpu"}, False),  # all its nodes are in service
        (NODES, "", {}, False),
        ("allocation failure: Invalid account or account/partition combination specified", DRAINED, {}, False),
        ("allocation failure: Invalid time specified", "", {"sbatch": {"reservation": "night"}}, True),
        ("allocation failure: Invalid time specified", "", {"sbatch": {"deadline": "noon"}}, False),
        ("allocation failure: Unable to contact slurm controller (connect failure)", "", {}, True),
        ("allocation failure: Socket timed out on send/recv operation", "", {}, True),
    ],
)
def test_jobs_that_sbatch_would_queue_can_wait_and_others_are_refused(
    install: Install, refusal: str, nodes: str, resources: dict[str, object], can_wait: bool
) -> None:
    install(f"sbatch: error: {refusal}", nodes)
    answer = ask_slurm("#!/bin/sh", ResourcesConfig.model_validate({"partition": "gpu"} | resources))
    assert (answer.can_wait, answer.refusal, answer.start) == (can_wait, refusal, None)


def test_the_partition_that_slurm_chooses_itself_is_its_default(install: Install) -> None:
    install(NODES, "node7|gpu|drained|16|64000|(null)")
    assert not ask_slurm("#!/bin/sh", ResourcesConfig()).can_wait
    install(NODES, "node7|gpu*|drained|16|64000|(null)")
    assert ask_slurm("#!/bin/sh", ResourcesConfig()).can_wait


def test_the_nodes_that_jobs_wait_for_are_named(install: Install) -> None:
    install(NODES, "\n".join(f"n{number}|main*|down*|16|64000|(null)" for number in range(6)))
    advice = "the jobs wait: no jobs start on n0 (down*), n1 (down*), n2 (down*), n3 (down*) and 2 more"
    assert ask_slurm("#!/bin/sh", ResourcesConfig()).advice == advice


@pytest.mark.parametrize(
    "refusal",
    ["sbatch: option '--requeue' doesn't allow an argument", "Requested operation not supported on this system"],
)
def test_a_slurm_without_expedited_requeues_is_told_from_other_refusals(install: Install, refusal: str) -> None:
    install(refusal, "")
    assert "needs Slurm >= 25.11" in ask_slurm("#!/bin/sh", ResourcesConfig(requeue="expedite")).advice
    assert "needs Slurm" not in ask_slurm("#!/bin/sh", ResourcesConfig()).advice
