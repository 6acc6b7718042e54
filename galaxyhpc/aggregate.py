"""Write the report of a sweep: tables, figures and a page in runs/SWEEP/report/, and a table on the terminal.

    galaxyhpc aggregate runs/SWEEP
    galaxyhpc aggregate runs/SWEEP --no-intervals     # quick look at a thousand runs: no confidence intervals

    report.html       everything below on one page         tables.tex        for a paper (booktabs)
    results.csv       one row per run and condition         summary.csv       the same per network, over its seeds
    wide.csv          one row per network                   networks.csv      size, mean corruption error, Pareto front
    comparisons.csv   paired tests of all networks          missing.csv       incomplete runs, with the reason
    per_class.csv, confusion.csv, reliability.csv, corruption_error.csv, attack.csv, hardest.csv, and the figures

The report reads the planned runs from plan.csv and states how many of them are complete. The condition rotation_mean
is the accuracy over all angles together.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path

from galaxyhpc.report.build import AggregateError, aggregate, print_report


def main(arguments: list[str] | None = None) -> int:
    """Write the report of the sweep that the command line names; 2 if there is none."""
    parser = argparse.ArgumentParser(prog="galaxyhpc aggregate", description="Write the report of a sweep.")
    parser.add_argument("sweep", type=Path, help="runs/SWEEP")
    parser.add_argument("--no-intervals", action="store_true", help="skip the bootstrap")
    options = parser.parse_args(arguments)
    gc.set_threshold(100_000)  # no data of 1,000 runs is garbage; collecting it takes a tenth of the time
    try:
        report = aggregate(options.sweep, compute_intervals=not options.no_intervals)
    except AggregateError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    print_report(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
