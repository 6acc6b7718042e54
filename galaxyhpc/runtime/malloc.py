"""Memory that is freed stays with the process: every training step asks for the same again."""

from __future__ import annotations

import ctypes
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of malloc.h
MOST, LARGEST = 2**31 - 1, 32 << 20  # bytes, the largest that glibc takes


def keep_freed() -> None:
    """Tell glibc not to give large pieces back to the system.

    The system fills each page with zeros before it gives it out anew: a tenth to a quarter of a small network's step on
    a CPU. What other C libraries do is left alone.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(TRIM_THRESHOLD, MOST)
        library.mallopt(MMAP_THRESHOLD, LARGEST)
