"""Where a run keeps its files. A run IS its directory; a job is given the path and nothing else.

Files appear whole, written aside and renamed; events.jsonl only grows, torn lines are skipped. paths.json: see `paths`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from galaxyhpc.config.schema import ResourcesConfig, RunConfig  # slow to load, and status of a sweep does without

MOST_RUNS = 10_000  # of a sweep; beyond, 8 hexadecimal digits no longer tell all runs apart: 1 % by then
MOST_CONFIG_BYTES = 1_000_000


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it becomes `path`, whole and durable, when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file's contents, or a directory's entries, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class RunDir:
    """The files of one run: runs/SWEEP/RUN_ID."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def sweep(self) -> Path:
        """The sweep's directory, which holds plan.csv and split.csv."""
        return self.path.parent

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best_file(self) -> Path:
        return self.path / "best.pt"

    @property
    def results_file(self) -> Path:
        return self.path / "results.csv"

    @property
    def predictions_file(self) -> Path:
        return self.path / "predictions.h5"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def progress(self) -> str:
        """What the run has come to, in words, as far as a look at the names of its files tells."""
        if self.best_file.exists():
            results = self.results_file.stat().st_size if self.results_file.exists() else 0
            return f"best.pt and {results} bytes of results"
        return max((path.name for path in self.checkpoints.glob("step_*")), default="no checkpoint")

    def load_config(self) -> RunConfig:
        """Read config.json.

        Raises
        ------
        OSError, NoRunError
        """
        from pydantic import ValidationError

        from galaxyhpc.config.schema import RunConfig

        if self.config_file.stat().st_size > MOST_CONFIG_BYTES:
            raise NoRunError(f"{self.config_file}: found more than {MOST_CONFIG_BYTES:,} bytes; allowed: fewer")
        try:
            return RunConfig.model_validate_json(self.config_file.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "".join(f"{readable(str(part))}: " for part in first["loc"])
            allowed = "allowed: the file that launch wrote, and launching again writes it anew"
            raise NoRunError(f"{self.config_file}: {where}{readable(first['msg'])}; {allowed}") from None

    def amended(self, resources: ResourcesConfig) -> ResourcesConfig:
        """Return these resources as later retries want them: a smaller micro-batch, nodes to stay away from."""
        for event in self.events():
            if event.get("event") == "retried":
                nodes = [*resources.exclude_nodes, *event.get("exclude", ())]
                asked = {"exclude_nodes": [node for number, node in enumerate(nodes) if node not in nodes[:number]]}
                asked |= {"micro_batch": event["micro_batch"]} if "micro_batch" in event else {}
                with suppress(ValueError):  # retry wrote no such event
                    resources = type(resources).model_validate(resources.model_dump() | asked)
        return resources

    def record(self, event: str, **fields: Any) -> None:
        """Append one event, durably: a time in seconds since 1970, the host, the name and what belongs to it."""
        line = json.dumps({"time": round(time.time(), 3), "host": socket.gethostname(), "event": event, **fields})
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.events_file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            end = os.lseek(descriptor, 0, os.SEEK_END)
            torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
            os.write(descriptor, (("\n" if torn else "") + line + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def events(self) -> list[dict[str, Any]]:
        """All events so far, oldest first."""
        return [line for line in read_lines(self.events_file) if {"event", "time"} <= line.keys()]

    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary per finished epoch."""
        return [line for line in read_lines(self.metrics_file) if {"epoch", "validation_accuracy"} <= line.keys()]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, skipping torn ones; an absent file has none."""
    return parse_lines(path.read_text(encoding="utf-8", errors="replace").split("\n")) if path.is_file() else []


def parse_lines(lines: list[str]) -> list[dict[str, Any]]:
    """Parse lines of JSON, skipping what is torn, empty, or nothing that this program writes."""
    try:
        found = json.loads(f"[{','.join(filter(None, lines))}]")  # at once is several times as fast as one by one
    except (ValueError, RecursionError):
        found = [value for line in lines for value in _whole(line)]
    return [sound for value in found if (sound := _sound(value)) is not None]


def _whole(line: str) -> list[Any]:
    try:
        return [json.loads(line)]
    except (ValueError, RecursionError):
        return []


_TEXTS = ("event", "host", "job", "executor", "token", "why", "cause", "trace", "device", "nodes")
_NUMBERS = ("time", "epoch", "step", "world", "pid", "rank", "seconds", "images", "micro_batch", "validation_accuracy")
_KINDS = dict.fromkeys(_TEXTS, str) | dict.fromkeys(_NUMBERS, (int, float)) | {"exclude": list}


def _sound(line: Any) -> dict[str, Any] | None:
    """Return a line whose known fields are of their kinds, texts made readable; None where one is not."""
    if not isinstance(line, dict):
        return None
    for name, value in line.items():
        if name in _KINDS and not isinstance(value, _KINDS[name]):
            return None
        if name in _NUMBERS and not -1e15 < value < 1e15:  # nor NaN
            return None
    return {name: readable(value) if isinstance(value, str) else value for name, value in line.items()}


def readable(text: str) -> str:
    """Return a text without what a terminal would obey or an encoding refuse."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)


@dataclass(frozen=True)
class State:
    """What a run's own records say: a name and, where there is one, the reason."""

    name: str  # planned, submitted, running, stopped, failed, trained, evaluated
    why: str = ""


_AFTER = {
    "submitted": "submitted",
    "started": "running",
    "stopped": "stopped",
    "cancelled": "stopped",
    "retried": "stopped",
    "failed": "failed",
    "trained": "trained",
    "evaluating": "trained",
    "evaluated": "evaluated",
}


def state(run: RunDir) -> State:
    """Tell a run's state from its events alone: the last one that changes it decides.

    A process that was killed leaves no event, so `running` means "nothing says that it ended". Of several processes
    that fail together the first gives the reason, unless it only lost the connection to another one.
    """
    return state_after(run.events())


def state_after(events: list[dict[str, Any]]) -> State:
    """See `state`."""
    found, begun, cause, trained = State("planned", "never submitted"), set(), "", False
    for event in events:
        name = _AFTER.get(event["event"])
        trained = trained or name == "trained"
        if event["event"] == "evaluation submitted" and trained:
            name = "trained"  # measured anew, after a failure or a stop
        if event["event"] in ("cancelled", "retried") and found.name == "evaluated":
            continue  # it was quicker
        if event["event"] == "stopped" and found == State("stopped", "cancelled"):
            continue  # which is why
        if name == "running":
            begun.add(str(event.get("job", "")).rpartition(".")[0])  # without the number of the start
        if name == "submitted" and str(event.get("job")) in begun:
            continue  # the job was quicker than the note of its submission
        if name is not None and not (name == found.name == "failed" and cause != "connection"):
            found, cause = State(name, str(event.get("why", ""))), str(event.get("cause", ""))
    return found


class NoRunError(ValueError):
    """A path that is neither a run's directory nor a sweep's, or that leads out of it."""


def resolved(path: str | Path, what: str) -> Path:
    """Return an absolute path, `~` filled in.

    Raises
    ------
    NoRunError
    """
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # no such home, a loop of links, a zero byte
        raise NoRunError(f"{what}: found {str(path)!r}; {error}") from None


def sweep_directory(runs: Path, name: str) -> Path:
    """Return where a sweep is kept; refused where Slurm could not write its logs.

    Raises
    ------
    NoRunError
    """
    directory = resolved(runs, "--runs") / name
    if found := re.search(r"[%\\\x00-\x1f\x7f\u2028\u2029\ud800-\udfff]", str(directory)):
        allowed = "allowed: a path without %, \\ and what cannot be printed, which Slurm misreads in the names of logs"
        raise NoRunError(f"--runs: found {found[0]!r} in {str(directory)!r}; {allowed}")
    refuse_links(directory)
    return directory


def refuse_links(*paths: Path) -> None:
    """Refuse directories that are symbolic links: what is written into them would land somewhere else.

    Raises
    ------
    NoRunError
    """
    for path in paths:
        if path.is_symlink():
            raise NoRunError(f"{path}: found a symbolic link to {os.readlink(path)}; allowed is a directory of its own")


def runs_of(path: Path) -> list[RunDir]:
    """Return the run at this path, or a sweep's runs in the order of its plan.

    Raises
    ------
    NoRunError
    """
    try:
        if (path / "config.json").is_file():
            found = [RunDir(path.resolve())]
        elif (path / "plan.csv").is_file():
            found = planned_runs(path.resolve())
        else:
            allowed = "allowed: runs/SWEEP/RUN_ID or runs/SWEEP"
            raise NoRunError(f"{readable(str(path))}: found neither config.json nor plan.csv; {allowed}")
        refuse_links(*(place for run in found for place in (run.path, run.checkpoints)))
    except OSError as error:
        raise NoRunError(f"{readable(str(path))}: cannot be read: {error.strerror}") from error
    return found


def planned_runs(sweep: Path) -> list[RunDir]:
    """Return the runs of plan.csv: each run id is the name of a directory beside it and nothing else.

    Raises
    ------
    OSError, NoRunError
    """
    plan = sweep / "plan.csv"
    try:
        with plan.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if "run_id" not in (rows.fieldnames or ()):
                raise NoRunError(f"{plan}: found no column run_id; allowed: the file that launch wrote")
            names = [row["run_id"] or "" for row in islice(rows, MOST_RUNS + 1)]
    except (csv.Error, UnicodeError) as error:
        raise NoRunError(f"{plan}: {error}; allowed: the file that launch wrote") from error
    if len(names) > MOST_RUNS:
        raise NoRunError(f"{plan}: found more than {MOST_RUNS:,} runs; allowed: as many")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,199}", name, re.ASCII):
            raise NoRunError(f"{plan}: run_id: found {name[:80]!r}; allowed: names such as C4-cnn-s0-0123abcd")
    if len(set(names)) < len(names):
        raise NoRunError(f"{plan}: run_id: found one twice; allowed: each run once")
    return [RunDir(sweep / name) for name in names]
