"""Progress of a survey's prediction: units and galaxies done, throughput, time left, and what was set aside."""

from __future__ import annotations

import time
from collections.abc import Sequence

from galaxyhpc.prediction.survey import SurveyDir, SurveyError
from galaxyhpc.runtime.console import format_duration
from galaxyhpc.status.run_status import RunStatus, get_number
from galaxyhpc.storage.events import JsonDict, RunState

WINDOW_SECONDS = 1800.0  # of the throughput
MAX_LISTED = 5  # units that were set aside


def describe_survey(survey: SurveyDir, statuses: Sequence[RunStatus]) -> list[str]:
    """Describe the progress in a few lines; never fails."""
    try:
        units = survey.read_units()
    except SurveyError as error:
        return [str(error)]
    done, aside = survey.list_done(), survey.list_set_aside()
    galaxies = {unit.number: unit.num_galaxies for unit in units}
    num_done = sum(galaxies.get(number, 0) for number in done)
    text = f"units: {len(done):,} of {len(units):,} done" + (f", {len(aside):,} set aside" if aside else "")
    lines = [f"{text}; galaxies: {num_done:,} of {sum(galaxies.values()):,}{_format_speed(statuses, done, galaxies)}"]
    sources = {unit.number: unit.source for unit in units}
    lines += [
        f"set aside: unit {number}, {sources.get(number, '')}: {attempts.reason}"
        for number, attempts in list(aside.items())[:MAX_LISTED]
    ]
    if len(aside) > MAX_LISTED:
        lines.append(f"and {len(aside) - MAX_LISTED} more that were set aside")
    if len(done) + len(aside) < len(units) and not any(_is_active(status) for status in statuses):
        lines.append("no job is queued or at work: rerun predict to resume")
    return lines


def _is_active(status: RunStatus) -> bool:
    ended = (RunState.PREDICTED, RunState.FAILED, RunState.LOST, RunState.STOPPED, RunState.PLANNED)
    return status.state not in ended


def _format_speed(statuses: Sequence[RunStatus], done: set[int], galaxies: dict[int, int]) -> str:
    """Return the throughput of the last half hour and the time left by it; '' where no job is at work."""
    num_running = sum(status.state == RunState.RUNNING for status in statuses)
    rate = measure_rate([event for status in statuses for event in status.records.events], time.time())
    if not rate or not num_running:
        return ""
    left = sum(count for number, count in galaxies.items() if number not in done)
    return f"; {rate:,.0f} galaxies/s by {num_running} jobs, {format_duration(left / rate)} left"


def measure_rate(events: Sequence[JsonDict], end: float) -> float:
    """Return the galaxies per second of the units that ended in the last half hour before `end`; 0 without any."""
    units = [event for event in events if event["event"] == "unit" and end - event["time"] < WINDOW_SECONDS]
    if not units:
        return 0.0
    start = min(event["time"] - (get_number(event, "seconds") or 0.0) for event in units)
    count = sum(get_number(event, "galaxies") or 0.0 for event in units)
    return count / float(max(end - max(start, end - WINDOW_SECONDS), 1e-3))
