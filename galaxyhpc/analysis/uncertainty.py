"""What the predictions say galaxy by galaxy: intervals, paired differences, consistency, corruption errors.

Every network is drawn alike (`statistics.accuracy_draws`), so that a difference of two draws is a draw of the
difference; all intervals of a report come from the same thousand draws of the sky.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from galaxyhpc.analysis.collect import Found, PlanError
from galaxyhpc.analysis.misclassified import Mistake, mistakes
from galaxyhpc.analysis.statistics import (
    accuracy_draws,
    corruption_error,
    holm,
    mcnemar,
    paired_intervals,
    percentile_interval,
    rueger,
)
from galaxyhpc.config.conditions import ROTATION_MEAN
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.metrics import consistency
from galaxyhpc.evaluation.results import CLEAN, Pair, Predictions
from galaxyhpc.runtime.parallel import mapped
from galaxyhpc.storage.run_dir import RunDir

UNCOUNTED = ("clean", "rotation_control", ROTATION_MEAN[0])  # no corruptions: not part of a mean corruption error
ALPHA = 0.05  # of the family of all pairs

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of one network, galaxy by galaxy."""

    rows: NDArray[np.int32]  # (n,) of the test galaxies in the data file
    labels: NDArray[np.uint8]  # (n,) truth
    groups: NDArray[np.int32]  # (n,) sky group
    accuracy: dict[Pair, float]  # mean over seeds
    draws: dict[Pair, Floats]  # (draws,) of the same
    consistency: dict[Pair, float]  # with the prediction on clean galaxies, mean over seeds
    clean: dict[int, NDArray[np.uint8]]  # training seed -> (n,) predictions on clean galaxies
    recalls: pd.DataFrame  # class, recall_low, recall_high: intervals on clean galaxies, where there are any

    def right(self, seed: int) -> NDArray[np.bool_]:
        """(n,) whether a seed classifies each clean galaxy rightly."""
        right: NDArray[np.bool_] = self.clean[seed] == self.labels
        return right


@dataclass(frozen=True, eq=False)
class Gathered:
    """All that the predictions of a sweep say."""

    networks: dict[str, Evidence]  # by label
    mistakes: dict[str, tuple[Mistake, ...]]  # by run
    notes: list[str]  # networks that must do without intervals


def gather(plan: pd.DataFrame, found: list[Found]) -> Gathered:
    """Read every run's predictions, once.

    Raises
    ------
    planned.PlanError
        where seeds were measured on different test galaxies
    """
    runs: dict[str, dict[int, Found]] = defaultdict(dict)
    for label, seed, f in zip(plan["label"], plan["seed"], found, strict=True):
        if f.table is not None:
            runs[label][int(seed)] = f
    gathered, first = Gathered({}, {}, []), None
    read = mapped(_read, list(runs.values()), "predictions", least=20)
    for (label, of_network), found_there in zip(runs.items(), read, strict=True):
        if isinstance(found_there, str):
            gathered.notes.append(f"{label}: no intervals, for predictions.h5 of {found_there} is absent or damaged.")
            continue
        one, wrong = found_there
        here = next(iter(of_network.values())).run
        first = first or (here, one.rows)
        _refuse_other_galaxies(*first, here, one.rows)
        gathered.networks[label] = one
        gathered.mistakes.update(wrong)
    return gathered


def _read(of_network: dict[int, Found]) -> tuple[Evidence, dict[str, tuple[Mistake, ...]]] | str:
    """Return a network's evidence and its runs' mistakes, or name the runs whose predictions are no evidence."""
    read = {seed: _borne_out(f) for seed, f in of_network.items()}
    sound = {seed: some for seed, some in read.items() if some is not None}
    runs = {seed: f.run for seed, f in of_network.items()}
    if len(sound) < len(read):
        return ", ".join(runs[seed].run_id for seed in read if seed not in sound)
    first = next(iter(sound))
    for seed, some in sound.items():
        _refuse_other_galaxies(runs[first], sound[first].rows, runs[seed], some.rows)
    wrong = {runs[seed].run_id: mistakes(some) for seed, some in sound.items()}
    return _evidence(sound, {seed: f.pairs for seed, f in of_network.items()}), wrong


def _refuse_other_galaxies(a: RunDir, rows: NDArray[np.int32], b: RunDir, others: NDArray[np.int32]) -> None:
    if not np.array_equal(rows, others):
        which = f"{a.run_id} and {b.run_id}"
        raise PlanError(f"plan.csv: {which} were measured on different test galaxies; allowed is one split")


def _borne_out(f: Found) -> Predictions | None:
    """Read a run's predictions; None where they do not bear its counts out."""
    read = results.read_predictions(f.run)
    if read is None or f.table is None:
        return None
    for condition, severity, correct in zip(*(f.table[c] for c in ("condition", "severity", "correct")), strict=True):
        predicted = read.predicted.get((condition, severity))
        if predicted is None or np.count_nonzero(predicted == read.labels) != correct:
            return None
    return read


def _evidence(read: dict[int, Predictions], planned: Mapping[int, Sequence[Pair]]) -> Evidence:
    """Draw a network's accuracies; conditions that the same seeds have go together."""
    one = next(iter(read.values()))
    by_seeds = defaultdict(list)
    for pair in dict.fromkeys(pair for pairs in planned.values() for pair in pairs):
        by_seeds[tuple(seed for seed in read if pair in read[seed].predicted)].append(pair)
    drawn: dict[Pair, Floats] = {}
    means: dict[Pair, float] = {}
    same: dict[Pair, float] = {}
    for seeds, pairs in by_seeds.items():
        if not seeds:
            continue
        predicted = np.array([[read[seed].predicted[pair] for pair in pairs] for seed in seeds])
        right = predicted == one.labels
        means |= dict(zip(pairs, right.mean(axis=(0, 2)).tolist(), strict=True))
        drawn |= dict(zip(pairs, accuracy_draws(right, one.groups, trainings=seeds), strict=True))
        if all(CLEAN in read[seed].predicted for seed in seeds):
            clean = np.array([read[seed].predicted[CLEAN] for seed in seeds])[:, None]
            same |= dict(zip(pairs, consistency(predicted, clean).mean(axis=0).tolist(), strict=True))
    angles = {pair for pairs in planned.values() for pair in pairs if pair[0] == "rotation"}
    if angles and angles <= drawn.keys():
        drawn[ROTATION_MEAN] = np.mean([drawn[angle] for angle in angles], axis=0)
    for some in (means, same):
        if angles and angles <= some.keys():
            some[ROTATION_MEAN] = float(np.mean([some[angle] for angle in angles]))
    clean_of = {seed: some.predicted[CLEAN] for seed, some in read.items() if CLEAN in some.predicted}
    recalls = _recall_intervals(one, clean_of)
    return Evidence(one.rows, one.labels, one.groups, means, drawn, same, clean_of, recalls)


def with_intervals(summary: pd.DataFrame, known: dict[str, Evidence]) -> pd.DataFrame:
    """Fill ci_low, ci_high and consistency of a summary in, where there is evidence."""
    limits: dict[tuple[Any, ...], tuple[float, float, float]] = {}
    for label, one in known.items():
        low, high = percentile_interval(np.array(list(one.draws.values())))
        for pair, *interval in zip(one.draws, low.tolist(), high.tolist(), strict=True):
            limits[(label, *pair)] = (*interval, one.consistency.get(pair, np.nan))
    keys = zip(*(summary[name].tolist() for name in ("label", "condition", "severity")), strict=True)
    columns = np.array([limits.get(key, (np.nan,) * 3) for key in keys]).reshape(-1, 3).T
    return summary.assign(**dict(zip(("ci_low", "ci_high", "consistency"), columns, strict=True)))


def compare(known: dict[str, Evidence]) -> pd.DataFrame:
    """Compare all pairs of networks on clean galaxies; see `tables.Tables.comparisons`."""
    labels = [label for label, one in known.items() if CLEAN in one.draws]
    pairs = list(combinations(range(len(labels)), 2))
    columns = ["a", "b", "difference", "ci_low", "ci_high", "seeds", "only_a", "only_b", "p", "p_holm", "separable"]
    if not pairs:
        return pd.DataFrame(columns=columns)
    low, high = paired_intervals(np.array([known[label].draws[CLEAN] for label in labels]))
    i, j = np.array(pairs).T
    accuracy = np.array([known[label].accuracy[CLEAN] for label in labels])
    table = pd.DataFrame({"a": [labels[n] for n in i], "b": [labels[n] for n in j]})
    table = table.assign(difference=accuracy[i] - accuracy[j], ci_low=low[i, j], ci_high=high[i, j])
    table = table.assign(**_discordant([known[label] for label in labels], i, j))
    adjusted = holm(table["p"])
    apart = (adjusted < ALPHA) & ((table["ci_low"] > 0) | (table["ci_high"] < 0))
    return table.assign(p_holm=adjusted, separable=apart)[columns]


def _discordant(networks: Sequence[Evidence], i: NDArray[Any], j: NDArray[Any]) -> dict[str, Floats]:
    """Count what only one of each pair gets right, and test it: seed by seed, then joined over the shared seeds."""
    seeds = sorted({seed for one in networks for seed in one.clean})
    only_a, only_b, p = np.full((3, len(seeds), len(i)), np.nan)
    for number, seed in enumerate(seeds):
        there = np.array([seed in one.clean for one in networks])
        right = np.array([one.right(seed) if seed in one.clean else np.zeros(len(one.rows)) for one in networks])
        both = (right.astype(np.float32) @ right.astype(np.float32).T).astype(np.int64)
        alone = np.diagonal(both)[:, None] - both  # [a, b]: right by a, not by b
        shared = there[i] & there[j]
        only_a[number, shared], only_b[number, shared] = alone[i, j][shared], alone[j, i][shared]
        p[number, shared] = mcnemar(alone[i, j][shared], alone[j, i][shared])
    shares = ~np.isnan(p)
    joined = np.full(len(i), np.nan)
    for pattern in np.unique(shares, axis=1).T:
        of_pattern = (shares == pattern[:, None]).all(axis=0)
        if pattern.any():
            joined[of_pattern] = rueger(p[np.ix_(pattern, of_pattern)])
    count = shares.sum(axis=0)
    with np.errstate(invalid="ignore"):
        means = {name: np.nansum(each, axis=0) / count for name, each in (("only_a", only_a), ("only_b", only_b))}
    return {"seeds": count, **means, "p": joined}


def corruption_errors(known: dict[str, Evidence], references: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Corruption errors by condition, and their mean with its interval, relative to each network's reference.

    Parameters
    ----------
    references : network -> the conventional network that it is measured by

    Returns
    -------
    (label, condition, ce) and (label, mce, mce_low, mce_high); of networks that have all their reference has
    """
    errors, means = [], []
    for label, reference in references.items():
        if label not in known or reference not in known:
            continue
        one, other = known[label], known[reference]
        pairs = [pair for pair in other.accuracy if pair[0] not in UNCOUNTED]
        if not pairs or not set(pairs) <= one.accuracy.keys():
            continue  # a mean over the easier conditions would flatter
        conditions = [name for name, _ in pairs]
        exact = [np.array([1 - each.accuracy[pair] for pair in pairs]) for each in (one, other)]
        drawn = [np.array([1 - each.draws[pair] for pair in pairs]).T for each in (one, other)]
        names, values = corruption_error(exact[0], exact[1], conditions)
        low, high = percentile_interval(corruption_error(drawn[0], drawn[1], conditions)[1].mean(axis=-1))
        errors += [(label, name, value) for name, value in zip(names, values.tolist(), strict=True)]
        means.append((label, float(values.mean()), float(low), float(high)))
    return (
        pd.DataFrame(errors, columns=["label", "condition", "ce"]),
        pd.DataFrame(means, columns=["label", "mce", "mce_low", "mce_high"]),
    )


def _recall_intervals(one: Predictions, clean: Mapping[int, NDArray[np.uint8]]) -> pd.DataFrame:
    numbers = np.unique(one.labels)
    of_class = one.labels == numbers[:, None]
    right = np.array([of_class & (predicted == one.labels) for predicted in clean.values()])
    if not len(right):
        return pd.DataFrame(columns=["class"])
    hits = accuracy_draws(right, one.groups, trainings=tuple(clean))
    galaxies = accuracy_draws(of_class[None], one.groups)  # the same for all seeds
    # a draw without the class has no recall
    recall = np.divide(hits, galaxies, out=np.full(hits.shape, np.nan), where=galaxies > 0)
    low, high = np.nanquantile(recall, [0.025, 0.975], axis=-1)
    return pd.DataFrame({"class": numbers, "recall_low": low, "recall_high": high})


def recall_intervals(known: dict[str, Evidence]) -> pd.DataFrame:
    """Intervals of the recall of each class on clean galaxies: label, class, recall_low, recall_high."""
    found = [one.recalls.assign(label=label) for label, one in known.items() if len(one.recalls)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["label", "class"])


def hardest(known: Iterable[Evidence], most: int = 24) -> pd.DataFrame:
    """List the galaxies that most runs misclassify: row, truth, predicted (the commonest mistake), wrong (fraction)."""
    columns = ["row", "truth", "predicted", "wrong"]
    networks = [one for one in known if one.clean]
    if not networks:
        return pd.DataFrame(columns=columns)
    truth = networks[0].labels.astype(np.int64)
    votes = np.zeros((len(truth), 10), np.int64)
    for one in networks:
        for predicted in one.clean.values():
            votes[np.arange(len(truth)), predicted] += 1
    wrong = 1 - votes[np.arange(len(truth)), truth] / votes.sum(axis=1)
    votes[np.arange(len(truth)), truth] = -1
    chosen = np.argsort(-wrong, kind="stable")[:most]
    chosen = chosen[wrong[chosen] > 0]
    rows = networks[0].rows[chosen]
    found = {"row": rows, "truth": truth[chosen], "predicted": votes[chosen].argmax(axis=1), "wrong": wrong[chosen]}
    return pd.DataFrame(found)[columns]
