"""What runs, waits, failed and why: `python -m galaxyhpc.status runs/SWEEP`; see also --watch, --logs and --why.

Told from the runs' own files, so that it works while Slurm is down; one squeue call for the whole sweep tells what
waits from what runs and what is gone. Looking changes nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from galaxyhpc.runtime.console import make_console
from galaxyhpc.status import history
from galaxyhpc.status.alarms import find_alarms
from galaxyhpc.status.run_status import QueueSnapshot, RunStatus, query_status
from galaxyhpc.status.table import SLURM_SILENT_NOTE, get_max_rows, make_table
from galaxyhpc.storage.run_dir import RunDir, RunDirError
from galaxyhpc.storage.sweep_dir import RunSelectionError, find_runs, select_run

REFRESH_SECONDS = 3.0


def watch(console: Console, runs: Sequence[RunDir], title: str) -> None:
    """Show the runs until Ctrl-C: a table that lives on a terminal, a line for each change elsewhere."""
    answer: QueueSnapshot | None = None
    if not console.is_terminal:
        known: dict[str, str] = {}
        while True:
            standings, answer = query_status(runs, answer)
            known = _print_changes(standings, known)
            time.sleep(REFRESH_SECONDS)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            begun = time.monotonic()
            standings, answer = query_status(runs, answer)
            live.update(make_table(standings, answer, title, get_max_rows(console)), refresh=True)
            time.sleep(max(REFRESH_SECONDS, 5 * (time.monotonic() - begun)))  # a sweep of thousands takes a second


def _print_changes(statuses: Sequence[RunStatus], previous: dict[str, str]) -> dict[str, str]:
    """Print what is not as it was, and return how everything is."""
    found = find_alarms(statuses)
    now = {}
    for one in statuses:
        said = [f"{one.run.run_id}: {one.state} {one.reason}".rstrip()]
        said += [f"{one.run.run_id}: {text.partition(':')[0]}" for text in found.get(one.run, ())]
        now[one.run.run_id] = "\n".join(said)
        if previous.get(one.run.run_id) != now[one.run.run_id]:
            print(now[one.run.run_id], flush=True)
    return now


def _parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="galaxyhpc status", description=__doc__)
    parser.add_argument("path", type=Path, help="runs/SWEEP, or runs/SWEEP/RUN_ID")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--watch", action="store_true", help="go on showing it until Ctrl-C; changes only, in a pipe")
    for kind, about in (
        ("--logs", "ends of the newest logs of a run"),
        ("--why", "its last error, history, what to do"),
    ):
        kinds.add_argument(kind, nargs="?", const="", metavar="POINT", help=f"{about}; POINT: its id or a part of it")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Show what the command line asks for; 2 where it names nothing."""
    options = _parse_args(arguments)
    console = make_console()
    point = options.logs if options.logs is not None else options.why
    try:
        runs = find_runs(options.path)
        if point is not None:
            (one,), answer = query_status([select_run(runs, point)])
            print(history.read_newest_logs(one) if options.logs is not None else history.explain_run(one))
            if options.why is not None and answer is not None and answer.jobs is None:
                print(SLURM_SILENT_NOTE)
        elif options.watch:
            watch(console, runs, str(options.path))
        else:
            console.print(make_table(*query_status(runs), str(options.path)))
    except (RunDirError, RunSelectionError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
