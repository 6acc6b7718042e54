"""Atomic, durable writes (temporary file, fsync, rename), outputs that users name, file hashes and printable text."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OVERWRITE_HELP = "replace the output if it exists"


NO_FSYNC_ERRNOS = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # of directories on some FUSE and CIFS mounts


class OutputExistsError(ValueError):
    """An output that would replace what is there."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` atomically and durably when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary_path = path.with_name(f".{path.name}.{socket.gethostname()}.{threading.get_native_id()}")
    try:
        yield temporary_path
        fsync(temporary_path)
        os.replace(temporary_path, path)
        fsync(path.parent)
    finally:
        temporary_path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Force a file's contents, or a directory's entries, onto the disk, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC_ERRNOS:
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def check_output(path: Path, may_overwrite: bool) -> None:
    """Refuse an output that the user named where a file, or a directory with files, exists already.

    The directories of sweeps are this package's own: what is written there needs no permission.

    Raises
    ------
    OutputExistsError
    """
    is_new = not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir()))
    if not (is_new or may_overwrite):
        raise OutputExistsError(f"{sanitize(str(path))}: already exists; expected a new name, or --overwrite")


def sanitize(text: str) -> str:
    """Replace characters that a terminal would obey or an encoding refuse by `?`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
