"""The directory of a sweep: its plan, its runs, and the selection of runs on a command line."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from galaxyhpc.config import MAX_RUNS
from galaxyhpc.storage.files import sanitize
from galaxyhpc.storage.run_dir import RunDir, RunDirError

if TYPE_CHECKING:
    from galaxyhpc.config.schema import DataConfig

MAX_LISTED_RUNS = 8


def resolve_path(path: str | Path, label: str) -> Path:
    """Return an absolute path with `~` expanded; `label` names the option in the error.

    Raises
    ------
    RunDirError
    """
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # no such home, a loop of links, a zero byte
        raise RunDirError(f"{label}: got {str(path)!r}; {error}") from None


def make_absolute(data: DataConfig) -> DataConfig:
    """Return the settings with absolute paths of the source and its images.

    Raises
    ------
    RunDirError
    """
    source = data.source if data.source == "demo" else str(resolve_path(data.source, "data.source"))
    images = str(resolve_path(data.images, "data.images")) if data.images else ""
    return data.model_copy(update={"source": source, "images": images})


def resolve_sweep_dir(runs_dir: Path, name: str, label: str = "--runs") -> Path:
    """Return the directory of a sweep, or of a survey's prediction; `label` names the option in the error.

    Raises
    ------
    RunDirError
        The path is a symbolic link, or Slurm could not write its logs there.
    """
    directory = resolve_path(runs_dir, label) / name
    if match := re.search(r"[%\\\x00-\x1f\x7f\u2028\u2029\ud800-\udfff]", str(directory)):
        expected = "expected a path without %, \\ and unprintable characters, which Slurm misreads in log names"
        raise RunDirError(f"{label}: got {match[0]!r} in {str(directory)!r}; {expected}")
    refuse_symlinks(directory)
    return directory


def refuse_symlinks(*paths: Path) -> None:
    """Refuse directories that are symbolic links: files written into them would land elsewhere.

    Raises
    ------
    RunDirError
    """
    for path in paths:
        if path.is_symlink():
            raise RunDirError(f"{path}: got a symbolic link to {os.readlink(path)}; expected a directory")


def find_runs(path: Path, expected: str = "runs/SWEEP/RUN_ID or runs/SWEEP") -> list[RunDir]:
    """Return the run at this path, or a sweep's runs in the order of its plan; `expected` is for the error.

    Raises
    ------
    RunDirError
    """
    try:
        if (path / "config.json").is_file():
            runs = [RunDir(path.resolve())]
        elif (path / "plan.csv").is_file():
            runs = read_planned_runs(path.resolve())
        else:
            raise RunDirError(f"{sanitize(str(path))}: got neither config.json nor plan.csv; expected {expected}")
        refuse_symlinks(*(directory for run in runs for directory in (run.path, run.checkpoint_dir)))
    except OSError as error:
        raise RunDirError(f"{sanitize(str(path))}: cannot be read: {error.strerror}") from error
    return runs


def read_planned_runs(sweep_dir: Path) -> list[RunDir]:
    """Return the runs of plan.csv, in its order.

    Raises
    ------
    OSError, RunDirError
    """
    return [RunDir(sweep_dir / row["run_id"]) for row in read_plan(sweep_dir)]


def read_plan(sweep_dir: Path) -> list[dict[str, str]]:
    """Return the rows of plan.csv by column; each run id is unique and the name of a directory beside the file.

    Raises
    ------
    OSError, RunDirError
    """
    path = sweep_dir / "plan.csv"
    if not path.exists():
        raise RunDirError(f"{path}: not found; expected the directory of a launched sweep")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restval="")
            columns = reader.fieldnames or ()
            if "run_id" not in columns:
                raise RunDirError(f"{path}: got no column run_id; expected the file that launch wrote")
            rows = [{name: row[name] for name in columns} for row in islice(reader, MAX_RUNS + 1)]
    except (csv.Error, UnicodeError) as error:
        raise RunDirError(f"{path}: {error}; expected the file that launch wrote") from error
    if len(rows) > MAX_RUNS:
        raise RunDirError(f"{path}: got more than {MAX_RUNS:,} runs; expected at most {MAX_RUNS:,}")
    run_ids = [row["run_id"] for row in rows]
    for run_id in run_ids:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,199}", run_id, re.ASCII):
            raise RunDirError(f"{path}: run_id: got {run_id[:80]!r}; expected a name such as C4-cnn-s0-0123abcd")
    if duplicates := [run_id for run_id, count in Counter(run_ids).items() if count > 1]:
        raise RunDirError(f"{path}: run_id: got {duplicates[0]} twice; expected each run once")
    return rows


def get_report_records(sweep_dir: Path) -> RunDir:
    """Return the directory of the report, where the job that writes it records its events as a run does."""
    return RunDir(sweep_dir / "report")


class RunSelectionError(ValueError):
    """A pattern that matches no run, or several."""


def select_run(runs: Sequence[RunDir], pattern: str) -> RunDir:
    """Return the run with this id, or the only one whose id contains this text.

    Raises
    ------
    RunSelectionError
    """
    exact = [run for run in runs if run.run_id == pattern]
    matches = exact or [run for run in runs if pattern.lower() in run.run_id.lower()]
    if len(matches) == 1:
        return matches[0]
    listed = [run.run_id for run in matches or runs]
    more = f" and {len(listed) - MAX_LISTED_RUNS} more" if len(listed) > MAX_LISTED_RUNS else ""
    count = f"matches {len(matches)} runs" if matches else "matches no run"
    raise RunSelectionError(f"{pattern}: {count}; expected one of {', '.join(listed[:MAX_LISTED_RUNS])}{more}")


def select_runs(runs: Sequence[RunDir], patterns: Sequence[str]) -> list[RunDir]:
    """Return the runs that these patterns match, each once.

    Raises
    ------
    RunSelectionError
    """
    return list(dict.fromkeys(select_run(runs, pattern) for pattern in patterns))


def find_sweep_dir(path: Path) -> Path:
    """Return the sweep's directory of a path that `find_runs` takes."""
    return path.resolve().parent if (path / "config.json").is_file() else path.resolve()
