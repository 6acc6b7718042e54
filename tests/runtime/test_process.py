"""Freed memory stays in the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, torch
from galaxyhpc.runtime.process import keep_heap
if {keep}:
    keep_heap()
blocks = [torch.ones(1 << 20) for _ in range(20)]  # 4 MiB each
del blocks
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Info(ctypes.Structure):  # of malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in names]
library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
print(library.mallinfo2().fordblks >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_that_was_freed_stays_with_the_process() -> None:
    free = [
        int(subprocess.run([sys.executable, "-c", PROGRAM.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (False, True)
    ]  # MiB
    assert free[1] > 75 > free[0]
