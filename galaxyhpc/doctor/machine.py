"""Checks of this machine: Python, packages, GPUs, compiler, caches, locale and terminal."""

from __future__ import annotations

import locale
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from galaxyhpc.doctor import Finding

MIN_PYTHON = (3, 11)
MIN_COLUMNS = 80
MIN_TEMPORARY_BYTES = 1 << 30


def check_python() -> Finding:
    """Check the version of the interpreter."""
    text = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] < MIN_PYTHON:
        return Finding("fails", "Python", text, f"install Python {'.'.join(map(str, MIN_PYTHON))} or later")
    return Finding("ok", "Python", text)


def check_packages() -> Finding:
    """Compare the installed packages with the versions that this package requires."""
    from packaging.requirements import Requirement

    requirements = [Requirement(text) for text in metadata.requires("galaxyhpc") or []]
    required = [item for item in requirements if item.marker is None or item.marker.evaluate({"extra": ""})]
    problems = []
    for item in required:
        try:
            version = metadata.version(item.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{item.name}: not installed; expected {item.specifier}")
            continue
        if not item.specifier.contains(version, prereleases=True):
            problems.append(f"{item.name}: got {version}; expected {item.specifier}")
    if problems:
        return Finding("fails", "packages", "; ".join(problems), "pip install --upgrade galaxyhpc, or pip install -e .")
    return Finding("ok", "packages", f"{len(required)} required packages have versions that fit")


def check_torch() -> Finding:
    """Import torch and e2cnn and compute with them."""
    start = time.monotonic()
    try:
        import torch

        from galaxyhpc.config.schema import ModelConfig
        from galaxyhpc.models.build_model import build_model

        network = build_model(ModelConfig(group="C2", scale=0.05), 33).eval()
        with torch.inference_mode():
            logits = network(torch.rand(1, 3, 33, 33))
    except Exception as error:  # a broken library raises whatever it likes
        return Finding("fails", "torch", f"{type(error).__name__}: {error}", "install torch again, from pytorch.org")
    text = f"{torch.__version__}, {torch.get_num_threads()} threads; a network was built and run in "
    text += f"{time.monotonic() - start:.0f} s"
    if not bool(logits.isfinite().all()):
        return Finding("fails", "torch", f"{text}, with logits that are not finite", "install torch again")
    return Finding("ok", "torch", text)


def check_cuda() -> Finding:
    """Compute a convolution on every GPU, and look for NCCL."""
    import torch

    if not torch.cuda.is_available():
        if not Path("/proc/driver/nvidia/version").exists():
            return Finding("ok", "GPU", "none here: runs use CPUs")
        if torch.version.cuda is None:
            remedy = "install a torch with CUDA, from pytorch.org"
            return Finding("warning", "GPU", "there is a driver, but this torch has no CUDA", remedy)
        text = f"there is a driver, but torch (CUDA {torch.version.cuda}) sees no GPU"
        return Finding("warning", "GPU", text, "update the driver, or check CUDA_VISIBLE_DEVICES")
    names = []
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        try:
            images = torch.rand(2, 3, 33, 33, device=f"cuda:{index}")
            torch.nn.functional.conv2d(images, images[:, :, :3, :3]).sum().item()
        except RuntimeError as error:
            return Finding("fails", "GPU", f"{name}: {error}", "install a torch for this GPU, from pytorch.org")
        names.append(name)
    is_available = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if is_available else "none"
    text = f"{', '.join(names)}; CUDA {torch.version.cuda}, NCCL {nccl}"
    if not is_available:
        return Finding("warning", "GPU", text, "one GPU per run works; for more, install a torch with NCCL")
    return Finding("ok", "GPU", text)


def check_compiler() -> Finding:
    """Build a library in the cache and load it."""
    from galaxyhpc.runtime import native

    try:
        native.try_compiler()
    except native.NativeError as error:
        text, _, remedy = str(error).rpartition(": ")
        return Finding("warning", "C++ compiler", f"{text}; on CPUs all layers are dense, and slower", remedy)
    command = " ".join(native.find_compiler() or ())
    return Finding("ok", "C++ compiler", f"{command}: a library was built and loaded")


def check_cache() -> Finding:
    """Write to the cache of libraries, filter bases and speeds."""
    from galaxyhpc.runtime.native import get_cache_directory
    from galaxyhpc.storage.caches import has_private_cache

    directory = get_cache_directory()
    problem = _try_to_write(directory)
    if problem or has_private_cache():
        remedy = "set XDG_CACHE_HOME to a directory that you may write; without, each machine computes it again"
        text = f"{directory}: {problem or 'instead of one of yours, which cannot be written'}"
        return Finding("warning", "cache", text, remedy)
    return Finding("ok", "cache", f"{directory}: writable")


def check_temporary_directory() -> Finding:
    """Write to the directory of temporary files."""
    try:
        directory = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        return Finding("fails", "temporary files", str(error), "set TMPDIR to a directory that you may write")
    free = shutil.disk_usage(directory).free
    text = f"{directory}: {free / 1e9:.1f} GB free"
    if free < MIN_TEMPORARY_BYTES:
        return Finding("warning", "temporary files", text, "free space there, or set TMPDIR")
    return Finding("ok", "temporary files", text)


def _try_to_write(directory: Path) -> str:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def check_locale() -> Finding:
    """Check that names and tables can be printed."""
    encoding = locale.getpreferredencoding(False)
    columns, lines = shutil.get_terminal_size((0, 0))
    size = f"terminal of {columns} x {lines}" if columns else "no terminal"
    text = f"{encoding}, {size}, TERM {os.environ.get('TERM', 'unset')}"
    if encoding.lower().replace("-", "") != "utf8":
        return Finding("warning", "locale", text, "export LANG=C.UTF-8: tables and names are not ASCII")
    if 0 < columns < MIN_COLUMNS:
        return Finding("warning", "locale", text, f"widen the terminal to {MIN_COLUMNS} columns")
    return Finding("ok", "locale", text)


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_packages,
    check_torch,
    check_cuda,
    check_compiler,
    check_cache,
    check_temporary_directory,
    check_locale,
)
