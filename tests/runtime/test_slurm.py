"""Queries to Slurm, whose commands are scripts here; tests/slurm has the real ones."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.slurm import QueuedJob

Answers = Callable[..., None]


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """Set the shell scripts that stand for Slurm's commands."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def install(**scripts: str) -> None:
        slurm._ping.cache_clear()
        for name, script in {"sbatch": "", **scripts}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)

    yield install
    slurm._ping.cache_clear()


@pytest.mark.parametrize(
    ("ping", "is_up", "is_down"),
    [
        ("echo 'Slurmctld(primary) at a is DOWN'; echo 'Slurmctld(backup) at b is UP'", True, False),
        ("echo 'Slurmctld(primary) at a is DOWN'; exit 1", False, True),
        ("echo 'scontrol: error: no configuration' >&2; exit 1", False, False),
    ],
)
def test_slurm_is_up_where_one_controller_answers_and_down_only_where_it_is_set_up(
    ping: str, is_up: bool, is_down: bool, answers: Answers
) -> None:
    answers(scontrol=ping)
    assert (slurm.is_up(), slurm.is_down()) == (is_up, is_down)


def test_the_queue_is_read_by_job_id_and_lines_of_another_form_are_skipped(answers: Answers) -> None:
    answers(squeue="echo ' 7_1|RUNNING|None|node[1-2]|a|b'; echo 'slurm_load_jobs'; echo '8|PENDING|Priority||(null)'")
    assert slurm.get_queue() == {
        "7_1": QueuedJob("RUNNING", "None", "node[1-2]", "a|b"),
        "8": QueuedJob("PENDING", "Priority", "", "(null)"),
    }


@pytest.mark.parametrize(("squeue", "queue"), [("", {}), ("echo '7|RUNNING|None|n|t'; exit 1", None)])
def test_an_empty_queue_differs_from_no_answer(
    squeue: str, queue: dict[str, QueuedJob] | None, answers: Answers
) -> None:
    answers(squeue=squeue)
    assert slurm.get_queue() == queue


@pytest.mark.parametrize(("end", "is_known"), [("2031-05-06T07:08:09", True), ("N/A", False), ("", False)])
def test_the_end_of_the_time_limit_is_in_local_time(end: str, is_known: bool, answers: Answers) -> None:
    answers(squeue=f"echo {end}")
    expected = time.mktime((2031, 5, 6, 7, 8, 9, 0, 0, -1)) if is_known else None
    assert slurm.get_end_time("7") == expected


@pytest.mark.parametrize(
    ("config", "size"),
    [("MaxArraySize            = 20", 20), ("MaxJobCount = 5", 1001), ("MaxArraySize = 0", 1)],  # 0: no arrays
)
def test_the_array_size_is_slurms_default_where_the_configuration_does_not_tell(
    config: str, size: int, answers: Answers
) -> None:
    answers(scontrol=f"echo '{config}'")
    assert slurm.get_max_array_size() == size


def test_the_state_and_reason_of_a_job_are_empty_where_slurm_does_not_know_it(answers: Answers) -> None:
    answers(scontrol="[ $4 = 7 ] || exit 1; echo 'JobId=7 JobName=x JobState=COMPLETING Reason=TimeLimit Dependency='")
    assert slurm.get_job_state("7") == ("COMPLETING", "TimeLimit") and slurm.get_job_state("8") == ("", "")


def test_final_states_come_from_accounting_or_from_the_controller_without_it(answers: Answers) -> None:
    answers(sacct="echo '7_1|CANCELLED by 1000'; echo '7_2|TIMEOUT'", squeue="echo '7_1|RUNNING'")
    assert slurm.final_states(["7_1", "7_2"]) == {"7_1": "CANCELLED", "7_2": "TIMEOUT"}
    answers(sacct="exit 1", squeue="echo ' 7_1|NODE_FAIL'")
    assert slurm.final_states(["7_1"]) == {"7_1": "NODE_FAIL"}


def test_a_tested_submission_has_a_start_time_or_the_reasons_of_its_refusal(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CONF"):
        monkeypatch.setenv(name, "x")
    start = "echo 'sbatch: Job 9 to start at 2031-05-06T07:08:09 using 1 processors on nodes n' >&2"
    answers(sbatch=f"cat > '{tmp_path}/script'; env > '{tmp_path}/environment'; {start}")
    assert slurm.test_submit("#!/bin/sh\n") == (time.mktime((2031, 5, 6, 7, 8, 9, 0, 0, -1)), "")
    assert (tmp_path / "script").read_text() == "#!/bin/sh\n"
    environment = (tmp_path / "environment").read_text().splitlines()
    assert "SLURM_CONF=x" in environment and "SLURM_JOB_ID=x" not in environment
    answers(sbatch="echo 'sbatch: error: invalid partition' >&2; echo 'sbatch: error: Batch job failed' >&2; exit 1")
    assert slurm.test_submit("") == (None, "invalid partition; Batch job failed")


def test_without_slurm_nothing_is_up_or_down_and_nothing_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    slurm._ping.cache_clear()
    assert (slurm.is_up(), slurm.is_down(), slurm.get_queue(), slurm.final_states(["7"])) == (False, False, None, {})
    assert slurm.test_submit("")[1].startswith("no answer: ")
    slurm._ping.cache_clear()
