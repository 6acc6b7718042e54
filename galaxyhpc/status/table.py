"""Status table: one row per run, fitted to the terminal."""

from __future__ import annotations

import re
import shlex
import statistics
import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from galaxyhpc.prediction.survey import SurveyDir, is_survey
from galaxyhpc.runtime.console import ConsoleTable, format_duration
from galaxyhpc.status import history
from galaxyhpc.status.alarms import find_alarms, get_epoch_seconds
from galaxyhpc.status.run_status import (
    QueueSnapshot,
    RunStatus,
    derive_status,
    find_report_problem,
    get_number,
    read_run_records,
)
from galaxyhpc.status.survey import describe_survey
from galaxyhpc.storage.events import RunState
from galaxyhpc.storage.run_dir import RunDir

STATE_COLOURS: dict[str, str] = {
    RunState.EVALUATED: "green",
    RunState.PREDICTED: "green",
    RunState.TRAINED: "cyan",
    RunState.EVALUATING: "cyan",
    RunState.STARTING: "yellow",
    RunState.RUNNING: "yellow",
    RunState.FAILED: "red",
    RunState.LOST: "red",
    RunState.STOPPED: "magenta",
}
# shown first if not all runs fit
URGENT_STATES = (*history.ENDED_STATES, RunState.RUNNING, RunState.EVALUATING, RunState.STARTING, RunState.WAITING)
COLUMNS = ("run", "state", "epochs", "best", "left", "note")
MAX_RUNS_PER_REASON = 3  # named below a reason; the rest are counted
MAX_REASONS = 12
SLURM_SILENT_NOTE = "Slurm does not answer: read from the run directories alone."


def make_table_from_records(runs: Sequence[RunDir], title: str, max_rows: int | None = None) -> ConsoleTable:
    """Return the table of runs by their own records, without querying Slurm."""
    return make_table([derive_status(read_run_records(run), None) for run in runs], None, title, max_rows)


def make_table(
    statuses: Sequence[RunStatus], snapshot: QueueSnapshot | None, title: str, max_rows: int | None = None
) -> ConsoleTable:
    """Return at most `max_rows` rows, one per run: state, epochs, best validation accuracy, time left.

    Reasons and alarms are listed below, once for all runs that share them.
    """
    alarms = find_alarms(statuses)
    counts = ", ".join(f"{count} {name}" for name, count in Counter(status.state for status in statuses).items())
    urgent = _select_most_urgent(statuses, alarms, max_rows)
    num_hidden = len(statuses) - len(urgent)
    notes = [f"and {num_hidden} more runs; status without --watch shows all"] if num_hidden else []
    notes += [SLURM_SILENT_NOTE] if snapshot is not None and snapshot.jobs is None else []
    if statuses and is_survey(sweep_dir := statuses[0].run.sweep_dir):
        notes = describe_survey(SurveyDir(sweep_dir), statuses) + notes
    notes += _format_reasons(statuses, alarms) + _format_report_problem(statuses, snapshot)
    return ConsoleTable(
        f"{title}: {counts}",
        COLUMNS,
        _make_rows(urgent, alarms),
        texts=("state", "note"),
        optional=("left", "note", "best", "epochs"),  # alarms and reasons are in the notes, too
        notes="\n".join(notes),
    )


def _make_rows(statuses: Sequence[RunStatus], alarms_by_run: dict[RunDir, list[str]]) -> list[tuple[Text | str, ...]]:
    rows: list[tuple[Text | str, ...]] = []
    for status in statuses:
        alarms = alarms_by_run.get(status.run, [])
        note = ", ".join(text.partition(":")[0] for text in alarms) or status.note
        state = Text(status.state, STATE_COLOURS.get(status.state, ""))
        rows.append((status.run.run_id, state, *_format_progress(status), Text(note, "red" if alarms else "")))
    return rows


def _select_most_urgent(
    statuses: Sequence[RunStatus], alarms_by_run: dict[RunDir, list[str]], max_rows: int | None
) -> list[RunStatus]:
    """Select the runs to show if not all fit, in the order of the plan."""
    if max_rows is None or len(statuses) <= max_rows:
        return list(statuses)
    order = {name: index for index, name in enumerate(URGENT_STATES)}
    urgent = sorted(
        statuses, key=lambda status: -1 if status.run in alarms_by_run else order.get(status.state, len(order))
    )
    selected = {status.run for status in urgent[:max_rows]}
    return [status for status in statuses if status.run in selected]


def _format_progress(status: RunStatus) -> tuple[str, str, str]:
    """Return epochs done, best validation accuracy and time left; '' if unknown."""
    if not status.num_epochs_done:
        return "", "", ""
    left = _estimate_seconds_left(status) if status.state == RunState.RUNNING else None
    epochs = f"{status.num_epochs_done}/{'?' if status.num_epochs is None else status.num_epochs}"
    return epochs, f"{status.records.best_accuracies[-1]:.3f}", "" if left is None else format_duration(left)


def _estimate_seconds_left(status: RunStatus) -> float | None:
    """Estimate the time left from the durations of the last epochs."""
    durations = get_epoch_seconds(status.records.events)[-5:]
    if not durations or status.num_epochs is None:
        return None
    last = get_number(status.records.get_last_event("epoch"), "time") or time.time()
    left = statistics.median(durations) * (status.num_epochs - status.num_epochs_done) - (time.time() - last)
    return left if left >= 0.0 else None


def _format_reasons(statuses: Sequence[RunStatus], alarms_by_run: dict[RunDir, list[str]]) -> list[str]:
    """List reasons and alarms with the next step, once for all runs that share them apart from numbers."""
    groups: dict[str, tuple[str, str, list[str]]] = {}
    for status in statuses:
        reasons = [(alarm, "") for alarm in alarms_by_run.get(status.run, ())]
        if status.state in history.ENDED_STATES:
            reasons.insert(0, (f"{status.state}: {_shorten(status.reason)}", history.suggest_next_step(status)))
        for reason, step in reasons:
            groups.setdefault(re.sub(r"[\d.]+", "#", reason), (reason, step, []))[2].append(status.run.run_id)
    lines = []
    for reason, step, run_ids in list(groups.values())[:MAX_REASONS]:
        more = f" and {len(run_ids) - MAX_RUNS_PER_REASON} more" if len(run_ids) > MAX_RUNS_PER_REASON else ""
        next_step = f"\n  next: {step}" if step else ""
        lines.append(f"{reason}\n  {', '.join(run_ids[:MAX_RUNS_PER_REASON])}{more}{next_step}")
    if len(groups) > MAX_REASONS:
        lines.append(f"and {len(groups) - MAX_REASONS} more reasons: --why RUN shows each")
    return lines


def _format_report_problem(statuses: Sequence[RunStatus], snapshot: QueueSnapshot | None) -> list[str]:
    """Tell why the job that should have written the report did not."""
    problem = find_report_problem(statuses[0].run.sweep_dir, snapshot) if statuses else None
    if problem is None:
        return []
    sweep_dir = problem.run.sweep_dir
    step = "rerun predict" if is_survey(sweep_dir) else f"galaxyhpc aggregate {shlex.quote(str(sweep_dir))}"
    return [f"report {problem.state}: {_shorten(problem.reason)}\n  next: {step}"]


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:297]}..."


def get_max_rows(console: Console) -> int:
    """Return the number of runs that fit on the terminal, with some lines left for reasons and alarms."""
    return max(5, console.height - 12)
