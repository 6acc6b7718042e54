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
from galaxyhpc.status.alarms import find_alarms, get_epoch_seconds
from galaxyhpc.status.run_status import QueueSnapshot, RunStatus, derive_status, get_number, read_run_records
from galaxyhpc.storage.events import RunState
from galaxyhpc.storage.run_dir import RunDir

STATE_COLOURS: dict[str, str] = {
    RunState.EVALUATED: "green",
    RunState.TRAINED: "cyan",
    RunState.EVALUATING: "cyan",
    RunState.STARTING: "yellow",
    RunState.RUNNING: "yellow",
    RunState.FAILED: "red",
    RunState.LOST: "red",
    RunState.STOPPED: "magenta",
}
ENDED_STATES = (RunState.FAILED, RunState.LOST, RunState.STOPPED)
# shown first where not all have room
URGENT_STATES = (*ENDED_STATES, RunState.RUNNING, RunState.EVALUATING, RunState.STARTING, RunState.WAITING)
COLUMNS = ("run", "state", "epochs", "best", "left", "note")
RIGHT_ALIGNED = ("epochs", "best", "left")
MAX_RUNS_PER_REASON = 3  # runs named beside a reason, and the rest counted
MAX_REASONS = 12
SLURM_SILENT_NOTE = "Slurm does not answer: told from the runs' records alone."


def make_table_from_records(runs: Sequence[RunDir], title: str, max_rows: int | None = None) -> RenderableType:
    """Show runs by their own records, without a question to Slurm."""
    return make_table([derive_status(read_run_records(run), None) for run in runs], None, title, max_rows)


def make_table(
    statuses: Sequence[RunStatus], snapshot: QueueSnapshot | None, title: str, max_rows: int | None = None
) -> RenderableType:
    """Return one row per run, at most `rows`: its state, how far it is, its best validation accuracy, the time left.

    Reasons and alarms stand below, where there is room for them, those of several runs once.
    """
    found = find_alarms(statuses)
    counted = ", ".join(f"{count} {name}" for name, count in Counter(one.state for one in statuses).items())
    urgent = _select_most_urgent(statuses, found, max_rows)
    hidden = len(statuses) - len(urgent)
    said = [f"and {hidden} more runs; status without --watch shows all"] if hidden else []
    said += [SLURM_SILENT_NOTE] if snapshot is not None and snapshot.jobs is None else []
    said += _format_reasons(statuses, found)
    return Group(f"{title}: {counted}", *_format_rows(urgent, found), Text("\n".join(["", *said])))


def _format_rows(statuses: Sequence[RunStatus], alarms_by_run: dict[RunDir, list[str]]) -> list[Text]:
    """Lay the runs out in columns, the last cut where the terminal ends. rich's own table takes a second for 1,000."""
    rows = [COLUMNS]
    for one in statuses:
        note = ", ".join(text.partition(":")[0] for text in alarms_by_run.get(one.run, ())) or one.note
        rows.append((one.run.run_id, one.state, *_format_progress(one), note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    starts = [sum(widths[:n]) + 2 * n for n in range(len(widths))]
    lines = []
    for number_of, row in enumerate(rows):
        cells = [
            text.rjust(w) if name in RIGHT_ALIGNED else text.ljust(w)
            for name, text, w in zip(COLUMNS, row, widths, strict=True)
        ]
        line = Text("  ".join(cells).rstrip(), "" if number_of else "bold", no_wrap=True, overflow="ellipsis")
        line.stylize(STATE_COLOURS.get(row[1], ""), starts[1], starts[2])
        line.stylize("red" if number_of and statuses[number_of - 1].run in alarms_by_run else "", starts[-1])
        lines.append(line)
    return lines


def _select_most_urgent(
    statuses: Sequence[RunStatus], alarms_by_run: dict[RunDir, list[str]], max_rows: int | None
) -> list[RunStatus]:
    """Choose what is shown where not all runs have room, in the order of the plan."""
    if max_rows is None or len(statuses) <= max_rows:
        return list(statuses)
    rank = {name: place for place, name in enumerate(URGENT_STATES)}
    urgent = sorted(statuses, key=lambda one: -1 if one.run in alarms_by_run else rank.get(one.state, len(rank)))
    kept = {one.run for one in urgent[:max_rows]}
    return [one for one in statuses if one.run in kept]


def _format_progress(status: RunStatus) -> tuple[str, str, str]:
    """Return epochs done, best validation accuracy and the time left, as far as they are known."""
    if not status.num_epochs_done:
        return "", "", ""
    left = _estimate_seconds_left(status) if status.state == RunState.RUNNING else None
    epochs = f"{status.num_epochs_done}/{'?' if status.num_epochs is None else status.num_epochs}"
    return epochs, f"{status.records.best_accuracies[-1]:.3f}", "" if left is None else _format_duration(left)


def _estimate_seconds_left(status: RunStatus) -> float | None:
    """Go by the last epochs."""
    took = get_epoch_seconds(status.records.events)[-5:]
    if not took or status.num_epochs is None:
        return None
    since = get_number(status.records.get_last_event("epoch"), "time") or time.time()
    left = statistics.median(took) * (status.num_epochs - status.num_epochs_done) - (time.time() - since)
    return left if left >= 0.0 else None


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _format_reasons(statuses: Sequence[RunStatus], alarms_by_run: dict[RunDir, list[str]]) -> list[str]:
    """Say why runs ended and what looks wrong, with what to do; reasons that differ in numbers only stand once."""
    groups: dict[str, tuple[str, str, list[str]]] = {}
    for one in statuses:
        ended = (
            [(f"{one.state}: {_shorten(one.reason)}", history.suggest_next_step(one))]
            if one.state in ENDED_STATES
            else []
        )
        for reason, step in [*ended, *((text, "") for text in alarms_by_run.get(one.run, ()))]:
            groups.setdefault(re.sub(r"[\d.]+", "#", reason), (reason, step, []))[2].append(one.run.run_id)
    lines = []
    for reason, step, names in list(groups.values())[:MAX_REASONS]:
        more = f" and {len(names) - MAX_RUNS_PER_REASON} more" if len(names) > MAX_RUNS_PER_REASON else ""
        lines.append(
            f"{reason}\n  {', '.join(names[:MAX_RUNS_PER_REASON])}{more}" + (f"\n  next: {step}" if step else "")
        )
    if len(groups) > MAX_REASONS:
        lines.append(f"and {len(groups) - MAX_REASONS} more reasons: --why POINT tells each")
    return lines


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:297]}..."


def get_max_rows(console: Console) -> int:
    """Return how many runs a terminal shows, with some lines left for reasons and alarms."""
    return max(5, console.height - 12)
