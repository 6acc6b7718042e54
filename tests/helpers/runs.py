"""Runs as their files tell them, written by hand; and Slurm's commands as scripts that answer what a test says."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from galaxyhpc.config.schema import ModelConfig, RunConfig, TrainConfig
from galaxyhpc.runtime import slurm
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

FakeSlurm = Callable[..., Path]

HOSTNAME = socket.gethostname()
CLASS_COUNTS = [1081, 1853, 2645, 2027, 334, 2043, 1829, 2628, 1423, 1873]  # of the published classes


def make_run(sweep: Path, seed: int = 0, group: str = "C4", epochs: int = 20, **train: Any) -> RunDir:
    """A run that was planned."""
    config = RunConfig(model=ModelConfig(group=group), train=TrainConfig(epochs=epochs, **train), seed=seed)
    run = RunDir(sweep / config.run_id)
    run.path.mkdir(parents=True)
    run.config_file.write_text(config.model_dump_json())
    return run


def write_sweep_plan(*runs: RunDir) -> Path:
    """Write the sweep's plan and split, and return its directory."""
    sweep = runs[0].sweep_dir
    write_text(sweep / "plan.csv", "run_id\n" + "".join(f"{run.run_id}\n" for run in runs))
    splits = ["train"] * 7 + ["validation"] + ["test"] * 2
    galaxies = (label for label, count in enumerate(CLASS_COUNTS) for _ in range(count))
    rows = (f"{n},{label},1.0,2.0,{n},{splits[n % 10]}\n" for n, label in enumerate(galaxies))
    write_text(sweep / "split.csv", "# fingerprint: x\nrow,label,ra,dec,sky_group,split\n" + "".join(rows))
    return sweep


def record_event(run: RunDir, event: str, seconds_ago: float = 600.0, **fields: Any) -> None:
    """Record an event of a while ago, on another machine."""
    line = {"time": time.time() - seconds_ago, "host": "node1", "event": event, **fields}
    with run.events_file.open("a") as file:
        file.write(json.dumps(line) + "\n")


def record_submission(run: RunDir, job_id: str, token: str = "t") -> None:
    record_event(run, "submitting", token=token)
    record_event(run, "submitted", job=job_id, executor="slurm", token=token)


def record_start(run: RunDir, job_id: str, **fields: Any) -> None:
    record_event(run, "started", epoch=0, step=0, world=1, job=f"{job_id}.0", pid=1, nodes="node1", **fields)


def record_epochs(
    run: RunDir,
    accuracies: list[float],
    loss: float | None = None,
    epoch_seconds: float = 10.0,
    balanced: Sequence[float] = (),
) -> None:
    """Finish epochs with these accuracies, and balanced ones, the last one just now."""
    records = []
    for epoch, accuracy in enumerate(accuracies):
        ago = (len(accuracies) - 1 - epoch) * epoch_seconds
        record_event(
            run,
            "epoch",
            ago,
            epoch=epoch,
            step=100 * (epoch + 1),
            seconds=epoch_seconds,
            images=1000,
            world=1,
            device="cpu",
        )
        numbers = {"train_loss": 2.2 - 1.5 * accuracy if loss is None else loss, "train_accuracy": accuracy}
        numbers |= {"validation_loss": 1.0, "validation_accuracy": accuracy}
        numbers |= {"validation_balanced_accuracy": balanced[epoch]} if balanced else {}
        records.append({"epoch": epoch, **numbers})
    write_text(run.metrics_file, "".join(json.dumps(record) + "\n" for record in records))


def make_learning_curve(num_epochs: int, final_accuracy: float = 0.7, seed: int = 0) -> list[float]:
    """Accuracies of a healthy run: from a little above chance to the top, with noise."""
    noise = random.Random(seed)
    return [
        0.2 + (final_accuracy - 0.2) * (1 - 0.8 ** (epoch + 1)) + noise.gauss(0, 0.01) for epoch in range(num_epochs)
    ]


def install_fake_slurm(path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Let squeue answer with rows, or nothing of Slurm answer (None); scancel notes what it is given, sbatch gives ids.

    What it returns sets the answer, and that of sacct, and returns the file in which all calls are noted.
    """
    commands, calls = path / "bin", path / "calls"
    commands.mkdir()

    def answer(rows: list[str] | None, ended: Sequence[str] = ()) -> Path:
        slurm._ping.cache_clear()
        said = {
            "squeue": rows or [],
            "sacct": ended,
            "scontrol": ["Slurmctld(primary) at here is UP"],
            "scancel": [],
            "srun": [],
        }
        texts = {name: "\n".join(f"echo '{line}'" for line in lines) for name, lines in said.items()}
        texts["sbatch"] = f"echo Submitted batch job $((100 + $(grep -c sbatch '{calls}')))"
        for name, text in texts.items():
            body = "echo 'Unable to contact slurm controller' >&2\nexit 1" if rows is None else text
            arguments = " $*" if name == "scancel" else ""
            (commands / name).write_text(f"#!/bin/sh\necho {name}{arguments} >>'{calls}'\n{body}\n")
            (commands / name).chmod(0o755)
        return calls

    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    answer(None)
    return answer
