"""A cache that cannot be had is never an error."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from galaxyhpc.storage import caches
from galaxyhpc.storage.caches import LIBRARY_CACHES, find_cache_home, find_home, redirect_caches


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of temporary files; nothing is remembered of other tests."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", *LIBRARY_CACHES):
        os.environ.pop(name, None)
    caches._choose_cache_home.cache_clear()
    return tmp_path / "tmp"


def test_the_cache_is_in_the_home_directory_or_where_xdg_cache_home_says(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    os.environ["HOME"] = str(tmp_path / "home")
    assert find_cache_home() == tmp_path / "home" / ".cache"
    os.environ["XDG_CACHE_HOME"] = str(tmp_path / "a" / "b")
    assert find_cache_home() == tmp_path / "a" / "b"
    os.environ["XDG_CACHE_HOME"] = "relative"  # to be ignored, says the standard
    assert find_cache_home() == tmp_path / "home" / ".cache"


@pytest.mark.parametrize("home", ["/nonexistent", "relative", "/proc", "/dev/null"])
def test_without_a_home_that_can_be_written_it_is_a_private_temporary_directory(home: str, temporary: Path) -> None:
    os.environ["HOME"] = home
    directory = find_cache_home()
    assert directory.parent == temporary and directory.stat().st_mode & 0o777 == 0o700
    assert not Path("relative").exists() and not Path("/nonexistent").exists()


def test_a_directory_that_others_may_have_made_is_not_used(temporary: Path, tmp_path: Path) -> None:
    """Libraries are loaded from it."""
    os.environ["HOME"] = "/nonexistent"
    expected = temporary / f"galaxyhpc-user-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    expected.symlink_to(tmp_path / "elsewhere")
    assert find_cache_home() != expected and not find_cache_home().is_symlink()
    caches._choose_cache_home.cache_clear()
    expected.unlink()
    expected.mkdir()
    expected.chmod(0o777)
    assert find_cache_home() != expected


def test_without_any_directory_nothing_is_cached_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ["HOME"] = "/nonexistent"
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nothing")
    with pytest.raises(OSError):
        (find_cache_home() / "galaxyhpc" / "file").write_text("")


def test_libraries_are_given_caches_only_where_theirs_cannot_be_written(tmp_path: Path) -> None:
    os.environ["HOME"] = str(tmp_path)
    before = os.environ.copy()
    redirect_caches()
    assert os.environ == before
    os.environ |= {"HOME": "/proc", "MPLCONFIGDIR": "/chosen", "XDG_CONFIG_HOME": "relative"}
    redirect_caches()
    names = {name: os.environ[name] for name in ("XDG_CACHE_HOME", *LIBRARY_CACHES)}
    assert names.pop("MPLCONFIGDIR") == "/chosen" and "XDG_CONFIG_HOME" not in os.environ
    assert all(path.startswith(str(find_cache_home())) for path in names.values()) and os.environ["HOME"] == "/proc"


def test_a_missing_home_is_replaced(tmp_path: Path, temporary: Path) -> None:
    os.environ["HOME"] = "relative"
    assert find_home() is None
    redirect_caches()
    assert find_home() == find_cache_home() == Path(os.environ["XDG_CACHE_HOME"]) and find_home().parent == temporary
