"""History of one run: its events as text, its last error, the ends of its newest logs, the next step."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from galaxyhpc.status.run_status import RunRecords, RunStatus
from galaxyhpc.storage.events import RunState, describe_events, format_time

MAX_LOG_LINES = 30
TAIL_BYTES = 64 * 1024
ADVICE_BY_CAUSE = {
    "memory": "retry it: this halves the micro-batch and keeps the global batch",
    "disk": "free disk space, then retry it",
    "no progress": "give it more time, more memory or another node, then retry it",
    "connection": "read the logs of its other processes (--logs): one of them failed first",
    "error": "fix the cause in the traceback, then retry it; otherwise it would fail again",
}
ADVICE_BY_STATE = {
    RunState.PLANNED: "launch the sweep",
    RunState.SUBMITTED: "wait; if Slurm is available, status shows what it waits for",
    RunState.WAITING: "wait, or ask Slurm: scontrol show job {job}",
    RunState.STARTING: "wait: its process has not reached its first step",
    RunState.RUNNING: "wait; --logs shows its output",
    RunState.STOPPED: "launch the sweep again, or retry it: it resumes",
    RunState.LOST: "launch the sweep again, or retry it: it resumes from its last checkpoint",
    RunState.TRAINED: "launch the sweep again if no evaluation is submitted",
    RunState.EVALUATING: "wait",
    RunState.EVALUATED: "nothing: it is complete",
}


def suggest_next_step(status: RunStatus) -> str:
    """Return what the user should do about a run."""
    if status.state == RunState.FAILED:
        return ADVICE_BY_CAUSE.get(status.note, ADVICE_BY_CAUSE["error"])
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
    if status.state in (RunState.FAILED, RunState.LOST, RunState.STOPPED):
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
    if records.get_last_event("trained", "evaluated") or not (files := find_newest_logs(records)):
        return ["no error is recorded"]
    return ["no error is recorded; its newest log ends:", *(f"  {line}" for line in read_tail(files[0], 12))]


def read_newest_logs(status: RunStatus) -> str:
    """Return the ends of the newest log files of a run: those of its last job."""
    files = find_newest_logs(status.records)
    if not files:
        return f"{status.run.run_id}: no log yet in {status.run.sweep_dir / 'log'} and {status.run.log_dir}"
    return "\n\n".join("\n".join([f"{file}:", *read_tail(file, MAX_LOG_LINES)]) for file in files)


def find_newest_logs(records: RunRecords) -> list[Path]:
    """Return the log files of the job that wrote last, one per process, in the order of their ranks."""
    run = records.run
    files = [file for file in _list_files(run.log_dir) if re.search(r"_log\.(out|err)$", file.name)]
    jobs = "|".join(map(re.escape, _get_job_ids(records)))
    shared = _list_files(run.sweep_dir / "log") if jobs else []
    files += [file for file in shared if re.match(rf"({jobs})(_\d+)?_log\.", file.name)]
    if not files:
        return []
    newest = max(files, key=_get_mtime).name
    job = re.escape(re.sub(r"(_\d+)?_log\.(out|err)$", "", newest))
    return sorted((file for file in files if re.match(rf"{job}(_\d+)?_log\.", file.name)), key=_rank_sort_key)


def _get_job_ids(records: RunRecords) -> set[str]:
    """Return the ids in the names of the run's logs: of Slurm jobs, or of submitit's local processes."""
    started = {str(event["job"]).rpartition(".")[0] for event in records.events if "job" in event}
    return (started | {str(event.get("job")) for event in records.submissions}) - {""}


def _rank_sort_key(file: Path) -> tuple[int, str]:
    return len(file.name), file.name


def _list_files(directory: Path) -> list[Path]:
    try:
        return [file for file in directory.iterdir() if file.is_file()]
    except OSError:
        return []


def _get_mtime(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def read_tail(file: Path, num_lines: int) -> list[str]:
    """Return the last lines of a text file, without control characters of a terminal."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - TAIL_BYTES))
            text = opened.read().decode("utf-8", "replace")
    except OSError as error:
        return [f"cannot be read: {error.strerror}"]
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]  # the last state of a progress bar
    printable = ["".join(c for c in line if c.isprintable() or c == "\t").rstrip() for line in lines]
    return [line for line in printable if line][-num_lines:]
