"""This process: what it takes from the user's environment, its output, its memory."""

from __future__ import annotations

import ctypes
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any

from galaxyhpc.storage.caches import redirect_caches

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MAX_TRIM_BYTES, MAX_MMAP_BYTES = 2**31 - 1, 32 << 20  # bytes, the largest that glibc accepts


class Output(io.TextIOWrapper):
    """Standard output or error that may fail: a reader leaves, as `| head` does, or a disk is full.

    What cannot be written is dropped and the command goes on, as a launch must. A class, because in the middle of a
    command an error of the output could not be told from one of its files.
    """

    has_failed = False

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._report(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._report(error)

    def _report(self, error: OSError) -> None:
        if self is sys.stdout and not self.has_failed and not isinstance(error, BrokenPipeError):
            self.has_failed = True
            print(f"standard output: {error.strerror}; the rest is not shown", file=sys.stderr)


def start_command() -> None:
    """Prepare a command's process, before libraries are imported that look at the environment."""
    if isinstance(sys.stdout, Output):
        return
    _require_utf8_file_names()
    _open_closed_descriptors()
    prepare_process()
    sys.stdout, sys.stderr = _make_output(sys.stdout, 1), _make_output(sys.stderr, 2)


def prepare_process() -> None:
    """Prepare the process of a command or a job: output, environment, caches. Repeating it changes nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")  # a sign that the terminal does not have
    os.environ.pop("SOURCE_DATE_EPOCH", None)  # for builds of packages; numpy and matplotlib fail on other texts
    os.environ["ASTROPY_CONFIG_DIR"] = os.path.dirname(__file__)  # no settings of the user's, which may be damaged
    redirect_caches()


def _require_utf8_file_names() -> None:
    """Start again in Python's UTF-8 mode where the locale has ASCII alone: no other file could be named or opened.

    Output keeps the locale's encoding. A locale with more than ASCII is left as it is, with its own file names.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1" and sys.orig_argv:
        os.environ.setdefault("PYTHONIOENCODING", "ascii:replace")
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _open_closed_descriptors() -> None:
    """Put the null device where a shell closed standard input, output or error: a file of ours would take its place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor


def _make_output(stream: Any, descriptor: int) -> Output:
    if stream is None:  # it was closed
        return Output(os.fdopen(descriptor, "wb", closefd=False), "utf-8")
    is_terminal = stream.line_buffering
    return Output(stream.buffer, stream.encoding, stream.errors, None, is_terminal, stream.write_through)


def has_reader() -> bool:
    """Whether somebody still reads the standard output of this process."""
    poll = select.poll()
    poll.register(1, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def keep_heap() -> None:
    """Tell glibc to keep freed memory in the process: every training step allocates the same again.

    The system zeroes each page before it hands it out again: a tenth to a quarter of a small network's step on a CPU.
    Other C libraries are left as they are.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, MAX_TRIM_BYTES)
        library.mallopt(M_MMAP_THRESHOLD, MAX_MMAP_BYTES)
