"""Tables of a report that need only the counts of runs: mean and spread over the seeds of each network.

Means are over runs, never over networks; missing values are nan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from galaxyhpc.analysis.collect import FLATTEN_HEAD_FLAW, NETWORK_COLUMNS, CollectedSweep, PlanError, RunResults
from galaxyhpc.analysis.statistics import is_pareto_optimal
from galaxyhpc.config import conditions
from galaxyhpc.config.conditions import ROTATION_MEAN
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.metrics import (
    METRICS,
    NUM_BINS,
    Counts,
    compute_metrics,
    compute_per_class,
    compute_reliability,
)
from galaxyhpc.evaluation.results import Pair

CLASS_METRICS = ["precision", "recall", "f1", "support"]
COST_COLUMNS = ("parameters", "multiply_adds")
TEMPERATURE_SCALED_METRICS = ["nll", "brier", "ece"]  # those that a temperature changes
MAX_CELLS = 2**25  # of confusion matrices in memory
ALL_METRICS = [*METRICS, *(f"{name}_scaled" for name in TEMPERATURE_SCALED_METRICS)]


def select_rotations(run: RunResults) -> list[Pair]:
    """Return the rotations that a run is to be measured under."""
    return [pair for pair in run.planned_pairs if pair[0] == "rotation"]


def make_metrics_table(sweep: CollectedSweep) -> pd.DataFrame:
    """Join all counts, their metrics and the plan's columns: one row per run, condition and severity.

    Raises
    ------
    collect.PlanError
        if runs were measured on different galaxies
    """
    tables = [run.counts for run in sweep.runs if run.counts is not None]
    if not tables:
        plan_columns = sweep.plan.columns.drop("run_id")
        return pd.DataFrame(columns=[*results.COLUMNS, *ALL_METRICS, "parameter", "unit", *plan_columns])
    table = pd.concat(tables, ignore_index=True)
    sources = table.drop_duplicates("fingerprint")
    if len(sources) > 1:
        texts = [f"{f[:12]} ({run_id})" for f, run_id in zip(sources["fingerprint"], sources["run_id"], strict=True)]
        raise PlanError(f"plan.csv: got runs on different galaxies: {', '.join(texts)}; expected one data file")
    scaled = _compute_metrics(table, is_scaled=True)
    table = table.assign(
        **_compute_metrics(table),
        **{f"{name}_scaled": scaled[name] for name in TEMPERATURE_SCALED_METRICS},
    )
    table = add_physical_units(table.merge(sweep.plan.drop(columns="data"), on="run_id"))
    return table.assign(data=np.where(table["generated"], "demo", table["fingerprint"].str[:12]))


def _compute_metrics(table: pd.DataFrame, is_scaled: bool = False) -> dict[str, NDArray[np.float64]]:
    """Compute METRICS of each row, of so many rows at a time that their confusions fit in memory."""
    num_rows = max(1, MAX_CELLS // table["confusion"].iloc[0].shape[0] ** 2)
    parts = [
        compute_metrics(results.to_counts(table[start : start + num_rows], is_scaled))
        for start in range(0, len(table), num_rows)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def add_physical_units(table: pd.DataFrame) -> pd.DataFrame:
    """Add the physical value of each severity: columns parameter and unit."""
    pairs = list(zip(table["condition"].tolist(), table["severity"].tolist(), strict=True))
    known = set(pairs) - {ROTATION_MEAN}
    values = {pair: (conditions.get_parameter(*pair), conditions.get_unit(pair[0])) for pair in known}
    columns = [values.get(pair, (np.nan, "")) for pair in pairs]
    return table.assign(parameter=[value for value, _ in columns], unit=[unit for _, unit in columns])


def summarise_seeds(sweep: CollectedSweep, metrics_table: pd.DataFrame) -> pd.DataFrame:
    """Compute mean and spread over seeds for every network and planned pair, measured or not."""
    keys = ["label", "condition", "severity"]
    runs = pd.concat([metrics_table[[*keys, *ALL_METRICS]], _average_rotations(sweep, metrics_table)])
    seed_statistics = runs.groupby(keys)[ALL_METRICS].mean().drop(columns="accuracy")
    seed_statistics = seed_statistics.join(runs.groupby(keys)["accuracy"].agg(["count", "mean", "std"]))
    planned = pd.MultiIndex.from_tuples(_list_planned_conditions(sweep), names=keys)
    summary = seed_statistics.reindex(planned).reset_index()
    summary = summary.rename(columns={"count": "seeds_done", "mean": "accuracy_mean", "std": "accuracy_std"})
    network = sweep.plan.drop_duplicates("label")[["label", *NETWORK_COLUMNS, "data"]]
    network = network.assign(seeds_planned=network["label"].map(sweep.plan["label"].value_counts()))
    if len(metrics_table):
        network = network.assign(data=metrics_table["data"].iloc[0])
    summary = add_physical_units(summary.merge(network, on="label", how="left"))
    summary = summary.assign(ci_low=np.nan, ci_high=np.nan, consistency=np.nan)
    return summary.assign(seeds_done=summary["seeds_done"].fillna(0).astype(int))


def _list_planned_conditions(sweep: CollectedSweep) -> list[tuple[str, str, float]]:
    """List network, condition and severity in planned order; a network whose plan is unknown has those of all."""
    pairs: dict[str, dict[Pair, None]] = {label: {} for label in sweep.plan["label"]}
    for label, _, run in sweep.iterate_labelled():
        pairs[label] |= dict.fromkeys([*run.planned_pairs, *([ROTATION_MEAN] if select_rotations(run) else [])])
    all_pairs = dict.fromkeys(pair for network_pairs in pairs.values() for pair in network_pairs)
    return [(label, *pair) for label, network_pairs in pairs.items() for pair in network_pairs or all_pairs]


def _average_rotations(sweep: CollectedSweep, metrics_table: pd.DataFrame) -> pd.DataFrame:
    """Average the metrics over angles: one row per run that has every planned angle."""
    by_run = metrics_table[metrics_table["condition"] == "rotation"].groupby(["label", "run_id"])
    means = by_run[ALL_METRICS].mean().assign(size=by_run.size()).reset_index()
    planned = means["run_id"].map({run.run.run_id: len(select_rotations(run)) for run in sweep.runs})
    means = means[means["size"] == planned]
    means = means.assign(condition=ROTATION_MEAN[0], severity=ROTATION_MEAN[1])
    return means[["label", "condition", "severity", *ALL_METRICS]]


def pivot_accuracies(summary: pd.DataFrame) -> pd.DataFrame:
    """Make a table of mean accuracies: one row per network, one column per condition and severity."""
    names = [f"{name}@{severity:g}" for name, severity in zip(summary["condition"], summary["severity"], strict=True)]
    long = summary.assign(column=names)
    order = long["column"].drop_duplicates()
    table = long.pivot(index="label", columns="column", values="accuracy_mean")
    return table.reindex(index=summary["label"].drop_duplicates(), columns=order).reset_index()


def make_network_table(sweep: CollectedSweep, summary: pd.DataFrame) -> pd.DataFrame:
    """Make a table of one row per network, see `tables.Tables.networks`; seeds_done counts complete runs."""
    fractions = [run.config.data.label_fraction if run.config else np.nan for run in sweep.runs]
    plan = sweep.plan.assign(complete=[not run.reason for run in sweep.runs], label_fraction=fractions)
    first = {name: (name, "first") for name in (*NETWORK_COLUMNS, "parameters", "multiply_adds")}
    sums = {"seeds_done": ("complete", "sum"), "seeds_planned": ("complete", "size")}
    networks = plan.groupby("label", sort=False).agg(**first, label_fraction=("label_fraction", "max"), **sums)
    columns = ["accuracy_mean", "ci_low", "ci_high", *ALL_METRICS[1:]]
    clean = summary[summary["condition"] == "clean"].set_index("label")[columns]
    networks = networks.join(clean).reset_index()
    networks = networks.assign(flaw=np.where(networks["head"] == "flatten", FLATTEN_HEAD_FLAW, ""))
    networks = networks.assign(mce=np.nan, mce_low=np.nan, mce_high=np.nan)  # `compute_corruption_errors` fills them
    pareto = {f"pareto_{cost}": is_pareto_optimal(networks[cost], networks["accuracy_mean"]) for cost in COST_COLUMNS}
    return networks.assign(**pareto)


def find_reference_networks(networks: pd.DataFrame) -> dict[str, str]:
    """Name, for each network, the conventional CNN that its corruption errors are relative to.

    This is the CNN of the same settings and sizes if there is one, else the only CNN; networks without any are left
    out.
    """
    cnns = networks[networks["arch"] == "cnn"]
    columns = ["settings", "image_size", "width", "scale"]
    references = {}
    for network in networks.to_dict("records"):
        matching_cnns = cnns[(cnns[columns] == [network[name] for name in columns]).all(axis=1)]
        candidates = matching_cnns if len(matching_cnns) == 1 else cnns
        if len(candidates) == 1:
            references[network["label"]] = str(candidates["label"].iloc[0])
    return references


def make_class_table(metrics_table: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """Average precision, recall and F1 of each class on clean galaxies over seeds; see `tables.Tables.per_class`."""
    clean = metrics_table[metrics_table["condition"] == "clean"]
    per_run = _make_long_table(clean["label"], {"class": len(class_names)}, compute_per_class(results.to_counts(clean)))
    # pandas leaves out nan: a class that one seed never predicts has no precision there
    means = per_run.groupby(["label", "class"], sort=False)[CLASS_METRICS].mean().reset_index()
    return means.assign(name=np.array(class_names, dtype=object)[means["class"]])[
        ["label", "class", "name", *CLASS_METRICS]
    ]


def make_confusion_table(metrics_table: pd.DataFrame) -> pd.DataFrame:
    """Sum confusion matrices on clean galaxies over seeds; see `tables.Tables.confusion`."""
    labels, counts = _pool_seeds(metrics_table)
    num_classes = counts.confusion.shape[-1]
    if num_classes <= results.MAX_DENSE_CLASSES:
        axes = {"truth": num_classes, "predicted": num_classes}
        return _make_long_table(labels, axes, {"count": counts.confusion})
    network, truth, predicted = np.nonzero(counts.confusion)
    columns = {"label": labels[network], "truth": truth, "predicted": predicted}
    return pd.DataFrame(columns | {"count": counts.confusion[network, truth, predicted]})


def make_reliability_table(metrics_table: pd.DataFrame) -> pd.DataFrame:
    """Compute reliability on clean galaxies, seeds pooled, raw and scaled; see `tables.Tables.reliability`."""
    parts = []
    for is_scaled in (False, True):
        labels, counts = _pool_seeds(metrics_table, is_scaled)
        part = _make_long_table(labels, {"bin": NUM_BINS}, compute_reliability(counts))
        parts.append(part.assign(scaled=is_scaled))
    return pd.concat(parts, ignore_index=True)


def _pool_seeds(metrics_table: pd.DataFrame, is_scaled: bool = False) -> tuple[pd.Index[Any], Counts]:
    """Sum the counts of each network on clean galaxies over its seeds."""
    clean = metrics_table[metrics_table["condition"] == "clean"]
    network, labels = pd.factorize(clean["label"])

    def sum_over_seeds(values: NDArray[Any]) -> NDArray[Any]:
        sums = np.zeros((len(labels), *values.shape[1:]), values.dtype)
        np.add.at(sums, network, values)
        return sums

    return labels, Counts(*map(sum_over_seeds, vars(results.to_counts(clean, is_scaled)).values()))


def _make_long_table(labels: Iterable[Any], axes: dict[str, int], values: dict[str, NDArray[Any]]) -> pd.DataFrame:
    """Write arrays (L, *axes) as a table with one row per element: columns label, axes, values."""
    label_array = np.array(list(labels), dtype=object)
    indices = np.indices((len(label_array), *axes.values())).reshape(1 + len(axes), -1)
    columns = {"label": label_array[indices[0]], **dict(zip(axes, indices[1:], strict=True))}
    return pd.DataFrame(columns | {name: array.ravel() for name, array in values.items()})


def learning_curves(sweep: CollectedSweep) -> pd.DataFrame:
    """Read losses and accuracies of every run, epoch by epoch; see `tables.Tables.training`."""
    numbers = ["epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
    rows = [
        (run.run.run_id, label, seed, *(epoch.get(name, np.nan) for name in numbers))
        for label, seed, run in sweep.iterate_labelled()
        for epoch in run.run.read_metrics()
    ]
    return pd.DataFrame(rows, columns=["run_id", "label", "seed", *numbers])


def make_run_table(sweep: CollectedSweep, metrics_table: pd.DataFrame) -> pd.DataFrame:
    """Make a table of one row per planned run; see `tables.Tables.runs`."""
    clean = metrics_table[metrics_table["condition"] == "clean"].set_index("run_id")
    runs = sweep.plan[["run_id", "label", "seed", "fold", "parameters"]]
    scores = {name: runs["run_id"].map(clean[name]) for name in ("accuracy", "balanced_accuracy", "macro_f1")}
    return runs.assign(reason=[run.reason for run in sweep.runs], **scores)
