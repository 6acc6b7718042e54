"""The training of one run, resumable at every step.

    epoch: shuffled rows -> global batches -> this process's share -> augment -> loss -> step -> all agree to go on
           -> validate -> best so far? -> metrics.jsonl -> checkpoint

A checkpoint holds weights, optimizer and sums; order and augmentation are functions of (seed, epoch, row), so a run
that was killed and started again ends with the same bits. Decisions are taken by all processes from reduced numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field

import torch
from rich.console import Console
from rich.progress import Progress as ProgressBar
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from galaxyhpc.config.schema import RunConfig, TrainConfig
from galaxyhpc.data.augment import draw_epoch_maps, resample
from galaxyhpc.data.dataset import open_dataset
from galaxyhpc.data.loader import DeviceDataset, epoch_batches, load_device_dataset, shard_batch, steps_per_epoch
from galaxyhpc.data.split import select_training_indices
from galaxyhpc.models import kernel_choice
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime.distributed import Process, process_group
from galaxyhpc.runtime.job import StopSignal
from galaxyhpc.runtime.malloc import keep_heap
from galaxyhpc.runtime.rng import make_key
from galaxyhpc.steerable.batch_norm import enable_sync_batchnorm
from galaxyhpc.steerable.layers import accumulate_filter_gradients
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import atomic_write, write_text
from galaxyhpc.storage.provenance import collect_provenance
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.training.ema import make_ema
from galaxyhpc.training.optimizer import compute_class_weights, compute_learning_rate, make_optimizer, set_learning_rate
from galaxyhpc.training.state import Progress, Timer
from galaxyhpc.training.validation import validate


class TrainingError(RuntimeError):
    """Training cannot go on, and starting again would not help."""


@dataclass
class Training:
    """What a step works on."""

    config: RunConfig
    process: Process
    model: DistributedDataParallel
    optimizer: torch.optim.Optimizer
    dataset: DeviceDataset
    indices: dict[str, Tensor]  # of the splits train and validation
    class_weights: Tensor | None
    ema: AveragedModel | None = None
    progress: Progress = field(default_factory=Progress)
    best_state_dict: dict[str, Tensor] = field(default_factory=dict)
    timer: Timer = field(default_factory=Timer)

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        return steps_per_epoch(len(self.indices["train"]), self.config.train.batch_size) * self.config.train.epochs

    @property
    def network(self) -> nn.Module:
        module: nn.Module = self.model.module
        return module

    @property
    def eval_model(self) -> nn.Module:
        """What is validated and kept: the network, or its average."""
        return self.network if self.ema is None else self.ema.module


def train(run: RunDir, stop: StopSignal, max_steps: float = math.inf) -> bool:
    """Train a run from where it is to its end; False where a signal stopped it (its state is saved then).

    `most_steps` is where it stops by itself, counted from the beginning of the run.

    Raises
    ------
    TrainingError
        The loss is no longer finite.
    DriftError, NoProgressError
    """
    if run.best_file.exists():
        return True  # written last: what is done is left alone
    config = run.load_config()
    checkpoint.check_config_unchanged(run, config)
    config = config.model_copy(update={"resources": run.with_retry_changes(config.resources.resolved)})
    keep_heap()
    torch.set_num_threads(config.resources.cpus_per_task)
    torch.backends.cudnn.deterministic = True
    with process_group(run) as process, _make_progress_bar(process) as bar:
        training = set_up(run, config, process)
        resume(run, training, bar.console)
        progress, pace = training.progress, training.timer
        task = bar.add_task(run.run_id, total=training.total_steps, completed=progress.step)
        while progress.epoch < config.train.epochs and not _should_stop_early(progress, config.train):
            begun, first = time.monotonic(), progress.batch
            batches = epoch_batches(training.indices["train"], config.seed, progress.epoch, config.train.batch_size)
            for batch in batches[progress.batch :]:
                stopping = train_step(training, batch, stop) or progress.step >= max_steps
                bar.update(task, completed=progress.step)
                if progress.batch == len(batches):
                    break  # saved at the end of the epoch: a step has one state only
                if stopping or time.monotonic() - pace.last_save_time > 60 * config.resources.checkpoint_minutes:
                    save_checkpoint(run, training)
                if stopping:
                    return False
            finish_epoch(run, training, None if first else begun)
            bar.console.print(_format_epoch(progress, config.train), soft_wrap=True)
            save_checkpoint(run, training)
            if stopping:
                return False
        save_best(run, training)
        return True


def set_up(run: RunDir, config: RunConfig, process: Process) -> Training:
    """Build everything a step works on, as it is before the first step."""
    galaxies, split = open_dataset(config.data, run.sweep_dir)
    held_out = split.row[split.split == "validation"].to_numpy()
    rows = {"train": torch.tensor(select_training_indices(split, config.data)), "validation": torch.tensor(held_out)}
    if len(rows["train"]) < 2 * process.world_size:  # batch norm needs two images
        what = f"data.label_fraction {config.data.label_fraction:g} leaves {len(rows['train'])} training galaxies"
        raise TrainingError(f"{what} for {process.world_size} processes; each needs at least 2")
    pictures = load_device_dataset(galaxies, process.device)
    torch.manual_seed(make_key("weights", config.seed) % 2**63)
    network = build_model(config.model, config.data.image_size).to(process.device)
    kernel_choice.select_and_save(run, network, config, process)
    if config.train.sync_batchnorm:
        enable_sync_batchnorm(network)
    devices = [process.device] if process.device.type == "cuda" else None
    with warnings.catch_warnings():  # what is to replace broadcast_buffers is not in torch 2.4
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        model = DistributedDataParallel(network, devices, broadcast_buffers=False, gradient_as_bucket_view=True)
    weights = compute_class_weights(pictures.labels[rows["train"]], config.train)
    training = Training(config, process, model, make_optimizer(model, config.train), pictures, rows, weights)
    training.ema = make_ema(network, config.train.ema_decay)
    _warm_up(training)
    return training


def _warm_up(training: Training) -> None:
    """Run one pass whose gradients are thrown away.

    DDP arranges its buckets anew after its first pass, and with three or more processes the order of a sum depends
    on the arrangement: without this, the first step after a resume would differ in the last bits.
    """
    if training.process.world_size == 1:
        return
    buffers = [buffer.clone() for buffer in training.network.buffers()]
    size = training.config.data.image_size
    training.model(torch.zeros(2, 3, size, size, device=training.process.device)).sum().backward()
    for buffer, before in zip(training.network.buffers(), buffers, strict=True):
        buffer.copy_(before)
    training.optimizer.zero_grad()


def train_step(training: Training, batch: Tensor, stop: StopSignal) -> bool:
    """Take one step with a global batch; return whether to stop, the same answer in every process.

    A signal that comes after the answer was agreed on counts at the next step: `stop` only ever gains.
    """
    config, process, progress, pace = training.config, training.process, training.progress, training.timer
    set_learning_rate(training.optimizer, compute_learning_rate(progress.step, training.total_steps, config.train))
    training.model.train()
    torch.manual_seed(make_key("dropout", config.seed, progress.step, process.rank) % 2**63)  # a resume draws the same
    training.optimizer.zero_grad()
    mine = shard_batch(batch, process.rank, process.world_size)
    largest = math.ceil(len(batch) / process.world_size)  # every process makes as many passes as the busiest
    parts = mine.tensor_split(math.ceil(largest / (config.resources.micro_batch or largest)))
    found = torch.zeros(2, device=process.device, dtype=torch.float64)  # read once: a GPU need not wait
    for last, part in zip([False] * (len(parts) - 1) + [True], parts, strict=True):
        with nullcontext() if last else _accumulate_gradients(training):
            loss, hits = _compute_loss(training, part)
            (loss * process.world_size / len(batch)).backward()  # DDP divides by the number of processes
        found += torch.stack([loss.detach(), hits])
    stop.is_time_limit_near(pace.notice_seconds)
    told = [float(stop.should_requeue), float(stop.should_exit), float(mine.sum()), float((mine**2).sum())]
    loss_sum, correct, requeue, leave, *rows = process.all_reduce_sum([*found.tolist(), *told])
    pace.max_sync_gap_seconds = max(pace.max_sync_gap_seconds, time.monotonic() - pace.last_sync_time)
    pace.last_sync_time = time.monotonic()
    if not math.isfinite(loss_sum):
        raise TrainingError(f"the loss is {loss_sum} in epoch {progress.epoch}, step {progress.step}")
    if config.train.clip_norm is not None:
        nn.utils.clip_grad_norm_(training.model.parameters(), config.train.clip_norm)
    training.optimizer.step()
    if training.ema is not None:
        training.ema.update_parameters(training.network)
    progress.step, progress.batch = progress.step + 1, progress.batch + 1
    progress.loss_sum, progress.correct = progress.loss_sum + loss_sum, progress.correct + correct
    progress.seen += len(batch)
    progress.samples = hashlib.sha256(f"{progress.samples}{rows}".encode()).hexdigest()[:16]
    if requeue > 0:
        stop.should_requeue = True
    if leave > 0:
        stop.should_exit = True
    return requeue + leave > 0


@contextmanager
def _accumulate_gradients(training: Training) -> Iterator[None]:
    """Let gradients wait for the last part of a step: those of filters, and those of other processes."""
    with accumulate_filter_gradients(training.network), training.model.no_sync():
        yield


def _compute_loss(training: Training, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss summed over these rows and the number classified right, both on the device."""
    config, device = training.config, training.process.device
    pictures, epoch = training.dataset, training.progress.epoch
    maps = draw_epoch_maps(len(pictures.images), config.seed, epoch, config.augment, device)
    images, labels = pictures.get_uint8_batch(indices)
    images = resample(images, maps[indices.to(device)])
    with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bfloat16"):
        logits = training.model(images)
    smoothing = config.train.label_smoothing
    logits = logits.float()
    loss = cross_entropy(logits, labels, training.class_weights, reduction="sum", label_smoothing=smoothing)
    return loss, (logits.argmax(1) == labels).sum()


def finish_epoch(run: RunDir, training: Training, start_time: float | None) -> None:
    """Validate, note whether this epoch is the best so far, and begin the next one.

    `begun` is when the epoch began, where all of it was since this start: its time is recorded then.
    """
    progress = training.progress
    held_out, batch_size = training.indices["validation"], training.config.evaluate.batch_size
    loss, accuracy = validate(training.eval_model, training.dataset, held_out, training.process, batch_size)
    better = (accuracy, -loss) > (progress.best_accuracy, -progress.best_loss)
    if better:
        progress.best_accuracy, progress.best_loss, progress.best_epoch = accuracy, loss, progress.epoch
        training.best_state_dict = {
            name: value.cpu().clone() for name, value in training.eval_model.state_dict().items()
        }
    progress.history.append(
        {
            "epoch": progress.epoch,
            "step": progress.step,
            "learning_rate": compute_learning_rate(progress.step - 1, training.total_steps, training.config.train),
            "train_loss": progress.loss_sum / progress.seen,
            "train_accuracy": progress.correct / progress.seen,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "best": better,
            "samples": progress.samples,
        }
    )
    if training.process.is_main:
        write_text(run.metrics_file, "".join(json.dumps(record) + "\n" for record in progress.history))
        if start_time is not None:
            took = {"seconds": round(time.monotonic() - start_time, 3), "images": int(progress.seen)}
            where = {"world": training.process.world_size, "device": training.process.device_name}
            run.record("epoch", epoch=progress.epoch, step=progress.step, **took, **where)
    progress.epoch, progress.batch = progress.epoch + 1, 0
    progress.loss_sum, progress.correct, progress.seen, progress.samples = 0.0, 0.0, 0.0, ""


def _should_stop_early(progress: Progress, config: TrainConfig) -> bool:
    patience = config.early_stopping
    return patience is not None and progress.epoch - 1 - progress.best_epoch >= patience


def save_checkpoint(run: RunDir, training: Training) -> None:
    """Write a checkpoint of this step."""
    begun = time.monotonic()
    if training.process.is_main:
        state = {
            "model": training.network.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "progress": asdict(training.progress),
            "best": training.best_state_dict,
        }
        if training.ema is not None:
            state["average"] = training.ema.state_dict()
        step, settings = training.progress.step, training.config.get_identity()
        checkpoint.save(run, step, training.process.world_size, state, settings)
    training.timer.last_save_time = time.monotonic()
    training.timer.max_save_seconds = max(training.timer.max_save_seconds, training.timer.last_save_time - begun)


def resume(run: RunDir, training: Training, console: Console) -> None:
    """Go to where the newest valid checkpoint is; without one, stay at the beginning."""
    if training.process.is_main:
        for line in checkpoint.quarantine_damaged(run):
            console.print(line, soft_wrap=True)
    training.process.barrier()
    state = checkpoint.load_latest(run)
    if state is not None:
        training.network.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
        training.progress, training.best_state_dict = Progress(**state["progress"]), state["best"]
        if training.ema is not None:
            training.ema.load_state_dict(state["average"])
    step, world = training.progress.step, training.process.world_size
    if training.process.all_reduce_sum([step, step**2]) != [world * step, world * step**2]:
        raise TrainingError(f"rank {training.process.rank} found step {step}, another rank another one; start again")
    if training.process.is_main:
        place = training.process.rank_info
        made = collect_provenance() | {"pretrained_sha256": getattr(training.network, "pretrained_sha256", None)}
        write_text(run.path / "provenance.json", json.dumps(made, indent=1) + "\n")
        run.record(
            "started",
            epoch=training.progress.epoch,
            step=training.progress.step,
            world=place.world_size,
            job=place.job_attempt,
            pid=os.getpid(),
            nodes=place.node_names,
        )


def save_best(run: RunDir, training: Training) -> None:
    """Write best.pt and say that the run is trained: the last thing that happens."""
    progress = training.progress
    if training.process.is_main:
        found = {"model": training.best_state_dict, "epoch": progress.best_epoch, "run_id": run.run_id}
        with atomic_write(run.best_file) as aside:
            torch.save(found, aside)
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
