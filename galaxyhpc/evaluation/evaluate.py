"""Measure one trained run under the conditions that are still missing.

The test galaxies are corrupted on the device in [0, 1], alike for every network; logits go to predictions.h5, counts
to results.csv, every few seconds, so that an interrupted evaluation goes on where it was. Then the temperature that
makes probabilities of the logits is fitted on the validation galaxies. Last, where it is wanted, comes the attack.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from galaxyhpc.config import conditions
from galaxyhpc.config.schema import RunConfig
from galaxyhpc.data.dataset import load_split, prepare
from galaxyhpc.data.loader import Pictures, load_pictures
from galaxyhpc.evaluation import attack, results
from galaxyhpc.evaluation.calibration import fit_temperature
from galaxyhpc.evaluation.corruptions import Survey, corrupt
from galaxyhpc.models import build_model, kernel_choice
from galaxyhpc.runtime.job import Stop
from galaxyhpc.runtime.malloc import keep_freed
from galaxyhpc.runtime.rank import find_place
from galaxyhpc.storage.files import sha256
from galaxyhpc.storage.run_dir import RunDir, state

SAVE_SECONDS = 20.0
NOTICE_SECONDS = 10.0  # before the end of its time an evaluation saves and makes room


@dataclass(frozen=True)
class Task:
    """What is measured: a network on the test galaxies, and, for the temperature alone, on those of validation."""

    network: nn.Module
    pictures: Pictures
    rows: Tensor  # (n,) int64, of the test galaxies in the data file
    validation: Tensor  # (m,) int64, of the validation galaxies
    survey: Survey
    batch_size: int


class NotTrainedError(RuntimeError):
    """There are no weights to measure yet."""


def load_network(run: RunDir, config: RunConfig, device: torch.device) -> nn.Module:
    """Build a run's network with its best weights, ready to classify (N, 3, S, S) images in [0, 1]."""
    if not run.best_file.exists():
        raise NotTrainedError(f"{run.path}: not trained to its end yet: there is no best.pt")
    network = build_model(config.model.untrained, config.data.image_size)
    try:
        network.load_state_dict(torch.load(run.best_file, map_location="cpu", weights_only=True)["model"])
    except Exception as error:  # what is not ours may raise anything
        said = " ".join(str(error).split())[:200]
        help_ = (
            "allowed: what training wrote: remove it, and training goes on from the last checkpoint and writes it anew"
        )
        raise NotTrainedError(f"{run.best_file}: no weights of this network ({said}); {help_}") from error
    kernel_choice.restore(run, network, device)
    return network.to(device).eval()


def wanted(config: RunConfig) -> list[tuple[str, float]]:
    """Return every (condition, severity) that this run is to be measured under."""
    return list(conditions.pairs(config.evaluate.conditions))


def halted(stop: Stop) -> bool:
    """Whether to save and leave."""
    return stop.wanted or stop.ends_within(NOTICE_SECONDS)


@torch.inference_mode()
def measure(task: Task, pair: tuple[str, float], stop: Stop) -> NDArray[np.float32] | None:
    """Return the (n, 10) logits of the test galaxies under one condition and severity; None where a signal came."""
    parts = []
    for rows in task.rows.split(task.batch_size):
        if halted(stop):
            return None
        images, _ = task.pictures.take(rows)
        corrupted = corrupt(images, rows.to(images.device), *pair, task.survey)
        parts.append(task.network(corrupted).float().cpu())
    logits: NDArray[np.float32] = torch.cat(parts).numpy()
    return logits


def calibrated(task: Task, measured: results.Measured, stop: Stop) -> results.Measured | None:
    """Add the temperature that the validation galaxies ask for; None where a signal came."""
    logits = measure(replace(task, rows=task.validation), results.CLEAN, stop)
    if logits is None:
        return None
    labels = task.pictures.labels.cpu()[task.validation].numpy()
    return replace(measured, temperature=fit_temperature(logits, labels))


def set_up(run: RunDir, config: RunConfig) -> tuple[Task, results.Measured]:
    """Load the network and the test galaxies, and what was measured of them before."""
    keep_freed()
    torch.set_num_threads(config.resources.cpus_per_task)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_network(run, config, device)
    galaxies = prepare(config.data)
    split = load_split(config.data, galaxies, run.sweep)
    test, validation = (split[split.split == name] for name in ("test", "validation"))
    pictures, survey = load_pictures(galaxies, device), Survey(galaxies.mean, galaxies.pixel_scale)
    rows, others = (torch.tensor(each.row.to_numpy()) for each in (test, validation))
    task = Task(network, pictures, rows, others, survey, config.evaluate.batch_size)
    source = {"weights": sha256(run.best_file), "fingerprint": galaxies.fingerprint}
    measured = results.load(run, **source) or results.Measured(
        rows=test.row.to_numpy(np.int32),
        labels=test.label.to_numpy(np.uint8),
        groups=test.sky_group.to_numpy(np.int32),
        logits={},
        generated=galaxies.generated,
        temperature=None,
        **source,
    )
    return task, measured


def evaluate(run: RunDir, stop: Stop) -> bool:
    """Measure what is missing; False where a signal stopped it (what was measured is saved then).

    Raises
    ------
    NotTrainedError
    """
    config = run.load_config()
    config = config.model_copy(update={"resources": run.with_retry_changes(config.resources.plain)})
    if done(run, config):
        if state(run).name != "evaluated":  # killed between the results and the event
            run.record("evaluated", measured=0, kept=len(wanted(config)))
        return True
    task, measured = set_up(run, config)
    missing = [pair for pair in wanted(config) if pair not in measured.logits]
    place = find_place()
    run.record("evaluating", measured=len(measured.logits), job=place.job, pid=os.getpid(), nodes=place.node_names)
    console, saved = Console(), time.monotonic()
    for pair in track(missing, run.run_id, console=console, transient=True, disable=not console.is_terminal):
        logits = measure(task, pair, stop)
        if logits is not None:
            measured.logits[pair] = logits
        if measured.logits and (logits is None or pair == missing[-1] or time.monotonic() - saved > SAVE_SECONDS):
            results.save(run, measured)
            saved = time.monotonic()
        if logits is None:
            return False
    whole = calibrated(task, measured, stop) if measured.temperature is None else measured
    if whole is None:
        return False
    if whole is not measured or not missing:  # results.csv lacks what follows from the temperature
        results.save(run, whole)
    if not attack.finished(run, config.evaluate.attack, measured.weights):
        leave = partial(halted, stop)
        if not attack.attack_run(run, task.network, task.pictures, measured, config.evaluate, leave):
            return False
    run.record("evaluated", measured=len(missing), kept=len(measured.logits) - len(missing))
    console.print(f"{run.run_id}: measured {len(missing)} of {len(wanted(config))} conditions", highlight=False)
    return True


def done(run: RunDir, config: RunConfig) -> bool:
    """Whether both files of results hold every wanted condition for the weights in best.pt, and one temperature.

    And whether these weights were attacked, where that is wanted.
    """
    table = results.read_counts(run)
    if table is None or not run.best_file.exists() or set(table.weights) != {sha256(run.best_file)}:
        return False
    predictions = results.read_predictions(run)
    if predictions is None or not (table.temperature == predictions.temperature).all():
        return False
    if not attack.finished(run, config.evaluate.attack, table.weights.iloc[0]):
        return False
    return set(wanted(config)) <= set(zip(table.condition, table.severity, strict=True))
