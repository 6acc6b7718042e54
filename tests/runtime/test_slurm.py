"""Queries to Slurm, whose commands are scripts here; tests/slurm has the real ones."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.slurm import QueuedJob

Answers = Callable[..., None]
PROJECT = Path(__file__).parents[2]


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


def test_final_states_come_from_the_controller_and_of_jobs_that_it_forgot_from_accounting(answers: Answers) -> None:
    sacct = "case $5 in --jobs=7,8) echo '7_2|TIMEOUT'; echo '8|CANCELLED by 1000'; echo '9|FAILED' ;; esac"
    answers(squeue="echo ' 7_1|NODE_FAIL'; echo ' 7_2|RUNNING'", sacct=sacct)
    assert slurm.get_final_states(["7_1", "7_2", "8"]) == {"7_1": "NODE_FAIL", "7_2": "TIMEOUT", "8": "CANCELLED"}
    answers(squeue="echo ' 7_1|NODE_FAIL'", sacct="exit 1")
    assert slurm.get_final_states(["7_1", "7_2"]) == {"7_1": "NODE_FAIL"}


FILTERS = (
    *(f"SQUEUE_{name}" for name in ("STATES", "PARTITION", "ACCOUNT", "QOS", "NAMES", "LICENSES", "USERS")),
    *("SACCT_FORMAT", "SCONTROL_ALL", "SINFO_PARTITION", "SCANCEL_STATE", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT"),
    *("SLURM_BITSTR_LEN", "SLURM_JOB_ID", "SBATCH_TIMELIMIT"),
)


def test_no_command_of_slurm_sees_the_users_options_in_the_environment(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*FILTERS, "SLURM_CONF", "SLURM_JWT", "LANG"):
        monkeypatch.setenv(name, "C")
    report = f"echo \"$0 $(env | tr '\\n' ' ')\" >>'{tmp_path}/calls'"
    answers(**dict.fromkeys(("squeue", "scontrol", "sacct", "sbatch", "scancel"), report))
    for query in (slurm.is_up, slurm.get_queue, slurm.get_max_array_size):
        query()
    for query_job in (slurm.get_end_time, slurm.get_job_state, lambda job: slurm.get_final_states([job])):
        query_job("7")
    slurm.test_submit("")
    slurm.run("scancel", "7")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert {Path(call.split()[0]).name for call in calls} == {"squeue", "scontrol", "sacct", "sbatch", "scancel"}
    for call in calls:
        names = {word.partition("=")[0] for word in call.split()[1:]}
        assert not names & set(FILTERS) and {"SLURM_CONF", "SLURM_JWT", "LANG", "PATH"} <= names


def test_no_other_module_starts_a_command_of_slurm_in_the_users_environment() -> None:
    pattern = r"subprocess\.\w+\(\s*\[?\s*[\"'](squeue|scontrol|sacct|sinfo|scancel|sbatch|srun)\b"
    files = [*(PROJECT / "galaxyhpc").rglob("*.py"), *(PROJECT / "jobs").glob("*.py")]
    assert [file.name for file in files if re.search(pattern, file.read_text())] == []
    assert len(files) > 100


def test_sbatch_sees_where_the_user_wants_jobs_to_run_unless_the_script_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wishes = {f"SBATCH_{name}": "x" for name in ("ACCOUNT", "CONSTRAINT", "PARTITION", "QOS", "RESERVATION", "WCKEY")}
    others = ("EXPORT", "OUTPUT", "SIGNAL", "NO_REQUEUE", "OPEN_MODE", "JOB_NAME", "ARRAY_INX", "WAIT", "IGNORE_PBS")
    for name in (*wishes, *(f"SBATCH_{other}" for other in (*others, "TIMELIMIT", "EXCLUSIVE", "MEM_PER_CPU"))):
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    assert slurm.get_sbatch_variables(()) == wishes
    assert wishes.keys() - slurm.get_sbatch_variables(("partition", "qos", "wckey")).keys() == {
        "SBATCH_PARTITION",
        "SBATCH_QOS",
        "SBATCH_WCKEY",
    }
    assert {f"SBATCH_{other}" for other in others} < set(slurm.list_ignored_variables())


def test_a_tested_submission_has_a_start_time_or_the_reasons_of_its_refusal(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SBATCH_QOS", "SBATCH_ACCOUNT", "SBATCH_EXPORT"):
        monkeypatch.setenv(name, "x")
    start = "echo 'sbatch: Job 9 to start at 2031-05-06T07:08:09 using 1 processors on nodes n' >&2"
    answers(sbatch=f"cat > '{tmp_path}/script'; env > '{tmp_path}/environment'; {start}")
    script = "#!/bin/sh\n#SBATCH --account=y\n"
    assert slurm.test_submit(script) == (time.mktime((2031, 5, 6, 7, 8, 9, 0, 0, -1)), "")
    assert (tmp_path / "script").read_text() == script
    environment = (tmp_path / "environment").read_text().splitlines()
    assert [line for line in environment if line.startswith("SBATCH_")] == ["SBATCH_QOS=x"]
    answers(sbatch="echo 'sbatch: error: invalid partition' >&2; echo 'sbatch: error: Batch job failed' >&2; exit 1")
    assert slurm.test_submit("") == (None, "invalid partition; Batch job failed")


def test_without_slurm_nothing_is_up_or_down_and_nothing_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    slurm._ping.cache_clear()
    assert (slurm.is_up(), slurm.is_down(), slurm.get_queue(), slurm.get_final_states(["7"])) == (
        False,
        False,
        None,
        {},
    )
    assert slurm.test_submit("")[1].startswith("no answer: ")
    slurm._ping.cache_clear()
