"""Train, evaluate and report a sweep: `galaxyhpc launch sweeps/quickstart.yaml`.

On a cluster the runs are submitted to Slurm as job arrays, and the command returns at once; without Slurm they run on
this machine. Rerun the same command to resume: it does only what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from galaxyhpc.config.sweep import SweepError, load_sweep
from galaxyhpc.config.yaml_loader import read_leading_comment
from galaxyhpc.data import DataError
from galaxyhpc.launch import slurm_executor
from galaxyhpc.launch.dispatch import (
    LaunchError,
    add_executor_options,
    check_no_orphaned_runs,
    choose_executor,
    dispatch,
    find_unfinished_runs,
    prepare_galaxies,
)
from galaxyhpc.launch.dry_run import show_plan
from galaxyhpc.launch.galaxy_checks import fill_in_class_names
from galaxyhpc.launch.plan import with_absolute_paths, write_plan
from galaxyhpc.launch.preflight import PreflightError, check_sweep, make_symmetry_table, print_problems, print_warnings
from galaxyhpc.runtime.console import format_count, make_console
from galaxyhpc.runtime.lock import BusyError, hold_directory
from galaxyhpc.storage.run_dir import RunDirError
from galaxyhpc.storage.sweep_dir import refuse_symlinks, resolve_sweep_dir

PROBLEMS_LOG_WIDTH = 10_000  # no line breaks in a log, whose text is searched


def main(arguments: list[str] | None = None) -> int:
    """Launch the sweep that the command line names; 2 if the user has to correct something."""
    options = _parse_args(arguments)
    console = make_console()
    try:
        sweep = load_sweep(options.sweep, options.set, options.profile)
        configs = fill_in_class_names([with_absolute_paths(config, options.runs) for config in sweep.runs])
        directory = resolve_sweep_dir(options.runs, sweep.name)
        refuse_symlinks(*(directory / config.run_id for config in configs))
        checked_sweep = check_sweep(configs, directory, options.executor)
        configs, networks = checked_sweep.configs, checked_sweep.networks
        print_warnings(checked_sweep, console)
        if options.dry_run:
            show_plan(console, directory, checked_sweep, options.max_parallel)
            return 0
        console.print(make_symmetry_table(checked_sweep))
        executor = choose_executor(options.executor)
        with hold_directory(directory):
            check_no_orphaned_runs(directory, configs)
            question = read_leading_comment(options.sweep.read_text(encoding="utf-8-sig"))  # the report begins with it
            text = f"{question}\n{sweep.resolved_yaml}"
            pending_runs = find_unfinished_runs(directory, checked_sweep.by_cost_descending)
            pending_ids = {run.run_id for run in pending_runs}
            pending_data = (config.data for config in configs if config.run_id in pending_ids)
            prepare_galaxies(pending_data, directory, executor)  # which may refuse them: nothing is planned yet
            write_plan(text, directory, configs, networks)
            num_busy = len(configs) - len(pending_runs)
            console.print(
                f"{directory}: {format_count(len(configs), 'run')}, {num_busy} complete or active", soft_wrap=True
            )
            return dispatch(console, directory, pending_runs, executor, options.max_parallel, options.canary)
    except KeyboardInterrupt:
        print("stopped; rerun the same command to resume", file=sys.stderr)
        return 130
    except BusyError as error:
        print(f"another launch of this sweep is running; nothing was changed; {error}", file=sys.stderr)
    except PreflightError as error:
        print_problems(error, make_console(stderr=True, log_width=PROBLEMS_LOG_WIDTH))
    except (SweepError, LaunchError, RunDirError, DataError, slurm_executor.SubmissionError) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"{error.filename or options.runs}: {error.strerror or error}", file=sys.stderr)
    return 2


def _parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="galaxyhpc launch", description=__doc__)
    parser.add_argument("sweep", type=Path, help="sweep file, such as sweeps/quickstart.yaml")
    set_help = "override a setting, such as train.epochs=5; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=set_help)
    parser.add_argument("--profile", type=Path, help="resource settings of a cluster, such as slurm/gpu.yaml")
    add_executor_options(parser)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="directory of all sweeps (default: runs)")
    parser.add_argument("--canary", action="store_true", help="on Slurm, first train a few steps of the heaviest run")
    parser.add_argument("--dry-run", action="store_true", help="only show runs, resource classes and sbatch files")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
