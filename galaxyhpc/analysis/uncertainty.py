"""Intervals, paired differences, consistency and corruption errors from the predictions of single galaxies.

All networks share their bootstrap samples (`statistics.bootstrap_accuracies`), so the difference of two networks'
samples is a sample of the difference, and all intervals of a report come from the same 1,000 samples of the sky groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from galaxyhpc.analysis.collect import CollectedSweep, PlanError, RunResults
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
from galaxyhpc.evaluation.results import CLEAN, Labels, Pair, Predictions
from galaxyhpc.runtime.parallel import parallel_map
from galaxyhpc.storage.run_dir import RunDir

NOT_CORRUPTIONS = ("clean", "rotation_control", ROTATION_MEAN[0])  # left out of the mean corruption error
ALPHA = 0.05  # significance level of the family of all pairs

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NetworkPredictions:
    """Predictions of one network for n test galaxies, and the statistics of its accuracy."""

    rows: NDArray[np.int32]  # (n,) of the test galaxies in the data file
    labels: Labels  # (n,) truth
    groups: NDArray[np.int32]  # (n,) sky group
    mean_accuracies: dict[Pair, float]  # mean over seeds
    bootstrap_samples: dict[Pair, Floats]  # (num_samples,) of the same
    consistency: dict[Pair, float]  # with the prediction on clean galaxies, mean over seeds
    clean_predictions: dict[int, Labels]  # training seed -> (n,) predictions on clean galaxies
    recall_intervals: pd.DataFrame  # class, recall_low, recall_high on clean galaxies; empty without predictions

    def is_correct(self, seed: int) -> NDArray[np.bool_]:
        """(n,) whether a training seed classifies each clean galaxy correctly."""
        correct: NDArray[np.bool_] = self.clean_predictions[seed] == self.labels
        return correct


@dataclass(frozen=True, eq=False)
class SweepPredictions:
    """The predictions of a sweep."""

    networks: dict[str, NetworkPredictions]  # by label
    misclassified: dict[str, tuple[Misclassification, ...]]  # by run
    notes: list[str]  # networks without intervals


def load_predictions(sweep: CollectedSweep) -> SweepPredictions:
    """Read the predictions of every run, once; those of all folds of a seed are one set of predictions.

    Raises
    ------
    collect.PlanError
        if seeds were measured on different test galaxies
    """
    runs: dict[str, dict[int, list[RunResults]]] = defaultdict(lambda: defaultdict(list))
    for label, seed, run in sweep.iterate_labelled():
        if run.counts is not None:
            runs[label][int(seed)].append(run)
    loaded, first = SweepPredictions({}, {}, []), None
    num_folds = sweep.plan["fold"].nunique()
    for label in [label for label, seeds in runs.items() if any(len(folds) < num_folds for folds in seeds.values())]:
        del runs[label]
        loaded.notes.append(f"{label}: no intervals, because a seed of it lacks results of one of {num_folds} folds.")
    networks = parallel_map(_load_network, [dict(seeds) for seeds in runs.values()], "predictions", min_per_process=20)
    for (label, runs_by_seed), network in zip(runs.items(), networks, strict=True):
        if isinstance(network, str):
            loaded.notes.append(f"{label}: no intervals, because predictions.h5 of {network} is missing or damaged.")
            continue
        predictions, misclassified = network
        run_dir = next(iter(runs_by_seed.values()))[0].run
        first = first or (run_dir, predictions.rows)
        _check_same_galaxies(*first, run_dir, predictions.rows)
        loaded.networks[label] = predictions
        loaded.misclassified.update(misclassified)
    return loaded


def _load_network(
    runs_by_seed: dict[int, list[RunResults]],
) -> tuple[NetworkPredictions, dict[str, tuple[Misclassification, ...]]] | str:
    """Load a network's predictions and its runs' misclassifications, or name the runs with unusable predictions."""
    run_ids, valid = [], defaultdict(list)
    misclassified: dict[str, tuple[Misclassification, ...]] = {}
    for seed, run in ((seed, run) for seed, folds in runs_by_seed.items() for run in folds):
        if (read := _read_consistent(run)) is None:
            run_ids.append(run.run.run_id)
        else:
            valid[seed].append(read)
            misclassified[run.run.run_id] = find_misclassified(read)
    if run_ids:
        return ", ".join(run_ids)
    pooled = {seed: _pool_folds(folds) for seed, folds in valid.items()}
    first = next(iter(pooled))
    for seed, predictions in pooled.items():
        run_dirs = runs_by_seed[first][0].run, runs_by_seed[seed][0].run
        _check_same_galaxies(run_dirs[0], pooled[first].rows, run_dirs[1], predictions.rows)
    planned_pairs = {seed: folds[0].planned_pairs for seed, folds in runs_by_seed.items()}
    return _bootstrap_network(pooled, planned_pairs), misclassified


def _pool_folds(folds: Sequence[Predictions]) -> Predictions:
    """Join the predictions of one seed for the test galaxies of several folds; pairs that not all have are left out."""
    folds = sorted(folds, key=lambda read: int(read.rows.min()))  # in one order, whatever that of the runs
    rows, labels, groups = (
        np.concatenate([getattr(read, name) for read in folds]) for name in ("rows", "labels", "groups")
    )
    pairs = [pair for pair in folds[0].predicted if all(pair in read.predicted for read in folds)]
    predicted = {pair: np.concatenate([read.predicted[pair] for read in folds]) for pair in pairs}
    return replace(folds[0], rows=rows, labels=labels, groups=groups, predicted=predicted)


def _check_same_galaxies(run_a: RunDir, rows_a: NDArray[np.int32], run_b: RunDir, rows_b: NDArray[np.int32]) -> None:
    if not np.array_equal(rows_a, rows_b):
        run_ids = f"{run_a.run_id} and {run_b.run_id}"
        raise PlanError(f"plan.csv: {run_ids} were measured on different test galaxies; expected one split")


def _read_consistent(run: RunResults) -> Predictions | None:
    """Read a run's predictions; None if they are missing or disagree with its counts."""
    predictions = results.read_predictions(run.run)
    if predictions is None or run.counts is None:
        return None
    columns = (run.counts[name] for name in ("condition", "severity", "correct"))
    for condition, severity, num_correct in zip(*columns, strict=True):
        predicted = predictions.predicted.get((condition, severity))
        if predicted is None or np.count_nonzero(predicted == predictions.labels) != num_correct:
            return None
    return predictions


def _bootstrap_network(
    predictions_by_seed: dict[int, Predictions], planned_pairs: Mapping[int, Sequence[Pair]]
) -> NetworkPredictions:
    """Bootstrap a network's accuracies; pairs that the same seeds have share one call."""
    first = next(iter(predictions_by_seed.values()))
    all_pairs = dict.fromkeys(pair for pairs in planned_pairs.values() for pair in pairs)
    pairs_by_seeds = defaultdict(list)
    for pair in all_pairs:
        pairs_by_seeds[tuple(seed for seed, read in predictions_by_seed.items() if pair in read.predicted)].append(pair)
    samples: dict[Pair, Floats] = {}
    means: dict[Pair, float] = {}
    consistencies: dict[Pair, float] = {}
    for seeds, pairs in pairs_by_seeds.items():
        if not seeds:
            continue
        predicted = np.array([[predictions_by_seed[seed].predicted[pair] for pair in pairs] for seed in seeds])
        correct = predicted == first.labels
        means |= dict(zip(pairs, correct.mean(axis=(0, 2)).tolist(), strict=True))
        samples |= dict(zip(pairs, bootstrap_accuracies(correct, first.groups, training_seeds=seeds), strict=True))
        if all(CLEAN in predictions_by_seed[seed].predicted for seed in seeds):
            clean = np.array([predictions_by_seed[seed].predicted[CLEAN] for seed in seeds])[:, None]
            consistencies |= dict(zip(pairs, consistency(predicted, clean).mean(axis=0).tolist(), strict=True))
    angles = [pair for pair in all_pairs if pair[0] == "rotation"]
    if angles and samples.keys() >= set(angles):
        samples[ROTATION_MEAN] = np.mean([samples[angle] for angle in angles], axis=0)
    for values in (means, consistencies):
        if angles and values.keys() >= set(angles):
            values[ROTATION_MEAN] = float(np.mean([values[angle] for angle in angles]))
    clean_predictions = {
        seed: read.predicted[CLEAN] for seed, read in predictions_by_seed.items() if CLEAN in read.predicted
    }
    recalls = _compute_recall_intervals(first, clean_predictions)
    return NetworkPredictions(
        first.rows, first.labels, first.groups, means, samples, consistencies, clean_predictions, recalls
    )


def add_intervals(summary: pd.DataFrame, networks: Mapping[str, NetworkPredictions]) -> pd.DataFrame:
    """Fill in ci_low, ci_high and consistency of the networks whose predictions are known."""
    values: dict[tuple[Any, ...], tuple[float, float, float]] = {}
    for label, network in networks.items():
        low, high = percentile_interval(np.array(list(network.bootstrap_samples.values())))
        for pair, *interval in zip(network.bootstrap_samples, low.tolist(), high.tolist(), strict=True):
            values[(label, *pair)] = (*interval, network.consistency.get(pair, np.nan))
    keys = zip(*(summary[name].tolist() for name in ("label", "condition", "severity")), strict=True)
    columns = np.array([values.get(key, (np.nan,) * 3) for key in keys]).reshape(-1, 3).T
    return summary.assign(**dict(zip(("ci_low", "ci_high", "consistency"), columns, strict=True)))


def compare_networks(networks: Mapping[str, NetworkPredictions]) -> pd.DataFrame:
    """Compare all pairs of networks on clean galaxies; see `tables.Tables.comparisons`."""
    labels = [label for label, network in networks.items() if CLEAN in network.bootstrap_samples]
    pairs = list(combinations(range(len(labels)), 2))
    columns = ["a", "b", "difference", "ci_low", "ci_high", "seeds", "only_a", "only_b", "p", "p_holm", "significant"]
    if not pairs:
        return pd.DataFrame(columns=columns)
    low, high = pairwise_intervals(np.array([networks[label].bootstrap_samples[CLEAN] for label in labels]))
    i, j = np.array(pairs).T
    accuracy = np.array([networks[label].mean_accuracies[CLEAN] for label in labels])
    table = pd.DataFrame({"a": [labels[n] for n in i], "b": [labels[n] for n in j]})
    table = table.assign(difference=accuracy[i] - accuracy[j], ci_low=low[i, j], ci_high=high[i, j])
    table = table.assign(**_test_pairs([networks[label] for label in labels], i, j))
    adjusted = holm(table["p"])
    significant = (adjusted < ALPHA) & ((table["ci_low"] > 0) | (table["ci_high"] < 0))
    return table.assign(p_holm=adjusted, significant=significant)[columns]


def _test_pairs(networks: Sequence[NetworkPredictions], i: NDArray[Any], j: NDArray[Any]) -> dict[str, Floats]:
    """Count the galaxies that only one of each pair classifies correctly, and test the counts.

    Each training seed is tested alone; the p values of the seeds that a pair shares are then combined.

    Parameters
    ----------
    i, j : (P,) indices of the networks of each pair
    """
    seeds = sorted({seed for network in networks for seed in network.clean_predictions})
    only_a, only_b, p = np.full((3, len(seeds), len(i)), np.nan)
    for n, seed in enumerate(seeds):
        has_seed = np.array([seed in network.clean_predictions for network in networks])
        correct = np.array(
            [
                network.is_correct(seed) if seed in network.clean_predictions else np.zeros(len(network.rows))
                for network in networks
            ]
        )
        both = (correct.astype(np.float32) @ correct.astype(np.float32).T).astype(np.int64)
        only_first = np.diagonal(both)[:, None] - both  # [a, b]: correct by a, not by b
        shared = has_seed[i] & has_seed[j]
        only_a[n, shared], only_b[n, shared] = only_first[i, j][shared], only_first[j, i][shared]
        p[n, shared] = mcnemar(only_first[i, j][shared], only_first[j, i][shared])
    is_tested = ~np.isnan(p)
    combined = np.full(len(i), np.nan)
    for pattern in np.unique(is_tested, axis=1).T:
        has_pattern = (is_tested == pattern[:, None]).all(axis=0)
        if pattern.any():
            combined[has_pattern] = combine_p_values(p[np.ix_(pattern, has_pattern)])
    count = is_tested.sum(axis=0)
    with np.errstate(invalid="ignore"):
        means = {name: np.nansum(counts, axis=0) / count for name, counts in (("only_a", only_a), ("only_b", only_b))}
    return {"seeds": count, **means, "p": combined}


def compute_corruption_errors(
    networks: Mapping[str, NetworkPredictions], references: Mapping[str, str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compute corruption errors by condition, and their mean with its interval, relative to each network's reference.

    Parameters
    ----------
    references : network label -> label of the conventional network that it is relative to

    Returns
    -------
    (label, condition, ce) and (label, mce, mce_low, mce_high); of networks with all conditions of their reference
    """
    errors, means = [], []
    for label, reference_label in references.items():
        if label not in networks or reference_label not in networks:
            continue
        network, reference = networks[label], networks[reference_label]
        pairs = [pair for pair in reference.mean_accuracies if pair[0] not in NOT_CORRUPTIONS]
        if not pairs or not set(pairs) <= network.mean_accuracies.keys():
            continue  # a mean over the easier conditions would flatter
        conditions = [name for name, _ in pairs]
        both = (network, reference)
        mean_errors = [np.array([1 - n.mean_accuracies[pair] for pair in pairs]) for n in both]
        sample_errors = [np.array([1 - n.bootstrap_samples[pair] for pair in pairs]).T for n in both]
        names, ce = corruption_error(mean_errors[0], mean_errors[1], conditions)
        sample_ce = corruption_error(sample_errors[0], sample_errors[1], conditions)[1]
        low, high = percentile_interval(sample_ce.mean(axis=-1))
        errors += [(label, name, value) for name, value in zip(names, ce.tolist(), strict=True)]
        means.append((label, float(ce.mean()), float(low), float(high)))
    return (
        pd.DataFrame(errors, columns=["label", "condition", "ce"]),
        pd.DataFrame(means, columns=["label", "mce", "mce_low", "mce_high"]),
    )


def _compute_recall_intervals(predictions: Predictions, clean_predictions: Mapping[int, Labels]) -> pd.DataFrame:
    """Bootstrap the recall of each class on clean galaxies: class, recall_low, recall_high."""
    classes = np.unique(predictions.labels)
    is_class = predictions.labels == classes[:, None]
    is_hit = np.array([is_class & (predicted == predictions.labels) for predicted in clean_predictions.values()])
    if not len(is_hit):
        return pd.DataFrame(columns=["class"])
    hits = bootstrap_accuracies(is_hit, predictions.groups, training_seeds=tuple(clean_predictions))
    galaxies = bootstrap_accuracies(is_class[None], predictions.groups)  # the same for all seeds
    # a sample without the class has no recall
    recall = np.divide(hits, galaxies, out=np.full(hits.shape, np.nan), where=galaxies > 0)
    low, high = np.nanquantile(recall, [0.025, 0.975], axis=-1)
    return pd.DataFrame({"class": classes, "recall_low": low, "recall_high": high})


def make_recall_interval_table(networks: Mapping[str, NetworkPredictions]) -> pd.DataFrame:
    """Join the recall intervals of all networks: label, class, recall_low, recall_high."""
    parts = [
        network.recall_intervals.assign(label=label)
        for label, network in networks.items()
        if len(network.recall_intervals)
    ]
    columns = ["label", "class", "recall_low", "recall_high"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def find_hardest_galaxies(networks: Iterable[NetworkPredictions], max_galaxies: int = 24) -> pd.DataFrame:
    """List the clean galaxies that most runs misclassify, the hardest first.

    Returns
    -------
    row (in the data file), truth, predicted (the most frequent wrong class), fraction_wrong (of all runs)
    """
    columns = ["row", "truth", "predicted", "fraction_wrong"]
    measured_networks = [network for network in networks if network.clean_predictions]
    if not measured_networks:
        return pd.DataFrame(columns=columns)
    rows, truth = measured_networks[0].rows, measured_networks[0].labels.astype(np.int64)
    galaxies = np.arange(len(truth))
    clean_predictions = [p for network in measured_networks for p in network.clean_predictions.values()]
    num_classes = 1 + max(int(classes.max()) for classes in (truth, *clean_predictions))
    num_predicted = np.zeros((len(truth), num_classes), np.int32)
    for predicted in clean_predictions:
        num_predicted[galaxies, predicted] += 1
    fraction_wrong = 1 - num_predicted[galaxies, truth] / num_predicted.sum(axis=1)
    num_predicted[galaxies, truth] = -1
    hardest = np.argsort(-fraction_wrong, kind="stable")[:max_galaxies]
    hardest = hardest[fraction_wrong[hardest] > 0]
    values = (rows[hardest], truth[hardest], num_predicted[hardest].argmax(axis=1), fraction_wrong[hardest])
    return pd.DataFrame(dict(zip(columns, values, strict=True)))
