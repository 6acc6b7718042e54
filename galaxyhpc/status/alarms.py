"""Alarms of runs that look wrong although nothing failed: at chance, unlike other seeds, no progress.

Each rule has a margin that healthy runs do not reach; an alarm is a reason to look at a run, not a failure.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.data import DataError
from galaxyhpc.data.split_file import SPLIT_FILE_NAME, read_split_labels
from galaxyhpc.status.run_status import RunStatus, get_number
from galaxyhpc.storage.events import JsonDict, RunState
from galaxyhpc.storage.run_dir import RunDir

MIN_EPOCHS = 5  # before a run is checked
CHANCE_LOSS_FRACTION = 0.97  # of the loss of a network that predicts the class frequencies
MIN_OTHER_SEEDS = 3  # for a median
MAX_OTHER_SEEDS = 30  # for a median; all pairs of a thousand seeds take seconds
OUTLIER_SIGMAS = 5.0  # standard deviations between seeds
MIN_ACCURACY_DIFFERENCE = 0.05
STALL_FACTOR = 5.0  # times the longest epoch of the run
MIN_STALL_SECONDS = 600.0


@dataclass(frozen=True)
class ClassDistribution:
    """Classes of a sweep's galaxies; the defaults are for a sweep without split.csv."""

    majority_fraction: float = 1.0 / len(GALAXY10_CLASSES)  # of the most common class, of the training galaxies
    entropy: float = math.log(len(GALAXY10_CLASSES))  # in nats, of the classes of the training galaxies
    num_train: int = 1000
    num_validation: int = 200
    num_classes: int = len(GALAXY10_CLASSES)  # with training galaxies


def read_class_distribution(sweep: Path) -> ClassDistribution:
    """Read the classes of a sweep's galaxies from its split.csv."""
    try:
        galaxies = read_split_labels(sweep / SPLIT_FILE_NAME)
    except DataError:
        return ClassDistribution()
    counts = {"train": Counter[str](), "validation": Counter[str]()}
    for split, label in galaxies:
        if split in counts:
            counts[split][label] += 1
    train, validation = counts["train"].total(), counts["validation"].total()
    if not train or not validation:
        return ClassDistribution()
    fractions = [count / train for count in counts["train"].values()]
    entropy = -sum(p * math.log(p) for p in fractions)
    return ClassDistribution(max(fractions), entropy, train, validation, len(fractions))


def find_alarms(statuses: Sequence[RunStatus], now: float | None = None) -> dict[RunDir, list[str]]:
    """Return the alarms by run; each text starts with its name and a colon."""
    alarms: dict[RunDir, list[str]] = {}
    distribution = read_class_distribution(statuses[0].run.sweep_dir) if statuses else ClassDistribution()
    unlike_seeds = _check_unlike_seeds(statuses, distribution)
    for status in statuses:
        texts = [
            _check_at_chance(status, distribution),
            unlike_seeds.get(status.run, ""),
            _check_no_progress(status, time.time() if now is None else now),
        ]
        if any(texts):
            alarms[status.run] = [text for text in texts if text]
    return alarms


def _check_at_chance(status: RunStatus, distribution: ClassDistribution) -> str:
    """Check that the last epochs beat a network that learned nothing: it predicts the most common class, or guesses."""
    metrics, train, num_epochs = status.records.recent_metrics, status.records.train_config, status.num_epochs_done
    if num_epochs < max(MIN_EPOCHS, 2 * (get_number(train, "warmup") or 0.0) * (status.num_epochs or 0)):
        return ""
    is_unweighted = train.get("class_weights") == "none"
    chance_loss = distribution.entropy if is_unweighted else math.log(distribution.num_classes)
    losses = [get_number(record, "train_loss") for record in metrics]
    if all(loss is not None and loss > CHANCE_LOSS_FRACTION * chance_loss for loss in losses):
        return f"at chance: train loss {losses[-1]:.2f} after {num_epochs} epochs; guessing gives {chance_loss:.2f}"
    for split, count in (("train", distribution.num_train), ("validation", distribution.num_validation)):
        majority = distribution.majority_fraction
        margin = 2.0 * math.sqrt(majority * (1.0 - majority) / count)
        accuracies = [get_number(record, f"{split}_accuracy") for record in metrics]
        if all(accuracy is not None and accuracy < majority + margin for accuracy in accuracies):
            text = f"{split} accuracy {accuracies[-1]:.3f} after {num_epochs} epochs"
            return f"at chance: {text}; always predicting the most common class gives {majority:.3f}"
    return ""


def _check_unlike_seeds(statuses: Sequence[RunStatus], distribution: ClassDistribution) -> dict[RunDir, str]:
    """Compare each run at its epoch with the runs that differ in the seed only.

    The standard deviation between seeds is pooled over the sweep: three or four seeds alone are too few for one.
    """
    families: dict[str, list[RunStatus]] = {}
    for status in statuses:
        if status.num_epochs_done >= MIN_EPOCHS:
            families.setdefault(_make_family_key(status), []).append(status)
    comparisons = {}
    for family in families.values():
        for status in family:
            epoch = status.num_epochs_done
            seeds = [other for other in family[: MAX_OTHER_SEEDS + 1] if other is not status]
            others = [best for other in seeds if (best := _get_best_accuracy(other, epoch)) is not None]
            own = _get_best_accuracy(status, epoch)
            if own is not None and len(others) >= MIN_OTHER_SEEDS:
                comparisons[status.run] = (own, statistics.median(others), len(others))
    if not comparisons:
        return {}
    deviation = 1.4826 * statistics.median(abs(own - median) for own, median, _ in comparisons.values())
    return {
        run: f"unlike seeds: validation accuracy {own:.3f}; the median of {count} other seeds is {median:.3f}"
        for run, (own, median, count) in comparisons.items()
        if abs(own - median)
        > max(OUTLIER_SIGMAS * max(deviation, _compute_sampling_error(median, distribution)), MIN_ACCURACY_DIFFERENCE)
    }


def _make_family_key(status: RunStatus) -> str:
    """Return all settings that determine the weights, except the seed, as one text."""
    config = status.records.config
    return json.dumps({name: config.get(name) for name in ("data", "model", "train", "augment")}, sort_keys=True)


def _get_best_accuracy(status: RunStatus, num_epochs: int) -> float | None:
    """Return the best validation accuracy of the first epochs; None if the run has done fewer and is not trained."""
    if status.num_epochs_done < num_epochs and not status.records.is_trained:
        return None
    return status.records.best_accuracies[min(num_epochs, status.num_epochs_done) - 1]


def _compute_sampling_error(accuracy: float, distribution: ClassDistribution) -> float:
    """Return the standard error of an accuracy that is due to the finite number of validation galaxies."""
    return math.sqrt(max(accuracy * (1.0 - accuracy), 0.0) / distribution.num_validation)


def _check_no_progress(status: RunStatus, now: float) -> str:
    """Check that a run recorded something in several times its longest epoch: else it hangs, or its node is slow."""
    if status.state != RunState.RUNNING:
        return ""
    durations = get_epoch_seconds(status.records.events)
    events = [event for event in status.records.events if event["event"] in ("epoch", "started")]
    last = max((get_number(event, "time") or 0.0 for event in events), default=now)
    if not durations or now - last < max(STALL_FACTOR * max(durations), MIN_STALL_SECONDS):
        return ""
    minutes, median = (now - last) / 60.0, statistics.median(durations)
    return f"no progress: no record for {minutes:.0f} min; an epoch takes {median:.0f} s"


def get_epoch_seconds(events: Sequence[JsonDict]) -> list[float]:
    """Return the durations of the run's epochs in s, oldest first."""
    durations = (get_number(event, "seconds") for event in events if event["event"] == "epoch")
    return [seconds for seconds in durations if seconds is not None]
