"""The status of a run, from its own records and from Slurm's queue if it is available. Reading it changes nothing.

A run is lost only if Slurm answered without its job, or its process on this machine is gone, and no process holds its
lock; it failed if its job did so before Python recorded anything. Without an answer of Slurm, the records decide.
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
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from galaxyhpc.runtime import slurm
from galaxyhpc.runtime.lock import is_busy
from galaxyhpc.status.logs import quote_last_line
from galaxyhpc.storage.events import JsonDict, RunState, derive_state, parse_json_lines
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import get_report_records

GRACE_SECONDS = 60  # a record may appear this late: clocks differ, and NFS delays files
QUEUE_CACHE_SECONDS = 15  # Slurm is not queried more often: its controller serves all users
NUM_RECENT_EPOCHS = 10  # events of earlier epochs are not parsed
NUM_METRICS_EPOCHS = 3  # epochs whose metrics are parsed in full; json needs a second for all epochs of a sweep
ACCURACY_PATTERN = re.compile(r'"validation_accuracy": (-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)')
NO_RECORD = "no record"  # the cause of a failure: the job ended before Python recorded anything
WAITING_STATES = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED")


@dataclass(frozen=True)
class RunRecords:
    """Records of a run directory, read once."""

    run: RunDir
    events: list[JsonDict]  # without those of early epochs
    validation_accuracies: list[float]  # one per epoch done
    recent_metrics: list[JsonDict]  # of the last `NUM_METRICS_EPOCHS` epochs
    best_metrics: JsonDict  # of the epoch with the best validation accuracy; empty without any
    config: JsonDict  # config.json, unchecked; empty if it cannot be read

    def get_last_event(self, *names: str) -> JsonDict:
        """Return the newest event of these names, or an empty one."""
        return next((event for event in reversed(self.events) if event["event"] in names), {})

    @functools.cached_property
    def best_accuracies(self) -> list[float]:
        """Best validation accuracy up to each epoch."""
        return list(itertools.accumulate(self.validation_accuracies, max))

    @property
    def is_trained(self) -> bool:
        return any(event["event"] == "trained" for event in self.events)

    @property
    def train_config(self) -> JsonDict:
        """The training settings; empty if they cannot be read."""
        settings = self.config.get("train")
        return settings if isinstance(settings, dict) else {}

    @property
    def submissions(self) -> list[JsonDict]:
        """Events of the jobs submitted to Slurm for this run, the newest last."""
        events = (event for event in self.events if event["event"] in ("submitted", "evaluation submitted"))
        return [event for event in events if event.get("executor", "slurm") == "slurm"]

    @property
    def job_id(self) -> str:
        """Slurm's id of the current job of the run: its training, then its evaluation; '' without one."""
        name = "evaluation submitted" if self.is_trained else "submitted"
        return str(next((event.get("job", "") for event in reversed(self.submissions) if event["event"] == name), ""))

    @property
    def canary_id(self) -> str:
        """Slurm's id of the job whose success the training waits for; '' without one."""
        return str(self.get_last_event("submitted").get("canary", ""))

    @property
    def is_on_slurm(self) -> bool:
        return bool(self.submissions) or bool(self.get_last_event("submitting"))

    def list_job_ids(self) -> set[str]:
        """Return the ids in the names of the run's logs: of Slurm jobs, or of submitit's local processes."""
        return (self._begun_jobs | {str(event.get("job")) for event in self.submissions}) - {""}

    @functools.cached_property
    def _begun_jobs(self) -> set[str]:
        """Jobs that recorded something; they add the number of their start to the id."""
        return {str(event["job"]).rpartition(".")[0] for event in self.events if "job" in event}

    def has_begun(self, job_id: str) -> bool:
        """Whether a process of this job recorded anything."""
        return job_id in self._begun_jobs

    def get_queued_jobs(self, snapshot: QueueSnapshot | None) -> dict[str, slurm.QueuedJob]:
        """Return the jobs of this run that wait or run; the token excludes other jobs with a reused id."""
        jobs = snapshot.jobs or {} if snapshot is not None else {}
        submitted = [(str(event.get("job")), str(event.get("token", ""))) for event in self.submissions]
        return {
            job: jobs[job]
            for job, token in submitted
            if job in jobs and (not token or jobs[job].comment in (token, "", "(null)"))
        }


@dataclass(frozen=True)
class QueueSnapshot:
    """Slurm's queue at one time."""

    time: float
    jobs: dict[str, slurm.QueuedJob] | None  # by job id; None: Slurm does not answer
    final_states: dict[str, str] = field(default_factory=dict)  # by job id, of jobs that left the queue


@dataclass(frozen=True)
class RunStatus:
    """State of a run, with the reason and a note."""

    records: RunRecords
    state: RunState
    reason: str = ""
    note: str = ""  # failure type, node, or why it waits
    final_state: str = ""  # Slurm's, of the job that a run was lost with

    @property
    def run(self) -> RunDir:
        return self.records.run

    @property
    def num_epochs_done(self) -> int:
        """Number of epochs done."""
        return len(self.records.validation_accuracies)

    @property
    def num_epochs(self) -> int | None:
        """Number of epochs to train; None if the settings cannot be read."""
        epochs = get_number(self.records.train_config, "epochs")
        return None if epochs is None else int(epochs)


def get_number(record: JsonDict, key: str) -> float | None:
    """Return a value of an unchecked record if it is a finite number, else None."""
    value: Any = record.get(key)
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def read_run_records(run: RunDir) -> RunRecords:
    """Read the records of a run; never fails."""
    try:
        config = json.loads("\n".join(_read_lines(run.config_file)))
    except (ValueError, RecursionError):
        config = {}
    lines = _read_lines(run.metrics_file)
    epochs = [(float(match[1]), line) for line in lines if (match := ACCURACY_PATTERN.search(line))]
    best_lines = [max(epochs, key=lambda epoch: epoch[0])[1]] if epochs else []
    return RunRecords(
        run,
        _read_recent_events(run),
        [accuracy for accuracy, _ in epochs],
        parse_json_lines(lines[-NUM_METRICS_EPOCHS:]),
        next(iter(parse_json_lines(best_lines)), {}),
        config if isinstance(config, dict) else {},
    )


def _read_recent_events(run: RunDir) -> list[JsonDict]:
    """Return the events of a run, with the last `NUM_RECENT_EPOCHS` epochs only: parsing all takes too long."""
    lines = _read_lines(run.events_file)
    epochs = [index for index, line in enumerate(lines) if '"event": "epoch"' in line]
    dropped = set(epochs[:-NUM_RECENT_EPOCHS])
    events = parse_json_lines([line for index, line in enumerate(lines) if index not in dropped])
    return [event for event in events if {"event", "time"} <= event.keys()]


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    except OSError:
        return []


def query_status(
    runs: Sequence[RunDir], previous: QueueSnapshot | None = None
) -> tuple[list[RunStatus], QueueSnapshot | None]:
    """Return the status of runs and the queue; Slurm is queried not at all if `previous` is recent.

    Else one query serves all runs, and two more where jobs left the queue without a recorded end. The records of these
    runs are read again: a job may have ended between reading them and querying Slurm.
    """
    all_records = [read_run_records(run) for run in runs]
    snapshot, is_old = previous, previous is None or time.time() - previous.time > QUEUE_CACHE_SECONDS
    if is_old and any(records.is_on_slurm for records in all_records):
        snapshot = QueueSnapshot(time.time(), slurm.get_queue())
    statuses = [derive_status(records, snapshot) for records in all_records]
    if snapshot is None or snapshot.jobs is None:
        return statuses, snapshot
    doubtful = [index for index, status in enumerate(statuses) if _is_job_gone(status, snapshot.jobs)]
    if snapshot is not previous:
        gone = {job for index in doubtful for job in (all_records[index].job_id, all_records[index].canary_id) if job}
        gone |= _find_gone_reports(runs, snapshot.jobs)
        snapshot = replace(snapshot, final_states=slurm.get_final_states(gone) if gone else {})
    for index in doubtful:
        statuses[index] = derive_status(read_run_records(runs[index]), snapshot)
    return statuses, snapshot


def _is_job_gone(status: RunStatus, jobs: dict[str, slurm.QueuedJob]) -> bool:
    """Whether a run seems under way, or lost, and its job is not in the queue."""
    states = (RunState.SUBMITTED, RunState.RUNNING, RunState.TRAINED, RunState.LOST)
    is_doubtful = status.state in states or status.note == NO_RECORD
    return is_doubtful and bool(job_id := status.records.job_id) and job_id not in jobs


def _find_gone_reports(runs: Sequence[RunDir], jobs: dict[str, slurm.QueuedJob]) -> set[str]:
    """Return the jobs that write the report of these runs and are not in the queue any more."""
    reports = [read_run_records(get_report_records(sweep)) for sweep in {run.sweep_dir for run in runs}]
    return {report.job_id for report in reports if _is_job_gone(derive_status(report, None), jobs)}


def find_report_problem(sweep_dir: Path, snapshot: QueueSnapshot | None) -> RunStatus | None:
    """Return the status of the job that should have written the report; None if it did, or may still do so."""
    records = read_run_records(get_report_records(sweep_dir))
    status = derive_status(records, snapshot)
    if status.state not in (RunState.FAILED, RunState.LOST):
        return None
    with suppress(OSError):
        if (records.run.path / "results.csv").stat().st_mtime > _get_last_event_time(records):
            return None  # written meanwhile
    return status


def derive_status(records: RunRecords, snapshot: QueueSnapshot | None) -> RunStatus:
    """Derive the status of a run from its records and Slurm's queue, which may be older than the records."""
    state = derive_state(records.events)
    failures = (event for event in reversed(records.events) if event["event"] == "failed")
    note = next((str(e.get("cause", "")) for e in failures if str(e.get("why", "")) == state.reason), "")
    recorded = RunStatus(records, state.name, state.reason, note if state.name == RunState.FAILED else "")
    if state.name == RunState.EVALUATED:
        return recorded
    if snapshot is not None and snapshot.jobs is not None:
        job = records.get_queued_jobs(snapshot).get(records.job_id) or _find_job_by_token(records, snapshot.jobs)
        if job is not None:
            return _derive_queued_status(recorded, job)
    return _derive_gone_status(recorded, snapshot)


def _find_job_by_token(records: RunRecords, jobs: dict[str, slurm.QueuedJob]) -> slurm.QueuedJob | None:
    """Find the job of a launch that was killed between the submission and its record."""
    last = records.get_last_event("submitting", "submitted", "evaluation submitted")
    token = str(last.get("token", "")) if last.get("event") == "submitting" else ""
    return next((job for job in jobs.values() if token and token == job.comment), None)


def _derive_queued_status(recorded_status: RunStatus, job: slurm.QueuedJob) -> RunStatus:
    """Derive the status of a run whose job is in the queue."""
    records, trained = recorded_status.records, recorded_status.state == RunState.TRAINED
    if job.state in WAITING_STATES:
        if trained:
            return RunStatus(records, RunState.TRAINED, recorded_status.reason, "evaluation waits")
        reason = recorded_status.reason if recorded_status.state == RunState.STOPPED else ""
        return RunStatus(records, RunState.WAITING, reason, job.reason)
    if trained or recorded_status.state in (RunState.PLANNED, RunState.SUBMITTED, RunState.STOPPED):
        return RunStatus(records, RunState.EVALUATING if trained else RunState.STARTING, "", job.nodes)
    return RunStatus(records, recorded_status.state, recorded_status.reason, recorded_status.note or job.nodes)


def _derive_gone_status(recorded_status: RunStatus, snapshot: QueueSnapshot | None) -> RunStatus:
    """Derive the status of a run that has no job in the queue: as recorded if it may still be running."""
    records, started = recorded_status.records, recorded_status.records.get_last_event("started")
    if recorded_status.state not in (RunState.SUBMITTED, RunState.RUNNING, RunState.TRAINED):
        return recorded_status
    is_running = recorded_status.state == RunState.RUNNING
    is_local = is_running and str(started.get("job")).rpartition(".")[0] != records.job_id
    if is_local:
        is_gone = started.get("host") == socket.gethostname() and not is_busy(records.run)
        reason = f"its process {started.get('pid', '')} on this machine is gone"
        return RunStatus(records, RunState.LOST, reason) if is_gone else recorded_status
    if snapshot is None or snapshot.jobs is None or not records.job_id:
        return recorded_status
    final_state, has_begun = snapshot.final_states.get(records.job_id, ""), records.has_begun(records.job_id)
    is_recent = _get_last_event_time(records) >= snapshot.time - GRACE_SECONDS
    if is_recent and (has_begun or not final_state):
        return recorded_status
    if not _is_owned_by_user(records.run) or is_busy(records.run, snapshot.jobs):
        return recorded_status
    job = f"{'its evaluation' if recorded_status.state == RunState.TRAINED else 'its'} job {records.job_id}"
    reason = f"{job} is no longer in Slurm's queue" + (f" ({final_state})" if final_state else "")
    if has_begun:
        return RunStatus(records, RunState.LOST, reason, final_state=final_state)
    return _derive_silent_status(records, snapshot, job, reason)


def _derive_silent_status(records: RunRecords, snapshot: QueueSnapshot, job: str, reason: str) -> RunStatus:
    """Derive the status of a run whose job ended before Python recorded anything: Slurm and the log tell why."""
    final_state, end = snapshot.final_states.get(records.job_id, ""), quote_last_line(records.run, records.job_id)
    if final_state == "FAILED" or (end and not final_state):
        end = end or f"it left no log in {records.run.sweep_dir / 'log'}: see that its node can write there"
        return RunStatus(records, RunState.FAILED, f"{job} ended before Python recorded anything; {end}", NO_RECORD)
    if snapshot.final_states.get(records.canary_id) == "FAILED":
        end = f"it waited for the canary, job {records.canary_id}, which failed; "
        end += quote_last_line(records.run, records.canary_id)
    return RunStatus(records, RunState.LOST, f"{reason}; {end}" if end else reason, final_state=final_state)


def _get_last_event_time(records: RunRecords) -> float:
    """Return the time of the newest event in s since 1970; 0 without events."""
    return max((get_number(event, "time") or 0.0 for event in records.events[-3:]), default=0.0)


def _is_owned_by_user(run: RunDir) -> bool:
    """Whether the run is this user's: the queue holds no jobs of other users."""
    try:
        return run.events_file.stat().st_uid == os.getuid()
    except OSError:
        return False
