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

from galaxyhpc.status.run_status import Standing, number
from galaxyhpc.storage.events import Record
from galaxyhpc.storage.run_dir import RunDir

CLASSES = 10
SEVERAL = 5  # epochs, before a run is judged at all
NEAR_CHANCE = 0.97  # of the loss of a network that knows nothing but how common the classes are
SIBLINGS = 3  # other seeds, at least: fewer have no typical value
ENOUGH = 30  # other seeds for a median; all pairs of a thousand would take seconds
FAR = 5.0  # typical deviations between seeds
LEAST_FAR = 0.05  # of accuracy
PATIENCE = 5.0  # of a run's own longest epochs
LEAST_PATIENCE = 600.0  # s


@dataclass(frozen=True)
class Labels:
    """How the galaxies of a sweep are divided; without a split.csv, what is known beforehand."""

    commonest: float = 1.0 / CLASSES  # share of the commonest class in the training galaxies
    entropy: float = math.log(CLASSES)  # nats, of the classes of the training galaxies
    train: int = 1000
    validation: int = 200


def labels_of(sweep: Path) -> Labels:
    """Read the classes of a sweep's galaxies from its split.csv."""
    try:
        lines = (sweep / "split.csv").read_text(encoding="utf-8", errors="replace").splitlines()
        head, *rows = [line.split(",") for line in lines if not line.startswith("#")]
        split, label = head.index("split"), head.index("label")
    except (OSError, ValueError):
        return Labels()
    counts = {"train": Counter[str](), "validation": Counter[str]()}
    for row in rows:
        if len(row) == len(head) and row[split] in counts:
            counts[row[split]][row[label]] += 1
    train, validation = counts["train"].total(), counts["validation"].total()
    if not train or not validation:
        return Labels()
    shares = [count / train for count in counts["train"].values()]
    return Labels(max(shares), -sum(p * math.log(p) for p in shares), train, validation)


def alarms(standings: Sequence[Standing], now: float | None = None) -> dict[RunDir, list[str]]:
    """Return what looks wrong, in words that begin with a short name and a colon, by run."""
    found: dict[RunDir, list[str]] = {}
    labels = labels_of(standings[0].run.sweep) if standings else Labels()
    far = _far_from_seeds(standings, labels)
    for one in standings:
        said = [_at_chance(one, labels), far.get(one.run, ""), _no_progress(one, time.time() if now is None else now)]
        if any(said):
            found[one.run] = [text for text in said if text]
    return found


def _at_chance(one: Standing, labels: Labels) -> str:
    """A network that has learned nothing guesses the commonest class, or guesses at random."""
    last = one.records.metrics
    train = one.records.train
    if one.done < max(SEVERAL, 2 * (number(train, "warmup") or 0.0) * (one.epochs or 0)):
        return ""
    unweighted = train.get("class_weights") == "none"
    chance = labels.entropy if unweighted else math.log(CLASSES)
    losses = [number(record, "train_loss") for record in last]
    if all(loss is not None and loss > NEAR_CHANCE * chance for loss in losses):
        return f"at chance: train loss {losses[-1]:.2f} after {one.done} epochs; {chance:.2f} is what guessing gives"
    for what, count in (("train", labels.train), ("validation", labels.validation)):
        margin = 2.0 * math.sqrt(labels.commonest * (1.0 - labels.commonest) / count)
        reached = [number(record, f"{what}_accuracy") for record in last]
        if all(accuracy is not None and accuracy < labels.commonest + margin for accuracy in reached):
            text = f"{what} accuracy {reached[-1]:.3f} after {one.done} epochs"
            return f"at chance: {text}; always the commonest class gives {labels.commonest:.3f}"
    return ""


def _far_from_seeds(standings: Sequence[Standing], labels: Labels) -> dict[RunDir, str]:
    """Compare each run with the others that differ in the seed only, at its own epoch.

    What is typical is pooled over the whole sweep: three or four seeds alone say little of their spread.
    """
    families: dict[str, list[Standing]] = {}
    for one in standings:
        if one.done >= SEVERAL:
            families.setdefault(_family(one), []).append(one)
    apart = {}
    for family in families.values():
        for one in family:
            seeds = [other for other in family[: ENOUGH + 1] if other is not one]
            others = [best for other in seeds if (best := _best_at(other, one.done)) is not None]
            own = _best_at(one, one.done)
            if own is not None and len(others) >= SIBLINGS:
                apart[one.run] = (own, statistics.median(others), len(others))
    if not apart:
        return {}
    typical = 1.4826 * statistics.median(abs(own - middle) for own, middle, _ in apart.values())
    return {
        run: f"unlike seeds: validation accuracy {own:.3f}; {count} other seeds have {middle:.3f} (median)"
        for run, (own, middle, count) in apart.items()
        if abs(own - middle) > max(FAR * max(typical, _sampling(middle, labels)), LEAST_FAR)
    }


def _family(one: Standing) -> str:
    """Return all settings that decide the weights, but the seed, as one text."""
    config = one.records.config
    return json.dumps({name: config.get(name) for name in ("data", "model", "train", "augment")}, sort_keys=True)


def _best_at(one: Standing, epochs: int) -> float | None:
    """Return the best validation accuracy in a run's first epochs; None where it neither is that far nor has ended."""
    if one.done < epochs and not one.records.trained:
        return None
    return one.records.best[min(epochs, one.done) - 1]


def _sampling(accuracy: float, labels: Labels) -> float:
    """Return the deviation of an accuracy that comes from the validation galaxies being few."""
    return math.sqrt(max(accuracy * (1.0 - accuracy), 0.0) / labels.validation)


def _no_progress(one: Standing, now: float) -> str:
    """A run that says nothing for many times its longest epoch hangs, or its node is very slow."""
    if one.name != "running":
        return ""
    took = epoch_seconds(one.records.events)
    last = max(
        (number(e, "time") or 0.0 for e in one.records.events if e["event"] in ("epoch", "started")), default=now
    )
    if not took or now - last < max(PATIENCE * max(took), LEAST_PATIENCE):
        return ""
    quiet, usual = (now - last) / 60.0, statistics.median(took)
    return f"no progress: nothing for {quiet:.0f} min, where an epoch takes {usual:.0f} s"


def epoch_seconds(events: Sequence[Record]) -> list[float]:
    """Return how long the run's epochs took, oldest first."""
    found = (number(event, "seconds") for event in events if event["event"] == "epoch")
    return [seconds for seconds in found if seconds is not None]
