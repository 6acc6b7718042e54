"""What looks wrong with a run although nothing failed: loss at chance, unlike seeds, no progress.

Each rule has a margin that healthy runs do not reach; an alarm is a reason to look, not a verdict.
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

from galaxyhpc.data import DataError
from galaxyhpc.data.split_file import SPLIT_FILE_NAME, read_split_labels
from galaxyhpc.status.run_status import RunStatus, get_number
from galaxyhpc.storage.events import JsonDict
from galaxyhpc.storage.run_dir import RunDir

NUM_CLASSES = 10
MIN_EPOCHS = 5  # epochs, before a run is judged at all
CHANCE_LOSS_FRACTION = 0.97  # of the loss of a network that knows nothing but how common the classes are
MIN_OTHER_SEEDS = 3  # other seeds, at least: fewer have no typical value
MAX_OTHER_SEEDS = 30  # other seeds for a median; all pairs of a thousand would take seconds
OUTLIER_SIGMAS = 5.0  # typical deviations between seeds
MIN_ACCURACY_DIFFERENCE = 0.05  # of accuracy
STALL_FACTOR = 5.0  # of a run's own longest epochs
MIN_STALL_SECONDS = 600.0  # s


@dataclass(frozen=True)
class ClassDistribution:
    """How the galaxies of a sweep are divided; without a split.csv, what is known beforehand."""

    majority_fraction: float = 1.0 / NUM_CLASSES  # share of the commonest class in the training galaxies
    entropy: float = math.log(NUM_CLASSES)  # nats, of the classes of the training galaxies
    num_train: int = 1000
    num_validation: int = 200


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
    shares = [count / train for count in counts["train"].values()]
    return ClassDistribution(max(shares), -sum(p * math.log(p) for p in shares), train, validation)


def find_alarms(statuses: Sequence[RunStatus], now: float | None = None) -> dict[RunDir, list[str]]:
    """Return what looks wrong, in words that begin with a short name and a colon, by run."""
    found: dict[RunDir, list[str]] = {}
    labels = read_class_distribution(statuses[0].run.sweep_dir) if statuses else ClassDistribution()
    far = _check_unlike_seeds(statuses, labels)
    for one in statuses:
        said = [
            _check_at_chance(one, labels),
            far.get(one.run, ""),
            _check_no_progress(one, time.time() if now is None else now),
        ]
        if any(said):
            found[one.run] = [text for text in said if text]
    return found


def _check_at_chance(status: RunStatus, distribution: ClassDistribution) -> str:
    """A network that has learned nothing guesses the commonest class, or guesses at random."""
    last = status.records.recent_metrics
    train = status.records.train_config
    if status.num_epochs_done < max(MIN_EPOCHS, 2 * (get_number(train, "warmup") or 0.0) * (status.num_epochs or 0)):
        return ""
    unweighted = train.get("class_weights") == "none"
    chance = distribution.entropy if unweighted else math.log(NUM_CLASSES)
    losses = [get_number(record, "train_loss") for record in last]
    if all(loss is not None and loss > CHANCE_LOSS_FRACTION * chance for loss in losses):
        return f"at chance: train loss {losses[-1]:.2f} after {status.num_epochs_done} epochs; {chance:.2f} is what guessing gives"
    for what, count in (("train", distribution.num_train), ("validation", distribution.num_validation)):
        margin = 2.0 * math.sqrt(distribution.majority_fraction * (1.0 - distribution.majority_fraction) / count)
        reached = [get_number(record, f"{what}_accuracy") for record in last]
        if all(accuracy is not None and accuracy < distribution.majority_fraction + margin for accuracy in reached):
            text = f"{what} accuracy {reached[-1]:.3f} after {status.num_epochs_done} epochs"
            return f"at chance: {text}; always the commonest class gives {distribution.majority_fraction:.3f}"
    return ""


def _check_unlike_seeds(statuses: Sequence[RunStatus], distribution: ClassDistribution) -> dict[RunDir, str]:
    """Compare each run with the others that differ in the seed only, at its own epoch.

    What is typical is pooled over the whole sweep: three or four seeds alone say little of their spread.
    """
    families: dict[str, list[RunStatus]] = {}
    for one in statuses:
        if one.num_epochs_done >= MIN_EPOCHS:
            families.setdefault(_make_family_key(one), []).append(one)
    apart = {}
    for family in families.values():
        for one in family:
            seeds = [other for other in family[: MAX_OTHER_SEEDS + 1] if other is not one]
            others = [best for other in seeds if (best := _get_best_accuracy(other, one.num_epochs_done)) is not None]
            own = _get_best_accuracy(one, one.num_epochs_done)
            if own is not None and len(others) >= MIN_OTHER_SEEDS:
                apart[one.run] = (own, statistics.median(others), len(others))
    if not apart:
        return {}
    typical = 1.4826 * statistics.median(abs(own - middle) for own, middle, _ in apart.values())
    return {
        run: f"unlike seeds: validation accuracy {own:.3f}; {count} other seeds have {middle:.3f} (median)"
        for run, (own, middle, count) in apart.items()
        if abs(own - middle)
        > max(OUTLIER_SIGMAS * max(typical, _compute_sampling_error(middle, distribution)), MIN_ACCURACY_DIFFERENCE)
    }


def _make_family_key(status: RunStatus) -> str:
    """Return all settings that decide the weights, but the seed, as one text."""
    config = status.records.config
    return json.dumps({name: config.get(name) for name in ("data", "model", "train", "augment")}, sort_keys=True)


def _get_best_accuracy(status: RunStatus, num_epochs: int) -> float | None:
    """Return the best validation accuracy in a run's first epochs; None where it neither is that far nor has ended."""
    if status.num_epochs_done < num_epochs and not status.records.is_trained:
        return None
    return status.records.best_accuracies[min(num_epochs, status.num_epochs_done) - 1]


def _compute_sampling_error(accuracy: float, distribution: ClassDistribution) -> float:
    """Return the deviation of an accuracy that comes from the validation galaxies being few."""
    return math.sqrt(max(accuracy * (1.0 - accuracy), 0.0) / distribution.num_validation)


def _check_no_progress(status: RunStatus, now: float) -> str:
    """A run that says nothing for many times its longest epoch hangs, or its node is very slow."""
    if status.state != "running":
        return ""
    took = get_epoch_seconds(status.records.events)
    last = max(
        (get_number(e, "time") or 0.0 for e in status.records.events if e["event"] in ("epoch", "started")), default=now
    )
    if not took or now - last < max(STALL_FACTOR * max(took), MIN_STALL_SECONDS):
        return ""
    quiet, usual = (now - last) / 60.0, statistics.median(took)
    return f"no progress: nothing for {quiet:.0f} min, where an epoch takes {usual:.0f} s"


def get_epoch_seconds(events: Sequence[JsonDict]) -> list[float]:
    """Return how long the run's epochs took, oldest first."""
    found = (get_number(event, "seconds") for event in events if event["event"] == "epoch")
    return [seconds for seconds in found if seconds is not None]
