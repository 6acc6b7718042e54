"""What runs, waits, failed and why: `python -m galaxyhpc.status runs/SWEEP`; see also --watch, --logs and --why.

Told from the runs' own files, so that it works while Slurm is down; one squeue call for the whole sweep tells what
waits from what runs and what is gone. Looking changes nothing.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from galaxyhpc.runtime.console import make_console
from galaxyhpc.status import history
from galaxyhpc.status.alarms import alarms, epoch_seconds
from galaxyhpc.status.run_status import Answer, Standing, look, number, read, standing
from galaxyhpc.storage.run_dir import NoRunError, RunDir
from galaxyhpc.storage.sweep_dir import PointError, chosen, runs_of

REFRESH_SECONDS = 3.0
COLOURS = {
    "evaluated": "green",
    "trained": "cyan",
    "evaluating": "cyan",
    "starting": "yellow",
    "running": "yellow",
    "failed": "red",
    "lost": "red",
    "stopped": "magenta",
}
ENDED = ("failed", "lost", "stopped")
URGENT = (*ENDED, "running", "evaluating", "starting", "waiting")  # shown first where not all have room
COLUMNS = ("run", "state", "epochs", "best", "left", "note")
RIGHT = ("epochs", "best", "left")
SHOWN = 3  # runs named beside a reason, and the rest counted
REASONS = 12
SILENT = "Slurm does not answer: told from the runs' records alone."


def table(runs: Sequence[RunDir], title: str, rows: int | None = None) -> RenderableType:
    """Show runs by their own records, without a question to Slurm."""
    return shown([standing(read(run), None) for run in runs], None, title, rows)


def shown(standings: Sequence[Standing], answer: Answer | None, title: str, rows: int | None = None) -> RenderableType:
    """Return one row per run, at most `rows`: its state, how far it is, its best validation accuracy, the time left.

    Reasons and alarms stand below, where there is room for them, those of several runs once.
    """
    found = alarms(standings)
    counted = ", ".join(f"{count} {name}" for name, count in Counter(one.name for one in standings).items())
    urgent = _most_urgent(standings, found, rows)
    hidden = len(standings) - len(urgent)
    said = [f"and {hidden} more runs; status without --watch shows all"] if hidden else []
    said += [SILENT] if answer is not None and answer.jobs is None else []
    said += _reasons(standings, found)
    return Group(f"{title}: {counted}", *_lines(urgent, found), Text("\n".join(["", *said])))


def _lines(standings: Sequence[Standing], found: dict[RunDir, list[str]]) -> list[Text]:
    """Lay the runs out in columns, the last cut where the terminal ends. rich's own table takes a second for 1,000."""
    rows = [COLUMNS]
    for one in standings:
        note = ", ".join(text.partition(":")[0] for text in found.get(one.run, ())) or one.note
        rows.append((one.run.run_id, one.name, *_progress(one), note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    starts = [sum(widths[:n]) + 2 * n for n in range(len(widths))]
    lines = []
    for number_of, row in enumerate(rows):
        cells = [
            text.rjust(w) if name in RIGHT else text.ljust(w)
            for name, text, w in zip(COLUMNS, row, widths, strict=True)
        ]
        line = Text("  ".join(cells).rstrip(), "" if number_of else "bold", no_wrap=True, overflow="ellipsis")
        line.stylize(COLOURS.get(row[1], ""), starts[1], starts[2])
        line.stylize("red" if number_of and standings[number_of - 1].run in found else "", starts[-1])
        lines.append(line)
    return lines


def _most_urgent(standings: Sequence[Standing], found: dict[RunDir, list[str]], rows: int | None) -> list[Standing]:
    """Choose what is shown where not all runs have room, in the order of the plan."""
    if rows is None or len(standings) <= rows:
        return list(standings)
    rank = {name: place for place, name in enumerate(URGENT)}
    urgent = sorted(standings, key=lambda one: -1 if one.run in found else rank.get(one.name, len(rank)))
    kept = {one.run for one in urgent[:rows]}
    return [one for one in standings if one.run in kept]


def _progress(one: Standing) -> tuple[str, str, str]:
    """Return epochs done, best validation accuracy and the time left, as far as they are known."""
    if not one.done:
        return "", "", ""
    left = _seconds_left(one) if one.name == "running" else None
    epochs = f"{one.done}/{'?' if one.epochs is None else one.epochs}"
    return epochs, f"{one.records.best[-1]:.3f}", "" if left is None else _clock(left)


def _seconds_left(one: Standing) -> float | None:
    """Go by the last epochs."""
    took = epoch_seconds(one.records.events)[-5:]
    if not took or one.epochs is None:
        return None
    since = number(one.records.last("epoch"), "time") or time.time()
    left = statistics.median(took) * (one.epochs - one.done) - (time.time() - since)
    return left if left >= 0.0 else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _reasons(standings: Sequence[Standing], found: dict[RunDir, list[str]]) -> list[str]:
    """Say why runs ended and what looks wrong, with what to do; reasons that differ in numbers only stand once."""
    groups: dict[str, tuple[str, str, list[str]]] = {}
    for one in standings:
        ended = [(f"{one.name}: {_one_line(one.why)}", history.next_step(one))] if one.name in ENDED else []
        for reason, step in [*ended, *((text, "") for text in found.get(one.run, ()))]:
            groups.setdefault(re.sub(r"[\d.]+", "#", reason), (reason, step, []))[2].append(one.run.run_id)
    lines = []
    for reason, step, names in list(groups.values())[:REASONS]:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines.append(f"{reason}\n  {', '.join(names[:SHOWN])}{more}" + (f"\n  next: {step}" if step else ""))
    if len(groups) > REASONS:
        lines.append(f"and {len(groups) - REASONS} more reasons: --why POINT tells each")
    return lines


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:297]}..."


def watch(console: Console, runs: Sequence[RunDir], title: str) -> None:
    """Show the runs until Ctrl-C: a table that lives on a terminal, a line for each change elsewhere."""
    answer: Answer | None = None
    if not console.is_terminal:
        known: dict[str, str] = {}
        while True:
            standings, answer = look(runs, answer)
            known = _print_changes(standings, known)
            time.sleep(REFRESH_SECONDS)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            begun = time.monotonic()
            standings, answer = look(runs, answer)
            live.update(shown(standings, answer, title, room(console)), refresh=True)
            time.sleep(max(REFRESH_SECONDS, 5 * (time.monotonic() - begun)))  # a sweep of thousands takes a second


def room(console: Console) -> int:
    """Return how many runs a terminal shows, with some lines left for reasons and alarms."""
    return max(5, console.height - 12)


def _print_changes(standings: Sequence[Standing], known: dict[str, str]) -> dict[str, str]:
    """Print what is not as it was, and return how everything is."""
    found = alarms(standings)
    now = {}
    for one in standings:
        said = [f"{one.run.run_id}: {one.name} {one.why}".rstrip()]
        said += [f"{one.run.run_id}: {text.partition(':')[0]}" for text in found.get(one.run, ())]
        now[one.run.run_id] = "\n".join(said)
        if known.get(one.run.run_id) != now[one.run.run_id]:
            print(now[one.run.run_id], flush=True)
    return now


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m galaxyhpc.status", description=__doc__)
    parser.add_argument("path", type=Path, help="runs/SWEEP, or runs/SWEEP/RUN_ID")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--watch", action="store_true", help="go on showing it until Ctrl-C; changes only, in a pipe")
    for kind, about in (
        ("--logs", "ends of the newest logs of a run"),
        ("--why", "its last error, history, what to do"),
    ):
        kinds.add_argument(kind, nargs="?", const="", metavar="POINT", help=f"{about}; POINT: its id or a part of it")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Show what the command line asks for; 2 where it names nothing."""
    options = _options(arguments)
    console = make_console()
    point = options.logs if options.logs is not None else options.why
    try:
        runs = runs_of(options.path)
        if point is not None:
            (one,), answer = look([chosen(runs, point)])
            print(history.logs(one) if options.logs is not None else history.why(one))
            if options.why is not None and answer is not None and answer.jobs is None:
                print(SILENT)
        elif options.watch:
            watch(console, runs, str(options.path))
        else:
            console.print(shown(*look(runs), str(options.path)))
    except (NoRunError, PointError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
