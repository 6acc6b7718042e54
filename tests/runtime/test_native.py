"""C++ libraries are built once per machine, and their absence is not an error."""

from __future__ import annotations

import ctypes
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


def load(source: str = "answer.cpp") -> ctypes.CDLL | None:
    return native.load_library.__wrapped__(source)


@pytest.mark.compiler
def test_a_library_is_built_once_and_again_when_its_source_changes(cache: Path) -> None:
    for value, num_files in ((41, 1), (41, 1), (42, 2)):
        (cache.parents[1] / "answer.cpp").write_text(SOURCE.replace("ANSWER", str(value)))
        library = load()
        assert library is not None and library.answer() == value
        assert len(list(cache.iterdir())) == num_files


@pytest.mark.compiler
def test_a_damaged_library_is_built_again(cache: Path) -> None:
    assert load() is not None
    (file,) = cache.iterdir()
    file.unlink()  # not overwritten: it is mapped into this process
    file.write_bytes(b"x")
    library = load()
    assert library is not None and library.answer() == 41


@pytest.mark.compiler
def test_a_source_that_does_not_compile_leaves_nothing_behind(cache: Path) -> None:
    (cache.parents[1] / "answer.cpp").write_text("no C++")
    assert load() is None and list(cache.iterdir()) == []


def test_without_a_compiler_there_is_no_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++ -O3")
    assert native.find_compiler() is None and load() is None and not cache.exists()


def test_the_compiler_is_cxx_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "sh -c 'a b'")
    assert native.find_compiler() == ["sh", "-c", "a b"]
