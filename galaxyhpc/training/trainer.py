"""The training of one run, resumable at every step.

    step:  global batch -> this process's part -> device (`step`) -> what next? -> loss of the step before
    epoch: shuffled indices -> global batches -> steps -> validation -> best so far? -> metrics.jsonl -> checkpoint

A checkpoint holds weights, optimizer and sums. Order and augmentation are functions of (seed, epoch, index), so a run
resumes bit-for-bit. All processes take each decision from the same reduced numbers; rank 0 alone writes. A step's
loss is read after the next step was launched, so that a GPU need not wait for the host; before a checkpoint, at once.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from dataclasses import asdict
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress as ProgressBar
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from galaxyhpc.config.schema import RunConfig, TrainConfig
from galaxyhpc.data.dataset import open_dataset
from galaxyhpc.data.loader import epoch_batches, load_device_dataset, shard_batch
from galaxyhpc.data.split import select_training_indices
from galaxyhpc.models import kernel_choice
from galaxyhpc.models.baselines import Baseline, Pretrained
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime.distributed import Process, process_group
from galaxyhpc.runtime.job import StopSignal
from galaxyhpc.runtime.process import keep_heap
from galaxyhpc.runtime.rng import make_key
from galaxyhpc.steerable.batch_norm import enable_sync_batchnorm
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import atomic_write, write_text
from galaxyhpc.storage.provenance import collect_provenance
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.training.cuda_graph import StepGraph, prepare_capture
from galaxyhpc.training.determinism import describe_determinism, make_deterministic, warn_of_failed_allocations
from galaxyhpc.training.ema import make_ema
from galaxyhpc.training.optimizer import (
    compute_class_weights,
    compute_learning_rate,
    load_optimizer_state,
    make_optimizer,
)
from galaxyhpc.training.state import Progress, StepResult, Training
from galaxyhpc.training.step import autocast, launch_step
from galaxyhpc.training.validation import validate


class TrainingError(RuntimeError):
    """The training cannot continue, and a retry would not help."""


class Decision(NamedTuple):
    """What follows a step, the same in every process."""

    should_stop: bool
    should_save: bool


def train(run: RunDir, stop: StopSignal, max_steps: float = math.inf) -> bool:
    """Train a run from its newest checkpoint to its end; return False if a signal stopped it (its state is saved then).

    It also stops after `max_steps`, counted from the beginning of the run.

    Raises
    ------
    TrainingError
        If the loss is no longer finite, or there are too few training galaxies.
    ConfigChangedError, DataError
    """
    if run.best_file.exists():
        return True  # best.pt is written last: the run is trained
    config = run.load_config()
    checkpoint.check_config_unchanged(run, config)
    keep_heap()
    torch.set_num_threads(config.resources.cpus_per_task)
    make_deterministic()
    with process_group(run) as process:
        return _train_in_group(run, config, process, stop, max_steps)


def _train_in_group(run: RunDir, config: RunConfig, process: Process, stop: StopSignal, max_steps: float) -> bool:
    with _make_progress_bar(process) as bar:
        training = set_up(run, config, process)
        resume(run, training, bar.console)
        _record_start(run, training)
        progress = training.progress
        if (pretrained := _get_pretrained(training)) is not None and progress.step == 0:
            bar.console.print(f"initial weights: {pretrained}", soft_wrap=True)
        task = bar.add_task(run.run_id, total=training.total_steps, completed=progress.step)
        while progress.epoch < config.train.epochs and not _should_stop_early(progress, config.train):
            start_time = time.monotonic() if progress.batch == 0 else None  # an epoch that is resumed is not timed
            batches = epoch_batches(training.indices["train"], config.seed, progress.epoch, config.train.batch_size)
            for batch in batches[progress.batch :]:
                decision = train_step(training, batch, stop)
                should_stop = decision.should_stop or progress.step >= max_steps
                bar.update(task, completed=progress.step)
                if progress.batch == len(batches):
                    break  # saved after validation instead: a step has one checkpoint only
                if should_stop or decision.should_save:
                    save_checkpoint(run, training)
                if should_stop:
                    return False
            finish_epoch(run, training, start_time)
            bar.console.print(_format_epoch(progress, config.train), soft_wrap=True)
            save_checkpoint(run, training)
            if should_stop:
                return False
        save_best(run, training)
        return True


def set_up(run: RunDir, config: RunConfig, process: Process) -> Training:
    """Load the dataset and build model and optimizer, in their state before the first step."""
    graph = StepGraph(prepare_capture(process))
    galaxies, split = open_dataset(config.data, run.sweep_dir)
    indices = {
        "train": torch.tensor(select_training_indices(split, config.data)),
        "validation": torch.tensor(split.row[split.split == "validation"].to_numpy()),
    }
    if len(indices["train"]) < 2 * process.world_size:  # batch norm needs two images
        raise TrainingError(
            f"data.label_fraction: got {config.data.label_fraction:g}, which leaves {len(indices['train'])} training "
            f"galaxies; expected 2 or more for each of {process.world_size} processes"
        )
    dataset = load_device_dataset(galaxies, process.device)
    torch.manual_seed(make_key("weights", config.seed) % 2**63)
    network = build_model(config.model, config.data.image_size, len(config.data.class_names)).to(process.device)
    if isinstance(network, Baseline) and config.train.body_learning_rate == 0:
        network.freeze_body()
    kernel_choice.select_and_save(run, network, config, process)
    if config.train.sync_batchnorm:
        enable_sync_batchnorm(network)
    model = network if process.world_size == 1 else _wrap_ddp(network, process.device)
    class_weights = compute_class_weights(dataset.labels[indices["train"]], config)
    optimizer = make_optimizer(model, config.train, on_device=process.device.type == "cuda")
    ema = make_ema(network, config.train.ema_decay)
    training = Training(config, process, network, model, optimizer, dataset, indices, class_weights, ema, graph)
    _warm_up_ddp(training)
    return training


def _wrap_ddp(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    devices = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():  # the replacement of broadcast_buffers is not in torch 2.4
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(network, devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def _warm_up_ddp(training: Training) -> None:
    """Run one pass whose gradients are discarded.

    DDP rebuilds its buckets after its first pass, and with three or more processes the order of a sum depends on
    them: without this, the first step after a resume would differ in the last bits.
    """
    if training.process.world_size == 1:
        return
    buffers = [buffer.clone() for buffer in training.network.buffers()]
    size = training.config.data.image_size
    with autocast(training):
        logits = training.model(torch.zeros(2, 3, size, size, device=training.process.device))
    logits.float().sum().backward()
    for buffer, saved in zip(training.network.buffers(), buffers, strict=True):
        buffer.copy_(saved)
    training.optimizer.zero_grad()


def train_step(training: Training, batch: Tensor, stop: StopSignal) -> Decision:
    """Launch an optimizer step with a global batch of indices, and agree with all processes on what follows it.

    A signal that arrives after the processes have agreed counts at the next step.

    Raises
    ------
    TrainingError
        The loss of the step before is not finite.
    """
    process, progress, previous = training.process, training.progress, training.pending
    local_batch = shard_batch(batch, process.rank, process.world_size)
    training.pending = launch_step(training, local_batch)
    is_save_due = training.timer.seconds_since_save > 60 * training.config.resources.checkpoint_minutes
    flags = [stop.is_time_limit_near(training.timer.notice_seconds), stop.should_exit, is_save_due]
    index_sums = [float(local_batch.sum()), float((local_batch**2).sum())]
    num_requeue, num_exit, num_save, *index_sums = process.all_reduce_sum([*map(float, flags), *index_sums])
    training.timer.record_sync()
    progress.add_step(len(batch), index_sums)
    _add_result(training, previous)
    if num_requeue > 0:
        stop.should_requeue = True  # not `|=`, which would lose a signal that arrives meanwhile
    if num_exit > 0:
        stop.should_exit = True
    return Decision(num_requeue + num_exit > 0, num_save > 0)


def settle(training: Training) -> None:
    """Wait for the last step, and add its loss; all processes do so at the same time.

    Raises
    ------
    TrainingError
        The loss is not finite.
    """
    pending, training.pending = training.pending, None
    _add_result(training, pending)


def _add_result(training: Training, result: StepResult | None) -> None:
    """Add the loss and the correct classifications of a step over all processes."""
    if result is None:
        return
    loss_sum, num_correct = training.process.all_reduce_sum(result.read())
    if not math.isfinite(loss_sum):
        raise TrainingError(f"the loss is {loss_sum} in epoch {result.epoch}, step {result.step}")
    training.progress.add_result(loss_sum, num_correct)


def finish_epoch(run: RunDir, training: Training, start_time: float | None) -> None:
    """Validate, keep the weights if they are the best so far, record the epoch, and begin the next one.

    The time since `start_time` (of `time.monotonic`) is recorded, unless that is None.
    """
    settle(training)
    warn_of_failed_allocations(training.process.device)
    progress, process = training.progress, training.process
    batch_size = training.config.evaluate.batch_size
    loss, accuracy, balanced_accuracy = validate(
        training.eval_model, training.dataset, training.indices["validation"], process, batch_size
    )
    is_best = (accuracy, -loss) > (progress.best_accuracy, -progress.best_loss)
    if is_best:
        progress.best_accuracy, progress.best_loss, progress.best_epoch = accuracy, loss, progress.epoch
        state_dict = training.eval_model.state_dict()
        training.best_state_dict = {name: value.cpu().clone() for name, value in state_dict.items()}
    progress.history.append(
        {
            "epoch": progress.epoch,
            "step": progress.step,
            "learning_rate": compute_learning_rate(progress.step - 1, training.total_steps, training.config.train),
            "train_loss": progress.loss_sum / progress.seen,
            "train_accuracy": progress.correct / progress.seen,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "validation_balanced_accuracy": balanced_accuracy,
            "best": is_best,
            "samples": progress.samples,
        }
    )
    if process.is_main:
        write_text(run.metrics_file, "".join(json.dumps(record) + "\n" for record in progress.history))
        if start_time is not None:
            cost = {"seconds": round(time.monotonic() - start_time, 3), "images": int(progress.seen)}
            hardware = {"world": process.world_size, "device": process.device_name}
            hardware |= {"graph": training.graph.replay is not None}
            run.record("epoch", epoch=progress.epoch, step=progress.step, **cost, **hardware)
    progress.begin_next_epoch()


def _should_stop_early(progress: Progress, config: TrainConfig) -> bool:
    patience = config.early_stopping
    return patience is not None and progress.epoch - 1 - progress.best_epoch >= patience


def save_checkpoint(run: RunDir, training: Training) -> None:
    """Save the state after the current step."""
    start_time = time.monotonic()
    settle(training)  # the weights of a loss that is not finite are not saved
    if training.process.is_main:
        state = {
            "model": training.network.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "progress": asdict(training.progress),
            "best": training.best_state_dict,
        }
        if training.ema is not None:
            state["average"] = training.ema.module.state_dict()
        identity = training.config.get_identity()
        checkpoint.save(run, training.progress.step, training.process.world_size, state, identity)
    training.timer.record_save(start_time)


def resume(run: RunDir, training: Training, console: Console) -> None:
    """Load the newest valid checkpoint; without one, the training stays at step 0."""
    process = training.process
    if process.is_main:
        for line in checkpoint.quarantine_damaged(run):
            console.print(line, soft_wrap=True)
    process.barrier()
    state = checkpoint.load_latest(run)
    if state is not None:
        training.network.load_state_dict(state["model"])
        load_optimizer_state(training.optimizer, state["optimizer"])
        training.progress, training.best_state_dict = Progress(**state["progress"]), state["best"]
        if training.ema is not None:
            training.ema.module.load_state_dict(state["average"])
    step, world_size = training.progress.step, process.world_size
    if process.all_reduce_sum([step, step**2]) != [world_size * step, world_size * step**2]:
        raise TrainingError(f"rank {process.rank} resumes at step {step}, another rank elsewhere; restart the job")


def _record_start(run: RunDir, training: Training) -> None:
    """Write provenance.json and the event `started`."""
    if not training.process.is_main:
        return
    pretrained = _get_pretrained(training)
    provenance = collect_provenance() | {
        "pretrained": None if pretrained is None else pretrained._asdict(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "determinism": describe_determinism(),
    }
    write_text(run.path / "provenance.json", json.dumps(provenance, indent=1) + "\n")
    rank_info = training.process.rank_info
    run.record(
        "started",
        epoch=training.progress.epoch,
        step=training.progress.step,
        world=rank_info.world_size,
        job=rank_info.job_attempt,
        pid=os.getpid(),
        nodes=rank_info.node_names,
    )


def _get_pretrained(training: Training) -> Pretrained | None:
    network = training.network
    return network.pretrained if isinstance(network, Baseline) else None


def save_best(run: RunDir, training: Training) -> None:
    """Write best.pt, which marks the run as trained: the last thing that a training does."""
    progress = training.progress
    if training.process.is_main:
        best = {"model": training.best_state_dict, "epoch": progress.best_epoch, "run_id": run.run_id}
        with atomic_write(run.best_file) as temporary:
            torch.save(best, temporary)
        run.record("trained", epochs=progress.epoch, best=progress.best_epoch, accuracy=progress.best_accuracy)
    training.process.barrier()


def _make_progress_bar(process: Process) -> ProgressBar:
    console = Console(quiet=not process.is_main, markup=False, highlight=False)
    return ProgressBar(console=console, transient=True, disable=not console.is_terminal)


def _format_epoch(progress: Progress, config: TrainConfig) -> str:
    last = progress.history[-1]
    return (
        f"epoch {last['epoch'] + 1}/{config.epochs}  step {last['step']}  loss {last['train_loss']:.4f}  "
        f"accuracy {last['train_accuracy']:.3f}  validation {last['validation_accuracy']:.3f}"
        + ("  best so far" if last["best"] else "")
    )
