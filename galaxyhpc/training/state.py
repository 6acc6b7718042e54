"""The state of a training: what its steps use and change, the progress, which is saved, and timing, which is not."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from galaxyhpc.config.schema import RunConfig
from galaxyhpc.data.loader import DeviceDataset, steps_per_epoch
from galaxyhpc.runtime.distributed import Process
from galaxyhpc.training.cuda_graph import StepGraph
from galaxyhpc.training.ema import Ema

MIN_NOTICE_SECONDS = 10.0  # for what has not been timed yet


@dataclass
class Progress:
    """The position in a training and its sums; all of it is in every checkpoint, under these names."""

    epoch: int = 0
    step: int = 0  # of the whole run
    batch: int = 0  # of this epoch
    loss_sum: float = 0.0  # over this epoch's samples so far
    correct: float = 0.0
    seen: float = 0.0
    samples: str = ""  # a hash of which galaxies made up each step of this epoch so far
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)  # one record per finished epoch

    def add_step(self, batch_size: int, index_sums: Sequence[float]) -> None:
        """Count a step with a global batch; `index_sums`, of its indices and their squares, identify its galaxies."""
        self.step += 1
        self.batch += 1
        self.seen += batch_size
        self.samples = hashlib.sha256(f"{self.samples}{index_sums}".encode()).hexdigest()[:16]

    def add_result(self, loss_sum: float, num_correct: float) -> None:
        """Add what a step computed, which is known later than the step is counted."""
        self.loss_sum += loss_sum
        self.correct += num_correct

    def begin_next_epoch(self) -> None:
        """Move to the first batch of the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.correct, self.seen, self.samples = 0.0, 0.0, 0.0, ""


@dataclass
class Timer:
    """Durations since this start, in seconds; none of it is saved."""

    last_save_time: float = field(default_factory=time.monotonic)
    last_sync_time: float = field(default_factory=time.monotonic)  # when the processes last agreed to continue
    max_save_seconds: float = 0.0
    max_sync_gap_seconds: float = 0.0  # between two agreements: a step, or the end of an epoch

    @property
    def seconds_since_save(self) -> float:
        return time.monotonic() - self.last_save_time

    @property
    def notice_seconds(self) -> float:
        """Time before its time limit at which a job has to stop: two saves, and what may come before them."""
        return 2 * self.max_save_seconds + self.max_sync_gap_seconds + MIN_NOTICE_SECONDS

    def record_save(self, start_time: float) -> None:
        """Note that a save ends now; `start_time` is of `time.monotonic`."""
        self.last_save_time = time.monotonic()
        self.max_save_seconds = max(self.max_save_seconds, self.last_save_time - start_time)

    def record_sync(self) -> None:
        """Note that the processes agree now."""
        now = time.monotonic()
        self.max_sync_gap_seconds, self.last_sync_time = max(self.max_sync_gap_seconds, now - self.last_sync_time), now


class StepResult(NamedTuple):
    """What a step computes, while it may still be computed."""

    epoch: int
    step: int  # number of steps before it
    sums: Tensor  # (2,) float64, on the host: loss and correct classifications of this process
    is_ready: torch.cuda.Event | None  # of a GPU

    def read(self) -> tuple[float, float]:
        """Wait for the sums, and return them."""
        if self.is_ready is not None:
            self.is_ready.synchronize()
        loss_sum, num_correct = self.sums.tolist()
        return loss_sum, num_correct


@dataclass
class Training:
    """All that a training step uses or changes."""

    config: RunConfig
    process: Process
    network: nn.Module
    model: nn.Module  # the network, in DistributedDataParallel where there are several processes
    optimizer: torch.optim.Optimizer
    dataset: DeviceDataset
    indices: dict[str, Tensor]  # of the splits train and validation
    class_weights: Tensor | None
    ema: Ema | None = None
    graph: StepGraph = field(default_factory=StepGraph)
    pending: StepResult | None = None  # of the last step
    progress: Progress = field(default_factory=Progress)
    best_state_dict: dict[str, Tensor] = field(default_factory=dict)
    timer: Timer = field(default_factory=Timer)

    @property
    def batch_size(self) -> int:
        """Number of galaxies of a global batch: an incomplete last one is dropped."""
        return min(self.config.train.batch_size, len(self.indices["train"]))

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        return steps_per_epoch(len(self.indices["train"]), self.config.train.batch_size) * self.config.train.epochs

    @property
    def eval_model(self) -> nn.Module:
        """The model that is validated and saved as best: the network, or its EMA."""
        return self.network if self.ema is None else self.ema.module
