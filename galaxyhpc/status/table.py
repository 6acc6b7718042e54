"""The status table: one row per run, fitted to the terminal."""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text

from galaxyhpc.status import history
from galaxyhpc.status.alarms import alarms, epoch_seconds
from galaxyhpc.status.run_status import Answer, Standing, number, read, standing
from galaxyhpc.storage.run_dir import RunDir

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


def room(console: Console) -> int:
    """Return how many runs a terminal shows, with some lines left for reasons and alarms."""
    return max(5, console.height - 12)
