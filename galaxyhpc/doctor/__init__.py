"""Check whether a launch would work here: `galaxyhpc doctor`, a line for each thing it needs, with a remedy.

Holds the checks of this machine, of the file system of the runs, and of Slurm. Each check does what a launch or a job
does, on a small scale; nothing is left behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "fails"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    verdict: Verdict  # fails: a launch would fail
    name: str
    text: str
    remedy: str = ""
