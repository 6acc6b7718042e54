"""Verify on this machine that a run resumes bit-for-bit: `galaxyhpc verify_resume runs/SWEEP/RUN_ID`.

A short copy of the run (the same network, data, augmentation and optimizer; fewer galaxies and epochs; a checkpoint at
every step) is trained without interruption, then once for each fault: interrupted, resumed, compared. Weights,
buffers, optimizer state, metrics and best.pt must have the same bits. Exit status 0: every resume is
exact; 1: one is not, and the first difference is named, or a trial failed; 2: no trial was possible, for the reason on
stderr.
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

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from galaxyhpc.config.schema import RunConfig
from galaxyhpc.data import DataError
from galaxyhpc.data.dataset import load_split
from galaxyhpc.data.galaxies import prepare
from galaxyhpc.data.loader import steps_per_epoch
from galaxyhpc.data.split import select_training_indices
from galaxyhpc.models import kernel_choice
from galaxyhpc.runtime.child_python import make_child_environment, name_parent
from galaxyhpc.runtime.console import ConsoleTable, make_console
from galaxyhpc.runtime.job import EXIT_INCOMPLETE, print_error
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir, RunDirError

TARGET_STEPS_PER_EPOCH = 8  # of the copy
MIN_STEPS = 12  # of the whole copy
MAX_TRIES = 5  # to interrupt a save, which may end before the signal arrives
STALL_TIMEOUT_SECONDS = 900  # without a new checkpoint
FAULTS = ("USR2", "TERM", "KILL in a save", "KILL", "KILL again")

Processes = list[subprocess.Popen[bytes]]


class VerifyInputError(ValueError):
    """A path or an option with which no trial is possible."""


class TrialError(RuntimeError):
    """A trial that failed for another reason than the resume."""


@dataclass(frozen=True)
class TrialResult:
    """The result of one interrupted training."""

    fault: str
    fault_step: int
    resumed_step: int
    restart_seconds: float  # from the new start to the first resumed step
    difference: str  # empty where all bits are equal

    @property
    def num_lost_steps(self) -> int:
        """Steps that were not in a checkpoint yet."""
        return self.fault_step - self.resumed_step


def hash_outputs(run: RunDir) -> dict[str, str]:
    """Return the SHA-256 of every tensor and number in the outputs of a finished training, by name.

    Raises
    ------
    checkpoint.CheckpointError, OSError
        An output is missing or damaged.
    """
    checkpoints = checkpoint.list_checkpoints(run)
    if not checkpoints:
        raise checkpoint.CheckpointError("there is no checkpoint")
    checkpoint.verify(checkpoints[-1], run.run_id)
    state = torch.load(checkpoints[-1] / "state.pt", map_location="cpu", weights_only=True)
    best = torch.load(run.best_file, map_location="cpu", weights_only=True)
    metrics = hashlib.sha256(run.metrics_file.read_bytes()).hexdigest()
    return dict(_hash_leaves("checkpoint", state)) | {"metrics.jsonl": metrics} | dict(_hash_leaves("best.pt", best))


def _hash_leaves(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield the name and the hash of every leaf of nested containers; an empty container is a leaf."""
    if isinstance(value, dict | list | tuple) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in pairs:
            yield from _hash_leaves(f"{name}.{key}", part)
    elif isinstance(value, torch.Tensor):
        content = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()  # bits: NaN equals itself
        yield name, hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode() + content).hexdigest()
    else:  # the repr of a float is unique to its bits
        yield name, hashlib.sha256(f"{type(value).__name__} {value!r}".encode()).hexdigest()


def find_first_difference(actual: dict[str, str], expected: dict[str, str]) -> str:
    """Return the first name whose hash differs or that only one side has; empty where there is none."""
    return next((name for name in [*expected, *actual] if actual.get(name) != expected.get(name)), "")


def make_short_config(config: RunConfig, num_training: int) -> RunConfig:
    """Return the config of a short copy of a run that trains on so many galaxies, with a checkpoint at every step.

    The copy has the run's split and fold, and trains on some of its training galaxies.
    """
    used_fraction = min(1.0, TARGET_STEPS_PER_EPOCH * config.train.batch_size / num_training)
    steps = steps_per_epoch(int(used_fraction * num_training), config.train.batch_size)
    epochs = max(2, math.ceil(MIN_STEPS / steps))
    settings = config.model_dump(mode="json")
    settings["data"]["label_fraction"] *= used_fraction
    settings["train"] |= {"epochs": epochs, "early_stopping": None}
    settings["resources"]["checkpoint_minutes"] = 0.0
    return RunConfig.model_validate_json(json.dumps(settings))


def run_trials(
    config: RunConfig,
    folder: Path,
    seed: int = 0,
    faults: Sequence[str] = FAULTS,
    report: Callable[[str], None] = lambda text: None,
) -> list[TrialResult]:
    """Run one trial per fault in a folder, each in a sweep of its own; `report` gets the name of each trial.

    Raises
    ------
    TrialError, DataError, OSError
    """
    galaxies = prepare(config.data)
    split = load_split(config.data, galaxies, folder)
    copy = make_short_config(config, len(select_training_indices(split, config.data)))
    report("uninterrupted")
    reference = _create_run(folder, "uninterrupted", copy)
    _run_to_end(reference, copy)
    expected, steps = hash_outputs(reference), reference.read_metrics()[-1]["step"]
    rng = random.Random(f"{seed} {copy.run_id}")  # the same trials every time
    results = []
    for number, fault in enumerate(faults, 1):
        step = rng.randint(1, max(1, steps - 4))
        report(f"{fault} after step {step}, {number} of {len(faults)}")
        run = _create_run(folder, fault.replace(" ", "-"), copy, template=reference)
        fault_step = _inject_fault(run, copy, fault, step, rng.random())
        restart_time = time.time()
        _run_to_end(run, copy)
        resumed = [event for event in run.read_events() if event["event"] == "started"][-1]
        difference = find_first_difference(hash_outputs(run), expected)
        results.append(TrialResult(fault, fault_step, resumed["step"], resumed["time"] - restart_time, difference))
    return results


def _create_run(folder: Path, name: str, config: RunConfig, template: RunDir | None = None) -> RunDir:
    """Write a new run, in a sweep of its own with the same split and the kernel choice of the template."""
    run = RunDir(folder / name / config.run_id)
    write_text(run.config_file, config.model_dump_json(indent=1))
    shutil.copy(folder / "split.csv", run.sweep_dir)
    if template is not None and kernel_choice.get_choice_path(template).exists():
        shutil.copy(kernel_choice.get_choice_path(template), run.path)
    return run


def _inject_fault(run: RunDir, config: RunConfig, fault: str, step: int, fraction: float) -> int:
    """Interrupt a training a fraction of a step after a step; return the last step that is known to be done."""
    signal_number = getattr(signal, f"SIG{fault.split()[0]}")
    is_during_save = fault == "KILL in a save"
    for _ in range(MAX_TRIES):
        with _start_processes(run, config) as group:
            _wait_until(run, group, partial(_has_reached_step, run, "step_", step - 1))
            step_start = time.monotonic()
            _wait_until(run, group, partial(_has_reached_step, run, ".step_" if is_during_save else "step_", step))
            time.sleep(0.0 if is_during_save else fraction * (time.monotonic() - step_start))
            os.killpg(group[0].pid, signal_number)
            statuses = {process.wait(STALL_TIMEOUT_SECONDS) for process in group}
        expected_status = -signal_number if signal_number == signal.SIGKILL else EXIT_INCOMPLETE
        if run.best_file.exists() or statuses != {expected_status}:
            raise _make_error(run, f"{fault} at step {step} or later: the exit statuses are {statuses}")
        if not is_during_save or _get_latest_step(run, ".step_") > _get_latest_step(run, "step_"):
            return max(_get_latest_step(run, ".step_"), _get_latest_step(run, "step_"))
        step = _get_latest_step(run, "step_") + 1  # the save ended before the signal arrived
    raise _make_error(run, f"{MAX_TRIES} signals all arrived after the end of the save")


def _has_reached_step(run: RunDir, prefix: str, step: int) -> bool:
    return _get_latest_step(run, prefix) >= step


def _get_latest_step(run: RunDir, prefix: str) -> int:
    """Return the last step with a checkpoint (prefix `step_`) or an unfinished one (`.step_`); -1 without any."""
    names = os.listdir(run.checkpoint_dir) if run.checkpoint_dir.is_dir() else []
    steps = [name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)]
    return max((int(step) for step in steps), default=-1)


def _run_to_end(run: RunDir, config: RunConfig) -> None:
    """Run a training to its end."""
    with _start_processes(run, config) as group:
        _wait_until(run, group, run.best_file.exists)
        statuses = {process.wait(STALL_TIMEOUT_SECONDS) for process in group}
    if statuses != {0}:
        raise _make_error(run, f"the exit statuses are {statuses}")


def _wait_until(run: RunDir, processes: Processes, is_reached: Callable[[], bool]) -> None:
    """Wait until a training has reached a state.

    Raises
    ------
    TrialError
        A process ended first, or no checkpoint was saved for too long.
    """
    latest_step, last_step_time = -1, time.monotonic()
    while not is_reached():
        if any(process.poll() not in (None, 0) for process in processes):
            raise _make_error(run, "a process failed")
        if (step := _get_latest_step(run, "step_")) != latest_step:
            latest_step, last_step_time = step, time.monotonic()
        if time.monotonic() - last_step_time > STALL_TIMEOUT_SECONDS:
            raise _make_error(run, f"no step within {STALL_TIMEOUT_SECONDS} s")
        if all(process.poll() == 0 for process in processes) and not is_reached():
            raise _make_error(run, "the training ended before it could be interrupted")
        time.sleep(0.001)


def _make_error(run: RunDir, message: str) -> TrialError:
    log = (run.path / "output.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return TrialError(f"{run.path}: {message}; the end of output.txt:\n" + "\n".join(log[-15:]))


@contextmanager
def _start_processes(run: RunDir, config: RunConfig) -> Iterator[Processes]:
    """Start the processes of a job as torchrun does, in one process group; kill what is left of them at the end."""
    job_prefixes = ("SLURM", "SUBMITIT", "TORCHELASTIC")  # this may itself run in a job
    environment = {name: value for name, value in os.environ.items() if not name.startswith(job_prefixes)}
    environment |= make_child_environment() | name_parent()
    num_tasks = config.resources.num_tasks
    environment |= {"TORCHELASTIC_RUN_ID": f"trial-{time.time_ns()}", "GROUP_WORLD_SIZE": "1"}
    group: Processes = []
    try:
        with (run.path / "output.txt").open("ab") as log:
            for rank in range(num_tasks):
                env = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_tasks)}
                command = [sys.executable, "-m", "jobs.train", str(run.path)]
                group_id = group[0].pid if group else 0
                group.append(subprocess.Popen(command, stdout=log, stderr=log, env=env, process_group=group_id))
        yield group
    finally:
        for process in group:
            process.kill()
            process.wait()


def make_table(results: list[TrialResult], title: str) -> ConsoleTable:
    """Return one row per fault."""
    rows: list[tuple[str | Text, ...]] = []
    for result in results:
        steps = (result.fault_step, result.resumed_step, result.num_lost_steps)
        is_equal = Text("yes", "green") if not result.difference else Text(f"no: {result.difference}", "red")
        rows.append((result.fault, *map(str, steps), f"{result.restart_seconds:.1f}", is_equal))
    heads = ("fault", "fault\nat step", "resumed\nat step", "steps\nlost", "restart\nseconds", "bit-equal")
    return ConsoleTable(title, heads, rows, texts=("bit-equal",))


def main(arguments: list[str] | None = None) -> int:
    """Verify the resume of the run on the command line; return the exit status."""
    options = _parse_options(arguments)
    console = make_console()
    try:
        run, config = _load_run(options.run, options.tasks)
        folder = Path(tempfile.mkdtemp(prefix=f"verify_resume-{run.run_id}-", dir=run.sweep_dir.parent))
    except (VerifyInputError, RunDirError, OSError) as error:
        print_error(error)
        return 2
    folder_note = f"the trials are kept in {folder}"
    try:
        with _show_progress(console) as report:
            results = run_trials(config, folder, options.seed, FAULTS, report)
        console.print(make_table(results, f"{run.run_id}, processes: {config.resources.num_tasks}"))
    except DataError as error:
        print_error(error)
        shutil.rmtree(folder)
        return 2
    except (TrialError, checkpoint.CheckpointError, OSError) as error:
        print(f"{error}\n{folder_note}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        shutil.rmtree(folder)
        return 130
    if any(result.difference for result in results):
        console.print(f"the resume is NOT exact; {folder_note}", soft_wrap=True)
        return 1
    console.print("the resume is exact: all bits are those of the uninterrupted training")
    shutil.rmtree(folder)
    return 0


def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="galaxyhpc verify_resume", description=__doc__)
    parser.add_argument("run", type=Path, help="runs/SWEEP/RUN_ID")
    parser.add_argument("--tasks", type=int, metavar="N", help="processes (default: as many as the run has)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the steps of the faults (default: 0)")
    return parser.parse_args(arguments)


def _load_run(path: Path, tasks: int | None) -> tuple[RunDir, RunConfig]:
    """Return the run, and its config with the number of processes of the trials.

    Raises
    ------
    VerifyInputError, RunDirError, OSError
    """
    if not (path / "config.json").is_file():
        raise VerifyInputError(f"{path}: got no config.json; expected one run: runs/SWEEP/RUN_ID")
    run = RunDir(path.resolve())
    config = run.load_config()
    settings = config.model_dump(mode="json")
    settings["resources"] |= {"nodes": 1, "tasks_per_node": config.resources.num_tasks if tasks is None else tasks}
    try:
        config = RunConfig.model_validate_json(json.dumps(settings))
    except ValidationError as error:
        raise VerifyInputError(f"--tasks {tasks}: {error.errors()[0]['msg']}") from error
    gpus = torch.cuda.device_count()
    if gpus and config.resources.num_tasks > gpus:
        raise VerifyInputError(f"--tasks: got {config.resources.num_tasks}; expected 1 to {gpus}, one per GPU")
    return run, config


@contextmanager
def _show_progress(console: Console) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the name of the current trial, on a terminal beside a spinner and a clock."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        yield lambda text: bar.update(task, description=text)


if __name__ == "__main__":
    sys.exit(main())
