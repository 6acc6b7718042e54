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
from galaxyhpc.storage.events import JsonDict, RunState, derive_state, parse_json_lines
from galaxyhpc.storage.run_dir import RunDir

GRACE_SECONDS = 60  # a record may be this much on its way: clocks differ, and NFS shows files late
QUEUE_CACHE_SECONDS = 15  # an answer of Slurm is good for so long: its controller serves everybody
NUM_RECENT_EPOCHS = 10  # epochs, of which times are taken
NUM_METRICS_EPOCHS = 3  # epochs that are looked at closely
ACCURACY_PATTERN = re.compile(
    r'"validation_accuracy": (-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)'
)  # json takes a second for a sweep
WAITING_STATES = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED")


@dataclass(frozen=True)
class RunRecords:
    """What a run's directory says, read once."""

    run: RunDir
    events: list[JsonDict]  # all but those of epochs long ago
    validation_accuracies: list[float]  # on the validation galaxies, one per epoch done
    recent_metrics: list[JsonDict]  # of the last epochs
    config: JsonDict  # config.json as it is, unchecked; empty where it cannot be read

    def get_last_event(self, *names: str) -> JsonDict:
        """Return the newest event of these names, or an empty one."""
        return next((event for event in reversed(self.events) if event["event"] in names), {})

    @functools.cached_property
    def best_accuracies(self) -> list[float]:
        """Best validation accuracy until each epoch."""
        return list(itertools.accumulate(self.validation_accuracies, max))

    @property
    def is_trained(self) -> bool:
        return any(event["event"] == "trained" for event in self.events)

    @property
    def train_config(self) -> JsonDict:
        """How the weights are found, as far as the settings can be read."""
        found = self.config.get("train")
        return found if isinstance(found, dict) else {}

    @property
    def submissions(self) -> list[JsonDict]:
        """Jobs that Slurm was given for this run, the newest last."""
        found = (event for event in self.events if event["event"] in ("submitted", "evaluation submitted"))
        return [event for event in found if event.get("executor", "slurm") == "slurm"]

    @property
    def job_id(self) -> str:
        """Slurm's id of the job that the run depends on now: its training, after that its evaluation; else ''."""
        name = "evaluation submitted" if self.is_trained else "submitted"
        return str(next((event.get("job", "") for event in reversed(self.submissions) if event["event"] == name), ""))

    @property
    def is_on_slurm(self) -> bool:
        return bool(self.submissions) or bool(self.get_last_event("submitting"))

    def get_queued_jobs(self, snapshot: QueueSnapshot | None) -> dict[str, slurm.QueuedJob]:
        """Return this run's jobs that wait or run. A token tells them from others' with ids that were used twice."""
        jobs = snapshot.jobs or {} if snapshot is not None else {}
        mine = [(str(event.get("job")), str(event.get("token", ""))) for event in self.submissions]
        return {
            job: jobs[job]
            for job, token in mine
            if job in jobs and (not token or jobs[job].comment in (token, "", "(null)"))
        }


@dataclass(frozen=True)
class QueueSnapshot:
    """What Slurm's queue held when it was asked; None where it does not answer."""

    time: float
    jobs: dict[str, slurm.QueuedJob] | None


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    records: RunRecords
    state: RunState
    reason: str = ""
    note: str = ""  # a word or two

    @property
    def run(self) -> RunDir:
        return self.records.run

    @property
    def num_epochs_done(self) -> int:
        """Epochs done."""
        return len(self.records.validation_accuracies)

    @property
    def num_epochs(self) -> int | None:
        """Epochs wanted."""
        found = get_number(self.records.train_config, "epochs")
        return None if found is None else int(found)


def get_number(record: JsonDict, key: str) -> float | None:
    """Return a finite number of a record that may hold anything."""
    value: Any = record.get(key)
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def read_run_records(run: RunDir) -> RunRecords:
    """Read what a run says of itself."""
    try:
        config = json.loads("\n".join(_read_lines(run.config_file)))
    except (ValueError, RecursionError):
        config = {}
    lines = _read_lines(run.metrics_file)
    accuracies = [float(found[1]) for line in lines if (found := ACCURACY_PATTERN.search(line))]
    metrics = parse_json_lines(lines[-NUM_METRICS_EPOCHS:])
    return RunRecords(run, _read_recent_events(run), accuracies, metrics, config if isinstance(config, dict) else {})


def _read_recent_events(run: RunDir) -> list[JsonDict]:
    """Return a run's events, of its epochs the last only: a long run has hundreds, and a sweep a thousand runs."""
    lines = _read_lines(run.events_file)
    epochs = [number for number, line in enumerate(lines) if '"event": "epoch"' in line]
    dropped = set(epochs[:-NUM_RECENT_EPOCHS])
    events = parse_json_lines([line for number, line in enumerate(lines) if number not in dropped])
    return [event for event in events if {"event", "time"} <= event.keys()]


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    except OSError:
        return []


def query_status(
    runs: Sequence[RunDir], previous: QueueSnapshot | None = None
) -> tuple[list[RunStatus], QueueSnapshot | None]:
    """Tell how runs stand, with one question to Slurm at most: none where `earlier` is recent or no run went there.

    What Slurm contradicts is read again: a job may have ended, properly, between reading and asking.
    """
    records = [read_run_records(run) for run in runs]
    answer = previous
    if any(one.is_on_slurm for one in records) and (
        previous is None or time.time() - previous.time > QUEUE_CACHE_SECONDS
    ):
        answer = QueueSnapshot(time.time(), slurm.get_queue())
    found = [derive_status(one, answer) for one in records]
    return [
        derive_status(read_run_records(one.run), answer) if one.state == RunState.LOST else one for one in found
    ], answer


def derive_status(records: RunRecords, snapshot: QueueSnapshot | None) -> RunStatus:
    """Tell how a run stands, by its records and an answer of Slurm that may be of a while ago."""
    found = derive_state(records.events)
    failures = (event for event in reversed(records.events) if event["event"] == "failed")
    note = next((str(e.get("cause", "")) for e in failures if str(e.get("why", "")) == found.reason), "")
    plain = RunStatus(records, found.name, found.reason, note if found.name == RunState.FAILED else "")
    if found.name == RunState.EVALUATED:
        return plain
    if snapshot is not None and snapshot.jobs is not None:
        job = records.get_queued_jobs(snapshot).get(records.job_id) or _find_job_by_token(records, snapshot.jobs)
        if job is not None:
            return _derive_queued_status(plain, job)
    why = _find_lost_reason(plain, snapshot)
    return RunStatus(records, RunState.LOST, why) if why else plain


def _find_job_by_token(records: RunRecords, jobs: dict[str, slurm.QueuedJob]) -> slurm.QueuedJob | None:
    """Find the job of a launch that was interrupted between the submission and its record."""
    last = records.get_last_event("submitting", "submitted", "evaluation submitted")
    token = str(last.get("token", "")) if last.get("event") == "submitting" else ""
    return next((job for job in jobs.values() if token and token == job.comment), None)


def _derive_queued_status(recorded_status: RunStatus, job: slurm.QueuedJob) -> RunStatus:
    """Tell how a run stands whose job is in the queue."""
    records, trained = recorded_status.records, recorded_status.state == RunState.TRAINED
    if job.state in WAITING_STATES:
        if trained:
            return RunStatus(records, RunState.TRAINED, recorded_status.reason, "evaluation waits")
        reason = recorded_status.reason if recorded_status.state == RunState.STOPPED else ""
        return RunStatus(records, RunState.WAITING, reason, job.reason)
    if trained or recorded_status.state in (RunState.PLANNED, RunState.SUBMITTED, RunState.STOPPED):
        return RunStatus(records, RunState.EVALUATING if trained else RunState.STARTING, "", job.nodes)
    return RunStatus(records, recorded_status.state, recorded_status.reason, recorded_status.note or job.nodes)


def _find_lost_reason(recorded_status: RunStatus, snapshot: QueueSnapshot | None) -> str:
    """Return why nothing will come of a run that its records say is under way; '' where that is not known."""
    from galaxyhpc.runtime.lock import is_busy  # submitit is slow to load, and few runs are in doubt

    records, started = recorded_status.records, recorded_status.records.get_last_event("started")
    if recorded_status.state not in (RunState.SUBMITTED, RunState.RUNNING, RunState.TRAINED):
        return ""
    by_hand = recorded_status.state == RunState.RUNNING and str(started.get("job")).rpartition(".")[0] != records.job_id
    if by_hand:
        here = started.get("host") == socket.gethostname() and not is_busy(records.run)
        return f"its process {started.get('pid', '')} on this machine is gone" if here else ""
    answered = (
        snapshot is not None
        and snapshot.jobs is not None
        and _get_last_event_time(records) < snapshot.time - GRACE_SECONDS
    )
    if records.job_id and answered and _is_owned_by_user(records.run) and not is_busy(records.run):
        what = "its evaluation" if recorded_status.state == RunState.TRAINED else "its"
        return f"{what} job {records.job_id} is no longer in Slurm's queue"
    return ""


def _get_last_event_time(records: RunRecords) -> float:
    """Return when the newest event was recorded."""
    return max((get_number(event, "time") or 0.0 for event in records.events[-3:]), default=0.0)


def _is_owned_by_user(run: RunDir) -> bool:
    """Whether the run's jobs would be in the queue that was asked for: another user's are not."""
    try:
        return run.events_file.stat().st_uid == os.getuid()
    except OSError:
        return False
