"""What runs, waits, failed and why: `python -m galaxyhpc.status runs/SWEEP`.

Told from the runs' own files, so that it works while Slurm is down; looking changes nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from rich.table import Table
from rich.text import Text

from galaxyhpc.rundir import NoRunError, RunDir, runs_of, state
from galaxyhpc.table import make_console

COLOURS = {"evaluated": "green", "trained": "cyan", "running": "yellow", "failed": "red", "stopped": "magenta"}


def table(runs: list[RunDir], title: str) -> Table:
    """Return one row per run: its state, how far it is, its best validation accuracy, the time left, and why."""
    states = [state(run) for run in runs]
    counted = ", ".join(f"{count} {name}" for name, count in Counter(s.name for s in states).items())
    shown = Table(title=f"{title}: {counted}", title_justify="left")
    for column in ("run", "state", "epochs", "validation", "left", "why"):
        shown.add_column(column, justify="right" if column in ("epochs", "validation", "left") else "left")
    for run, found in zip(runs, states, strict=True):
        name = Text(found.name, COLOURS.get(found.name, ""))
        shown.add_row(run.run_id, name, *_progress(run, found.name), Text(found.why))
    return shown


def _progress(run: RunDir, name: str) -> tuple[str, str, str]:
    """Return epochs done, best validation accuracy and the time left, as far as they are known."""
    records = run.metrics()
    if not records:
        return "", "", ""
    try:
        epochs = run.load_config().train.epochs
    except (OSError, ValueError):
        return f"{len(records)}/?", "", ""
    best = max(record["validation_accuracy"] for record in records)
    left = _seconds_left(run, len(records), epochs) if name == "running" else None
    return f"{len(records)}/{epochs}", f"{best:.3f}", "" if left is None else _clock(left)


def _seconds_left(run: RunDir, done: int, epochs: int) -> float | None:
    """Go by the epochs since the last start."""
    start = next((event for event in reversed(run.events()) if event["event"] == "started"), None)
    if start is None or done <= start["epoch"]:
        return None
    per_epoch: float = (run.metrics_file.stat().st_mtime - start["time"]) / (done - start["epoch"])
    return max(0.0, per_epoch * (epochs - done) - (time.time() - run.metrics_file.stat().st_mtime))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def main() -> int:
    """Print the table of the sweep or run named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m galaxyhpc.status", description=__doc__)
    parser.add_argument("path", type=Path, help="runs/SWEEP, or runs/SWEEP/RUN_ID")
    path = parser.parse_args().path
    try:
        runs = runs_of(path)
    except NoRunError as error:
        print(error, file=sys.stderr)
        return 2
    make_console().print(table(runs, str(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
