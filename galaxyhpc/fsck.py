"""Checks every file of a sweep's runs and changes nothing: `python -m galaxyhpc.fsck runs/SWEEP`.

Exit status 0: all sound; 1: damage was found, and what to do is said; 2: not a sweep. What a killed process leaves
(a torn line, an unfinished save, a checkpoint already in quarantine) is no damage and is only mentioned.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from galaxyhpc.config.schema import ModelConfig, RunConfig
from galaxyhpc.data.dataset import SPLIT_SETTINGS, read_split_header
from galaxyhpc.data.split import SPLITS
from galaxyhpc.evaluation import attack_results, results
from galaxyhpc.models import kernel_choice
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import sha256
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import find_runs, find_sweep_dir

MAX_JSON_BYTES = 1 << 20  # bytes that no config.json or MANIFEST.json reaches
MAX_JSON_LINES_BYTES = 1 << 28  # bytes that no file of lines reaches
RELAUNCH = "launching again"


class CorruptFileError(ValueError):
    """A file that is not what it should be."""


@dataclass(frozen=True)
class FileCheck:
    """What was found of one run."""

    name: str
    num_checkpoints: int = 0
    valid_steps: tuple[int, ...] = ()  # steps of the sound checkpoints, oldest first
    errors: tuple[str, ...] = ()  # each with what to do about it
    notes: tuple[str, ...] = ()


def check_run(run: RunDir) -> FileCheck:
    """Check all files of a run."""
    damage, notes = [], []
    config, problem = _try_check(_read_config, run)
    if problem:
        damage.append(f"config.json: {problem}; {RELAUNCH} writes it anew")
    if problem := _try_check(kernel_choice.read_choice, run)[1]:
        damage.append(problem.replace(f"{run.path}/", ""))
    steps, names, bad = _check_checkpoints(run, config)
    damage += bad
    events, torn = _read_json_lines(run.events_file)
    _, torn_metrics = _read_json_lines(run.metrics_file)
    trained = any(event.get("event") == "trained" for event in events)
    if problem := _diagnose_best(run, config, trained):
        damage.append(f"best.pt: {problem}; {_describe_recovery(run, steps)}")
    damage += _diagnose_results(run, any(event.get("event") == "evaluated" for event in events))
    if problem := _diagnose_attack(run):
        damage.append(f"attack.csv: {problem}; {RELAUNCH} attacks again")
    notes += [*torn, *torn_metrics, *(_try_check(_list_leftovers, run)[0] or [])]
    return FileCheck(run.run_id, names, tuple(steps), tuple(damage), tuple(notes))


def _try_check(check: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """Return what a check returns, or None and one line that says what is wrong."""
    try:
        return check(*arguments), ""
    except (CorruptFileError, checkpoint.CheckpointError, kernel_choice.KernelChoiceError) as error:
        return None, _sanitize_line(str(error))
    except OSError as error:
        return None, _sanitize_line(error.strerror or str(error))  # without the path, which stands before it already
    except Exception as error:  # hostile content may raise anything: that is the finding
        return None, _sanitize_line(f"{type(error).__name__}: {error}")


def _sanitize_line(text: str) -> str:
    """Make one line that a terminal can be given, of a text that may hold anything."""
    text = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:300]


def _check_regular_file(path: Path, max_bytes: int | None = None) -> None:
    """Refuse what is no plain file, or is larger than it can be, before anything is read: a pipe would never end."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise CorruptFileError("not a plain file")
    if max_bytes is not None and about.st_size > max_bytes:
        raise CorruptFileError(f"{about.st_size:,} bytes; allowed are {max_bytes:,}")


def _read_config(run: RunDir) -> RunConfig:
    _check_regular_file(run.config_file, MAX_JSON_BYTES)
    config = run.load_config()
    if config.run_id != run.run_id:
        raise CorruptFileError(f"it is of run {config.run_id}")
    return config


def _check_checkpoints(run: RunDir, config: RunConfig | None) -> tuple[list[int], int, list[str]]:
    """Return the steps of the sound checkpoints, how many there are at all, and what is wrong with the others."""
    found, problem = _try_check(checkpoint.list_checkpoints, run)
    sound, problems = [], [] if not problem else [("checkpoints", problem)]
    for path in found or []:
        step, problem = _try_check(_check_checkpoint, path, run, config)
        if problem and not path.is_symlink() and not path.exists():
            continue  # a run under way removed it just now
        if problem:
            problems.append((_sanitize_line(path.name), problem))
        else:
            sound.append(step)
    after = (
        f"{RELAUNCH} takes the one of step {max(sound)}; nothing is lost" if sound else f"{RELAUNCH} starts at step 0"
    )
    return sorted(sound), len(sound) + len(problems), [f"{name}: {text}; {after}" for name, text in problems]


def _check_checkpoint(path: Path, run: RunDir, config: RunConfig | None) -> int:
    """Return the step of a checkpoint that would be resumed from without complaint."""
    for name, most in (("MANIFEST.json", MAX_JSON_BYTES), ("state.pt", None)):
        if problem := _try_check(_check_regular_file, path / name, most)[1]:
            raise CorruptFileError(f"{name}: {problem}")
    step = checkpoint.verify(path, run.run_id).get("step")
    if not isinstance(step, int) or path.name != f"step_{step:08d}":
        raise CorruptFileError(f"the manifest is of step {step}")
    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    if missing := {"model", "optimizer", "progress", "best"} - set(state):
        raise CorruptFileError(f"found no {', '.join(sorted(missing))} in it")
    if state["progress"]["step"] != step:
        raise CorruptFileError(f"its state is of step {state['progress']['step']}")
    _check_weight_shapes(state["model"], config)
    return step


@cache
def _get_state_shapes(model: ModelConfig, image_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of everything in a network's state; nothing is computed, and each network is built once."""
    with torch.device("meta"):
        network = build_model(model.without_pretrained, image_size)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _check_weight_shapes(weights: dict[str, Any], config: RunConfig | None) -> None:
    """Refuse weights that are not those of the configured network."""
    if config is None:
        return  # which is told already
    wanted = _get_state_shapes(config.model, config.data.image_size)
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            raise CorruptFileError(f"{name} has the shape {found.get(name)}; that of the network is {wanted.get(name)}")


def _diagnose_best(run: RunDir, config: RunConfig | None, is_trained: bool) -> str:
    if not run.best_file.exists() and not run.best_file.is_symlink():
        return "it is missing, and the run is recorded as trained" if is_trained else ""
    return _try_check(_check_best, run, config)[1]


def _check_best(run: RunDir, config: RunConfig | None) -> None:
    _check_regular_file(run.best_file)
    found = torch.load(run.best_file, map_location="cpu", weights_only=True)
    if found["run_id"] != run.run_id:
        raise CorruptFileError(f"it is of run {found['run_id']}")
    _check_weight_shapes(found["model"], config)


def _describe_recovery(run: RunDir, steps: list[int]) -> str:
    """Say how to get best.pt again: a checkpoint holds the best weights too."""
    remove = f"remove it; then {RELAUNCH}" if run.best_file.exists() else RELAUNCH
    return f"{remove} goes on from step {max(steps)}; nothing is lost" if steps else f"{remove} starts at step 0"


def _diagnose_results(run: RunDir, is_evaluated: bool) -> list[str]:
    """Say what is wrong with the tables on disk, which can always be measured again."""
    files = (run.results_file, run.predictions_file)
    there = [path for path in files if path.exists() or path.is_symlink()]
    problems = [f"{path.name}: {problem}" for path in there if (problem := _try_check(_check_regular_file, path)[1])]
    if is_evaluated:
        problems += [f"{path.name}: missing, and the run is recorded as evaluated" for path in set(files) - set(there)]
    if not problems and len(there) == len(files):
        problems = _try_check(_find_inconsistencies, run)[0] or []
    return [f"{problem}; {RELAUNCH} measures it again" for problem in problems]


def _diagnose_attack(run: RunDir) -> str:
    path = attack_results.get_attack_file(run)
    if not path.exists() and not path.is_symlink():
        return ""
    found, problem = _try_check(_read_attack, run)
    if found and run.best_file.is_file() and found.spec.weights != sha256(run.best_file):
        return "of other weights than best.pt"
    return problem


def _read_attack(run: RunDir) -> attack_results.AttackResults:
    _check_regular_file(attack_results.get_attack_file(run), MAX_JSON_LINES_BYTES)
    return attack_results.parse(run)


def _find_inconsistencies(run: RunDir) -> list[str]:
    """Say where results.csv, predictions.h5, best.pt and split.csv do not belong together."""
    weights = sha256(run.best_file) if run.best_file.is_file() else None
    head = _try_check(_read_split_head, run.sweep_dir / "split.csv")[0] or {}
    with _capture_results_log() as said:
        results.load(run, weights, head.get("fingerprint"))
    return [_sanitize_line(line.replace(f"{run.path}/", "").replace("; measuring afresh", "")) for line in said]


@contextmanager
def _capture_results_log() -> Iterator[list[str]]:
    """Gather what `results` would log."""
    said: list[str] = []

    def gather(record: logging.LogRecord) -> bool:
        said.append(record.getMessage())
        return False

    results.log.addFilter(gather)
    try:
        yield said
    finally:
        results.log.removeFilter(gather)


def _read_json_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records in a file of JSON lines, and a note where some of them are torn."""
    if not path.exists() and not path.is_symlink():
        return [], []
    (records, torn), problem = (
        _try_check(_load_json_lines, path)[0] or ([], 0),
        _try_check(_check_regular_file, path, MAX_JSON_LINES_BYTES)[1],
    )
    if problem:
        return [], [f"{path.name}: {problem}; it counts as absent"]
    return records, [f"{path.name}: {torn} torn or foreign lines, which count as absent"] if torn else []


def _load_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    _check_regular_file(path, MAX_JSON_LINES_BYTES)
    values = [_try_check(json.loads, line)[0] for line in path.read_text("utf-8", errors="replace").splitlines()]
    records = [value for value in values if isinstance(value, dict)]
    return records, len(values) - len(records)


def _list_leftovers(run: RunDir) -> list[str]:
    """Name what killed processes left, which the next start clears away or ignores."""
    saves = sorted(path.name for path in run.checkpoint_dir.glob(".step_*"))
    asides = [path.name for path in sorted(run.path.glob(".*.*.[0-9]*")) if not path.name.startswith(".meeting")]
    away = len(list((run.checkpoint_dir / "quarantine").glob("*")))
    notes = [f"{_sanitize_line(name)}: left by a save that was killed or is under way" for name in [*saves, *asides]]
    return notes + ([f"{away} checkpoints in checkpoints/quarantine, damaged and replaced before"] if away else [])


def check_split(sweep_dir: Path, configs: list[RunConfig]) -> FileCheck:
    """Check that split.csv agrees with itself and with the runs' settings."""
    problem = _try_check(_validate_split, sweep_dir / "split.csv", configs)[1]
    way = "bring it back from a copy: without it the runs cannot go on, and removing it would mix two divisions"
    return FileCheck("split.csv", errors=(f"{problem}; {way}",) if problem else ())


def _read_split_head(path: Path) -> dict[str, str]:
    _check_regular_file(path, MAX_JSON_LINES_BYTES)
    return read_split_header(path)


def _validate_split(path: Path, configs: list[RunConfig]) -> None:
    head = _read_split_head(path)
    table = pd.read_csv(path, comment="#")
    settings = {json.dumps(c.data.model_dump(mode="json", include=set(SPLIT_SETTINGS))) for c in configs}
    if settings - {head.get("settings")}:
        raise CorruptFileError(f"made with {head.get('settings')}; the runs want {' or '.join(sorted(settings))}")
    counts = table["split"].value_counts()
    told = ", ".join(f"{name} {counts.get(name, 0)}" for name in (*SPLITS, "dropped"))
    if told != head.get("counts") or len(table) != sum(counts.get(name, 0) for name in (*SPLITS, "dropped")):
        raise CorruptFileError(f"found {told}; its first lines say {head.get('counts')}")
    if table["row"].tolist() != list(range(len(table))):
        raise CorruptFileError("its rows are not 0, 1, 2, ...")
    kept = table[table["split"] != "dropped"]
    if (divided := int((kept.groupby("sky_group")["split"].nunique() > 1).sum())) > 0:
        raise CorruptFileError(f"{divided} groups of overlapping galaxies are divided among the splits")


def make_table(checks: list[FileCheck], title: str) -> Table:
    """Return one row per run."""
    bad = sum(bool(one.errors) for one in checks)
    shown = Table(title=f"{title}: {len(checks) - bad} sound, {bad} damaged", title_justify="left")
    for column in ("run", "checkpoints", "newest", "verdict", "what is wrong"):
        shown.add_column(column, justify="right" if column in ("checkpoints", "newest") else "left")
    for one in checks:
        verdict = Text("damaged", "red") if one.errors else Text("sound", "green")
        valid = f"{len(one.valid_steps)}/{one.num_checkpoints}" if one.num_checkpoints else ""
        said = Text("\n".join(one.errors)) + Text("\n" if one.errors and one.notes else "")
        said += Text("\n".join(f"note: {note}" for note in one.notes), "dim")
        shown.add_row(Text(_sanitize_line(one.name)), valid, str(max(one.valid_steps, default="")), verdict, said)
    return shown


def check_all(path: Path, console: Console) -> list[FileCheck]:
    """Check a sweep, or one run of it, and its split.

    Raises
    ------
    rundir.NoRunError, OSError, csv.Error
        Where there is no list of runs to be read.
    """
    runs = find_runs(path)
    home = find_sweep_dir(path)
    bar = track(runs, str(path), console=console, transient=True, disable=not console.is_terminal)
    found = []
    for run in bar:
        one, problem = _try_check(check_run, run)
        found.append(one or FileCheck(run.run_id, errors=(problem,)))
    if (home / "split.csv").exists() or (home / "split.csv").is_symlink():
        configs = [config for run in runs if (config := _try_check(_read_config, run)[0]) is not None]
        found.append(check_split(home, configs))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the table of the sweep or run named on the command line."""
    parser = argparse.ArgumentParser(prog="galaxyhpc fsck", description=__doc__)
    parser.add_argument("path", type=Path, help="runs/SWEEP, or runs/SWEEP/RUN_ID")
    path, console = parser.parse_args(arguments).path, make_console()
    try:
        found = check_all(path, console)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        print(_sanitize_line(str(error)), file=sys.stderr)
        return 2
    console.print(make_table(found, _sanitize_line(str(path))))
    return 1 if any(one.errors for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
