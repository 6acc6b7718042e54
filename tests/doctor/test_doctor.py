"""What doctor finds on this machine, in file systems that lack something, and in clusters of all kinds."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.file_systems import make_environment

from galaxyhpc.doctor import Finding, file_system, machine, slurm_checks
from galaxyhpc.doctor.__main__ import main
from galaxyhpc.runtime import slurm

CONFIGURATION = """\
Configuration data as of 2026-01-01T00:00:00
AccountingStorageType   = accounting_storage/slurmdbd
JobRequeue              = 1
MaxArraySize            = 1001
PreemptMode             = REQUEUE
PreemptParameters       = (null)
PreemptType             = preempt/partition_prio
SLURM_VERSION           = 22.05.8
SlurmctldParameters     = enable_configless,preempt_send_user_signal
"""
COMMANDS = {
    "scontrol": '[ "$1" = ping ] && echo "Slurmctld(primary) at x is UP" && exit\ncat "$(dirname "$0")/configuration"',
    "sbatch": 'echo "sbatch: Job 7 to start at 2026-11-27T20:00:00 using 1 processors on nodes n1" >&2',
    "sacct": "exit 0",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a Slurm's commands, and of its configuration."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "configuration").write_text(CONFIGURATION)
    for name, text in COMMANDS.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    slurm._ping.cache_clear()
    return folder


def look_at_slurm(folder: Path) -> dict[str, Finding]:
    slurm._ping.cache_clear()
    return {finding.name: finding for finding in slurm_checks.check_slurm(folder, None)}


@pytest.mark.parametrize("columns", ["80", "60"])
def test_a_machine_that_works_has_a_line_for_everything_and_is_left_as_it_was(
    columns: str, cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    (tmp_path / "here").mkdir()
    assert main(["--runs", str(tmp_path / "here" / "runs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ("Python", "packages", "torch", "GPU", "C++ compiler", "cache", "locale", "runs", "flock", "clock", "space")
    for name in (*names, "Slurm arrays", "Slurm requeue", "Slurm preemption", "Slurm accounting", "launch"):
        assert any(line[8:].startswith(name) and line.split()[0] in ("ok", "warning") for line in lines), name
    assert max(map(len, lines)) <= int(columns) and lines[-1].startswith("a launch would work here: ")
    assert "sbatch would start it at 2026-11-27 20:00" in " ".join(" ".join(lines).split())
    assert list((tmp_path / "here").iterdir()) == []


def test_a_run_that_slurm_refuses_fails_in_slurms_words(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cluster / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n")
    (tmp_path / "p.yaml").write_text("partition: gpu\n")
    assert main(["--runs", str(tmp_path), "--profile", str(tmp_path / "p.yaml")]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "fails launch sbatch for 1 run, partition gpu: invalid partition specified: gpu -> change resources" in text
    (tmp_path / "p.yaml").write_text("partitoin: gpu\n")
    (finding,) = slurm_checks.check_launch(tmp_path, tmp_path / "p.yaml")
    assert finding.verdict == "fails" and "partitoin" in finding.text


def test_gpus_that_a_profile_asks_for_and_this_machine_lacks_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_checks.slurm, "is_up", lambda: False)
    (tmp_path / "p.yaml").write_text("gpus_per_node: 8\ntasks_per_node: 8\n")
    (finding,) = slurm_checks.check_launch(tmp_path, tmp_path / "p.yaml")
    assert finding.verdict == "warning" and "of 8 that the profile asks for, and no Slurm" in finding.text


def test_a_broken_torch_is_a_line_like_others(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    command = [sys.executable, "-m", "galaxyhpc", "doctor", "--runs", str(tmp_path)]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (1, "") and "fails   torch" in answer.stdout
    assert "ok      flock" in answer.stdout and "a launch would fail here" in answer.stdout


@pytest.mark.compiler
def test_a_file_system_without_flock_or_fsync_is_a_warning(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from galaxyhpc.doctor.file_system import check_directory\n"
    script += "for finding in check_directory(Path(sys.argv[1])): print(finding.verdict, finding.name, finding.remedy)"
    environment = make_environment(tmp_path, errno.ENOLCK)
    command = [sys.executable, "-c", script, str(tmp_path)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "warning flock works, with lock files; after a crash of another host: galaxyhpc fsck" in answer.stdout
    assert "warning runs works; after a power cut" in answer.stdout


def test_a_directory_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (finding,) = file_system.check_directory(tmp_path / "file" / "runs")
    assert finding.verdict == "fails" and "--runs" in finding.remedy
    (finding,) = file_system.check_directory(tmp_path / "50%")
    assert finding.verdict == "fails" and "expected a path without %" in finding.text


@pytest.mark.parametrize(
    ("old", "new", "name", "verdict", "text"),
    [
        (
            "MaxArraySize            = 1001",
            "MaxArraySize            = 0",
            "Slurm arrays",
            "warning",
            "allow job arrays",
        ),
        (",preempt_send_user_signal", "", "Slurm preemption", "warning", "preempt_send_user_signal (22.05)"),
        ("preempt/partition_prio", "preempt/none", "Slurm preemption", "ok", ""),
        ("accounting_storage/slurmdbd", "accounting_storage/none", "Slurm accounting", "warning", "name the runs"),
        ("JobRequeue              = 1", "JobRequeue              = 0", "Slurm requeue", "ok", ""),
    ],
)
def test_what_slurm_does_not_allow_is_named_with_a_remedy(
    old: str, new: str, name: str, verdict: str, text: str, cluster: Path
) -> None:
    configuration = CONFIGURATION.replace(old, new)
    assert configuration != CONFIGURATION
    (cluster / "configuration").write_text(configuration)
    finding = look_at_slurm(cluster)[name]
    assert finding.verdict == verdict and text in finding.remedy


def test_a_slurm_that_does_not_answer_fails_and_none_is_no_fault(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cluster / "sacct").write_text("#!/bin/sh\nexit 1\n")
    assert "sacct does not answer" in look_at_slurm(cluster)["Slurm accounting"].text
    (cluster / "scontrol").write_text("#!/bin/sh\necho 'Slurmctld(primary) at x is DOWN'\n")
    assert look_at_slurm(cluster)["Slurm"].verdict == "fails"
    monkeypatch.setenv("PATH", "/nowhere")
    assert look_at_slurm(cluster)["Slurm"].verdict == "ok"
    slurm._ping.cache_clear()


def test_what_the_environment_lacks_is_a_warning_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert machine.check_cache().verdict == "warning" and "XDG_CACHE_HOME" in machine.check_cache().remedy
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert machine.check_compiler().verdict == "warning" and "install g++" in machine.check_compiler().remedy
    monkeypatch.setattr(machine.locale, "getpreferredencoding", lambda do_setlocale: "ANSI_X3.4-1968")
    assert machine.check_locale().verdict == "warning" and "LANG" in machine.check_locale().remedy
