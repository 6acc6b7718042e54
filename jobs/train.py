"""Train one run: `galaxyhpc train runs/SWEEP/RUN_ID`, the same job that Slurm starts.

With several processes: `torchrun --standalone --nproc-per-node 2 -m jobs.train runs/SWEEP/RUN_ID`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from galaxyhpc.prediction.survey import refuse_survey
from galaxyhpc.runtime.job import StopSignal, print_error, run_job
from galaxyhpc.runtime.lock import BusyError
from galaxyhpc.runtime.rank import get_rank_info
from galaxyhpc.storage.files import sanitize
from galaxyhpc.storage.run_dir import RunDir, RunDirError
from galaxyhpc.storage.sweep_dir import find_runs

NUM_CANARY_STEPS = 3
EXPECTED_PATH = "one run: runs/SWEEP/RUN_ID"


def run_training(run: RunDir, stop: StopSignal) -> bool:
    """Call `galaxyhpc.training.trainer.train`; torch is loaded only when the job runs."""
    from galaxyhpc.training.trainer import train

    return train(run, stop)


@dataclass(frozen=True)
class TrainJob:
    """The callable for submitit; it holds a path and nothing else."""

    path: str

    def __call__(self) -> str:
        return run_job(self.path, run_training)


def run_canary(run: RunDir, stop: StopSignal) -> bool:
    """Train the first steps only; the run itself resumes from there."""
    from galaxyhpc.training.trainer import train

    train(run, stop, NUM_CANARY_STEPS)
    if get_rank_info().rank == 0 and not stop.is_requested:
        run.record("stopped", why=f"canary: trained its first {NUM_CANARY_STEPS} steps before the other runs start")
    return not stop.is_requested


@dataclass(frozen=True)
class CanaryJob:
    """The callable for submitit ahead of a sweep: an error here would hit every run."""

    path: str

    def __call__(self) -> str:
        return run_job(self.path, run_canary)


def main(arguments: list[str] | None = None) -> int:
    """Train the run that the command line names; 2 if it names none, or another process trains it."""
    parser = argparse.ArgumentParser(prog="galaxyhpc train", description=__doc__)
    parser.add_argument("path", type=Path, help="runs/SWEEP/RUN_ID")
    path = parser.parse_args(arguments).path
    try:
        refuse_survey(path)
        (run,) = find_runs(path, expected=EXPECTED_PATH)
    except RunDirError as error:
        print_error(error)
        return 2
    except ValueError:
        print(f"{sanitize(str(path))}: got no run or several; expected {EXPECTED_PATH}", file=sys.stderr)
        return 2
    try:
        TrainJob(str(run.path))()
    except Exception as error:
        print_error(error)
        return 2 if isinstance(error, BusyError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
