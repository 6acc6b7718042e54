"""C++ libraries of this package, built once per machine with its own compiler, where there is one."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import torch  # loads the OpenMP that the library shares  # noqa: F401

from galaxyhpc.storage.caches import find_cache_home
from galaxyhpc.storage.files import atomic_write, sanitize

CXX_FLAGS = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-std=c++17",
    "-shared",
    "-fPIC",
)


def find_compiler() -> list[str] | None:
    """Return the command of the C++ compiler, CXX or c++; None where there is none."""
    command = shlex.split(os.environ.get("CXX") or "c++")
    return command if shutil.which(command[0]) else None


class NativeError(RuntimeError):
    """A library that cannot be built or loaded here; the message says what to do."""


def load_library(source: str) -> ctypes.CDLL | None:
    """Build and load a C++ file of this package, such as `data/augment.cpp`; None where that is not possible."""
    library = _try_load(source)
    return None if isinstance(library, NativeError) else library


def explain_missing(source: str) -> str:
    """Return why a library cannot be loaded, with what to do about it; '' if it can."""
    library = _try_load(source)
    return str(library) if isinstance(library, NativeError) else ""


@cache
def _try_load(source: str) -> ctypes.CDLL | NativeError:
    try:
        return build_library(source)
    except NativeError as error:
        return error


def build_library(source: str) -> ctypes.CDLL:
    """Load a C++ file of this package from the cache, after building it where it is absent or damaged.

    Raises
    ------
    NativeError
    """
    command = _get_compiler()
    source_file = files("galaxyhpc").joinpath(source)
    recipe = "\0".join((source_file.read_text(encoding="utf-8"), *command, *CXX_FLAGS, describe_cpu()))
    path = get_cache_directory() / f"{Path(source).stem}-{hashlib.sha256(recipe.encode()).hexdigest()[:32]}.so"
    with suppress(OSError):  # absent, or damaged
        return ctypes.CDLL(str(path))
    return _build(command, source_file, path)


def try_compiler() -> None:
    """Build and load a tiny library in the cache, and remove it.

    Raises
    ------
    NativeError
    """
    with tempfile.TemporaryDirectory() as folder:
        source_file = Path(folder) / "try.cpp"
        source_file.write_text('#include <cmath>\n#include <omp.h>\nextern "C" int answer() { return 42; }\n', "utf-8")
        path = get_cache_directory() / f"try-{os.getpid()}.so"
        try:
            _build(_get_compiler(), source_file, path)
        finally:
            with suppress(OSError):
                path.unlink()


def _get_compiler() -> list[str]:
    command = find_compiler()
    if command is None:
        raise NativeError(f"no C++ compiler ({os.environ.get('CXX') or 'c++'}): install g++, or set CXX")
    return command


def _build(command: list[str], source_file: Path | Traversable, path: Path) -> ctypes.CDLL:
    try:
        with atomic_write(path) as temporary:
            if not os.access(path.parent, os.W_OK):  # else the linker would be blamed
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            subprocess.run([*command, *CXX_FLAGS, "-o", temporary, str(source_file)], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise NativeError(
            f"{shlex.join(command)}: {_find_error(error.stderr)}: repair the compiler, or set CXX"
        ) from None
    except OSError as error:
        place = f"cache {path.parent}: {error.strerror or error}"
        raise NativeError(f"{place}: set XDG_CACHE_HOME to a directory that you may write") from None
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        is_noexec = bool(os.statvfs(path.parent).f_flag & os.ST_NOEXEC)
        reason = "mounted noexec" if is_noexec else str(error)
        place = f"cache {path.parent}: cannot run what was built there ({reason})"
        raise NativeError(f"{place}: set XDG_CACHE_HOME to a directory that allows it") from None


def _find_error(messages: bytes) -> str:
    """Return the first error of a compiler, which prints warnings and context too."""
    lines = [sanitize(line.strip()) for line in messages.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line]
    return (errors or lines or ["failed without a message"])[0][:200]


def describe_cpu() -> str:
    """Describe what `-march=native` means: machines of several kinds may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].split("\n")
        return "\n".join(line for line in lines if line.startswith(("model", "flags", "Features")))
    except OSError:
        return platform.processor()


def get_cache_directory() -> Path:
    """Return the directory of built libraries and bases."""
    return find_cache_home() / "galaxyhpc"
