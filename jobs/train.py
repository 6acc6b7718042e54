"""Train one run: `python -m jobs.train runs/SWEEP/RUN_ID` does by hand what Slurm does.

With several processes: `torchrun --standalone --nproc-per-node 2 -m jobs.train runs/SWEEP/RUN_ID`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from galaxyhpc.runtime.job import Stop, carry_out, tell
from galaxyhpc.runtime.lock import BusyError
from galaxyhpc.runtime.rank import find_place
from galaxyhpc.storage.run_dir import NoRunError, RunDir
from galaxyhpc.storage.sweep_dir import runs_of

CANARY_STEPS = 3


def work(run: RunDir, stop: Stop) -> bool:
    """See `galaxyhpc.training.trainer.train`; torch is not loaded before the job runs."""
    from galaxyhpc.training.trainer import train

    return train(run, stop)


@dataclass(frozen=True)
class TrainJob:
    """Callable given to submitit: it holds a path and nothing else."""

    path: str

    def __call__(self) -> str:
        return carry_out(self.path, work)


def try_out(run: RunDir, stop: Stop) -> bool:
    """Train the first steps only; the run itself goes on from there."""
    from galaxyhpc.training.trainer import train

    train(run, stop, CANARY_STEPS)
    if find_place().rank == 0 and not stop.wanted:
        run.record(
            "stopped", why=f"its first {CANARY_STEPS} steps were made before the other runs; it waits for its turn"
        )
    return not stop.wanted


@dataclass(frozen=True)
class CanaryJob:
    """Callable given to submitit ahead of a sweep: what fails here would fail in every run."""

    path: str

    def __call__(self) -> str:
        return carry_out(self.path, try_out)


if __name__ == "__main__":
    try:
        (run,) = runs_of(Path(sys.argv[1]))
    except (IndexError, ValueError) as error:
        found = "found no run, or several; allowed: runs/SWEEP/RUN_ID"
        print(error if isinstance(error, NoRunError) else found, file=sys.stderr)
        sys.exit(2)
    try:
        TrainJob(str(run.path))()
    except Exception as error:
        tell(error)
        sys.exit(2 if isinstance(error, BusyError) else 1)
