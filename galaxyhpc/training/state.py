"""The state of a training: what its steps use and change, the progress, which is saved, and timing, which is not."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from galaxyhpc.config.schema import RunConfig
from galaxyhpc.data.loader import DeviceDataset, steps_per_epoch
from galaxyhpc.runtime.distributed import Process

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

    def add_step(self, loss_sum: float, num_correct: float, batch_size: int, index_sums: Sequence[float]) -> None:
        """Count a step with a global batch; `index_sums`, of its indices and their squares, identify its galaxies."""
        self.step += 1
        self.batch += 1
        self.loss_sum += loss_sum
        self.correct += num_correct
        self.seen += batch_size
        self.samples = hashlib.sha256(f"{self.samples}{index_sums}".encode()).hexdigest()[:16]

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


@dataclass
class Training:
    """All that a training step uses or changes."""

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
        """The network inside DistributedDataParallel."""
        module: nn.Module = self.model.module
        return module

    @property
    def eval_model(self) -> nn.Module:
        """The model that is validated and saved as best: the network, or its EMA."""
        return self.network if self.ema is None else self.ema.module
