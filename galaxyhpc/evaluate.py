"""Evaluate runs: `galaxyhpc evaluate`, by hand what Slurm does; see `jobs.evaluate`."""

import sys

from jobs.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
