"""C++ libraries of this package, built once per machine with its own compiler, where there is one."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch  # loads the OpenMP that the library shares  # noqa: F401

from galaxyhpc.storage.caches import find_cache_home
from galaxyhpc.storage.files import atomic_write

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


@cache
def load_library(source: str) -> ctypes.CDLL | None:
    """Build and load a C++ file of this package, such as `data/augment.cpp`; None where that is not possible."""
    command = find_compiler()
    if command is None:
        return None
    source_file = files("galaxyhpc").joinpath(source)
    recipe = "\0".join((source_file.read_text(encoding="utf-8"), *command, *CXX_FLAGS, describe_cpu()))
    path = get_cache_directory() / f"{Path(source).stem}-{hashlib.sha256(recipe.encode()).hexdigest()[:32]}.so"
    with suppress(OSError):  # absent, or damaged
        return ctypes.CDLL(str(path))
    try:
        with atomic_write(path) as temporary:
            subprocess.run([*command, *CXX_FLAGS, "-o", temporary, str(source_file)], check=True, capture_output=True)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError):
        return None


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
