"""Write the report of a sweep, as `galaxyhpc aggregate runs/SWEEP`: its last job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from galaxyhpc.runtime.process import prepare_process


@dataclass(frozen=True)
class ReportJob:
    """The callable for submitit; it holds a path and nothing else."""

    path: str

    def __call__(self) -> str:
        prepare_process()
        from galaxyhpc.report.build import aggregate, print_report

        print_report(aggregate(Path(self.path)))
        return "done"
