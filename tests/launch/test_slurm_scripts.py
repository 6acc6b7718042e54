"""The scripts of slurm/ that users submit themselves; tests/slurm runs them as jobs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "slurm"


def run_script(path: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run slurm/aggregate.sh in `path` with these lines at the head of slurm/env.sh, where `python` only prints."""
    shutil.copytree(SCRIPTS, path / "slurm")
    head, trap = (path / "slurm" / "env.sh").read_text().split("export PATH", 1)
    (path / "slurm" / "env.sh").write_text("\n".join([head, *lines, f"export PATH{trap}"]))
    (path / "activate").write_text("false\ntrue\n")
    python = path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "started $PATH"\n')
    python.chmod(0o755)
    environment = {"PATH": f"{python.parent}:/usr/bin:/bin"}
    return subprocess.run(["bash", "slurm/aggregate.sh"], cwd=path, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("line", ["nosuch load x", "source nosuch", "(exit 3)"])
def test_a_line_of_env_sh_that_fails_ends_the_job_and_is_named(line: str, tmp_path: Path) -> None:
    answer = run_script(tmp_path, "x=1", line)
    assert answer.returncode == 2 and "started" not in answer.stdout
    assert f": {line}: got exit status " in answer.stderr and "slurm/env.sh:" in answer.stderr


def test_files_that_env_sh_sources_may_have_lines_that_fail(tmp_path: Path) -> None:
    answer = run_script(tmp_path, "source ./activate")
    assert answer.returncode == 0 and answer.stdout.splitlines()[-1].startswith("started "), answer.stderr


def test_a_missing_env_sh_ends_the_job(tmp_path: Path) -> None:
    answer = subprocess.run(["bash", SCRIPTS / "aggregate.sh"], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 2 and "slurm/env.sh" in answer.stderr
