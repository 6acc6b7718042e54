"""Locks: one process at a time works on a run, a sweep or a cache, and an error names the holder.

The system's flock decides where the file system has it, and ends with its process. A file beside it, NAME.holder, names
host, process, time and job. Without flock that file is the lock: it remains when its process is killed. A holder counts
as gone if its process on this host is, or if Slurm answers and its job has left the queue or was started again. Any
other lock is removed by `galaxyhpc fsck --unlock` alone.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.child_python import is_alive, read_start_ticks
from galaxyhpc.storage.files import sanitize
from galaxyhpc.storage.run_dir import RunDir

if TYPE_CHECKING:
    from galaxyhpc.runtime.rank import RankInfo  # loads submitit, which is slow

HOLDER_SUFFIX = ".holder"
LAUNCH_LOCK = ".launch.lock"  # in the directory of a sweep
POLL_SECONDS = 0.1
LOOK_SECONDS = 0.3  # a command that only looks may hold the lock this long
PATIENCE_SECONDS = 10  # of silent waiting
QUEUE_SECONDS = 30  # Slurm is not asked more often while waiting
MAX_HOLDER_BYTES = 4096
CONTENTION_ERRNOS = (errno.EAGAIN, errno.EACCES)
NO_FLOCK_ERRNOS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class BusyError(RuntimeError):
    """Another process holds a lock."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as far as it is known."""

    host: str = ""
    pid: int = 0
    time: float = 0.0  # of the acquisition, s since 1970
    start_ticks: int = 0  # of the process, since its host started: another process may get the same pid
    uid: int = -1
    job: str = ""  # Slurm's id, array tasks as 12_3
    job_start: str = ""  # number of requeues of the job
    has_flock: bool = False

    def __str__(self) -> str:
        if not self.host:
            return "an unknown process"
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time))
        job = f"job {self.job}, " if self.job else ""
        return f"{job}host {sanitize(self.host)}, pid {self.pid}, since {since}"


@contextmanager
def hold(path: Path, timeout: float | None = 0.0) -> Iterator[None]:
    """Hold the lock at `path`, after waiting at most `timeout` s; None: without limit, and saying so.

    Raises
    ------
    BusyError
        With the holder.
    """
    descriptor = _acquire(path, timeout)
    try:
        yield
    finally:
        holder = _read_holder(path)
        if holder is not None and (holder.host, holder.pid) == (socket.gethostname(), os.getpid()):
            _get_holder_file(path).unlink(missing_ok=True)
        os.close(descriptor)  # releases the flock


@contextmanager
def hold_directory(directory: Path) -> Iterator[None]:
    """Make a directory and hold its lock; what was made goes again if an error leaves nothing in it.

    Raises
    ------
    BusyError
        With the holder.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    lock = directory / LAUNCH_LOCK
    try:
        with hold(lock):
            try:
                yield
            except BaseException:
                if made and {path.name for path in directory.iterdir()} <= {lock.name, _get_holder_file(lock).name}:
                    lock.unlink(missing_ok=True)
                raise
    except BaseException:
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()
        raise


def _acquire(path: Path, timeout: float | None) -> int:
    """Return the open lock file."""
    start, was_told, queue_time = time.monotonic(), False, 0.0
    queued: Collection[str] | None = None
    while (descriptor := _try_acquire(path, queued)) is None:
        waited, holder = time.monotonic() - start, _read_holder(path)
        if holder is not None and _is_of_own_job(holder) and time.monotonic() - queue_time > QUEUE_SECONDS:
            queued, queue_time = slurm.get_queue(), time.monotonic()
            continue
        if timeout is not None and waited >= max(timeout, LOOK_SECONDS):
            raise BusyError(f"{path}: locked by {holder or 'another process'}{_suggest_unlock(holder)}")
        if timeout is None and waited > PATIENCE_SECONDS and not was_told:
            was_told = True
            text = f"{path}: waiting for {holder or 'another process'}{_suggest_unlock(holder)}"
            print(text, file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)
    return descriptor


def _try_acquire(path: Path, queued: Collection[str] | None) -> int | None:
    """Return the open lock file, or None where another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        has_flock = try_flock(descriptor, fcntl.LOCK_EX)
        # fsck --unlock replaces a lock file: this may be the old one
        is_current = os.path.lexists(path) and os.path.samestat(os.fstat(descriptor), path.lstat())
        if has_flock is not False and is_current and _write_holder(path, bool(has_flock), queued):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def try_flock(descriptor: int, operation: int) -> bool | None:
    """Take a flock without waiting; False: another process has it; None: the file system has no flock."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in CONTENTION_ERRNOS:
            return False
        if error.errno in NO_FLOCK_ERRNOS:
            return None
        raise
    return True


def _write_holder(path: Path, has_flock: bool, queued: Collection[str] | None) -> bool:
    """Name this process as the holder; False where the name of another one stands."""
    previous, file = _read_holder(path), _get_holder_file(path)
    if previous is not None and not (has_flock and previous.has_flock):
        if not _is_gone(previous, queued):
            return False
        _remove_holder(path, previous)
    job, job_start = _get_own_job()
    process = (socket.gethostname(), os.getpid(), time.time(), read_start_ticks(os.getpid()), os.getuid())
    text = json.dumps(asdict(Holder(*process, job, job_start, has_flock)))
    try:
        exclusive = 0 if has_flock and previous is not None else os.O_EXCL
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | exclusive, 0o644)
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        return False
    except OSError:
        if not has_flock:
            raise
        # such as a full disk: the flock suffices, and the job itself reports the disk
    return True


def _remove_holder(path: Path, holder: Holder) -> None:
    """Remove the file that names a holder, unless another process has put its own there in the meantime."""
    file = _get_holder_file(path)
    aside = file.with_name(f"{file.name}.{socket.gethostname()}.{os.getpid()}")
    with suppress(OSError):
        os.rename(file, aside)
        if _parse_holder(aside) != holder:
            os.link(aside, file)
    aside.unlink(missing_ok=True)


def _get_holder_file(path: Path) -> Path:
    return path.with_name(f"{path.name}{HOLDER_SUFFIX}")


def _read_holder(path: Path) -> Holder | None:
    """Return the holder that the file beside a lock names; None without that file; never fails."""
    file = _get_holder_file(path)
    try:
        return _parse_holder(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError):
        return Holder()  # being written, damaged, or not readable


def _parse_holder(file: Path) -> Holder:
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as stream:
        values = json.loads(stream.read(MAX_HOLDER_BYTES))
    types = {name: type(value) for name, value in asdict(Holder()).items()}
    if not isinstance(values, dict) or {name: type(value) for name, value in values.items()} != types:
        raise ValueError(f"{file}: got {values}; expected {', '.join(types)}")
    return Holder(**values)


def _get_own_job() -> tuple[str, str]:
    """Return the id of the Slurm job that this process runs in, as squeue writes it, and its number of requeues."""
    environment = os.environ
    job = environment.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_TASK_ID" in environment:
        job = f"{environment.get('SLURM_ARRAY_JOB_ID', job)}_{environment['SLURM_ARRAY_TASK_ID']}"
    return job, environment.get("SLURM_RESTART_COUNT", "0")


def _is_of_own_job(holder: Holder) -> bool:
    """Whether the queue, which holds this user's jobs only, can tell about a holder."""
    return bool(holder.job) and holder.uid == os.getuid() and holder.host != socket.gethostname()


def _is_gone(holder: Holder, queued: Collection[str] | None) -> bool:
    """Whether a holder has certainly ended; `queued` are this user's jobs, None where Slurm does not answer."""
    if not holder.host:
        return False
    if holder.host == socket.gethostname():
        return holder.pid > 0 and not is_alive(holder.pid, holder.start_ticks)
    if not _is_of_own_job(holder):
        return False
    job, job_start = _get_own_job()
    if holder.job == job:
        return holder.job_start != job_start
    return queued is not None and holder.job not in queued


def find_holder(path: Path, queued: Collection[str] | None = None) -> Holder | None:
    """Return the holder of a lock, or None; changes nothing and never fails.

    `queued` are the ids of this user's jobs in Slurm's queue; None where that is unknown.
    """
    is_locked: bool | None = None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            is_locked = try_flock(descriptor, fcntl.LOCK_SH)  # shared with others that only look
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError:
        pass
    holder = _read_holder(path)
    if is_locked is False:
        return holder or Holder()
    if holder is None or (is_locked and holder.has_flock) or _is_gone(holder, queued):
        return None
    return holder


def _suggest_unlock(holder: Holder | None) -> str:
    if holder is None or holder.host == socket.gethostname():
        return ""
    return "; if it has ended, `galaxyhpc fsck --unlock` on the sweep removes its lock"


def unlock(path: Path, queued: Collection[str] | None) -> Holder | None:
    """Remove the lock of a process that has ended, or may have; return its holder, or None without a lock.

    Raises
    ------
    BusyError
        The holder is at work: its process on this host exists, or its job is in the queue.
    """
    holder = find_holder(path, queued)
    if holder is None:
        holder = _read_holder(path)
        if holder is None or not (holder.has_flock or _is_gone(holder, queued)):
            return None
        _get_holder_file(path).unlink(missing_ok=True)
        return holder
    if holder == Holder() and not _get_holder_file(path).exists():
        raise BusyError(f"{path}: locked by a process that left no name; find it with fuser or lsof")
    if holder.host == socket.gethostname() and holder.pid > 0 and is_alive(holder.pid, holder.start_ticks):
        raise BusyError(f"{path}: locked by {holder}, which is running here; stop it first")
    if holder.job and queued is not None and holder.job in queued:
        raise BusyError(f"{path}: locked by {holder}, and this job is in Slurm's queue; cancel it first")
    path.unlink(missing_ok=True)  # later processes lock a new file
    _get_holder_file(path).unlink(missing_ok=True)
    return holder


@contextmanager
def exclusive_lock(run: RunDir, rank_info: RankInfo) -> Iterator[None]:
    """Hold the lock of a run for one rank of its job.

    Raises
    ------
    BusyError
    """
    path, timeout = run.path / f".lock-{rank_info.rank}", _lock_timeout()
    if timeout and find_holder(path) is not None:
        print(f"{_format_busy(run, path)}; waiting up to {timeout} s", flush=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(path, timeout))
        except BusyError:
            raise BusyError(f"{_format_busy(run, path)}; nothing was changed") from None
        yield


def _lock_timeout() -> int:
    """Return how many seconds to wait for a run that is locked; none where a person started the process.

    A scheduler's job may follow a process that is still exiting, and the node of a requeued job may be cut off from
    Slurm and still running.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return 0
    return 60 if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" else 600


def _format_busy(run: RunDir, path: Path) -> str:
    holder = _read_holder(path)
    return f"{run.path}: another process works on this run ({holder or Holder()}){_suggest_unlock(holder)}"


def is_busy(run: RunDir, queued: Collection[str] | None = None) -> bool:
    """Whether a process works on this run at this moment; see `find_holder`."""
    return find_holder(run.path / ".lock-0", queued) is not None
