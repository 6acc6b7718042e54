"""Show the state of every run of a sweep: `galaxyhpc status runs/SWEEP`; see also --watch, --logs and --why.

It is read from the run directories, also while Slurm is down. If Slurm is available, one squeue call for the whole
sweep shows which runs wait, which run, and which jobs are gone. This changes nothing.
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
from galaxyhpc.runtime.process import has_reader
from galaxyhpc.status import history
from galaxyhpc.status.alarms import find_alarms
from galaxyhpc.status.run_status import QueueSnapshot, RunStatus, query_status
from galaxyhpc.status.table import SLURM_SILENT_NOTE, get_max_rows, make_table
from galaxyhpc.storage.run_dir import RunDir, RunDirError
from galaxyhpc.storage.sweep_dir import RunSelectionError, find_runs, select_run

REFRESH_SECONDS = 3.0


def watch(console: Console, runs: Sequence[RunDir], title: str) -> None:
    """Show the runs until Ctrl-C: a live table on a terminal; elsewhere each change, while somebody reads."""
    snapshot: QueueSnapshot | None = None
    if not console.is_terminal:
        lines: dict[str, str] = {}
        while has_reader():
            statuses, snapshot = query_status(runs, snapshot)
            lines = _print_changes(statuses, lines)
            time.sleep(REFRESH_SECONDS)
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            start = time.monotonic()
            statuses, snapshot = query_status(runs, snapshot)
            live.update(make_table(statuses, snapshot, title, get_max_rows(console)), refresh=True)
            time.sleep(max(REFRESH_SECONDS, 5 * (time.monotonic() - start)))  # a sweep of thousands takes a second


def _print_changes(statuses: Sequence[RunStatus], previous: dict[str, str]) -> dict[str, str]:
    """Print the runs whose text changed, and return the text of every run by its id."""
    alarms = find_alarms(statuses)
    texts = {}
    for status in statuses:
        run_id = status.run.run_id
        lines = [f"{run_id}: {status.state} {status.reason}".rstrip()]
        lines += [f"{run_id}: {alarm.partition(':')[0]}" for alarm in alarms.get(status.run, ())]
        texts[run_id] = "\n".join(lines)
        if previous.get(run_id) != texts[run_id]:
            print(texts[run_id], flush=True)
    return texts


def _parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="galaxyhpc status", description=__doc__)
    parser.add_argument("path", type=Path, help="runs/SWEEP, or runs/SWEEP/RUN_ID")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--watch", action="store_true", help="update until Ctrl-C; in a pipe, print changes only")
    for option, text in (
        ("--logs", "show the ends of the newest logs of a run"),
        ("--why", "show the last error of a run, its history and what to do"),
    ):
        kinds.add_argument(option, nargs="?", const="", metavar="RUN", help=f"{text}; RUN: its id or a part of it")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Show the runs that the command line names; 2 if there are none."""
    options = _parse_args(arguments)
    console = make_console()
    pattern = options.logs if options.logs is not None else options.why
    try:
        runs = find_runs(options.path)
        if pattern is not None:
            (status,), snapshot = query_status([select_run(runs, pattern)])
            print(history.read_newest_logs(status) if options.logs is not None else history.explain_run(status))
            if options.why is not None and snapshot is not None and snapshot.jobs is None:
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
