"""Where a run keeps its files. A run IS its directory; a job is given the path and nothing else.

Files appear whole, written aside and renamed; events.jsonl only grows, torn lines are skipped. paths.json: see `paths`.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galaxyhpc.storage.events import RunState, derive_state, read_json_lines
from galaxyhpc.storage.files import sanitize

if TYPE_CHECKING:
    from galaxyhpc.config.schema import ResourcesConfig, RunConfig  # slow to load, and status of a sweep does without

MAX_CONFIG_BYTES = 1_000_000


@dataclass(frozen=True)
class RunDir:
    """The files of one run: runs/SWEEP/RUN_ID."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def sweep_dir(self) -> Path:
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
    def checkpoint_dir(self) -> Path:
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
    def log_dir(self) -> Path:
        return self.path / "log"

    @property
    def progress(self) -> str:
        """What the run has come to, in words, as far as a look at the names of its files tells."""
        if self.best_file.exists():
            results = self.results_file.stat().st_size if self.results_file.exists() else 0
            return f"best.pt and {results} bytes of results"
        return max((path.name for path in self.checkpoint_dir.glob("step_*")), default="no checkpoint")

    def load_config(self) -> RunConfig:
        """Read config.json.

        Raises
        ------
        OSError, NoRunError
        """
        from pydantic import ValidationError

        from galaxyhpc.config.schema import RunConfig

        if self.config_file.stat().st_size > MAX_CONFIG_BYTES:
            raise RunDirError(f"{self.config_file}: found more than {MAX_CONFIG_BYTES:,} bytes; allowed: fewer")
        try:
            return RunConfig.model_validate_json(self.config_file.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "".join(f"{sanitize(str(part))}: " for part in first["loc"])
            allowed = "allowed: the file that launch wrote, and launching again writes it anew"
            raise RunDirError(f"{self.config_file}: {where}{sanitize(first['msg'])}; {allowed}") from None

    def with_retry_changes(self, resources: ResourcesConfig) -> ResourcesConfig:
        """Return these resources as later retries want them: a smaller micro-batch, nodes to stay away from."""
        for event in self.read_events():
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

    def read_events(self) -> list[dict[str, Any]]:
        """All events so far, oldest first."""
        return [line for line in read_json_lines(self.events_file) if {"event", "time"} <= line.keys()]

    def read_metrics(self) -> list[dict[str, Any]]:
        """One dictionary per finished epoch."""
        return [line for line in read_json_lines(self.metrics_file) if {"epoch", "validation_accuracy"} <= line.keys()]


def read_state(run: RunDir) -> RunState:
    """Tell a run's state from its events alone: the last one that changes it decides.

    A process that was killed leaves no event, so `running` means "nothing says that it ended". Of several processes
    that fail together the first gives the reason, unless it only lost the connection to another one.
    """
    return derive_state(run.read_events())


class RunDirError(ValueError):
    """A path that is neither a run's directory nor a sweep's, or that leads out of it."""
