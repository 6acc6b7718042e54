"""Evaluate one run, `python -m jobs.evaluate runs/SWEEP/RUN_ID`, or every trained run of a sweep, `... runs/SWEEP`.

`--share 3/8` takes the fourth of eight shares of a sweep's runs (counted from 0), for sbatch arrays.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from galaxyhpc.runtime.job import StopSignal, print_error, run_job
from galaxyhpc.storage.run_dir import RunDir, RunDirError, read_state
from galaxyhpc.storage.sweep_dir import find_runs


def run_evaluation(run: RunDir, stop: StopSignal) -> bool:
    """See `galaxyhpc.evaluation.evaluate.evaluate`; torch is not loaded before the job runs."""
    from galaxyhpc.evaluation.evaluate import evaluate

    return evaluate(run, stop)


@dataclass(frozen=True)
class EvaluateJob:
    """Callable given to submitit: it holds a path and nothing else."""

    path: str

    def __call__(self) -> str:
        return run_job(self.path, run_evaluation)


def evaluate_run(run: RunDir) -> bool:
    """Evaluate a run that is trained; one that cannot be is named, and the next one goes on."""
    if not run.best_file.exists():
        print(f"{run.run_id}: not trained to its end: {read_state(run).name} {read_state(run).reason}")
        return True
    try:
        EvaluateJob(str(run.path))()
    except Exception as error:
        print_error(error)
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Evaluate what the command line names; 1 where an evaluation failed."""
    parser = argparse.ArgumentParser(prog="galaxyhpc evaluate", description=__doc__)
    parser.add_argument("path", type=Path, help="runs/SWEEP/RUN_ID or runs/SWEEP")
    parser.add_argument("--share", default="0/1", metavar="I/N", help="the I-th of N shares of the runs")
    options = parser.parse_args(arguments)
    try:
        index, shares = map(int, options.share.split("/"))
        if not 0 <= index < shares:
            raise ValueError
        runs = find_runs(options.path)[index::shares]
    except RunDirError as error:
        print_error(error)
        return 2
    except ValueError:
        parser.error(f"--share: found {options.share}; allowed I/N with 0 <= I < N")
    failed = [run for run in runs if not evaluate_run(run)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
