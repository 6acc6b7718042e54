"""Images per second of the tasks of a survey's prediction, from their events."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from galaxyhpc.prediction.survey import SurveyDir

Interval = tuple[float, float]  # seconds since 1970
COLUMNS = ("task", "hosts", "units", "galaxies", "hours", "rate")


def measure_throughput(survey: SurveyDir) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return a table of the tasks that have done a unit, and the sums: galaxies, hours, rate.

    `hours` are those in which some process of the task, or of any task, worked on a unit that it finished; `rate` is
    galaxies per second of them. Units that were made again count twice.
    """
    rows, intervals, num_galaxies = [], [], 0
    for task in survey.list_tasks():
        events = [event for event in task.read_events() if event["event"] == "unit"]
        if not events:
            continue
        own = [(event["time"] - event["seconds"], event["time"]) for event in events]
        galaxies, seconds = sum(event["galaxies"] for event in events), measure_union(own)
        hosts = ", ".join(sorted({event["host"] for event in events}))
        rows.append((task.run_id, hosts, len(events), galaxies, seconds / 3600, galaxies / max(seconds, 1e-3)))
        intervals += own
        num_galaxies += galaxies
    seconds = measure_union(intervals)
    total = {"galaxies": num_galaxies, "hours": seconds / 3600, "rate": num_galaxies / max(seconds, 1e-3)}
    return pd.DataFrame(rows, columns=list(COLUMNS)), total


def measure_union(intervals: Iterable[Interval]) -> float:
    """Return the length of the union of intervals."""
    length, end = 0.0, -float("inf")
    for start, stop in sorted(intervals):
        length += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return length
