"""Train one run: `galaxyhpc train`, the job that Slurm runs; see `jobs.train`."""

import sys

from jobs.train import main

if __name__ == "__main__":
    sys.exit(main())
