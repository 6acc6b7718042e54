"""One task of a survey's prediction, `python -m jobs.predict DIRECTORY/task-0`: the same job that Slurm starts.

`DIRECTORY/report` is the last one: it predicts what killed tasks have left, and writes the report.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from galaxyhpc.prediction.job import run_last_task, run_task
from galaxyhpc.runtime.job import print_error, run_job
from galaxyhpc.storage.run_dir import RunDir


@dataclass(frozen=True)
class PredictJob:
    """The callable for submitit; it holds the path of a task and nothing else."""

    path: str

    def __call__(self) -> str:
        return run_job(self.path, run_task, get_progress)


@dataclass(frozen=True)
class LastPredictJob:
    """The callable for submitit, after all tasks."""

    path: str

    def __call__(self) -> str:
        return run_job(self.path, run_last_task, get_progress)


def get_progress(run: RunDir) -> str:
    """Return the number of units that a task has written."""
    num_units = sum(event["event"] == "unit" for event in run.read_events())
    return f"{num_units} units"


def main(arguments: list[str] | None = None) -> int:
    """Run the task that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m jobs.predict", description=__doc__)
    parser.add_argument("path", type=Path, help="DIRECTORY/task-0")
    path = parser.parse_args(arguments).path
    job_type = LastPredictJob if path.name == "report" else PredictJob
    try:
        job_type(str(path))()
    except Exception as error:
        print_error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
