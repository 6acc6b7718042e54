"""Keep freed memory in the process: every training step allocates the same again."""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MAX_TRIM_BYTES, MAX_MMAP_BYTES = 2**31 - 1, 32 << 20  # bytes, the largest that glibc accepts


def keep_heap() -> None:
    """Tell glibc not to return large blocks to the system; other C libraries are left as they are.

    The system zeroes each page before it hands it out again: a tenth to a quarter of a small network's step on a CPU.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, MAX_TRIM_BYTES)
        library.mallopt(M_MMAP_THRESHOLD, MAX_MMAP_BYTES)
