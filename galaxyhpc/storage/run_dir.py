"""The directory of a run. A run IS its directory; a job is given the path and nothing else.

Files are written atomically; events.jsonl only grows, torn lines are skipped. paths.json: see `models.kernel_choice`.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from galaxyhpc.storage.events import JsonDict, RecordedState, derive_state, read_json_lines
from galaxyhpc.storage.files import sanitize

if TYPE_CHECKING:
    from galaxyhpc.config.schema import RequestedResources, RunConfig  # slow to load, and status works without

MAX_CONFIG_BYTES = 1_000_000

Resources = TypeVar("Resources", bound="RequestedResources")


class RunDirError(ValueError):
    """A path that is not a run's or a sweep's directory, or a file in it that cannot be used."""


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
        """Progress of the run in words, from the names and sizes of its files."""
        if self.best_file.exists():
            results = self.results_file.stat().st_size if self.results_file.exists() else 0
            return f"best.pt and {results} bytes of results"
        return max((path.name for path in self.checkpoint_dir.glob("step_*")), default="no checkpoint")

    def load_config(self) -> RunConfig:
        """Read config.json, with the resources that later retries changed.

        Raises
        ------
        OSError, RunDirError
        """
        from pydantic import ValidationError

        from galaxyhpc.config.schema import RunConfig

        if self.config_file.stat().st_size > MAX_CONFIG_BYTES:
            raise RunDirError(f"{self.config_file}: got over {MAX_CONFIG_BYTES:,} bytes; expected fewer")
        try:
            config = RunConfig.model_validate_json(self.config_file.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = "".join(f"{sanitize(str(part))}: " for part in first["loc"])
            advice = "launch the sweep again to restore the file"
            raise RunDirError(f"{self.config_file}: {key}{sanitize(first['msg'])}; {advice}") from None
        return config.model_copy(update={"resources": self.with_retry_changes(config.resources)})

    def with_retry_changes(self, resources: Resources) -> Resources:
        """Apply the changes of later retries, a smaller micro-batch and excluded nodes, to resources from a sweep file.

        Resources that have them already stay as they are.
        """
        for event in self.read_events():
            if event["event"] == "retried":
                nodes = [*resources.exclude_nodes, *event.get("exclude", ())]
                changes = {"exclude_nodes": [node for index, node in enumerate(nodes) if node not in nodes[:index]]}
                changes |= {"micro_batch": event["micro_batch"]} if "micro_batch" in event else {}
                with suppress(ValueError):  # not an event that retry wrote
                    resources = type(resources).model_validate(resources.model_dump() | changes)
        return resources

    def record(self, event: str, **fields: Any) -> None:
        """Append one event, durably: the time in seconds since 1970, the host, the event's name and its fields."""
        line = json.dumps({"time": round(time.time(), 3), "host": socket.gethostname(), "event": event, **fields})
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.events_file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            end = os.lseek(descriptor, 0, os.SEEK_END)
            is_torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
            os.write(descriptor, (("\n" if is_torn else "") + line + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read_events(self) -> list[JsonDict]:
        """Return all events so far, oldest first."""
        return [line for line in read_json_lines(self.events_file) if {"event", "time"} <= line.keys()]

    def read_metrics(self) -> list[JsonDict]:
        """Return one record per finished epoch."""
        return [line for line in read_json_lines(self.metrics_file) if {"epoch", "validation_accuracy"} <= line.keys()]


def read_state(run: RunDir) -> RecordedState:
    """Read a run's state from its events alone: see `derive_state`."""
    return derive_state(run.read_events())
