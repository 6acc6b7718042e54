"""The file of results, results.jsonl: one line for each number, on the disk the moment it is known."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

JsonDict = dict[str, Any]


def record(out_dir: Path, step: str, **values: Any) -> None:
    """Append a line with the step that it comes from, in one write, and wait until it is on the disk."""
    line = json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n"
    descriptor = os.open(out_dir / "results.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    print(line, end="", flush=True)


def read_results(out_dir: Path, step: str | None = None) -> list[JsonDict]:
    """Return all lines so far, or those of one step."""
    path = out_dir / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if step is None or line["step"] == step]


def list_started_steps(out_dir: Path) -> list[str]:
    """Return the steps that have begun, in their order; one that began again is listed again."""
    return [line["step"] for line in read_results(out_dir) if line.get("event") == "start"]
