"""Evaluate one run, `galaxyhpc evaluate runs/SWEEP/RUN_ID`, or every trained run of a sweep, `... runs/SWEEP`.

`--share 3/8` evaluates the fourth of eight parts of a sweep's runs (counted from 0), for sbatch arrays.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from galaxyhpc.prediction.survey import refuse_survey
from galaxyhpc.runtime.job import StopSignal, print_error, run_job
from galaxyhpc.storage.run_dir import RunDir, RunDirError, read_state
from galaxyhpc.storage.sweep_dir import find_runs


def run_evaluation(run: RunDir, stop: StopSignal) -> bool:
    """Call `galaxyhpc.evaluation.evaluate.evaluate`; torch is loaded only when the job runs."""
    from galaxyhpc.evaluation.evaluate import evaluate

    return evaluate(run, stop)


@dataclass(frozen=True)
class EvaluateJob:
    """The callable for submitit; it holds a path and nothing else."""

    path: str

    def __call__(self) -> str:
        return run_job(self.path, run_evaluation)


def evaluate_run(run: RunDir) -> bool:
    """Evaluate a trained run and print the reason where that is not possible; return False after an error."""
    if not run.best_file.exists():
        print(f"{run.run_id}: training not finished: {read_state(run).name} {read_state(run).reason}")
        return True
    try:
        EvaluateJob(str(run.path))()
    except Exception as error:
        print_error(error)
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Evaluate the runs on the command line; return 1 where an evaluation failed."""
    parser = argparse.ArgumentParser(prog="galaxyhpc evaluate", description=__doc__)
    parser.add_argument("path", type=Path, help="runs/SWEEP/RUN_ID or runs/SWEEP")
    parser.add_argument("--share", default="0/1", metavar="I/N", help="part I of N of the runs, counted from 0")
    options = parser.parse_args(arguments)
    try:
        share, num_shares = map(int, options.share.split("/"))
        if not 0 <= share < num_shares:
            raise ValueError
        refuse_survey(options.path)
        runs = find_runs(options.path)[share::num_shares]
    except RunDirError as error:
        print_error(error)
        return 2
    except ValueError:
        parser.error(f"--share: got {options.share}; expected I/N with 0 <= I < N")
    failed = [run for run in runs if not evaluate_run(run)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
