"""A training step on its device: what is launched for a global batch, and what comes back from it.

    this process's images -> micro-batches: augment, forward, backward -> all-reduce -> clip -> optimizer -> average

Nothing here waits for the device, which may still compute a step while the next one is launched. What changes from
step to step on the host (learning rate, seed, the average's weight) is set beforehand, so that `compute_step` is the
same launches every time, on tensors alone: a GPU can replay them (`cuda_graph`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from galaxyhpc.data.augment import draw_epoch_maps, resample
from galaxyhpc.data.loader import send_to_device
from galaxyhpc.runtime.rng import make_key
from galaxyhpc.steerable.layers import accumulate_filter_gradients
from galaxyhpc.training.optimizer import compute_learning_rate, set_learning_rate
from galaxyhpc.training.state import StepResult, Training


def launch_step(training: Training, local_indices: Tensor) -> StepResult:
    """Launch an optimizer step with this process's part of a global batch, given by its indices on the host."""
    progress = training.progress
    _set_step_values(training)
    inputs = _load_batch(training, local_indices)
    sums = training.graph.run(partial(compute_step, training), *inputs)
    sums = sums.to("cpu", non_blocking=True, copy=True)  # pinned memory, for a GPU
    event = torch.cuda.current_stream().record_event() if training.process.device.type == "cuda" else None
    return StepResult(progress.epoch, progress.step, sums, event)


def _set_step_values(training: Training) -> None:
    """Set what depends on the number of the step, and is the same after a resume."""
    config, step = training.config, training.progress.step
    set_learning_rate(training.optimizer, compute_learning_rate(step, training.total_steps, config.train))
    torch.manual_seed(make_key("dropout", config.seed, step, training.process.rank) % 2**63)
    if training.ema is not None:
        training.ema.set_weight(step)


def _load_batch(training: Training, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (n, 3, S, S) uint8 images, (n,) labels and the (n, 2, 3) maps of their augmentation, on the device."""
    config, device, dataset = training.config, training.process.device, training.dataset
    maps = draw_epoch_maps(len(dataset.images), config.seed, training.progress.epoch, config.augment, device)
    images, labels = dataset.get_uint8_batch(indices)
    return images, labels, maps[send_to_device(indices, device)]


def compute_step(training: Training, images: Tensor, labels: Tensor, maps: Tensor) -> Tensor:
    """Change weights, statistics, optimizer and average by one step.

    Returns the (2,) float64 sums of the loss and of correct classifications over these images, on the device.
    """
    training.model.train()
    training.optimizer.zero_grad()
    sums = _compute_gradients(training, images, labels, maps)
    if training.config.train.clip_norm is not None:
        nn.utils.clip_grad_norm_(training.model.parameters(), training.config.train.clip_norm)
    training.optimizer.step()
    if training.ema is not None:
        training.ema.update(training.network)
    return sums


def _compute_gradients(training: Training, *inputs: Tensor) -> Tensor:
    """Compute the gradients of the global batch's mean loss, in one pass for each micro-batch of this process's part.

    Returns the sums of `compute_step`.
    """
    world_size, micro_batch = training.process.world_size, training.config.resources.micro_batch
    largest_part = math.ceil(training.batch_size / world_size)  # all processes make as many passes as its owner
    num_passes = math.ceil(largest_part / (micro_batch or largest_part))
    sums = torch.zeros(2, device=training.process.device, dtype=torch.float64)
    micro_batches = zip(*(values.tensor_split(num_passes) for values in inputs), strict=True)
    for number, (images, labels, maps) in enumerate(micro_batches, 1):
        with nullcontext() if number == num_passes else _accumulate_gradients(training):
            loss, num_correct = _compute_loss(training, resample(images, maps), labels)
            (loss * world_size / training.batch_size).backward()  # DDP divides by the number of processes
        sums += torch.stack([loss.detach(), num_correct])
    return sums


@contextmanager
def _accumulate_gradients(training: Training) -> Iterator[None]:
    """Postpone to the last pass of a step what needs doing once: gradients of filters, and the all-reduce of DDP."""
    model = training.model
    without_sync = model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
    with accumulate_filter_gradients(training.network), without_sync:
        yield


def _compute_loss(training: Training, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss summed over these galaxies and the number classified correctly, both on the device."""
    with autocast(training):
        logits = training.model(images)
    logits, smoothing = logits.float(), training.config.train.label_smoothing
    loss = cross_entropy(logits, labels, training.class_weights, reduction="sum", label_smoothing=smoothing)
    return loss, (logits.argmax(1) == labels).sum()


def autocast(training: Training) -> torch.autocast:
    """Return the context of the network's precision."""
    is_half = training.config.train.precision == "bfloat16"
    return torch.autocast(training.process.device.type, torch.bfloat16, enabled=is_half)
