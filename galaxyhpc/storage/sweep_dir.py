"""A sweep's directory: its plan, its runs, and the runs that a command line names."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from galaxyhpc.config import MAX_RUNS
from galaxyhpc.storage.files import sanitize
from galaxyhpc.storage.run_dir import RunDir, RunDirError


def resolve_path(path: str | Path, label: str) -> Path:
    """Return an absolute path, `~` filled in.

    Raises
    ------
    NoRunError
    """
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # no such home, a loop of links, a zero byte
        raise RunDirError(f"{label}: found {str(path)!r}; {error}") from None


def resolve_sweep_dir(runs_dir: Path, name: str) -> Path:
    """Return where a sweep is kept; refused where Slurm could not write its logs.

    Raises
    ------
    NoRunError
    """
    directory = resolve_path(runs_dir, "--runs") / name
    if found := re.search(r"[%\\\x00-\x1f\x7f\u2028\u2029\ud800-\udfff]", str(directory)):
        allowed = "allowed: a path without %, \\ and what cannot be printed, which Slurm misreads in the names of logs"
        raise RunDirError(f"--runs: found {found[0]!r} in {str(directory)!r}; {allowed}")
    refuse_symlinks(directory)
    return directory


def refuse_symlinks(*paths: Path) -> None:
    """Refuse directories that are symbolic links: what is written into them would land somewhere else.

    Raises
    ------
    NoRunError
    """
    for path in paths:
        if path.is_symlink():
            raise RunDirError(
                f"{path}: found a symbolic link to {os.readlink(path)}; allowed is a directory of its own"
            )


def find_runs(path: Path) -> list[RunDir]:
    """Return the run at this path, or a sweep's runs in the order of its plan.

    Raises
    ------
    NoRunError
    """
    try:
        if (path / "config.json").is_file():
            found = [RunDir(path.resolve())]
        elif (path / "plan.csv").is_file():
            found = read_planned_runs(path.resolve())
        else:
            allowed = "allowed: runs/SWEEP/RUN_ID or runs/SWEEP"
            raise RunDirError(f"{sanitize(str(path))}: found neither config.json nor plan.csv; {allowed}")
        refuse_symlinks(*(place for run in found for place in (run.path, run.checkpoint_dir)))
    except OSError as error:
        raise RunDirError(f"{sanitize(str(path))}: cannot be read: {error.strerror}") from error
    return found


def read_planned_runs(sweep_dir: Path) -> list[RunDir]:
    """Return the runs of plan.csv: each run id is the name of a directory beside it and nothing else.

    Raises
    ------
    OSError, NoRunError
    """
    plan = sweep_dir / "plan.csv"
    try:
        with plan.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if "run_id" not in (rows.fieldnames or ()):
                raise RunDirError(f"{plan}: found no column run_id; allowed: the file that launch wrote")
            names = [row["run_id"] or "" for row in islice(rows, MAX_RUNS + 1)]
    except (csv.Error, UnicodeError) as error:
        raise RunDirError(f"{plan}: {error}; allowed: the file that launch wrote") from error
    if len(names) > MAX_RUNS:
        raise RunDirError(f"{plan}: found more than {MAX_RUNS:,} runs; allowed: as many")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,199}", name, re.ASCII):
            raise RunDirError(f"{plan}: run_id: found {name[:80]!r}; allowed: names such as C4-cnn-s0-0123abcd")
    if len(set(names)) < len(names):
        raise RunDirError(f"{plan}: run_id: found one twice; allowed: each run once")
    return [RunDir(sweep_dir / name) for name in names]


class RunSelectionError(ValueError):
    """A point that names no run, or several."""


def select_run(runs: Sequence[RunDir], pattern: str) -> RunDir:
    """Return the run of this id, or the one whose id holds this text.

    Raises
    ------
    PointError
    """
    found = [run for run in runs if run.run_id == pattern] or [
        run for run in runs if pattern.lower() in run.run_id.lower()
    ]
    if len(found) == 1:
        return found[0]
    shown = [run.run_id for run in found or runs]
    more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
    what = f"is in {len(found)} run ids" if found else "is in no run id"
    raise RunSelectionError(f"{pattern}: {what}; allowed: one of {', '.join(shown[:8])}{more}")


def select_runs(runs: Sequence[RunDir], patterns: Sequence[str]) -> list[RunDir]:
    """Return the runs that these points name, each once.

    Raises
    ------
    PointError
    """
    return list(dict.fromkeys(select_run(runs, point) for point in patterns))


def find_sweep_dir(path: Path) -> Path:
    """Return the sweep's directory of a path that `rundir.runs_of` takes."""
    return path.resolve().parent if (path / "config.json").is_file() else path.resolve()
