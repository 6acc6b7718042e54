"""C++ libraries are built once per machine, and their absence is not an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from galaxyhpc.runtime import native

SOURCE = 'extern "C" int answer() { return ANSWER; }'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the package be a folder with answer.cpp, and the cache another one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "files", lambda package: tmp_path)
    (tmp_path / "answer.cpp").write_text(SOURCE.replace("ANSWER", "41"))
    return tmp_path / "cache" / "galaxyhpc"


@pytest.mark.compiler
def test_a_library_is_built_once_and_again_when_its_source_changes(cache: Path) -> None:
    for value, num_files in ((41, 1), (41, 1), (42, 2)):
        (cache.parents[1] / "answer.cpp").write_text(SOURCE.replace("ANSWER", str(value)))
        assert native.build_library("answer.cpp").answer() == value
        assert len(list(cache.iterdir())) == num_files


@pytest.mark.compiler
def test_a_damaged_library_is_built_again(cache: Path) -> None:
    native.build_library("answer.cpp")
    (file,) = cache.iterdir()
    file.unlink()  # not overwritten: it is mapped into this process
    file.write_bytes(b"x")
    assert native.build_library("answer.cpp").answer() == 41


@pytest.mark.compiler
def test_a_source_that_does_not_compile_leaves_nothing_behind_and_the_compilers_first_error(cache: Path) -> None:
    (cache.parents[1] / "answer.cpp").write_text('#warning "harmless"\n#include <no_such_header>\n')
    with pytest.raises(
        native.NativeError, match=r"fatal error: no_such_header: No such file.*: repair the compiler, or"
    ):
        native.build_library("answer.cpp")
    assert list(cache.iterdir()) == []


def test_without_a_compiler_there_is_no_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++ -O3")
    assert native.find_compiler() is None and not cache.exists()
    with pytest.raises(
        native.NativeError, match=r"no C\+\+ compiler \(/nowhere/c\+\+ -O3\): install g\+\+, or set CXX"
    ):
        native.build_library("answer.cpp")


NOEXEC = """
mount -t tmpfs -o noexec,size=1m none "$XDG_CACHE_HOME" || exit 75
exec "$PYTHON" -c 'from galaxyhpc.runtime import native; print(native.explain_missing("data/augment.cpp"))'
"""


@pytest.mark.compiler
def test_a_cache_mounted_noexec_is_not_blamed_on_the_compiler(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHON": sys.executable}
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", NOEXEC]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    if answer.returncode in (1, 75):
        pytest.skip(f"no user namespace with mounts here: {answer.stderr}")
    assert "cannot run what was built there (mounted noexec): set XDG_CACHE_HOME" in answer.stdout


def test_the_compiler_is_cxx_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "sh -c 'a b'")
    assert native.find_compiler() == ["sh", "-c", "a b"]
