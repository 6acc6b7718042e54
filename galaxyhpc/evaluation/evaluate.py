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
from galaxyhpc.data.dataset import open_dataset
from galaxyhpc.data.loader import DeviceDataset, load_device_dataset
from galaxyhpc.evaluation import attack, results
from galaxyhpc.evaluation.calibration import fit_temperature
from galaxyhpc.evaluation.corruptions import Survey, corrupt
from galaxyhpc.models import kernel_choice
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime.job import StopSignal
from galaxyhpc.runtime.malloc import keep_heap
from galaxyhpc.runtime.rank import get_rank_info
from galaxyhpc.storage.events import RunState
from galaxyhpc.storage.files import sha256
from galaxyhpc.storage.run_dir import RunDir, read_state

SAVE_INTERVAL_SECONDS = 20.0
STOP_MARGIN_SECONDS = 10.0  # before the end of its time an evaluation saves and makes room


@dataclass(frozen=True)
class EvalContext:
    """What is measured: a network on the test galaxies, and, for the temperature alone, on those of validation."""

    network: nn.Module
    dataset: DeviceDataset
    indices: Tensor  # (n,) int64, of the test galaxies in the data file
    validation_indices: Tensor  # (m,) int64, of the validation galaxies
    survey: Survey
    batch_size: int


class NotTrainedError(RuntimeError):
    """There are no weights to measure yet."""


def load_network(run: RunDir, config: RunConfig, device: torch.device) -> nn.Module:
    """Build a run's network with its best weights, ready to classify (N, 3, S, S) images in [0, 1]."""
    if not run.best_file.exists():
        raise NotTrainedError(f"{run.path}: not trained to its end yet: there is no best.pt")
    network = build_model(config.model.without_pretrained, config.data.image_size)
    try:
        network.load_state_dict(torch.load(run.best_file, map_location="cpu", weights_only=True)["model"])
    except Exception as error:  # what is not ours may raise anything
        said = " ".join(str(error).split())[:200]
        help_ = (
            "allowed: what training wrote: remove it, and training goes on from the last checkpoint and writes it anew"
        )
        raise NotTrainedError(f"{run.best_file}: no weights of this network ({said}); {help_}") from error
    kernel_choice.load_selection(run, network, device)
    return network.to(device).eval()


def get_conditions(config: RunConfig) -> list[tuple[str, float]]:
    """Return every (condition, severity) that this run is to be measured under."""
    return list(conditions.list_severity_pairs(config.evaluate.conditions))


def should_stop(stop: StopSignal) -> bool:
    """Whether to save and leave."""
    return stop.is_requested or stop.is_time_limit_near(STOP_MARGIN_SECONDS)


@torch.inference_mode()
def compute_logits(context: EvalContext, pair: tuple[str, float], stop: StopSignal) -> NDArray[np.float32] | None:
    """Return the (n, 10) logits of the test galaxies under one condition and severity; None where a signal came."""
    parts = []
    for rows in context.indices.split(context.batch_size):
        if should_stop(stop):
            return None
        images, _ = context.dataset.get_batch(rows)
        corrupted = corrupt(images, rows.to(images.device), *pair, context.survey)
        parts.append(context.network(corrupted).float().cpu())
    logits: NDArray[np.float32] = torch.cat(parts).numpy()
    return logits


def add_temperature(context: EvalContext, run_logits: results.RunLogits, stop: StopSignal) -> results.RunLogits | None:
    """Add the temperature that the validation galaxies ask for; None where a signal came."""
    logits = compute_logits(replace(context, indices=context.validation_indices), results.CLEAN, stop)
    if logits is None:
        return None
    labels = context.dataset.labels.cpu()[context.validation_indices].numpy()
    return replace(run_logits, temperature=fit_temperature(logits, labels))


def prepare_evaluation(run: RunDir, config: RunConfig) -> tuple[EvalContext, results.RunLogits]:
    """Load the network and the test galaxies, and what was measured of them before."""
    keep_heap()
    torch.set_num_threads(config.resources.cpus_per_task)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_network(run, config, device)
    galaxies, split = open_dataset(config.data, run.sweep_dir)
    test, validation = (split[split.split == name] for name in ("test", "validation"))
    pictures, survey = load_device_dataset(galaxies, device), Survey(galaxies.mean, galaxies.pixel_scale_arcsec)
    rows, others = (torch.tensor(each.row.to_numpy()) for each in (test, validation))
    task = EvalContext(network, pictures, rows, others, survey, config.evaluate.batch_size)
    source = {"weights": sha256(run.best_file), "fingerprint": galaxies.fingerprint}
    measured = results.load(run, **source) or results.RunLogits(
        rows=test.row.to_numpy(np.int32),
        labels=test.label.to_numpy(np.uint8),
        groups=test.sky_group.to_numpy(np.int32),
        logits={},
        generated=galaxies.generated,
        temperature=None,
        **source,
    )
    return task, measured


def evaluate(run: RunDir, stop: StopSignal) -> bool:
    """Measure what is missing; False where a signal stopped it (what was measured is saved then).

    Raises
    ------
    NotTrainedError
    """
    config = run.load_config()
    if is_evaluated(run, config):
        if read_state(run).name != RunState.EVALUATED:  # killed between the results and the event
            run.record("evaluated", measured=0, kept=len(get_conditions(config)))
        return True
    task, measured = prepare_evaluation(run, config)
    missing = [pair for pair in get_conditions(config) if pair not in measured.logits]
    place = get_rank_info()
    run.record(
        "evaluating", measured=len(measured.logits), job=place.job_attempt, pid=os.getpid(), nodes=place.node_names
    )
    console, saved = Console(), time.monotonic()
    for pair in track(missing, run.run_id, console=console, transient=True, disable=not console.is_terminal):
        logits = compute_logits(task, pair, stop)
        if logits is not None:
            measured.logits[pair] = logits
        if measured.logits and (
            logits is None or pair == missing[-1] or time.monotonic() - saved > SAVE_INTERVAL_SECONDS
        ):
            results.save(run, measured)
            saved = time.monotonic()
        if logits is None:
            return False
    whole = add_temperature(task, measured, stop) if measured.temperature is None else measured
    if whole is None:
        return False
    if whole is not measured or not missing:  # results.csv lacks what follows from the temperature
        results.save(run, whole)
    if not attack.is_finished(run, config.evaluate.attack, measured.weights):
        leave = partial(should_stop, stop)
        if not attack.attack_run(run, task.network, task.dataset, measured, config.evaluate, leave):
            return False
    run.record("evaluated", measured=len(missing), kept=len(measured.logits) - len(missing))
    console.print(f"{run.run_id}: measured {len(missing)} of {len(get_conditions(config))} conditions", highlight=False)
    return True


def is_evaluated(run: RunDir, config: RunConfig) -> bool:
    """Whether both files of results hold every wanted condition for the weights in best.pt, and one temperature.

    And whether these weights were attacked, where that is wanted.
    """
    table = results.read_counts(run)
    if table is None or not run.best_file.exists() or set(table.weights) != {sha256(run.best_file)}:
        return False
    predictions = results.read_predictions(run)
    if predictions is None or not (table.temperature == predictions.temperature).all():
        return False
    if not attack.is_finished(run, config.evaluate.attack, table.weights.iloc[0]):
        return False
    return set(get_conditions(config)) <= set(zip(table.condition, table.severity, strict=True))
