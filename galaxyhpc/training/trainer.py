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
from galaxyhpc.data.augment import maps_of_epoch, resample
from galaxyhpc.data.dataset import load_split, prepare
from galaxyhpc.data.loader import Pictures, load_pictures, order, share, steps_per_epoch
from galaxyhpc.data.split import training_rows
from galaxyhpc.models import build_model, kernel_choice
from galaxyhpc.runtime.distributed import Process, joined
from galaxyhpc.runtime.job import Stop
from galaxyhpc.runtime.malloc import keep_freed
from galaxyhpc.runtime.rng import key
from galaxyhpc.steerable.batch_norm import synchronise_batchnorm
from galaxyhpc.steerable.layers import accumulating
from galaxyhpc.storage import checkpoint
from galaxyhpc.storage.files import atomic_write, write_text
from galaxyhpc.storage.provenance import provenance
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.training.ema import make_average
from galaxyhpc.training.optimizer import class_weights, learning_rate, make_optimizer, set_learning_rate
from galaxyhpc.training.state import Pace, Progress
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
    pictures: Pictures
    rows: dict[str, Tensor]  # of the splits train and validation
    class_weights: Tensor | None
    average: AveragedModel | None = None
    progress: Progress = field(default_factory=Progress)
    best: dict[str, Tensor] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return steps_per_epoch(len(self.rows["train"]), self.config.train.batch_size) * self.config.train.epochs

    @property
    def network(self) -> nn.Module:
        module: nn.Module = self.model.module
        return module

    @property
    def judged(self) -> nn.Module:
        """What is validated and kept: the network, or its average."""
        return self.network if self.average is None else self.average.module


def train(run: RunDir, stop: Stop, most_steps: float = math.inf) -> bool:
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
    checkpoint.refuse_drift(run, config)
    config = config.model_copy(update={"resources": run.with_retry_changes(config.resources.plain)})
    keep_freed()
    torch.set_num_threads(config.resources.cpus_per_task)
    torch.backends.cudnn.deterministic = True
    with joined(run) as process, _bar(process) as bar:
        training = set_up(run, config, process)
        resume(run, training, bar.console)
        progress, pace = training.progress, training.pace
        task = bar.add_task(run.run_id, total=training.steps, completed=progress.step)
        while progress.epoch < config.train.epochs and not _stale(progress, config.train):
            begun, first = time.monotonic(), progress.batch
            batches = order(training.rows["train"], config.seed, progress.epoch, config.train.batch_size)
            for batch in batches[progress.batch :]:
                stopping = train_step(training, batch, stop) or progress.step >= most_steps
                bar.update(task, completed=progress.step)
                if progress.batch == len(batches):
                    break  # saved at the end of the epoch: a step has one state only
                if stopping or time.monotonic() - pace.saved > 60 * config.resources.checkpoint_minutes:
                    save(run, training)
                if stopping:
                    return False
            finish_epoch(run, training, None if first else begun)
            bar.console.print(_line(progress, config.train), soft_wrap=True)
            save(run, training)
            if stopping:
                return False
        finish(run, training)
        return True


def set_up(run: RunDir, config: RunConfig, process: Process) -> Training:
    """Build everything a step works on, as it is before the first step."""
    galaxies = prepare(config.data)
    split = load_split(config.data, galaxies, run.sweep)
    held_out = split.row[split.split == "validation"].to_numpy()
    rows = {"train": torch.tensor(training_rows(split, config.data)), "validation": torch.tensor(held_out)}
    if len(rows["train"]) < 2 * process.world:  # batch norm needs two images
        what = f"data.label_fraction {config.data.label_fraction:g} leaves {len(rows['train'])} training galaxies"
        raise TrainingError(f"{what} for {process.world} processes; each needs at least 2")
    pictures = load_pictures(galaxies, process.device)
    torch.manual_seed(key("weights", config.seed) % 2**63)
    network = build_model(config.model, config.data.image_size).to(process.device)
    kernel_choice.settle(run, network, config, process)
    if config.train.sync_batchnorm:
        synchronise_batchnorm(network)
    devices = [process.device] if process.device.type == "cuda" else None
    with warnings.catch_warnings():  # what is to replace broadcast_buffers is not in torch 2.4
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        model = DistributedDataParallel(network, devices, broadcast_buffers=False, gradient_as_bucket_view=True)
    weights = class_weights(pictures.labels[rows["train"]], config.train)
    training = Training(config, process, model, make_optimizer(model, config.train), pictures, rows, weights)
    training.average = make_average(network, config.train.ema_decay)
    _warm_up(training)
    return training


def _warm_up(training: Training) -> None:
    """Run one pass whose gradients are thrown away.

    DDP arranges its buckets anew after its first pass, and with three or more processes the order of a sum depends
    on the arrangement: without this, the first step after a resume would differ in the last bits.
    """
    if training.process.world == 1:
        return
    buffers = [buffer.clone() for buffer in training.network.buffers()]
    size = training.config.data.image_size
    training.model(torch.zeros(2, 3, size, size, device=training.process.device)).sum().backward()
    for buffer, before in zip(training.network.buffers(), buffers, strict=True):
        buffer.copy_(before)
    training.optimizer.zero_grad()


def train_step(training: Training, batch: Tensor, stop: Stop) -> bool:
    """Take one step with a global batch; return whether to stop, the same answer in every process.

    A signal that comes after the answer was agreed on counts at the next step: `stop` only ever gains.
    """
    config, process, progress, pace = training.config, training.process, training.progress, training.pace
    set_learning_rate(training.optimizer, learning_rate(progress.step, training.steps, config.train))
    training.model.train()
    torch.manual_seed(key("dropout", config.seed, progress.step, process.rank) % 2**63)  # a resume draws the same
    training.optimizer.zero_grad()
    mine = share(batch, process.rank, process.world)
    largest = math.ceil(len(batch) / process.world)  # every process makes as many passes as the busiest
    parts = mine.tensor_split(math.ceil(largest / (config.resources.micro_batch or largest)))
    found = torch.zeros(2, device=process.device, dtype=torch.float64)  # read once: a GPU need not wait
    for last, part in zip([False] * (len(parts) - 1) + [True], parts, strict=True):
        with nullcontext() if last else _more_to_come(training):
            loss, hits = _loss(training, part)
            (loss * process.world / len(batch)).backward()  # DDP divides by the number of processes
        found += torch.stack([loss.detach(), hits])
    stop.ends_within(pace.notice)
    told = [float(stop.requeue), float(stop.leave), float(mine.sum()), float((mine**2).sum())]
    loss_sum, correct, requeue, leave, *rows = process.total([*found.tolist(), *told])
    pace.longest_gap = max(pace.longest_gap, time.monotonic() - pace.agreed)
    pace.agreed = time.monotonic()
    if not math.isfinite(loss_sum):
        raise TrainingError(f"the loss is {loss_sum} in epoch {progress.epoch}, step {progress.step}")
    if config.train.clip_norm is not None:
        nn.utils.clip_grad_norm_(training.model.parameters(), config.train.clip_norm)
    training.optimizer.step()
    if training.average is not None:
        training.average.update_parameters(training.network)
    progress.step, progress.batch = progress.step + 1, progress.batch + 1
    progress.loss_sum, progress.correct = progress.loss_sum + loss_sum, progress.correct + correct
    progress.seen += len(batch)
    progress.samples = hashlib.sha256(f"{progress.samples}{rows}".encode()).hexdigest()[:16]
    if requeue > 0:
        stop.requeue = True
    if leave > 0:
        stop.leave = True
    return requeue + leave > 0


@contextmanager
def _more_to_come(training: Training) -> Iterator[None]:
    """Let gradients wait for the last part of a step: those of filters, and those of other processes."""
    with accumulating(training.network), training.model.no_sync():
        yield


def _loss(training: Training, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss summed over these rows and the number classified right, both on the device."""
    config, device = training.config, training.process.device
    pictures, epoch = training.pictures, training.progress.epoch
    maps = maps_of_epoch(len(pictures.images), config.seed, epoch, config.augment, device)
    images, labels = pictures.take_bytes(rows)
    images = resample(images, maps[rows.to(device)])
    with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bfloat16"):
        logits = training.model(images)
    smoothing = config.train.label_smoothing
    logits = logits.float()
    loss = cross_entropy(logits, labels, training.class_weights, reduction="sum", label_smoothing=smoothing)
    return loss, (logits.argmax(1) == labels).sum()


def finish_epoch(run: RunDir, training: Training, begun: float | None) -> None:
    """Validate, note whether this epoch is the best so far, and begin the next one.

    `begun` is when the epoch began, where all of it was since this start: its time is recorded then.
    """
    progress = training.progress
    held_out, batch_size = training.rows["validation"], training.config.evaluate.batch_size
    loss, accuracy = validate(training.judged, training.pictures, held_out, training.process, batch_size)
    better = (accuracy, -loss) > (progress.best_accuracy, -progress.best_loss)
    if better:
        progress.best_accuracy, progress.best_loss, progress.best_epoch = accuracy, loss, progress.epoch
        training.best = {name: value.cpu().clone() for name, value in training.judged.state_dict().items()}
    progress.history.append(
        {
            "epoch": progress.epoch,
            "step": progress.step,
            "learning_rate": learning_rate(progress.step - 1, training.steps, training.config.train),
            "train_loss": progress.loss_sum / progress.seen,
            "train_accuracy": progress.correct / progress.seen,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "best": better,
            "samples": progress.samples,
        }
    )
    if training.process.writes:
        write_text(run.metrics_file, "".join(json.dumps(record) + "\n" for record in progress.history))
        if begun is not None:
            took = {"seconds": round(time.monotonic() - begun, 3), "images": int(progress.seen)}
            where = {"world": training.process.world, "device": training.process.name}
            run.record("epoch", epoch=progress.epoch, step=progress.step, **took, **where)
    progress.epoch, progress.batch = progress.epoch + 1, 0
    progress.loss_sum, progress.correct, progress.seen, progress.samples = 0.0, 0.0, 0.0, ""


def _stale(progress: Progress, config: TrainConfig) -> bool:
    patience = config.early_stopping
    return patience is not None and progress.epoch - 1 - progress.best_epoch >= patience


def save(run: RunDir, training: Training) -> None:
    """Write a checkpoint of this step."""
    begun = time.monotonic()
    if training.process.writes:
        state = {
            "model": training.network.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "progress": asdict(training.progress),
            "best": training.best,
        }
        if training.average is not None:
            state["average"] = training.average.state_dict()
        step, settings = training.progress.step, training.config.identity()
        checkpoint.save(run, step, training.process.world, state, settings)
    training.pace.saved = time.monotonic()
    training.pace.longest_save = max(training.pace.longest_save, training.pace.saved - begun)


def resume(run: RunDir, training: Training, console: Console) -> None:
    """Go to where the newest valid checkpoint is; without one, stay at the beginning."""
    if training.process.writes:
        for line in checkpoint.quarantine_damaged(run):
            console.print(line, soft_wrap=True)
    training.process.wait()
    state = checkpoint.load_newest(run)
    if state is not None:
        training.network.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
        training.progress, training.best = Progress(**state["progress"]), state["best"]
        if training.average is not None:
            training.average.load_state_dict(state["average"])
    step, world = training.progress.step, training.process.world
    if training.process.total([step, step**2]) != [world * step, world * step**2]:
        raise TrainingError(f"rank {training.process.rank} found step {step}, another rank another one; start again")
    if training.process.writes:
        place = training.process.place
        made = provenance() | {"begun_from": getattr(training.network, "begun_from", None)}
        write_text(run.path / "provenance.json", json.dumps(made, indent=1) + "\n")
        run.record(
            "started",
            epoch=training.progress.epoch,
            step=training.progress.step,
            world=place.world,
            job=place.job,
            pid=os.getpid(),
            nodes=place.node_names,
        )


def finish(run: RunDir, training: Training) -> None:
    """Write best.pt and say that the run is trained: the last thing that happens."""
    progress = training.progress
    if training.process.writes:
        found = {"model": training.best, "epoch": progress.best_epoch, "run_id": run.run_id}
        with atomic_write(run.best_file) as aside:
            torch.save(found, aside)
        run.record("trained", epochs=progress.epoch, best=progress.best_epoch, accuracy=progress.best_accuracy)
    training.process.wait()


def _bar(process: Process) -> ProgressBar:
    console = Console(quiet=not process.writes, markup=False, highlight=False)
    return ProgressBar(console=console, transient=True, disable=not console.is_terminal)


def _line(progress: Progress, config: TrainConfig) -> str:
    last = progress.history[-1]
    return (
        f"epoch {last['epoch'] + 1}/{config.epochs}  step {last['step']}  loss {last['train_loss']:.4f}  "
        f"accuracy {last['train_accuracy']:.3f}  validation {last['validation_accuracy']:.3f}"
        + ("  best so far" if last["best"] else "")
    )
