"""Check every file of a sweep's runs, or of a survey's prediction, and change nothing: `galaxyhpc fsck runs/SWEEP`.

With --unlock, check nothing and remove the locks that processes of other machines left, where the file system cannot
tell whether they still run: make sure first that they do not. A process that is seen to run keeps its lock.

Exit status 0: all valid; 1: damaged files, each with advice; 2: not a sweep. What a killed process leaves
(a torn line, an unfinished save, a checkpoint already in quarantine) is no damage and is only mentioned.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.text import Text

from galaxyhpc.config.class_names import MAX_CLASSES
from galaxyhpc.config.schema import ModelConfig, RunConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.canonical_split import divide_by_fold
from galaxyhpc.data.dataset import format_split_settings
from galaxyhpc.data.split_file import DROPPED, SPLIT_FILE_NAME, SPLITS, read_split_header, read_split_table
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.attacks import attack_results
from galaxyhpc.models import kernel_choice
from galaxyhpc.models.build_model import build_model
from galaxyhpc.prediction.survey import SurveyDir, is_survey
from galaxyhpc.runtime import lock, slurm
from galaxyhpc.runtime.console import ConsoleTable, make_console
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import sha256
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import find_runs, find_sweep_dir

MAX_JSON_BYTES = 1 << 20  # of a config.json or MANIFEST.json
MAX_JSON_LINES_BYTES = 1 << 28  # of a file with one record a line
RELAUNCH = "rerun launch, which"


class CorruptFileError(ValueError):
    """A file that is not what it should be."""


@dataclass(frozen=True)
class FileCheck:
    """The result of checking one run, or the split."""

    name: str
    num_checkpoints: int = 0
    valid_steps: tuple[int, ...] = ()  # steps of the valid checkpoints, oldest first
    errors: tuple[str, ...] = ()  # each ends with what to do about it
    notes: tuple[str, ...] = ()


def check_run(run: RunDir) -> FileCheck:
    """Check all files of a run."""
    errors = []
    config, problem = _try_check(_read_config, run)
    if problem:
        errors.append(f"config.json: {problem}; {RELAUNCH} rewrites it")
    if problem := _try_check(kernel_choice.read_choice, run)[1]:
        errors.append(problem.replace(f"{run.path}/", ""))
    steps, num_checkpoints, checkpoint_errors = _check_checkpoints(run, config)
    errors += checkpoint_errors
    events, torn_events = _read_json_lines(run.events_file)
    _, torn_metrics = _read_json_lines(run.metrics_file)
    recorded = [event.get("event") for event in events]
    if problem := _diagnose_best(run, config, "trained" in recorded):
        errors.append(f"best.pt: {problem}; {_describe_recovery(run, steps)}")
    errors += _diagnose_results(run, "evaluated" in recorded)
    if problem := _diagnose_attack(run, config):
        errors.append(f"attack.csv: {problem}; {RELAUNCH} attacks again")
    notes = [*torn_events, *torn_metrics, *(_try_check(_list_leftovers, run)[0] or [])]
    return FileCheck(run.run_id, num_checkpoints, tuple(steps), tuple(errors), tuple(notes))


def _try_check(check: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """Return the result of a check and "", or None and one line that says what is wrong."""
    try:
        return check(*arguments), ""
    except (CorruptFileError, DataError, checkpoint.CheckpointError, kernel_choice.KernelChoiceError) as error:
        return None, _sanitize_line(str(error))
    except OSError as error:
        return None, _sanitize_line(error.strerror or str(error))  # without the path, which the caller puts first
    except Exception as error:  # hostile content may raise anything
        return None, _sanitize_line(f"{type(error).__name__}: {error}")


def _sanitize_line(text: str) -> str:
    """Return one printable line of a text that may hold anything."""
    text = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in text)[:300]


def _check_regular_file(path: Path, max_bytes: int | None = None) -> None:
    """Refuse what is no regular file, or too large, before anything is read: reading a pipe would never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CorruptFileError("not a regular file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise CorruptFileError(f"got {status.st_size:,} bytes; expected at most {max_bytes:,}")


def _read_config(run: RunDir) -> RunConfig:
    _check_regular_file(run.config_file, MAX_JSON_BYTES)
    config = run.load_config()
    if config.run_id != run.run_id:
        raise CorruptFileError(f"belongs to run {config.run_id}")
    return config


def _check_checkpoints(run: RunDir, config: RunConfig | None) -> tuple[list[int], int, list[str]]:
    """Return the steps of the valid checkpoints, the number of all, and one error for each of the others."""
    paths, problem = _try_check(checkpoint.list_checkpoints, run)
    valid_steps, problems = [], [("checkpoints", problem)] if problem else []
    for path in paths or []:
        step, problem = _try_check(_check_checkpoint, path, run, config)
        if not problem:
            valid_steps.append(step)
        elif os.path.lexists(path):  # else a running job removed it just now
            problems.append((_sanitize_line(path.name), problem))
    recovery = f"resumes from step {max(valid_steps)}; nothing is lost" if valid_steps else "starts at step 0"
    errors = [f"{name}: {problem}; {RELAUNCH} {recovery}" for name, problem in problems]
    return sorted(valid_steps), len(valid_steps) + len(problems), errors


def _check_checkpoint(path: Path, run: RunDir, config: RunConfig | None) -> int:
    """Return the step of a checkpoint, or refuse it if a run could not resume from it."""
    for name, max_bytes in (("MANIFEST.json", MAX_JSON_BYTES), ("state.pt", None)):
        if problem := _try_check(_check_regular_file, path / name, max_bytes)[1]:
            raise CorruptFileError(f"{name}: {problem}")
    step = checkpoint.verify(path, run.run_id).get("step")
    if not isinstance(step, int) or path.name != f"step_{step:08d}":
        raise CorruptFileError(f"MANIFEST.json: got step {step}; expected {path.name}")
    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    if missing := {"model", "optimizer", "progress", "best"} - set(state):
        raise CorruptFileError(f"state.pt: got no {', '.join(sorted(missing))}")
    if state["progress"]["step"] != step:
        raise CorruptFileError(f"state.pt: got step {state['progress']['step']}; expected {step}")
    _check_weight_shapes(state["model"], config)
    return step


@cache
def _get_state_shapes(model: ModelConfig, image_size: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a network's state_dict; nothing is computed, and each network is built once."""
    with torch.device("meta"):
        network = build_model(model.without_pretrained, image_size, num_classes)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _check_weight_shapes(weights: dict[str, Any], config: RunConfig | None) -> None:
    """Refuse weights that do not fit the configured network, where the configuration can be read."""
    if config is None:
        return
    expected = _get_state_shapes(config.model, config.data.image_size, len(config.data.class_names))
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    for name in [*expected, *shapes]:
        if shapes.get(name) != expected.get(name):
            raise CorruptFileError(f"{name}: got shape {shapes.get(name)}; expected {expected.get(name)}")


def _diagnose_best(run: RunDir, config: RunConfig | None, is_trained: bool) -> str:
    if not os.path.lexists(run.best_file):
        return "missing, but the run is recorded as trained" if is_trained else ""
    return _try_check(_check_best, run, config)[1]


def _check_best(run: RunDir, config: RunConfig | None) -> None:
    _check_regular_file(run.best_file)
    best = torch.load(run.best_file, map_location="cpu", weights_only=True)
    if best["run_id"] != run.run_id:
        raise CorruptFileError(f"belongs to run {best['run_id']}")
    _check_weight_shapes(best["model"], config)


def _describe_recovery(run: RunDir, steps: list[int]) -> str:
    """Say how to restore best.pt: a checkpoint holds the best weights too."""
    remove = f"remove it and {RELAUNCH}" if run.best_file.exists() else RELAUNCH
    return f"{remove} resumes from step {max(steps)}; nothing is lost" if steps else f"{remove} starts at step 0"


def _diagnose_results(run: RunDir, is_evaluated: bool) -> list[str]:
    """Return the errors of results.csv and predictions.h5, which a new evaluation can always replace."""
    files = (run.results_file, run.predictions_file)
    existing = [path for path in files if os.path.lexists(path)]
    problems = [f"{path.name}: {problem}" for path in existing if (problem := _try_check(_check_regular_file, path)[1])]
    if is_evaluated:
        missing = [path.name for path in files if path not in existing]
        problems += [f"{name}: missing, but the run is recorded as evaluated" for name in missing]
    if not problems and len(existing) == len(files):
        problems = _try_check(_find_inconsistencies, run)[0] or []
    return [f"{problem}; {RELAUNCH} evaluates again" for problem in problems]


def _diagnose_attack(run: RunDir, config: RunConfig | None) -> str:
    path = attack_results.get_attack_file(run)
    if not os.path.lexists(path):
        return ""
    attack, problem = _try_check(_read_attack, run, config)
    if attack and run.best_file.is_file() and attack.spec.weights != sha256(run.best_file):
        return "made with other weights than best.pt"
    return problem


def _read_attack(run: RunDir, config: RunConfig | None) -> attack_results.AttackResults:
    _check_regular_file(attack_results.get_attack_file(run), MAX_JSON_LINES_BYTES)
    return attack_results.parse(run, len(config.data.class_names) if config else MAX_CLASSES)


def _find_inconsistencies(run: RunDir) -> list[str]:
    """List the disagreements between results.csv, predictions.h5, best.pt and split.csv."""
    weights = sha256(run.best_file) if run.best_file.is_file() else None
    header = _try_check(_read_split_header, run.sweep_dir / SPLIT_FILE_NAME)[0] or {}
    complaints: list[str] = []
    results.load(run, weights, header.get("fingerprint"), complaints.append)
    return [_sanitize_line(complaint.replace(f"{run.path}/", "")) for complaint in complaints]


def _read_json_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records in a file of JSON lines, and a note if some of them are torn."""
    if not os.path.lexists(path):
        return [], []
    text, problem = _try_check(_read_text, path)
    if problem:
        return [], [f"{path.name}: {problem}; ignored"]
    values = [_try_check(json.loads, line)[0] for line in text.splitlines()]
    records = [value for value in values if isinstance(value, dict)]
    num_torn = len(values) - len(records)
    return records, [f"{path.name}: {num_torn} torn or foreign lines, ignored"] if num_torn else []


def _read_text(path: Path) -> str:
    _check_regular_file(path, MAX_JSON_LINES_BYTES)
    return path.read_text("utf-8", errors="replace")


def _list_leftovers(run: RunDir) -> list[str]:
    """Note the files of killed processes, which the next start removes or ignores."""
    checkpoints = sorted(path.name for path in run.checkpoint_dir.glob(".step_*"))
    files = [path.name for path in sorted(run.path.glob(".*.*.[0-9]*")) if not path.name.startswith(".meeting")]
    num_quarantined = len(list((run.checkpoint_dir / "quarantine").glob("*")))
    notes = [f"{_sanitize_line(name)}: left by a save that was killed or is running" for name in [*checkpoints, *files]]
    if (holder := lock.find_holder(run.path / ".lock-0")) is not None:
        notes.append(f"locked by {holder}")
    if num_quarantined:
        notes.append(f"{num_quarantined} checkpoints in checkpoints/quarantine, damaged and replaced before")
    return notes


def check_split(sweep_dir: Path, configs: list[RunConfig]) -> FileCheck:
    """Check that split.csv agrees with itself and with the runs' settings."""
    path = sweep_dir / SPLIT_FILE_NAME
    problem = _try_check(_validate_split, path, configs)[1].removeprefix(f"{path}: ")
    advice = "restore it from a copy: without it the runs cannot resume, and with a new one two splits would be mixed"
    return FileCheck(SPLIT_FILE_NAME, errors=(f"{problem}; {advice}",) if problem else ())


def _read_split_header(path: Path) -> dict[str, str]:
    _check_regular_file(path, MAX_JSON_LINES_BYTES)
    return read_split_header(path)


def _validate_split(path: Path, configs: list[RunConfig]) -> None:
    header, table = _read_split_header(path), read_split_table(path)
    settings, expected = header.get("settings"), {format_split_settings(config.data) for config in configs}
    if expected - {settings}:
        raise CorruptFileError(f"settings: got {settings}; the runs have {' or '.join(sorted(expected))}")
    counts = {name: int((table["split"] == name).sum()) for name in (*SPLITS, DROPPED)}
    counts_text = ", ".join(f"{name} {count}" for name, count in counts.items())
    if counts_text != header.get("counts") or len(table) != sum(counts.values()):
        raise CorruptFileError(f"got rows of {counts_text}; expected {header.get('counts')}, as in its first lines")
    if table["row"].tolist() != list(range(len(table))):
        raise CorruptFileError("row: got other values than 0, 1, 2, ...")
    assigned = table[table["split"] != DROPPED]
    is_divided = (assigned.groupby("sky_group")[["split", "fold", "half"]].nunique() > 1).any(axis=1)
    if is_divided.any():
        raise CorruptFileError(f"{int(is_divided.sum())} groups are divided among the splits or folds")
    if (table["fold"] >= 0).any() and not table["split"].equals(divide_by_fold(table, 0)["split"]):
        raise CorruptFileError("split: got other galaxies for test and validation than fold 0 and half 0 of fold 1")


def make_table(checks: list[FileCheck], title: str) -> ConsoleTable:
    """Return a table with one row per check."""
    num_damaged = sum(bool(check.errors) for check in checks)
    rows = []
    for check in checks:
        verdict = Text("damaged", "red") if check.errors else Text("valid", "green")
        num_valid = f"{len(check.valid_steps)}/{check.num_checkpoints}" if check.num_checkpoints else ""
        messages = Text("\n".join(check.errors)) + Text("\n" if check.errors and check.notes else "")
        messages += Text("\n".join(f"note: {note}" for note in check.notes), "dim")
        name, newest = Text(_sanitize_line(check.name)), str(max(check.valid_steps, default=""))
        rows.append((name, num_valid, newest, verdict, messages))
    title = f"{title}: {len(checks) - num_damaged} valid, {num_damaged} damaged"
    heads = ("run", "checkpoints", "newest", "verdict", "errors")
    return ConsoleTable(title, heads, rows, texts=("verdict", "errors"))


def check_all(path: Path, console: Console) -> list[FileCheck]:
    """Check a sweep and its split, or one run of it and the split; or the prediction of a survey.

    Raises
    ------
    RunDirError
    """
    if is_survey(path):
        from galaxyhpc.prediction.check import check_survey  # loads pyarrow

        num_parts, errors, notes = check_survey(SurveyDir(path.resolve()))
        return [FileCheck(f"{num_parts} parts", errors=tuple(map(_sanitize_line, errors)), notes=tuple(notes))]
    runs, sweep_dir = find_runs(path), find_sweep_dir(path)
    checks = []
    for run in track(runs, str(path), console=console, transient=True, disable=not console.is_terminal):
        check, problem = _try_check(check_run, run)
        checks.append(check or FileCheck(run.run_id, errors=(problem,)))
    if os.path.lexists(sweep_dir / SPLIT_FILE_NAME):
        configs = [config for run in runs if (config := _try_check(_read_config, run)[0]) is not None]
        checks.append(check_split(sweep_dir, configs))
    return checks


def unlock_all(path: Path) -> int:
    """Remove the locks of a sweep, its runs and their converted galaxies; 1 if a process that runs holds one.

    Raises
    ------
    RunDirError
    """
    runs, sweep_dir = find_runs(path), find_sweep_dir(path)
    queue, status = slurm.get_queue(), 0
    for lock_file in _list_locks(runs, sweep_dir):
        try:
            holder = lock.unlock(lock_file, queue)
        except lock.BusyError as error:
            print(error, file=sys.stderr)
            status = 1
        else:
            if holder:
                print(f"{lock_file}: removed the lock of {holder}")
    return status


def _list_locks(runs: Sequence[RunDir], sweep_dir: Path) -> list[Path]:
    """Return the lock files that exist."""
    configs = [_try_check(_read_config, run)[0] for run in runs]
    caches = {Path(config.data.cache) for config in configs if config is not None}
    shared = [sweep_dir / lock.LAUNCH_LOCK, sweep_dir / ".split.lock", sweep_dir / "report" / ".lock"]
    shared += sorted(file for file in sweep_dir.glob("claims/*") if file.suffix != lock.HOLDER_SUFFIX)
    files = [*shared, *(cache / ".lock" for cache in sorted(caches))]
    of_runs = [file for run in runs for file in sorted(run.path.glob(".lock-*")) if file.suffix != lock.HOLDER_SUFFIX]
    return [file for file in [*files, *of_runs] if os.path.lexists(file)]


def main(arguments: list[str] | None = None) -> int:
    """Print the table of the sweep or run named on the command line."""
    parser = argparse.ArgumentParser(prog="galaxyhpc fsck", description=__doc__)
    parser.add_argument("path", type=Path, help="runs/SWEEP, runs/SWEEP/RUN_ID, or the directory of a prediction")
    parser.add_argument("--unlock", action="store_true", help="only remove locks of processes that have ended")
    options, console = parser.parse_args(arguments), make_console()
    path = options.path
    try:
        if options.unlock:
            return unlock_all(path)
        checks = check_all(path, console)
    except (OSError, ValueError) as error:
        print(_sanitize_line(str(error)), file=sys.stderr)
        return 2
    console.print(make_table(checks, _sanitize_line(str(path))))
    return 1 if any(check.errors for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
