"""What is compiled: built once per machine by its own C++ compiler, where there is one."""

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

import torch  # brings its OpenMP, which the library is to share  # noqa: F401

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
    """Return how the C++ compiler is called, CXX or c++; None where there is none."""
    command = shlex.split(os.environ.get("CXX") or "c++")
    return command if shutil.which(command[0]) else None


@cache
def load_library(source: str) -> ctypes.CDLL | None:
    """Return what a file of this package is compiled to, such as `augment.cpp`; None where it cannot be had."""
    command = find_compiler()
    if command is None:
        return None
    text = files("galaxyhpc").joinpath(source)
    recipe = "\0".join((text.read_text(), *command, *CXX_FLAGS, describe_cpu()))
    path = get_cache_directory() / f"{Path(source).stem}-{hashlib.sha256(recipe.encode()).hexdigest()[:32]}.so"
    with suppress(OSError):  # absent, or damaged
        return ctypes.CDLL(str(path))
    try:
        with atomic_write(path) as aside:
            subprocess.run([*command, *CXX_FLAGS, "-o", aside, str(text)], check=True, capture_output=True)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_cpu() -> str:
    """Name what `-march=native` means: a home directory may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].split("\n")
        return "\n".join(line for line in lines if line.startswith(("model", "flags", "Features")))
    except OSError:
        return platform.processor()


def get_cache_directory() -> Path:
    """Return where bases are kept: galaxyhpc in $XDG_CACHE_HOME, else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "galaxyhpc"
