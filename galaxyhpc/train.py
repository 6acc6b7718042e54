"""Train one run: `galaxyhpc train`, by hand what Slurm does; see `jobs.train`."""

import sys

from jobs.train import main

if __name__ == "__main__":
    sys.exit(main())
