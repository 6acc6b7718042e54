"""The provenance of a run names the code that runs, and no other repository's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from galaxyhpc.storage import provenance


def _git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    return subprocess.check_output(["git", "-C", directory, *identity, *arguments], text=True).strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A user's own repository with one commit."""
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "mine")
    return tmp_path


def _collect(package_parent: Path) -> list[str]:
    """Return commit and uncommitted of the package's copy in a directory."""
    code = "from galaxyhpc.storage.provenance import *; p = collect_provenance(); print(p['commit'], p['uncommitted'])"
    return subprocess.check_output([sys.executable, "-c", code], cwd=package_parent, text=True).split()


def test_a_copy_that_is_installed_inside_a_users_repository_has_no_commit(repository: Path) -> None:
    package = Path(provenance.__file__).parents[1]
    shutil.copytree(package, repository / "venv" / "galaxyhpc", ignore=shutil.ignore_patterns("__pycache__"))
    assert _collect(repository / "venv") == ["None", "None"]
    _git(repository, "add", "venv")
    _git(repository, "commit", "--quiet", "--message", "a checkout")
    assert _collect(repository / "venv") == [_git(repository, "rev-parse", "HEAD"), "None"]


def test_the_users_git_variables_and_settings_do_not_change_commit_and_difference(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = provenance.collect_provenance()
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "/bin/true")
    after = provenance.collect_provenance()
    assert (after["commit"], after["uncommitted"]) == (before["commit"], before["uncommitted"])


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    versions = provenance.collect_provenance()["versions"]
    assert versions["torch"] and versions["no-such-package"] is None
