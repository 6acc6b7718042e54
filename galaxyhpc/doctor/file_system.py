"""Checks of the file system of the runs: writes, renames, locks, space, clock."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from galaxyhpc.doctor import Finding
from galaxyhpc.runtime.lock import try_flock
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDirError
from galaxyhpc.storage.sweep_dir import resolve_sweep_dir

MIN_FREE_BYTES = 1 << 30
MIN_FREE_INODES = 10_000
MAX_SKEW_SECONDS = 2.0  # status allows for a minute
LOCAL_FLOCK_OPTIONS = {"localflock", "local_lock=all", "local_lock=flock"}  # of Lustre and NFS
TAKE_FLOCK = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def check_directory(runs_dir: Path) -> Iterator[Finding]:
    """Yield the findings about the file system of the directory of all sweeps, which need not exist yet."""
    try:
        directory = resolve_sweep_dir(runs_dir, "doctor").parent
    except RunDirError as error:
        yield Finding("fails", "runs", str(error))
        return
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    kind, options = _find_mount(existing)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing) as folder:
            yield _check_writes(Path(folder), f"{directory} ({kind})")
            yield _check_flock(Path(folder), options)
            yield _check_clock(Path(folder))
    except OSError as error:
        text = f"{existing}: {error.strerror or error}"
        yield Finding("fails", "runs", text, "choose a directory that you may write with --runs")
        return
    yield _check_space(existing)


def _find_mount(path: Path) -> tuple[str, set[str]]:
    """Return the type of the file system of a directory, and its mount options; the longest mount point counts."""
    best, kind, options = -1, "unknown type", set[str]()
    try:
        mounts = Path("/proc/mounts").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return kind, options
    for line in mounts:
        _, point, this_kind, this_options, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if path.is_relative_to(point) and len(point) >= best:
            best, kind, options = len(point), this_kind, set(this_options.split(","))
    return kind, options


def _check_writes(folder: Path, place: str) -> Finding:
    """Write, fsync and rename a file over another, as checkpoints are."""
    start = time.monotonic()
    for text in ("old", "new"):
        write_text(folder / "file", text)
    seconds = (time.monotonic() - start) / 2
    if not _has_fsync(folder):
        remedy = "works; after a power cut of the file server the newest checkpoint may be missing"
        return Finding("warning", "runs", f"{place}: no fsync of directories", remedy)
    if (folder / "file").read_text(encoding="utf-8") != "new":
        return Finding("fails", "runs", f"{place}: a renamed file has the old content", "choose another with --runs")
    return Finding("ok", "runs", f"{place}: write, fsync and rename take {1000 * seconds:.0f} ms")


def _has_fsync(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _check_flock(folder: Path, options: set[str]) -> Finding:
    """Take a flock in this process and try to take it in another one."""
    path = folder / "lock"
    path.touch()
    remedy = "works, with lock files; after a crash of another host: galaxyhpc fsck --unlock runs/SWEEP"
    with path.open("r+b") as file:
        if try_flock(file.fileno(), fcntl.LOCK_EX) is None:
            return Finding("warning", "flock", "not supported by this file system", remedy)
        other = subprocess.run([sys.executable, "-c", TAKE_FLOCK, path], capture_output=True, timeout=60)
    if other.returncode == 0:
        text = "two processes got the same lock"
        return Finding("fails", "flock", text, "choose another file system with --runs: runs would be started twice")
    if local := options & LOCAL_FLOCK_OPTIONS:
        remedy = "do not launch from two hosts; or mount it with shared locks (Lustre: flock; NFS: local_lock=none)"
        return Finding("warning", "flock", f"seen by this host only (mount option {', '.join(local)})", remedy)
    return Finding("ok", "flock", "one process at a time gets a lock")


def _check_clock(folder: Path) -> Finding:
    """Compare the clock of this machine with that of the file server, which dates files."""
    before = time.time()
    (folder / "clock").write_text("x", encoding="utf-8")
    modified, after = (folder / "clock").stat().st_mtime, time.time()
    skew = max(before - modified, modified - after, 0.0)
    if skew > MAX_SKEW_SECONDS:
        text = f"differs by {skew:.0f} s from that of the file server"
        return Finding("warning", "clock", text, "ask the administrator to run NTP; times in status are wrong by that")
    return Finding("ok", "clock", f"agrees with that of the file server to {max(skew, 0.1):.1f} s")


def _check_space(directory: Path) -> Finding:
    """Look at free bytes and inodes; a launch compares the bytes with those that its runs need."""
    state = os.statvfs(directory)
    free = state.f_bavail * state.f_frsize
    has_inodes = state.f_files > 0  # some file systems do not count them
    text = f"{free / 1e9:.1f} GB and {f'{state.f_favail:,}' if has_inodes else 'any number of'} files are free"
    remedy = "free some, or choose another directory with --runs"
    if free == 0 or (has_inodes and state.f_favail == 0):
        return Finding("fails", "space", text, remedy)
    if free < MIN_FREE_BYTES or (has_inodes and state.f_favail < MIN_FREE_INODES):
        return Finding("warning", "space", text, remedy)
    return Finding("ok", "space", text)
