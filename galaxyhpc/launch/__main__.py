"""From one sweep YAML to a report: `python -m galaxyhpc.launch sweeps/quickstart.yaml`.

On a cluster the jobs go to Slurm as arrays and this returns at once; on a laptop they run here. The same command
again does only what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from galaxyhpc.config.sweep import SweepError, load_sweep
from galaxyhpc.config.yaml_loader import leading_comment
from galaxyhpc.launch import slurm_executor
from galaxyhpc.launch.dispatch import LaunchError, dispatch, missing, refuse_orphans
from galaxyhpc.launch.dry_run import show_plan
from galaxyhpc.launch.plan import _at_home, write_plan
from galaxyhpc.launch.preflight import PreflightError, check, show, symmetries
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage.run_dir import NoRunError
from galaxyhpc.storage.sweep_dir import refuse_links, sweep_directory


def main(arguments: Sequence[str] | None = None) -> int:
    """Launch the sweep named on the command line; 2 where the user has to mend something."""
    options = _options(arguments)
    console = make_console()
    try:
        sweep = load_sweep(options.sweep, options.set, options.profile)
        configs = [_at_home(config, options.runs) for config in sweep.runs]
        directory = sweep_directory(options.runs, sweep.name)
        refuse_links(*(directory / config.run_id for config in configs))
        checked = check(configs, directory, options.executor)
        configs, networks = checked.configs, checked.networks
        if options.dry_run:
            show_plan(console, directory, checked, options.max_parallel)
            return 0
        console.print(symmetries(checked))
        with FileLock(_made(directory) / ".launch.lock", timeout=0):
            refuse_orphans(directory, configs)
            text = f"{leading_comment(options.sweep)}\n{sweep.text}"  # the question it asks, for its report
            write_plan(text, directory, configs, networks)
            to_do = missing(directory, checked.heavy_first)
            busy = len(configs) - len(to_do)
            console.print(f"{directory}: {len(configs)} runs, {busy} done or under way", soft_wrap=True)
            return dispatch(console, directory, to_do, options.executor, options.max_parallel, options.canary)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    except Timeout:
        print(f"{directory}: another launch of this sweep is at work; nothing was changed", file=sys.stderr)
    except PreflightError as error:
        show(error, Console(stderr=True, markup=False, highlight=False))
    except (SweepError, LaunchError, NoRunError, slurm_executor.SubmissionError) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"{error.filename or options.runs}: {error.strerror or error}", file=sys.stderr)
    return 2


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m galaxyhpc.launch", description=__doc__)
    parser.add_argument("sweep", type=Path, help="a file such as sweeps/quickstart.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a dotted setting")
    parser.add_argument("--profile", type=Path, help="resources of a cluster, such as slurm/gpu.yaml")
    parser.add_argument("--executor", choices=("auto", "slurm", "local", "debug"), default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where sweeps are kept (default: runs)")
    parser.add_argument("--max-parallel", type=_positive, metavar="N", help="most jobs of a stage at the same time")
    parser.add_argument("--canary", action="store_true", help="first make a few steps of the heaviest run, on Slurm")
    parser.add_argument("--dry-run", action="store_true", help="show points, resource classes and sbatch files only")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}; allowed 1, 2, 3, ...")
    return int(text)


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


if __name__ == "__main__":
    sys.exit(main())
