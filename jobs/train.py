"""Train one run: `python -m jobs.train runs/SWEEP/RUN_ID` does by hand what Slurm does.

With several processes: `torchrun --standalone --nproc-per-node 2 -m jobs.train runs/SWEEP/RUN_ID`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from galaxyhpc.lifecycle import Stop, carry_out
from galaxyhpc.rundir import NoRunError, RunDir, runs_of


def work(run: RunDir, stop: Stop) -> bool:
    """See `galaxyhpc.trainer.train`; torch is not loaded before the job runs."""
    from galaxyhpc.trainer import train

    return train(run, stop)


@dataclass(frozen=True)
class TrainJob:
    """Callable given to submitit: it holds a path and nothing else."""

    path: str

    def __call__(self) -> str:
        return carry_out(self.path, work)


if __name__ == "__main__":
    try:
        (run,) = runs_of(Path(sys.argv[1]))
    except (IndexError, ValueError) as error:
        print(error if isinstance(error, NoRunError) else __doc__, file=sys.stderr)
        sys.exit(2)
    TrainJob(str(run.path))()
