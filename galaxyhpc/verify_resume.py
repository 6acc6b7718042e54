"""Proves on your own machine that a run's resume is exact: `python -m galaxyhpc.verify_resume runs/SWEEP/RUN_ID`.

A short copy of the run (its network, data, augmentation and optimizer; fewer galaxies and epochs; saved at every
step) is trained unbroken, then once for each fault: hit, started again, compared. Weights, buffers, optimizer state,
metrics and best.pt must be the same bits. Exit status 0: they are; 1: they are not, and the first difference is
named; 2: it could not be tried.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from galaxyhpc.config.schema import RunConfig
from galaxyhpc.data.dataset import DataError, load_split, prepare
from galaxyhpc.data.loader import steps_per_epoch
from galaxyhpc.models import kernel_choice
from galaxyhpc.runtime.child_python import make_child_environment
from galaxyhpc.runtime.console import make_console
from galaxyhpc.runtime.job import EXIT_INCOMPLETE
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir, RunDirError

TARGET_STEPS_PER_EPOCH = 8  # wanted steps of the copy
MIN_STEPS = 12  # of the whole copy, at least
MAX_TRIES = 5  # to hit a save, which may be over before the signal arrives
STALL_TIMEOUT_SECONDS = 900  # without a new checkpoint, after which a training is given up
FAULTS = ("USR2", "TERM", "KILL in a save", "KILL", "KILL again")

Processes = list[subprocess.Popen[bytes]]


class VerifyInputError(ValueError):
    """A path or a setting with which nothing can be tried."""


class TrialError(RuntimeError):
    """A trial that could not be carried out, which says nothing about the resume."""


@dataclass(frozen=True)
class TrialResult:
    """What became of a training that was hit."""

    fault: str
    fault_step: int  # step
    resumed_step: int  # step
    restart_seconds: float  # from starting it again until it goes on
    difference: str  # empty where all bits are equal

    @property
    def num_lost_steps(self) -> int:
        """Steps that had been taken and were not in a checkpoint."""
        return self.fault_step - self.resumed_step


def hash_outputs(run: RunDir) -> dict[str, str]:
    """Return the SHA-256 of every tensor and number that a finished training left, by name.

    Raises
    ------
    checkpoint.CheckpointError, OSError
        Where it left less.
    """
    newest = checkpoint.list_checkpoints(run)[-1:]
    if not newest:
        raise checkpoint.CheckpointError("there is no checkpoint")
    checkpoint.verify(newest[0], run.run_id)
    state = torch.load(newest[0] / "state.pt", map_location="cpu", weights_only=True)
    best = torch.load(run.best_file, map_location="cpu", weights_only=True)
    metrics = hashlib.sha256(run.metrics_file.read_bytes()).hexdigest()
    return dict(_hash_leaves("checkpoint", state)) | {"metrics.jsonl": metrics} | dict(_hash_leaves("best.pt", best))


def _hash_leaves(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield the name and the hash of everything in nested containers; an empty one counts too."""
    if isinstance(value, dict | list | tuple) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in pairs:
            yield from _hash_leaves(f"{name}.{key}", part)
    elif isinstance(value, torch.Tensor):
        content = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()  # bits: NaN equals itself
        yield name, hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode() + content).hexdigest()
    else:  # repr tells every float from every other one
        yield name, hashlib.sha256(f"{type(value).__name__} {value!r}".encode()).hexdigest()


def find_first_difference(actual: dict[str, str], expected: dict[str, str]) -> str:
    """Name the first thing that differs, or that only one side has; empty where there is none."""
    return next((name for name in [*expected, *actual] if actual.get(name) != expected.get(name)), "")


def make_short_config(config: RunConfig, num_galaxies: int) -> RunConfig:
    """Return the settings of a run like this one that takes few steps and is saved at every one."""
    held = config.data.validation_fraction
    wanted = TARGET_STEPS_PER_EPOCH * config.train.batch_size / num_galaxies
    training = min(max(wanted, 0.1), 1.0 - held - config.data.test_fraction)
    per_epoch = steps_per_epoch(int(training * num_galaxies), config.train.batch_size)
    epochs = max(2, math.ceil(MIN_STEPS / per_epoch))
    plain = config.model_dump(mode="json")
    plain["data"] |= {"test_fraction": 1.0 - held - training, "label_fraction": 1.0}
    plain["train"] |= {"epochs": epochs, "early_stopping": None}
    plain["resources"]["checkpoint_minutes"] = 0.0
    return RunConfig.model_validate_json(json.dumps(plain))


def run_trials(
    config: RunConfig,
    folder: Path,
    seed: int = 0,
    faults: Sequence[str] = FAULTS,
    report: Callable[[str], None] = lambda text: None,
) -> list[TrialResult]:
    """Carry out the trials of a run in a folder, one sweep for each; `say` is told which one begins.

    Raises
    ------
    TrialError, DataError, OSError
    """
    galaxies = prepare(config.data)
    copy = make_short_config(config, len(galaxies.labels))
    load_split(copy.data, galaxies, folder)
    report("unbroken")
    whole = _create_run(folder, "unbroken", copy)
    _run_to_end(whole, copy)
    wanted, steps = hash_outputs(whole), whole.read_metrics()[-1]["step"]
    rng = random.Random(f"{seed} {copy.run_id}")  # the same trials every time
    outcomes = []
    for number, fault in enumerate(faults, 1):
        step = rng.randint(1, max(1, steps - 4))
        report(f"{fault} after step {step}, {number} of {len(faults)}")
        broken = _create_run(folder, fault.replace(" ", "-"), copy, template=whole)
        hit = _inject_fault(broken, copy, fault, step, rng.random())
        begun = time.time()
        _run_to_end(broken, copy)
        again = _get_last_event(broken, "started")
        difference = find_first_difference(hash_outputs(broken), wanted)
        outcomes.append(TrialResult(fault, hit, again["step"], again["time"] - begun, difference))
    return outcomes


def _get_last_event(run: RunDir, name: str) -> dict[str, Any]:
    return next(event for event in reversed(run.read_events()) if event["event"] == name)


def _create_run(folder: Path, name: str, config: RunConfig, template: RunDir | None = None) -> RunDir:
    """Write the directory of a run that was never begun, in a sweep of its own with the same split and paths."""
    run = RunDir(folder / name / config.run_id)
    write_text(run.config_file, config.model_dump_json(indent=1))
    shutil.copy(folder / "split.csv", run.sweep_dir)
    if template is not None and kernel_choice.get_choice_path(template).exists():
        shutil.copy(kernel_choice.get_choice_path(template), run.path)
    return run


def _inject_fault(run: RunDir, config: RunConfig, fault: str, step: int, fraction: float) -> int:
    """Break a training off, a fraction of a step after a step, and return the last one it is known to have taken."""
    number = getattr(signal, f"SIG{fault.split()[0]}")
    saving = fault == "KILL in a save"
    for _ in range(MAX_TRIES):
        with _start_processes(run, config) as group:
            _wait_until(run, group, partial(_has_reached_step, run, "step_", step - 1))
            before = time.monotonic()
            _wait_until(run, group, partial(_has_reached_step, run, ".step_" if saving else "step_", step))
            time.sleep(0.0 if saving else fraction * (time.monotonic() - before))
            os.killpg(group[0].pid, number)
            statuses = {process.wait(STALL_TIMEOUT_SECONDS) for process in group}
        if run.best_file.exists() or statuses != {-number if number == signal.SIGKILL else EXIT_INCOMPLETE}:
            raise _make_error(run, f"{fault} came at step {step} or later, and the processes ended with {statuses}")
        if not saving or _get_latest_step(run, ".step_") > _get_latest_step(run, "step_"):
            return max(_get_latest_step(run, ".step_"), _get_latest_step(run, "step_"))
        step = _get_latest_step(run, "step_") + 1  # the save was quicker than the signal
    raise _make_error(run, f"{MAX_TRIES} signals all came after the save they were meant for")


def _has_reached_step(run: RunDir, prefix: str, step: int) -> bool:
    return _get_latest_step(run, prefix) >= step


def _get_latest_step(run: RunDir, prefix: str) -> int:
    """Return the highest step whose checkpoint, or unfinished checkpoint, is there; -1 without any."""
    names = os.listdir(run.checkpoint_dir) if run.checkpoint_dir.is_dir() else []
    steps = [name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)]
    return max((int(step) for step in steps), default=-1)


def _run_to_end(run: RunDir, config: RunConfig) -> None:
    """Start a training and wait for its end."""
    with _start_processes(run, config) as group:
        _wait_until(run, group, run.best_file.exists)
        statuses = {process.wait(STALL_TIMEOUT_SECONDS) for process in group}
    if statuses != {0}:
        raise _make_error(run, f"the processes ended with {statuses}")


def _wait_until(run: RunDir, processes: Processes, is_reached: Callable[[], bool]) -> None:
    """Return when a training has reached something.

    Raises
    ------
    TrialError
        A process ended first, or nothing was saved for too long.
    """
    newest, since = -1, time.monotonic()
    while not is_reached():
        if any(process.poll() not in (None, 0) for process in processes):
            raise _make_error(run, "a process failed")
        if (now := _get_latest_step(run, "step_")) != newest:
            newest, since = now, time.monotonic()
        if time.monotonic() - since > STALL_TIMEOUT_SECONDS:
            raise _make_error(run, f"no step within {STALL_TIMEOUT_SECONDS} s")
        if all(process.poll() == 0 for process in processes) and not is_reached():
            raise _make_error(run, "the training ended before it could be hit")
        time.sleep(0.001)


def _make_error(run: RunDir, message: str) -> TrialError:
    log = (run.path / "output.txt").read_text(errors="replace").strip().splitlines()
    return TrialError(f"{run.path}: {message}; the end of output.txt:\n" + "\n".join(log[-15:]))


@contextmanager
def _start_processes(run: RunDir, config: RunConfig) -> Iterator[Processes]:
    """Start the processes of a job as torchrun would, in one group; whatever happens, none is left behind."""
    surroundings = ("SLURM", "SUBMITIT", "TORCHELASTIC")  # this may itself run in a job
    plain = {name: text for name, text in os.environ.items() if not name.startswith(surroundings)}
    plain |= make_child_environment()
    tasks = config.resources.num_tasks
    job = {"TORCHELASTIC_RUN_ID": f"trial-{time.time_ns()}", "WORLD_SIZE": str(tasks), "GROUP_WORLD_SIZE": "1"}
    group: Processes = []
    try:
        with (run.path / "output.txt").open("ab") as log:
            for rank in range(tasks):
                place = job | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                command = [sys.executable, "-m", "jobs.train", str(run.path)]
                first = group[0].pid if group else 0
                group.append(subprocess.Popen(command, stdout=log, stderr=log, env=plain | place, process_group=first))
        yield group
    finally:
        for process in group:
            process.kill()
            process.wait()


def make_table(results: list[TrialResult], title: str) -> Table:
    """Return one row per fault."""
    shown = Table(title=title, title_justify="left")
    for column in ("fault", "hit at step", "resumed at step", "steps lost", "seconds to continue", "bit-equal"):
        shown.add_column(column, justify="left" if column in ("fault", "bit-equal") else "right")
    for one in results:
        equal = Text("yes", "green") if not one.difference else Text(f"no: {one.difference}", "red")
        shown.add_row(
            one.fault,
            str(one.fault_step),
            str(one.resumed_step),
            str(one.num_lost_steps),
            f"{one.restart_seconds:.1f}",
            equal,
        )
    return shown


def main(arguments: list[str] | None = None) -> int:
    """Prove the resume of the run named on the command line."""
    options = _parse_options(arguments)
    console = make_console()
    try:
        run, config = _load_run(options.run, options.tasks)
        folder = Path(tempfile.mkdtemp(prefix=f"verify_resume-{run.run_id}-", dir=run.sweep_dir.parent))
    except (VerifyInputError, RunDirError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    kept = f"what was tried is kept in {folder}"
    try:
        with _show_progress(console) as say:
            outcomes = run_trials(config, folder, options.seed, FAULTS, say)
        console.print(make_table(outcomes, f"{run.run_id}, processes: {config.resources.num_tasks}"))
    except DataError as error:
        print(error, file=sys.stderr)
        shutil.rmtree(folder)
        return 2
    except (TrialError, checkpoint.CheckpointError, OSError) as error:
        print(f"{error}\n{kept}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        shutil.rmtree(folder)
        return 130
    if any(one.difference for one in outcomes):
        console.print(f"the resume is NOT exact; {kept}", soft_wrap=True)
        return 1
    console.print("the resume is exact: all bits are those of the unbroken training")
    shutil.rmtree(folder)
    return 0


def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="galaxyhpc verify_resume", description=__doc__)
    parser.add_argument("run", type=Path, help="runs/SWEEP/RUN_ID")
    parser.add_argument("--tasks", type=int, metavar="N", help="processes (default: as many as the run has)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the steps that are hit (default: 0)")
    return parser.parse_args(arguments)


def _load_run(path: Path, tasks: int | None) -> tuple[RunDir, RunConfig]:
    """Return the run with the number of processes it is to be tried with.

    Raises
    ------
    BadInputError, NoRunError, OSError
    """
    if not (path / "config.json").is_file():
        raise VerifyInputError(f"{path}: found no config.json; allowed is one run: runs/SWEEP/RUN_ID")
    run = RunDir(path.resolve())
    config = run.load_config()
    asked = {"nodes": 1, "tasks_per_node": config.resources.num_tasks if tasks is None else tasks}
    plain = config.model_dump(mode="json")
    try:
        config = RunConfig.model_validate_json(json.dumps(plain | {"resources": plain["resources"] | asked}))
    except ValidationError as error:
        raise VerifyInputError(f"--tasks {tasks}: {error.errors()[0]['msg']}") from error
    gpus = torch.cuda.device_count()
    if gpus and config.resources.num_tasks > gpus:
        raise VerifyInputError(
            f"--tasks {config.resources.num_tasks}: this machine has {gpus} GPUs; allowed are 1 to {gpus}"
        )
    return run, config


@contextmanager
def _show_progress(console: Console) -> Iterator[Callable[[str], None]]:
    """Yield a function that names the trial under way; on a terminal a spinner and a clock stand beside it."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("")
        yield lambda text: bar.update(shown, description=text)


if __name__ == "__main__":
    sys.exit(main())
