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

from galaxyhpc.analysis.collect import PlanError, RunResults
from galaxyhpc.analysis.misclassified import Misclassification, find_misclassified
from galaxyhpc.analysis.statistics import (
    bootstrap_accuracies,
    combine_p_values,
    corruption_error,
    holm,
    mcnemar,
    pairwise_intervals,
    percentile_interval,
)
from galaxyhpc.config.conditions import ROTATION_MEAN
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.metrics import consistency
from galaxyhpc.evaluation.results import CLEAN, Pair, Predictions
from galaxyhpc.runtime.parallel import parallel_map
from galaxyhpc.storage.run_dir import RunDir

NOT_CORRUPTIONS = ("clean", "rotation_control", ROTATION_MEAN[0])  # no corruptions: not part of a mean corruption error
ALPHA = 0.05  # of the family of all pairs

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NetworkPredictions:
    """What is known of one network, galaxy by galaxy."""

    rows: NDArray[np.int32]  # (n,) of the test galaxies in the data file
    labels: NDArray[np.uint8]  # (n,) truth
    groups: NDArray[np.int32]  # (n,) sky group
    mean_accuracies: dict[Pair, float]  # mean over seeds
    bootstrap_samples: dict[Pair, Floats]  # (draws,) of the same
    consistency: dict[Pair, float]  # with the prediction on clean galaxies, mean over seeds
    clean_predictions: dict[int, NDArray[np.uint8]]  # training seed -> (n,) predictions on clean galaxies
    recall_intervals: pd.DataFrame  # class, recall_low, recall_high: intervals on clean galaxies, where there are any

    def is_correct(self, seed: int) -> NDArray[np.bool_]:
        """(n,) whether a seed classifies each clean galaxy rightly."""
        right: NDArray[np.bool_] = self.clean_predictions[seed] == self.labels
        return right


@dataclass(frozen=True, eq=False)
class SweepPredictions:
    """All that the predictions of a sweep say."""

    networks: dict[str, NetworkPredictions]  # by label
    misclassified: dict[str, tuple[Misclassification, ...]]  # by run
    notes: list[str]  # networks that must do without intervals


def load_predictions(plan: pd.DataFrame, run_results: list[RunResults]) -> SweepPredictions:
    """Read every run's predictions, once.

    Raises
    ------
    planned.PlanError
        where seeds were measured on different test galaxies
    """
    runs: dict[str, dict[int, RunResults]] = defaultdict(dict)
    for label, seed, f in zip(plan["label"], plan["seed"], run_results, strict=True):
        if f.counts is not None:
            runs[label][int(seed)] = f
    gathered, first = SweepPredictions({}, {}, []), None
    read = parallel_map(_load_network, list(runs.values()), "predictions", min_per_process=20)
    for (label, of_network), found_there in zip(runs.items(), read, strict=True):
        if isinstance(found_there, str):
            gathered.notes.append(f"{label}: no intervals, for predictions.h5 of {found_there} is absent or damaged.")
            continue
        one, wrong = found_there
        here = next(iter(of_network.values())).run
        first = first or (here, one.rows)
        _check_same_galaxies(*first, here, one.rows)
        gathered.networks[label] = one
        gathered.misclassified.update(wrong)
    return gathered


def _load_network(
    results_by_seed: dict[int, RunResults],
) -> tuple[NetworkPredictions, dict[str, tuple[Misclassification, ...]]] | str:
    """Return a network's evidence and its runs' mistakes, or name the runs whose predictions are no evidence."""
    read = {seed: _read_consistent(f) for seed, f in results_by_seed.items()}
    sound = {seed: some for seed, some in read.items() if some is not None}
    runs = {seed: f.run for seed, f in results_by_seed.items()}
    if len(sound) < len(read):
        return ", ".join(runs[seed].run_id for seed in read if seed not in sound)
    first = next(iter(sound))
    for seed, some in sound.items():
        _check_same_galaxies(runs[first], sound[first].rows, runs[seed], some.rows)
    wrong = {runs[seed].run_id: find_misclassified(some) for seed, some in sound.items()}
    return _bootstrap_network(sound, {seed: f.planned_pairs for seed, f in results_by_seed.items()}), wrong


def _check_same_galaxies(run_a: RunDir, rows_a: NDArray[np.int32], run_b: RunDir, rows_b: NDArray[np.int32]) -> None:
    if not np.array_equal(rows_a, rows_b):
        which = f"{run_a.run_id} and {run_b.run_id}"
        raise PlanError(f"plan.csv: {which} were measured on different test galaxies; allowed is one split")


def _read_consistent(run_results: RunResults) -> Predictions | None:
    """Read a run's predictions; None where they do not bear its counts out."""
    read = results.read_predictions(run_results.run)
    if read is None or run_results.counts is None:
        return None
    for condition, severity, correct in zip(
        *(run_results.counts[c] for c in ("condition", "severity", "correct")), strict=True
    ):
        predicted = read.predicted.get((condition, severity))
        if predicted is None or np.count_nonzero(predicted == read.labels) != correct:
            return None
    return read


def _bootstrap_network(
    predictions_by_seed: dict[int, Predictions], planned_pairs: Mapping[int, Sequence[Pair]]
) -> NetworkPredictions:
    """Draw a network's accuracies; conditions that the same seeds have go together."""
    one = next(iter(predictions_by_seed.values()))
    by_seeds = defaultdict(list)
    for pair in dict.fromkeys(pair for pairs in planned_pairs.values() for pair in pairs):
        by_seeds[tuple(seed for seed in predictions_by_seed if pair in predictions_by_seed[seed].predicted)].append(
            pair
        )
    drawn: dict[Pair, Floats] = {}
    means: dict[Pair, float] = {}
    same: dict[Pair, float] = {}
    for seeds, pairs in by_seeds.items():
        if not seeds:
            continue
        predicted = np.array([[predictions_by_seed[seed].predicted[pair] for pair in pairs] for seed in seeds])
        right = predicted == one.labels
        means |= dict(zip(pairs, right.mean(axis=(0, 2)).tolist(), strict=True))
        drawn |= dict(zip(pairs, bootstrap_accuracies(right, one.groups, training_seeds=seeds), strict=True))
        if all(CLEAN in predictions_by_seed[seed].predicted for seed in seeds):
            clean = np.array([predictions_by_seed[seed].predicted[CLEAN] for seed in seeds])[:, None]
            same |= dict(zip(pairs, consistency(predicted, clean).mean(axis=0).tolist(), strict=True))
    angles = {pair for pairs in planned_pairs.values() for pair in pairs if pair[0] == "rotation"}
    if angles and angles <= drawn.keys():
        drawn[ROTATION_MEAN] = np.mean([drawn[angle] for angle in angles], axis=0)
    for some in (means, same):
        if angles and angles <= some.keys():
            some[ROTATION_MEAN] = float(np.mean([some[angle] for angle in angles]))
    clean_of = {seed: some.predicted[CLEAN] for seed, some in predictions_by_seed.items() if CLEAN in some.predicted}
    recalls = _compute_recall_intervals(one, clean_of)
    return NetworkPredictions(one.rows, one.labels, one.groups, means, drawn, same, clean_of, recalls)


def add_intervals(summary: pd.DataFrame, network_predictions: dict[str, NetworkPredictions]) -> pd.DataFrame:
    """Fill ci_low, ci_high and consistency of a summary in, where there is evidence."""
    limits: dict[tuple[Any, ...], tuple[float, float, float]] = {}
    for label, one in network_predictions.items():
        low, high = percentile_interval(np.array(list(one.bootstrap_samples.values())))
        for pair, *interval in zip(one.bootstrap_samples, low.tolist(), high.tolist(), strict=True):
            limits[(label, *pair)] = (*interval, one.consistency.get(pair, np.nan))
    keys = zip(*(summary[name].tolist() for name in ("label", "condition", "severity")), strict=True)
    columns = np.array([limits.get(key, (np.nan,) * 3) for key in keys]).reshape(-1, 3).T
    return summary.assign(**dict(zip(("ci_low", "ci_high", "consistency"), columns, strict=True)))


def compare_networks(network_predictions: dict[str, NetworkPredictions]) -> pd.DataFrame:
    """Compare all pairs of networks on clean galaxies; see `tables.Tables.comparisons`."""
    labels = [label for label, one in network_predictions.items() if CLEAN in one.bootstrap_samples]
    pairs = list(combinations(range(len(labels)), 2))
    columns = ["a", "b", "difference", "ci_low", "ci_high", "seeds", "only_a", "only_b", "p", "p_holm", "separable"]
    if not pairs:
        return pd.DataFrame(columns=columns)
    low, high = pairwise_intervals(np.array([network_predictions[label].bootstrap_samples[CLEAN] for label in labels]))
    i, j = np.array(pairs).T
    accuracy = np.array([network_predictions[label].mean_accuracies[CLEAN] for label in labels])
    table = pd.DataFrame({"a": [labels[n] for n in i], "b": [labels[n] for n in j]})
    table = table.assign(difference=accuracy[i] - accuracy[j], ci_low=low[i, j], ci_high=high[i, j])
    table = table.assign(**_test_pairs([network_predictions[label] for label in labels], i, j))
    adjusted = holm(table["p"])
    apart = (adjusted < ALPHA) & ((table["ci_low"] > 0) | (table["ci_high"] < 0))
    return table.assign(p_holm=adjusted, separable=apart)[columns]


def _test_pairs(
    network_predictions: Sequence[NetworkPredictions], i: NDArray[Any], j: NDArray[Any]
) -> dict[str, Floats]:
    """Count what only one of each pair gets right, and test it: seed by seed, then joined over the shared seeds."""
    seeds = sorted({seed for one in network_predictions for seed in one.clean_predictions})
    only_a, only_b, p = np.full((3, len(seeds), len(i)), np.nan)
    for number, seed in enumerate(seeds):
        there = np.array([seed in one.clean_predictions for one in network_predictions])
        right = np.array(
            [
                one.is_correct(seed) if seed in one.clean_predictions else np.zeros(len(one.rows))
                for one in network_predictions
            ]
        )
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
            joined[of_pattern] = combine_p_values(p[np.ix_(pattern, of_pattern)])
    count = shares.sum(axis=0)
    with np.errstate(invalid="ignore"):
        means = {name: np.nansum(each, axis=0) / count for name, each in (("only_a", only_a), ("only_b", only_b))}
    return {"seeds": count, **means, "p": joined}


def compute_corruption_errors(
    network_predictions: dict[str, NetworkPredictions], references: dict[str, str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
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
        if label not in network_predictions or reference not in network_predictions:
            continue
        one, other = network_predictions[label], network_predictions[reference]
        pairs = [pair for pair in other.mean_accuracies if pair[0] not in NOT_CORRUPTIONS]
        if not pairs or not set(pairs) <= one.mean_accuracies.keys():
            continue  # a mean over the easier conditions would flatter
        conditions = [name for name, _ in pairs]
        exact = [np.array([1 - each.mean_accuracies[pair] for pair in pairs]) for each in (one, other)]
        drawn = [np.array([1 - each.bootstrap_samples[pair] for pair in pairs]).T for each in (one, other)]
        names, values = corruption_error(exact[0], exact[1], conditions)
        low, high = percentile_interval(corruption_error(drawn[0], drawn[1], conditions)[1].mean(axis=-1))
        errors += [(label, name, value) for name, value in zip(names, values.tolist(), strict=True)]
        means.append((label, float(values.mean()), float(low), float(high)))
    return (
        pd.DataFrame(errors, columns=["label", "condition", "ce"]),
        pd.DataFrame(means, columns=["label", "mce", "mce_low", "mce_high"]),
    )


def _compute_recall_intervals(
    predictions: Predictions, clean_predictions: Mapping[int, NDArray[np.uint8]]
) -> pd.DataFrame:
    numbers = np.unique(predictions.labels)
    of_class = predictions.labels == numbers[:, None]
    right = np.array([of_class & (predicted == predictions.labels) for predicted in clean_predictions.values()])
    if not len(right):
        return pd.DataFrame(columns=["class"])
    hits = bootstrap_accuracies(right, predictions.groups, training_seeds=tuple(clean_predictions))
    galaxies = bootstrap_accuracies(of_class[None], predictions.groups)  # the same for all seeds
    # a draw without the class has no recall
    recall = np.divide(hits, galaxies, out=np.full(hits.shape, np.nan), where=galaxies > 0)
    low, high = np.nanquantile(recall, [0.025, 0.975], axis=-1)
    return pd.DataFrame({"class": numbers, "recall_low": low, "recall_high": high})


def make_recall_interval_table(network_predictions: dict[str, NetworkPredictions]) -> pd.DataFrame:
    """Intervals of the recall of each class on clean galaxies: label, class, recall_low, recall_high."""
    found = [
        one.recall_intervals.assign(label=label)
        for label, one in network_predictions.items()
        if len(one.recall_intervals)
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["label", "class"])


def find_hardest_galaxies(network_predictions: Iterable[NetworkPredictions], max_galaxies: int = 24) -> pd.DataFrame:
    """List the galaxies that most runs misclassify: row, truth, predicted (the commonest mistake), wrong (fraction)."""
    columns = ["row", "truth", "predicted", "wrong"]
    networks = [one for one in network_predictions if one.clean_predictions]
    if not networks:
        return pd.DataFrame(columns=columns)
    truth = networks[0].labels.astype(np.int64)
    votes = np.zeros((len(truth), 10), np.int64)
    for one in networks:
        for predicted in one.clean_predictions.values():
            votes[np.arange(len(truth)), predicted] += 1
    wrong = 1 - votes[np.arange(len(truth)), truth] / votes.sum(axis=1)
    votes[np.arange(len(truth)), truth] = -1
    chosen = np.argsort(-wrong, kind="stable")[:max_galaxies]
    chosen = chosen[wrong[chosen] > 0]
    rows = networks[0].rows[chosen]
    found = {"row": rows, "truth": truth[chosen], "predicted": votes[chosen].argmax(axis=1), "wrong": wrong[chosen]}
    return pd.DataFrame(found)[columns]
