"""Write the report of a sweep, as `galaxyhpc aggregate runs/SWEEP`: its last job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from galaxyhpc.runtime.job import record_failure
from galaxyhpc.runtime.process import prepare_process
from galaxyhpc.runtime.rank import get_rank_info
from galaxyhpc.storage.sweep_dir import get_report_records


@dataclass(frozen=True)
class ReportJob:
    """The callable for submitit; it holds a path and nothing else."""

    path: str

    def __call__(self) -> str:
        prepare_process()
        records, rank_info = get_report_records(Path(self.path)), get_rank_info()
        records.record("assigned", job=rank_info.job_attempt, nodes=rank_info.node_names)
        try:
            from galaxyhpc.report.build import aggregate, print_report

            print_report(aggregate(Path(self.path)))
        except Exception as error:
            record_failure(records, rank_info, error)
            raise
        return "done"
