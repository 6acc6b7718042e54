"""What is handed to Slurm, to the letter."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import submitit

from galaxyhpc.config.schema import ResourcesConfig
from galaxyhpc.launch import slurm_executor
from galaxyhpc.runtime import child_python, slurm
from galaxyhpc.storage.run_dir import RunDir
from jobs.evaluate import EvaluateJob
from jobs.report import ReportJob
from jobs.train import CanaryJob, TrainJob

GPU = ResourcesConfig(
    nodes=2,
    tasks_per_node=4,
    gpus_per_node=4,
    cpus_per_task=8,
    memory_gb=100.5,
    time_minutes=90,
    partition="gpu",
    account="astro",
    qos="long",
    constraint="a100&ib",
    exclude_nodes=("node3", "node[7-9]"),
    setup=("module load cuda", "export NCCL_DEBUG=WARN"),
)


def test_the_sbatch_file_of_a_class_asks_for_everything_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_python, "get_import_root", lambda: "")  # as if installed among other packages
    text = slurm_executor.make_sbatch_script(Path("/scratch/my runs/all"), GPU, num_runs=12, max_parallel=5)
    python = f'sh -c \'trap "" USR2; exec "$@"\' sh env PYTHONSAFEPATH=1 {shlex.quote(sys.executable)}'
    assert text.splitlines() == [
        "#!/bin/bash",
        "",
        "# Parameters",
        "#SBATCH --account=astro",
        "#SBATCH --array=0-11%5",
        "#SBATCH --constraint='a100&ib'",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --exclude='node3,node[7-9]'",
        "#SBATCH --export=ALL",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --job-name=all-train",
        "#SBATCH --mem=102912M",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --open-mode=append",
        "#SBATCH --output='/scratch/my runs/all/log/%A_%a_0_log.out'",
        "#SBATCH --partition=gpu",
        "#SBATCH --qos=long",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@90",
        "#SBATCH --time=90",
        "",
        "# setup",
        "export PATH  # bash sets it but does not export it in a job that got no environment",
        *slurm_executor.SETUP_TRAP.splitlines(),
        "module load cuda",
        "export NCCL_DEBUG=WARN",
        "trap - ERR",
        "",
        "# command",
        "export SUBMITIT_EXECUTOR=slurm",
        "srun --unbuffered --output '/scratch/my runs/all/log/%A_%a_%t_log.out' --cpus-per-task=8 "
        f"--kill-on-bad-exit=1 --export=ALL {python} -u -m submitit.core._submit '/scratch/my runs/all/log'",
    ]


def get_options(resources: ResourcesConfig) -> list[str]:
    text = slurm_executor.make_sbatch_script(Path("/runs/one"), resources, num_runs=1, max_parallel=None)
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_any_option_of_sbatch_and_srun_is_handed_on() -> None:
    options = {"reservation": "night", "licenses": "sky:1", "mail-user": "me@here", "exclusive": True, "hold": False}
    resources = ResourcesConfig(sbatch=options | {"wckey": "w", "nice": -5}, srun=["--cpu-bind=cores"])
    changes = {"reservation=night", "licenses=sky:1", "mail-user=me@here", "exclusive", "wckey=w", "nice=-5"}
    assert set(get_options(resources)) - set(get_options(ResourcesConfig())) == changes
    text = slurm_executor.make_sbatch_script(Path("/runs/one"), resources, num_runs=1, max_parallel=None)
    assert " --kill-on-bad-exit=1 --export=ALL --cpu-bind=cores sh " in text


def test_gpus_are_asked_for_once_of_the_type_in_gres_and_as_many_as_a_job_uses() -> None:
    resources = ResourcesConfig(sbatch={"gres": "gpu:a100:4,nvme:1"})
    array = slurm_executor.JobArray(resources, [], None, None)
    for part, number in ((resources, 4), (slurm_executor._single_process(array).resources, 1)):
        gpu_options = [option for option in get_options(part) if "gpu" in option]
        assert gpu_options == [f"gres=gpu:a100:{number},nvme:1"]


def test_the_report_is_charged_announced_and_placed_like_the_runs_and_takes_nothing_of_theirs() -> None:
    options = {"reservation": "night", "wckey": "w", "mail-user": "me@here", "mail-type": "END"}
    others = {"gres": "gpu:4", "licenses": "sky:1", "exclusive": True, "nodelist": "n1"}
    runs = ResourcesConfig(partition="gpu", sbatch=options | others)
    report = slurm_executor._make_report_resources({runs: []})
    assert report.sbatch.requested == options and report.partition == "gpu" and report.gpus_per_node == 0


def test_a_job_is_requeued_as_the_setting_says() -> None:
    assert "requeue" in get_options(ResourcesConfig())
    assert "requeue=expedite" in get_options(ResourcesConfig(requeue="expedite"))


def test_the_signal_is_the_one_that_jobs_wait_for_whatever_submitit_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitit.JobEnvironment, "USR_SIG", "USR1")  # as by SUBMITIT_PREEMPT_SIGNAL
    assert "signal=USR2@90" in get_options(ResourcesConfig())


def test_what_is_not_requested_is_left_to_the_cluster() -> None:
    text = slurm_executor.make_sbatch_script(Path("/runs/one"), ResourcesConfig(), num_runs=1, max_parallel=None)
    for word in ("array", "gpus", "mem", "partition", "account", "qos", "constraint", "trap", "wckey", "gres"):
        assert word not in text.replace('trap "" USR2', "")


def test_runs_with_the_same_resources_make_one_class() -> None:
    small, large = ResourcesConfig(), ResourcesConfig(gpus_per_node=4)
    runs = {RunDir(Path(f"/r/{i}")): large if i == 1 else small for i in range(3)}
    groups = slurm_executor.group_by_resources(runs)
    assert [[run.run_id for run in members] for members in groups.values()] == [["0", "2"], ["1"]]


def test_a_class_above_the_clusters_limit_becomes_arrays_that_each_begin_at_0() -> None:
    runs = [RunDir(Path(f"/r/{i}")) for i in range(7)]
    arrays = slurm_executor.make_arrays({ResourcesConfig(): runs[:5], GPU: runs[5:]}, None, max_size=2)
    assert [[run.run_id for run in array.runs] for array in arrays] == [["0", "1"], ["2", "3"], ["4"], ["5", "6"]]
    assert [array.resources for array in arrays] == [ResourcesConfig()] * 3 + [GPU]
    assert {(array.max_parallel, array.depends_on) for array in arrays} == {(None, None)}


def run_setup(path: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    """Run setup commands as in a job; `module` fails as the function of Environment Modules does."""
    (path / "activate").write_text("false\ngrep -q x /dev/null\ntrue\n")
    module = 'module() { eval "$(echo false)"; }'
    script = path / "slurm_script"
    script.write_text("\n".join([module, *slurm_executor.make_setup_lines(commands), "false", "echo srun"]))
    return subprocess.run(["bash", script], cwd=path, capture_output=True, text=True)


@pytest.mark.parametrize(
    "line", ["module load nosuch/1.0", "source nosuch", "false && true", "nosuch_command", "(exit 3)", "x=$(false)"]
)
def test_a_setup_line_that_fails_ends_the_job_and_is_named(line: str, tmp_path: Path) -> None:
    answer = run_setup(tmp_path, "x=1", line, "echo reached")
    assert answer.returncode > 0 and "reached" not in answer.stdout and "srun" not in answer.stdout
    assert f"resources.setup: {line}: got exit status {answer.returncode}; expected 0\n" in answer.stdout


def test_setup_lines_that_succeed_or_only_ask_leave_no_trace_in_the_job(tmp_path: Path) -> None:
    lines = (
        "[ -d /nosuch ] && module load x || true",
        "false || y=2",
        "source ./activate",
        "if false; then",
        "  exit 9",
        "fi",
    )
    answer = run_setup(tmp_path, *lines)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "srun\n", "")
    assert run_setup(tmp_path).stdout == "srun\n"


@pytest.mark.parametrize("commands", [(), ("x=1",)])
def test_a_job_that_gets_no_environment_has_a_path_to_hand_to_srun(commands: tuple[str, ...], tmp_path: Path) -> None:
    script = tmp_path / "slurm_script"
    script.write_text("\n".join([*slurm_executor.make_setup_lines(commands), "exec env"]))
    answer = subprocess.run(["/bin/bash", script], env={}, capture_output=True, text=True, check=True)
    assert any(line.startswith("PATH=") and "/bin" in line for line in answer.stdout.splitlines())


def test_a_submission_hides_what_would_override_its_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"sbatch": f"env >'{tmp_path}/seen'; echo Submitted batch job 7", "srun": ""}.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    given = {"SBATCH_EXPORT": "NONE", "SBATCH_TIMELIMIT": "1", "SBATCH_PARTITION": "low", "SLURM_JOB_ID": "1"}
    for name, text in {**given, "SBATCH_RESERVATION": "ours", "SLURM_CONF": "here", "OURS": "1"}.items():
        monkeypatch.setenv(name, text)
    parameters = slurm_executor.make_submitit_parameters("x", GPU, None)
    assert slurm_executor.Submission(tmp_path).submit_array("report", [ReportJob("/r")], parameters) == ["7"]
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert not seen.keys() & given.keys()
    assert (seen["SBATCH_RESERVATION"], seen["SLURM_CONF"], seen["OURS"]) == ("ours", "here", "1")


@pytest.mark.parametrize("job", [TrainJob, CanaryJob, EvaluateJob, ReportJob])
def test_a_job_holds_the_path_of_a_directory_and_nothing_that_could_go_stale(job: type) -> None:
    assert vars(job("/r/1")) == {"path": "/r/1"}


@pytest.mark.parametrize("parallel", range(1, 12))
@pytest.mark.parametrize("sizes", [[1], [1000], [3, 3], [1, 10], [5, 1, 1, 1], [2] * 7])
def test_arrays_never_run_more_jobs_together_than_allowed_and_none_is_left_out(sizes: list[int], parallel: int) -> None:
    limits = slurm_executor.split_concurrency(sizes, parallel)
    at_once = [limit for limit, previous in limits if previous is None]
    assert sum(at_once) <= parallel and all(limit >= 1 for limit, _ in limits)
    assert sum(at_once) == min(parallel, sum(sizes)) or len(sizes) > parallel
    for index, (_, previous) in enumerate(limits):
        if previous is not None:
            assert 0 <= previous < index and [other for _, other in limits].count(previous) == 1


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    """Forget the answer of Slurm that an earlier test cached."""
    slurm._ping.cache_clear()


def test_no_evidence_of_a_queue_is_not_evidence_of_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("squeue", "scontrol", "sbatch"):
        script = tmp_path / name
        script.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert subprocess.run(["squeue"], capture_output=True).returncode == 1
    assert slurm.get_queue() is None and not slurm.is_up()


def test_without_slurm_there_is_no_queue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.get_queue() is None and not slurm.is_up()
