"""Freed memory is used again."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from galaxyhpc.memory import keep_freed
if {keep}:
    keep_freed()
def work():
    kept = [torch.ones(1 << 20) for _ in range(20)]  # 4 MiB each
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_pages_that_were_freed_are_not_asked_for_again() -> None:
    faults = [
        int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (False, True)
    ]
    assert faults[1] < 0.3 * faults[0]
