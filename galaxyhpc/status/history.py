"""History of one run: its events as text, its last error, the ends of its newest logs, the next step."""

from __future__ import annotations

import shlex

from galaxyhpc.prediction.survey import is_survey
from galaxyhpc.status.logs import find_newest_logs, read_tail
from galaxyhpc.status.run_status import NO_RECORD, RunRecords, RunStatus
from galaxyhpc.storage.events import RunState, describe_events, format_time

MAX_LOG_LINES = 30
ENDED_STATES = (RunState.FAILED, RunState.LOST, RunState.STOPPED)
NUM_QUOTED_LINES = 12  # of a log, where no error is recorded
ADVICE_BY_CAUSE = {
    "memory": "retry it: this halves the micro-batch and keeps the global batch",
    "disk": "free disk space, then retry it",
    "no progress": "give it more time, more memory or another node, then retry it",
    NO_RECORD: "fix what its log names (--logs), then launch the sweep again; otherwise it would fail again",
    "connection": "read the logs of its other processes (--logs): one of them failed first",
    "error": "fix the cause in the traceback, then retry it; otherwise it would fail again",
}
ADVICE_BY_STATE = {
    RunState.PLANNED: "launch the sweep",
    RunState.SUBMITTED: "wait; if Slurm is available, status shows what it waits for",
    RunState.WAITING: "wait, or ask Slurm: scontrol show job {job}",
    RunState.STARTING: "wait: its process has not reached its first step",
    RunState.RUNNING: "wait; --logs shows its output",
    RunState.STOPPED: "launch the sweep again, or retry it by name: it resumes",
    RunState.LOST: "launch the sweep again, or retry it: it resumes from its last checkpoint",
    RunState.TRAINED: "launch the sweep again if no evaluation is submitted",
    RunState.EVALUATING: "wait",
    RunState.EVALUATED: "nothing: it is complete",
    RunState.PREDICTED: "nothing: it left no unit",
}


def suggest_next_step(status: RunStatus) -> str:
    """Return what the user should do about a run, or about a task of a survey's prediction."""
    if is_survey(status.run.sweep_dir) and status.state in ENDED_STATES:
        return "nothing if all units are done, by other tasks; else fix the cause and rerun predict, which resumes"
    if status.state == RunState.FAILED:
        return ADVICE_BY_CAUSE.get(status.note, ADVICE_BY_CAUSE["error"])
    if status.state == RunState.WAITING and "held" in status.note.lower():
        return f"its job is held and does not start by itself: scontrol release {status.records.job_id}"
    return ADVICE_BY_STATE[status.state].format(job=status.records.job_id)


def explain_run(status: RunStatus) -> str:
    """Describe the last error of a run, its history, and the next step."""
    parts = [
        f"{status.run.run_id}: {status.state} {status.reason}".rstrip(),
        *_describe_last_error(status.records),
        "history:",
    ]
    parts += [f"  {line.time or '?':19}  {line.text}" for line in describe_events(status.run.read_events())]
    next_step = [f"next: {suggest_next_step(status)}"]
    if status.state in ENDED_STATES and not is_survey(status.run.sweep_dir):
        next_step.append(f"  galaxyhpc retry {shlex.quote(str(status.run.sweep_dir))} {status.run.run_id}")
    return "\n".join([*parts, *next_step])


def _describe_last_error(records: RunRecords) -> list[str]:
    """Return the last recorded failure; without one, the end of the newest log."""
    last_start = records.get_last_event("started", "submitted")
    start = next((index for index, event in enumerate(records.events) if event is last_start), 0)
    failures = [event for event in records.events if event["event"] == "failed"]
    recent = [event for event in records.events[start:] if event["event"] == "failed"] or failures[-1:]
    failed = next((event for event in recent if event.get("cause") != "connection"), recent[0] if recent else None)
    if failed is not None:
        cause = f"{format_time(failed) or '?'}, {failed.get('cause', 'cause unknown')}"
        lines = [f"last error ({cause}): {failed.get('why', '')}"]
        return [*lines, *(f"  {line}" for line in str(failed.get("trace", "")).splitlines()[-MAX_LOG_LINES:])]
    if records.get_last_event("trained", "evaluated") or not (
        files := find_newest_logs(records.run, records.list_job_ids())
    ):
        return ["no error is recorded"]
    return [
        "no error is recorded; its newest log ends:",
        *(f"  {line}" for line in read_tail(files[0], NUM_QUOTED_LINES)),
    ]


def read_newest_logs(status: RunStatus) -> str:
    """Return the ends of the newest log files of a run: those of its last job."""
    files = find_newest_logs(status.run, status.records.list_job_ids())
    if not files:
        return f"{status.run.run_id}: no log yet in {status.run.sweep_dir / 'log'} and {status.run.log_dir}"
    return "\n\n".join("\n".join([f"{file}:", *read_tail(file, MAX_LOG_LINES)]) for file in files)
