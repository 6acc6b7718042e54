"""Evaluate runs: `galaxyhpc evaluate`, the job that Slurm runs; see `jobs.evaluate`."""

import sys

from jobs.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
