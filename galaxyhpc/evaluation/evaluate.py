"""Evaluation of one trained run under its missing conditions.

The test galaxies are corrupted on the device in [0, 1], identically for every network; logits go to predictions.h5
and counts to results.csv every few seconds, so that an interrupted evaluation resumes. Then the temperature of the
logits is fitted on the validation galaxies. The one-pixel attack, if configured, comes last.
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
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.attacks import attack
from galaxyhpc.evaluation.calibration import fit_temperature
from galaxyhpc.evaluation.corruptions import Survey, corrupt
from galaxyhpc.models import kernel_choice
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime.job import StopSignal
from galaxyhpc.runtime.process import keep_heap
from galaxyhpc.runtime.rank import get_rank_info
from galaxyhpc.storage.events import RunState
from galaxyhpc.storage.files import sha256
from galaxyhpc.storage.run_dir import RunDir, read_state

SAVE_INTERVAL_SECONDS = 20.0
STOP_MARGIN_SECONDS = 10.0  # before its time limit an evaluation saves and stops


@dataclass(frozen=True)
class EvalContext:
    """A network, its test galaxies, and its validation galaxies, which are for the temperature alone."""

    network: nn.Module
    dataset: DeviceDataset
    indices: Tensor  # (n,) int64, of the test galaxies in the data file
    validation_indices: Tensor  # (m,) int64, of the validation galaxies in the data file
    survey: Survey
    batch_size: int


class NotTrainedError(RuntimeError):
    """A run without the weights of a finished training."""


def load_network(run: RunDir, config: RunConfig, device: torch.device) -> nn.Module:
    """Build a run's network with its best weights, in evaluation mode, for (N, 3, S, S) images in [0, 1].

    Raises
    ------
    NotTrainedError
    """
    if not run.best_file.exists():
        raise NotTrainedError(f"{run.path}: training is not finished: no best.pt")
    network = build_model(config.model.without_pretrained, config.data.image_size, len(config.data.class_names))
    try:
        network.load_state_dict(torch.load(run.best_file, map_location="cpu", weights_only=True)["model"])
    except Exception as error:  # a foreign file may raise anything
        reason = " ".join(str(error).split())[:200]
        hint = "remove it, and training resumes from the last checkpoint and writes it again"
        raise NotTrainedError(f"{run.best_file}: got {reason}; expected the weights of this network: {hint}") from error
    kernel_choice.load_selection(run, network, device)
    return network.to(device).eval()


def get_conditions(config: RunConfig) -> list[tuple[str, float]]:
    """Return every (condition, severity) of this run's evaluation."""
    return list(conditions.list_severity_pairs(config.evaluate.conditions))


def should_stop(stop: StopSignal) -> bool:
    """Whether to save and stop."""
    return stop.is_requested or stop.is_time_limit_near(STOP_MARGIN_SECONDS)


@torch.inference_mode()
def compute_logits(context: EvalContext, pair: tuple[str, float], stop: StopSignal) -> NDArray[np.float32] | None:
    """Compute the (n, K) logits of the test galaxies under one condition and severity; None on a signal."""
    batches = []
    for indices in context.indices.split(context.batch_size):
        if should_stop(stop):
            return None
        images, _ = context.dataset.get_batch(indices)
        corrupted = corrupt(images, indices.to(images.device), *pair, context.survey)
        batches.append(context.network(corrupted).float().cpu())
    logits: NDArray[np.float32] = torch.cat(batches).numpy()
    return logits


def add_temperature(context: EvalContext, run_logits: results.RunLogits, stop: StopSignal) -> results.RunLogits | None:
    """Add the temperature fitted on the validation galaxies; None on a signal."""
    logits = compute_logits(replace(context, indices=context.validation_indices), results.CLEAN, stop)
    if logits is None:
        return None
    labels = context.dataset.labels.cpu()[context.validation_indices].numpy()
    return replace(run_logits, temperature=fit_temperature(logits, labels))


def prepare_evaluation(run: RunDir, config: RunConfig) -> tuple[EvalContext, results.RunLogits]:
    """Load the network, its galaxies, and the results of earlier evaluations."""
    keep_heap()
    torch.set_num_threads(config.resources.cpus_per_task)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_network(run, config, device)
    galaxies, split = open_dataset(config.data, run.sweep_dir)
    test, validation = (split[split.split == name] for name in ("test", "validation"))
    dataset, survey = load_device_dataset(galaxies, device), Survey(galaxies.mean, galaxies.pixel_scale_arcsec)
    test_indices, validation_indices = (torch.tensor(part.row.to_numpy()) for part in (test, validation))
    context = EvalContext(network, dataset, test_indices, validation_indices, survey, config.evaluate.batch_size)
    source = {"weights": sha256(run.best_file), "fingerprint": galaxies.fingerprint}
    run_logits = results.load(run, **source, complain=_warn_of_evaluation) or results.RunLogits(
        rows=test.row.to_numpy(np.int32),
        labels=test.label.to_numpy(results.get_label_dtype(len(config.data.class_names))),
        groups=test.sky_group.to_numpy(np.int32),
        logits={},
        generated=galaxies.generated,
        temperature=None,
        **source,
    )
    return context, run_logits


def _warn_of_evaluation(complaint: str) -> None:
    results.log.warning("%s; evaluating again", complaint)


def evaluate(run: RunDir, stop: StopSignal) -> bool:
    """Evaluate the missing conditions; False if a signal stopped it, with the finished conditions saved.

    Raises
    ------
    NotTrainedError
    """
    config = run.load_config()
    if is_evaluated(run, config):
        if read_state(run).name != RunState.EVALUATED:  # killed between the results and the event
            run.record("evaluated", measured=0, kept=len(get_conditions(config)))
        return True
    context, run_logits = prepare_evaluation(run, config)
    missing = [pair for pair in get_conditions(config) if pair not in run_logits.logits]
    rank = get_rank_info()
    run.record(
        "evaluating", measured=len(run_logits.logits), job=rank.job_attempt, pid=os.getpid(), nodes=rank.node_names
    )
    console = Console()
    if not evaluate_conditions(run, context, run_logits, missing, stop, console):
        return False
    calibrated = add_temperature(context, run_logits, stop) if run_logits.temperature is None else run_logits
    if calibrated is None:
        return False
    if calibrated is not run_logits or not missing:  # results.csv lacks the scaled counts
        results.save(run, calibrated)
    if not attack.is_finished(run, config.evaluate.attack, run_logits.weights):
        should_stop_attack = partial(should_stop, stop)
        if not attack.attack_run(
            run, context.network, context.dataset, run_logits, config.evaluate, should_stop_attack
        ):
            return False
    kernels, num_kept = kernel_choice.describe_kernels(context.network), len(run_logits.logits) - len(missing)
    run.record("evaluated", measured=len(missing), kept=num_kept, kernels=kernels)
    text = f"evaluated {len(missing)} of {len(get_conditions(config))} conditions"
    console.print(", ".join(filter(None, (f"{run.run_id}: {text}", kernels))), highlight=False)
    return True


def evaluate_conditions(
    run: RunDir,
    context: EvalContext,
    run_logits: results.RunLogits,
    pairs: list[results.Pair],
    stop: StopSignal,
    console: Console,
) -> bool:
    """Add the logits under each (condition, severity), saving every SAVE_INTERVAL_SECONDS; False on a signal."""
    saved = time.monotonic()
    for pair in track(pairs, run.run_id, console=console, transient=True, disable=not console.is_terminal):
        logits = compute_logits(context, pair, stop)
        if logits is not None:
            run_logits.logits[pair] = logits
        is_save_due = logits is None or pair == pairs[-1] or time.monotonic() - saved > SAVE_INTERVAL_SECONDS
        if run_logits.logits and is_save_due:
            results.save(run, run_logits)
            saved = time.monotonic()
        if logits is None:
            return False
    return True


def is_evaluated(run: RunDir, config: RunConfig) -> bool:
    """Whether both result files hold every configured condition for the weights in best.pt, and one temperature.

    Also whether the attack on these weights is finished, if one is configured.
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
