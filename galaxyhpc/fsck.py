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
from collections.abc import Callable, Iterator, Sequence
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
from galaxyhpc.data.dataset import SPLIT_SETTINGS, split_head
from galaxyhpc.data.split import SPLITS
from galaxyhpc.evaluation import attack_results, results
from galaxyhpc.models import build_model, kernel_choice
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import sha256
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.storage.sweep_dir import runs_of, sweep_of

SHORT = 1 << 20  # bytes that no config.json or MANIFEST.json reaches
LONG = 1 << 28  # bytes that no file of lines reaches
AGAIN = "launching again"


class DamageError(ValueError):
    """A file that is not what it should be."""


@dataclass(frozen=True)
class Found:
    """What was found of one run."""

    name: str
    checkpoints: int = 0
    valid: tuple[int, ...] = ()  # steps of the sound checkpoints, oldest first
    damage: tuple[str, ...] = ()  # each with what to do about it
    notes: tuple[str, ...] = ()


def check_run(run: RunDir) -> Found:
    """Check all files of a run."""
    damage, notes = [], []
    config, problem = _attempt(_read_config, run)
    if problem:
        damage.append(f"config.json: {problem}; {AGAIN} writes it anew")
    if problem := _attempt(kernel_choice.read, run)[1]:
        damage.append(problem.replace(f"{run.path}/", ""))
    steps, names, bad = _check_checkpoints(run, config)
    damage += bad
    events, torn = _lines(run.events_file)
    _, torn_metrics = _lines(run.metrics_file)
    trained = any(event.get("event") == "trained" for event in events)
    if problem := _best_problem(run, config, trained):
        damage.append(f"best.pt: {problem}; {_way_to_weights(run, steps)}")
    damage += _results_problems(run, any(event.get("event") == "evaluated" for event in events))
    if problem := _attack_problem(run):
        damage.append(f"attack.csv: {problem}; {AGAIN} attacks again")
    notes += [*torn, *torn_metrics, *(_attempt(_leftovers, run)[0] or [])]
    return Found(run.run_id, names, tuple(steps), tuple(damage), tuple(notes))


def _attempt(check: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """Return what a check returns, or None and one line that says what is wrong."""
    try:
        return check(*arguments), ""
    except (DamageError, checkpoint.CheckpointError, kernel_choice.PathsError) as error:
        return None, _plain(str(error))
    except OSError as error:
        return None, _plain(error.strerror or str(error))  # without the path, which stands before it already
    except Exception as error:  # hostile content may raise anything: that is the finding
        return None, _plain(f"{type(error).__name__}: {error}")


def _plain(text: str) -> str:
    """Make one line that a terminal can be given, of a text that may hold anything."""
    text = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:300]


def _demand_file(path: Path, most: int | None = None) -> None:
    """Refuse what is no plain file, or is larger than it can be, before anything is read: a pipe would never end."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise DamageError("not a plain file")
    if most is not None and about.st_size > most:
        raise DamageError(f"{about.st_size:,} bytes; allowed are {most:,}")


def _read_config(run: RunDir) -> RunConfig:
    _demand_file(run.config_file, SHORT)
    config = run.load_config()
    if config.run_id != run.run_id:
        raise DamageError(f"it is of run {config.run_id}")
    return config


def _check_checkpoints(run: RunDir, config: RunConfig | None) -> tuple[list[int], int, list[str]]:
    """Return the steps of the sound checkpoints, how many there are at all, and what is wrong with the others."""
    found, problem = _attempt(checkpoint.found, run)
    sound, problems = [], [] if not problem else [("checkpoints", problem)]
    for path in found or []:
        step, problem = _attempt(_check_checkpoint, path, run, config)
        if problem and not path.is_symlink() and not path.exists():
            continue  # a run under way removed it just now
        if problem:
            problems.append((_plain(path.name), problem))
        else:
            sound.append(step)
    after = f"{AGAIN} takes the one of step {max(sound)}; nothing is lost" if sound else f"{AGAIN} starts at step 0"
    return sorted(sound), len(sound) + len(problems), [f"{name}: {text}; {after}" for name, text in problems]


def _check_checkpoint(path: Path, run: RunDir, config: RunConfig | None) -> int:
    """Return the step of a checkpoint that would be resumed from without complaint."""
    for name, most in (("MANIFEST.json", SHORT), ("state.pt", None)):
        if problem := _attempt(_demand_file, path / name, most)[1]:
            raise DamageError(f"{name}: {problem}")
    step = checkpoint.verify(path, run.run_id).get("step")
    if not isinstance(step, int) or path.name != f"step_{step:08d}":
        raise DamageError(f"the manifest is of step {step}")
    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    if missing := {"model", "optimizer", "progress", "best"} - set(state):
        raise DamageError(f"found no {', '.join(sorted(missing))} in it")
    if state["progress"]["step"] != step:
        raise DamageError(f"its state is of step {state['progress']['step']}")
    _demand_fit(state["model"], config)
    return step


@cache
def _shapes(model: ModelConfig, image_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of everything in a network's state; nothing is computed, and each network is built once."""
    with torch.device("meta"):
        network = build_model(model.untrained, image_size)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _demand_fit(weights: dict[str, Any], config: RunConfig | None) -> None:
    """Refuse weights that are not those of the configured network."""
    if config is None:
        return  # which is told already
    wanted = _shapes(config.model, config.data.image_size)
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            raise DamageError(f"{name} has the shape {found.get(name)}; that of the network is {wanted.get(name)}")


def _best_problem(run: RunDir, config: RunConfig | None, trained: bool) -> str:
    if not run.best_file.exists() and not run.best_file.is_symlink():
        return "it is missing, and the run is recorded as trained" if trained else ""
    return _attempt(_check_best, run, config)[1]


def _check_best(run: RunDir, config: RunConfig | None) -> None:
    _demand_file(run.best_file)
    found = torch.load(run.best_file, map_location="cpu", weights_only=True)
    if found["run_id"] != run.run_id:
        raise DamageError(f"it is of run {found['run_id']}")
    _demand_fit(found["model"], config)


def _way_to_weights(run: RunDir, steps: list[int]) -> str:
    """Say how to get best.pt again: a checkpoint holds the best weights too."""
    remove = f"remove it; then {AGAIN}" if run.best_file.exists() else AGAIN
    return f"{remove} goes on from step {max(steps)}; nothing is lost" if steps else f"{remove} starts at step 0"


def _results_problems(run: RunDir, evaluated: bool) -> list[str]:
    """Say what is wrong with the tables on disk, which can always be measured again."""
    files = (run.results_file, run.predictions_file)
    there = [path for path in files if path.exists() or path.is_symlink()]
    problems = [f"{path.name}: {problem}" for path in there if (problem := _attempt(_demand_file, path)[1])]
    if evaluated:
        problems += [f"{path.name}: missing, and the run is recorded as evaluated" for path in set(files) - set(there)]
    if not problems and len(there) == len(files):
        problems = _attempt(_disagreements, run)[0] or []
    return [f"{problem}; {AGAIN} measures it again" for problem in problems]


def _attack_problem(run: RunDir) -> str:
    path = attack_results.attack_file(run)
    if not path.exists() and not path.is_symlink():
        return ""
    found, problem = _attempt(_read_attack, run)
    if found and run.best_file.is_file() and found.source.weights != sha256(run.best_file):
        return "of other weights than best.pt"
    return problem


def _read_attack(run: RunDir) -> attack_results.Attacked:
    _demand_file(attack_results.attack_file(run), LONG)
    return attack_results.parse(run)


def _disagreements(run: RunDir) -> list[str]:
    """Say where results.csv, predictions.h5, best.pt and split.csv do not belong together."""
    weights = sha256(run.best_file) if run.best_file.is_file() else None
    head = _attempt(_head, run.sweep / "split.csv")[0] or {}
    with _said_by_results() as said:
        results.load(run, weights, head.get("fingerprint"))
    return [_plain(line.replace(f"{run.path}/", "").replace("; measuring afresh", "")) for line in said]


@contextmanager
def _said_by_results() -> Iterator[list[str]]:
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


def _lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records in a file of JSON lines, and a note where some of them are torn."""
    if not path.exists() and not path.is_symlink():
        return [], []
    (records, torn), problem = _attempt(_read_lines, path)[0] or ([], 0), _attempt(_demand_file, path, LONG)[1]
    if problem:
        return [], [f"{path.name}: {problem}; it counts as absent"]
    return records, [f"{path.name}: {torn} torn or foreign lines, which count as absent"] if torn else []


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    _demand_file(path, LONG)
    values = [_attempt(json.loads, line)[0] for line in path.read_text("utf-8", errors="replace").splitlines()]
    records = [value for value in values if isinstance(value, dict)]
    return records, len(values) - len(records)


def _leftovers(run: RunDir) -> list[str]:
    """Name what killed processes left, which the next start clears away or ignores."""
    saves = sorted(path.name for path in run.checkpoints.glob(".step_*"))
    asides = [path.name for path in sorted(run.path.glob(".*.*.[0-9]*")) if not path.name.startswith(".meeting")]
    away = len(list((run.checkpoints / "quarantine").glob("*")))
    notes = [f"{_plain(name)}: left by a save that was killed or is under way" for name in [*saves, *asides]]
    return notes + ([f"{away} checkpoints in checkpoints/quarantine, damaged and replaced before"] if away else [])


def check_split(sweep: Path, configs: list[RunConfig]) -> Found:
    """Check that split.csv agrees with itself and with the runs' settings."""
    problem = _attempt(_demand_split, sweep / "split.csv", configs)[1]
    way = "bring it back from a copy: without it the runs cannot go on, and removing it would mix two divisions"
    return Found("split.csv", damage=(f"{problem}; {way}",) if problem else ())


def _head(path: Path) -> dict[str, str]:
    _demand_file(path, LONG)
    return split_head(path)


def _demand_split(path: Path, configs: list[RunConfig]) -> None:
    head = _head(path)
    table = pd.read_csv(path, comment="#")
    settings = {json.dumps(c.data.model_dump(mode="json", include=set(SPLIT_SETTINGS))) for c in configs}
    if settings - {head.get("settings")}:
        raise DamageError(f"made with {head.get('settings')}; the runs want {' or '.join(sorted(settings))}")
    counts = table["split"].value_counts()
    told = ", ".join(f"{name} {counts.get(name, 0)}" for name in (*SPLITS, "dropped"))
    if told != head.get("counts") or len(table) != sum(counts.get(name, 0) for name in (*SPLITS, "dropped")):
        raise DamageError(f"found {told}; its first lines say {head.get('counts')}")
    if table["row"].tolist() != list(range(len(table))):
        raise DamageError("its rows are not 0, 1, 2, ...")
    kept = table[table["split"] != "dropped"]
    if (divided := int((kept.groupby("sky_group")["split"].nunique() > 1).sum())) > 0:
        raise DamageError(f"{divided} groups of overlapping galaxies are divided among the splits")


def table(found: list[Found], title: str) -> Table:
    """Return one row per run."""
    bad = sum(bool(one.damage) for one in found)
    shown = Table(title=f"{title}: {len(found) - bad} sound, {bad} damaged", title_justify="left")
    for column in ("run", "checkpoints", "newest", "verdict", "what is wrong"):
        shown.add_column(column, justify="right" if column in ("checkpoints", "newest") else "left")
    for one in found:
        verdict = Text("damaged", "red") if one.damage else Text("sound", "green")
        valid = f"{len(one.valid)}/{one.checkpoints}" if one.checkpoints else ""
        said = Text("\n".join(one.damage)) + Text("\n" if one.damage and one.notes else "")
        said += Text("\n".join(f"note: {note}" for note in one.notes), "dim")
        shown.add_row(Text(_plain(one.name)), valid, str(max(one.valid, default="")), verdict, said)
    return shown


def check_all(path: Path, console: Console) -> list[Found]:
    """Check a sweep, or one run of it, and its split.

    Raises
    ------
    rundir.NoRunError, OSError, csv.Error
        Where there is no list of runs to be read.
    """
    runs = runs_of(path)
    home = sweep_of(path)
    bar = track(runs, str(path), console=console, transient=True, disable=not console.is_terminal)
    found = []
    for run in bar:
        one, problem = _attempt(check_run, run)
        found.append(one or Found(run.run_id, damage=(problem,)))
    if (home / "split.csv").exists() or (home / "split.csv").is_symlink():
        configs = [config for run in runs if (config := _attempt(_read_config, run)[0]) is not None]
        found.append(check_split(home, configs))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of the sweep or run named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m galaxyhpc.fsck", description=__doc__)
    parser.add_argument("path", type=Path, help="runs/SWEEP, or runs/SWEEP/RUN_ID")
    path, console = parser.parse_args(arguments).path, make_console()
    try:
        found = check_all(path, console)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        print(_plain(str(error)), file=sys.stderr)
        return 2
    console.print(table(found, _plain(str(path))))
    return 1 if any(one.damage for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
