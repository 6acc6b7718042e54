"""How far a run is, which is saved, and how long things take since this start, which is not."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

MIN_NOTICE_SECONDS = 10.0  # for what has not been timed yet


@dataclass
class Progress:
    """How far the run is; all of it is in every checkpoint."""

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


@dataclass
class Timer:
    """How long things took since this start, in seconds; none of it is saved."""

    last_save_time: float = field(default_factory=time.monotonic)  # when
    last_sync_time: float = field(default_factory=time.monotonic)  # when the processes last agreed to go on
    max_save_seconds: float = 0.0
    max_sync_gap_seconds: float = 0.0  # between two agreements: a step, or the end of an epoch

    @property
    def notice_seconds(self) -> float:
        """How long before the end of its time a job has to stop: two saves, and what may come before them."""
        return 2 * self.max_save_seconds + self.max_sync_gap_seconds + MIN_NOTICE_SECONDS
