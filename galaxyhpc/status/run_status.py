"""How a run stands: its own records, and what Slurm's queue says where it answers. Asking changes nothing.

No evidence is not evidence of death: a run is called lost only where Slurm answered without its job, or its process
on this machine is gone, and nobody holds its lock.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galaxyhpc.runtime import slurm
from galaxyhpc.storage.events import Record, parse_lines, state_after
from galaxyhpc.storage.run_dir import RunDir

GRACE_SECONDS = 60  # a record may be this much on its way: clocks differ, and NFS shows files late
ASK_SECONDS = 15  # an answer of Slurm is good for so long: its controller serves everybody
RECENT = 10  # epochs, of which times are taken
LAST = 3  # epochs that are looked at closely
ACCURACY = re.compile(r'"validation_accuracy": (-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)')  # json takes a second for a sweep
WAITS = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED")


@dataclass(frozen=True)
class Records:
    """What a run's directory says, read once."""

    run: RunDir
    events: list[Record]  # all but those of epochs long ago
    accuracies: list[float]  # on the validation galaxies, one per epoch done
    metrics: list[Record]  # of the last epochs
    config: Record  # config.json as it is, unchecked; empty where it cannot be read

    def last(self, *names: str) -> Record:
        """Return the newest event of these names, or an empty one."""
        return next((event for event in reversed(self.events) if event["event"] in names), {})

    @functools.cached_property
    def best(self) -> list[float]:
        """Best validation accuracy until each epoch."""
        return list(itertools.accumulate(self.accuracies, max))

    @property
    def trained(self) -> bool:
        return any(event["event"] == "trained" for event in self.events)

    @property
    def train(self) -> Record:
        """How the weights are found, as far as the settings can be read."""
        found = self.config.get("train")
        return found if isinstance(found, dict) else {}

    @property
    def submissions(self) -> list[Record]:
        """Jobs that Slurm was given for this run, the newest last."""
        found = (event for event in self.events if event["event"] in ("submitted", "evaluation submitted"))
        return [event for event in found if event.get("executor", "slurm") == "slurm"]

    @property
    def job(self) -> str:
        """Slurm's id of the job that the run depends on now: its training, after that its evaluation; else ''."""
        name = "evaluation submitted" if self.trained else "submitted"
        return str(next((event.get("job", "") for event in reversed(self.submissions) if event["event"] == name), ""))

    @property
    def on_slurm(self) -> bool:
        return bool(self.submissions) or bool(self.last("submitting"))

    def queued(self, answer: Answer | None) -> dict[str, slurm.Queued]:
        """Return this run's jobs that wait or run. A token tells them from others' with ids that were used twice."""
        jobs = answer.jobs or {} if answer is not None else {}
        mine = [(str(event.get("job")), str(event.get("token", ""))) for event in self.submissions]
        return {
            job: jobs[job]
            for job, token in mine
            if job in jobs and (not token or jobs[job].comment in (token, "", "(null)"))
        }


@dataclass(frozen=True)
class Answer:
    """What Slurm's queue held when it was asked; None where it does not answer."""

    time: float
    jobs: dict[str, slurm.Queued] | None


@dataclass(frozen=True)
class Standing:
    """Where a run stands."""

    records: Records
    name: str  # as rundir.State's, or: waiting, starting, evaluating, lost
    why: str = ""
    note: str = ""  # a word or two

    @property
    def run(self) -> RunDir:
        return self.records.run

    @property
    def done(self) -> int:
        """Epochs done."""
        return len(self.records.accuracies)

    @property
    def epochs(self) -> int | None:
        """Epochs wanted."""
        found = number(self.records.train, "epochs")
        return None if found is None else int(found)


def number(record: Record, key: str) -> float | None:
    """Return a finite number of a record that may hold anything."""
    value: Any = record.get(key)
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def read(run: RunDir) -> Records:
    """Read what a run says of itself."""
    try:
        config = json.loads("\n".join(_lines(run.config_file)))
    except (ValueError, RecursionError):
        config = {}
    lines = _lines(run.metrics_file)
    accuracies = [float(found[1]) for line in lines if (found := ACCURACY.search(line))]
    metrics = parse_lines(lines[-LAST:])
    return Records(run, _events(run), accuracies, metrics, config if isinstance(config, dict) else {})


def _events(run: RunDir) -> list[Record]:
    """Return a run's events, of its epochs the last only: a long run has hundreds, and a sweep a thousand runs."""
    lines = _lines(run.events_file)
    epochs = [number for number, line in enumerate(lines) if '"event": "epoch"' in line]
    dropped = set(epochs[:-RECENT])
    events = parse_lines([line for number, line in enumerate(lines) if number not in dropped])
    return [event for event in events if {"event", "time"} <= event.keys()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    except OSError:
        return []


def look(runs: Sequence[RunDir], earlier: Answer | None = None) -> tuple[list[Standing], Answer | None]:
    """Tell how runs stand, with one question to Slurm at most: none where `earlier` is recent or no run went there.

    What Slurm contradicts is read again: a job may have ended, properly, between reading and asking.
    """
    records = [read(run) for run in runs]
    answer = earlier
    if any(one.on_slurm for one in records) and (earlier is None or time.time() - earlier.time > ASK_SECONDS):
        answer = Answer(time.time(), slurm.queue())
    found = [standing(one, answer) for one in records]
    return [standing(read(one.run), answer) if one.name == "lost" else one for one in found], answer


def standing(records: Records, answer: Answer | None) -> Standing:
    """Tell how a run stands, by its records and an answer of Slurm that may be of a while ago."""
    found = state_after(records.events)
    failures = (event for event in reversed(records.events) if event["event"] == "failed")
    note = next((str(e.get("cause", "")) for e in failures if str(e.get("why", "")) == found.why), "")
    plain = Standing(records, found.name, found.why, note if found.name == "failed" else "")
    if found.name == "evaluated":
        return plain
    if answer is not None and answer.jobs is not None:
        job = records.queued(answer).get(records.job) or _by_token(records, answer.jobs)
        if job is not None:
            return _queued(plain, job)
    why = _lost(plain, answer)
    return Standing(records, "lost", why) if why else plain


def _by_token(records: Records, jobs: dict[str, slurm.Queued]) -> slurm.Queued | None:
    """Find the job of a launch that was interrupted between the submission and its record."""
    last = records.last("submitting", "submitted", "evaluation submitted")
    token = str(last.get("token", "")) if last.get("event") == "submitting" else ""
    return next((job for job in jobs.values() if token and token == job.comment), None)


def _queued(plain: Standing, job: slurm.Queued) -> Standing:
    """Tell how a run stands whose job is in the queue."""
    records, trained = plain.records, plain.name == "trained"
    if job.state in WAITS:
        if trained:
            return Standing(records, "trained", plain.why, "evaluation waits")
        return Standing(records, "waiting", plain.why if plain.name == "stopped" else "", job.reason)
    if trained or plain.name in ("planned", "submitted", "stopped"):
        return Standing(records, "evaluating" if trained else "starting", "", job.nodes)
    return Standing(records, plain.name, plain.why, plain.note or job.nodes)


def _lost(plain: Standing, answer: Answer | None) -> str:
    """Return why nothing will come of a run that its records say is under way; '' where that is not known."""
    from galaxyhpc.runtime.lock import is_busy  # submitit is slow to load, and few runs are in doubt

    records, started = plain.records, plain.records.last("started")
    if plain.name not in ("submitted", "running", "trained"):
        return ""
    by_hand = plain.name == "running" and str(started.get("job")).rpartition(".")[0] != records.job
    if by_hand:
        here = started.get("host") == socket.gethostname() and not is_busy(records.run)
        return f"its process {started.get('pid', '')} on this machine is gone" if here else ""
    answered = answer is not None and answer.jobs is not None and _since(records) < answer.time - GRACE_SECONDS
    if records.job and answered and _mine(records.run) and not is_busy(records.run):
        what = "its evaluation" if plain.name == "trained" else "its"
        return f"{what} job {records.job} is no longer in Slurm's queue"
    return ""


def _since(records: Records) -> float:
    """Return when the newest event was recorded."""
    return max((number(event, "time") or 0.0 for event in records.events[-3:]), default=0.0)


def _mine(run: RunDir) -> bool:
    """Whether the run's jobs would be in the queue that was asked for: another user's are not."""
    try:
        return run.events_file.stat().st_uid == os.getuid()
    except OSError:
        return False
