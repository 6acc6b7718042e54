"""The tables of a report that follow from the counts of runs alone: mean and spread over seeds, network by network.

Means are over runs, never over networks; what is not in is nan, and says how many seeds it is of.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from galaxyhpc.analysis.collect import FLATTEN_HEAD_FLAW, NETWORK_COLUMNS, PlanError, RunResults
from galaxyhpc.analysis.statistics import is_pareto_optimal
from galaxyhpc.config import conditions
from galaxyhpc.config.conditions import ROTATION_MEAN
from galaxyhpc.data.galaxy10 import CLASSES
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
TEMPERATURE_SCALED_METRICS = ["nll", "brier", "ece"]  # what a temperature changes
ALL_METRICS = [*METRICS, *(f"{name}_scaled" for name in TEMPERATURE_SCALED_METRICS)]


def select_rotations(run_results: RunResults) -> list[Pair]:
    """Return the rotations that a run is to be measured under."""
    return [pair for pair in run_results.planned_pairs if pair[0] == "rotation"]


def make_metrics_table(plan: pd.DataFrame, run_results: list[RunResults]) -> pd.DataFrame:
    """All counts with their metrics and what the plan says of their run.

    Raises
    ------
    planned.PlanError
        where runs were measured on different galaxies
    """
    tables = [f.counts for f in run_results if f.counts is not None]
    if not tables:
        return pd.DataFrame(columns=[*results.COLUMNS, *ALL_METRICS, "parameter", "unit", *plan.columns.drop("run_id")])
    table = pd.concat(tables, ignore_index=True)
    sources = table.drop_duplicates("fingerprint")
    if len(sources) > 1:
        which = [f"{f[:12]} ({run_id})" for f, run_id in zip(sources["fingerprint"], sources["run_id"], strict=True)]
        raise PlanError(
            f"plan.csv: its runs were measured on different galaxies: {', '.join(which)}; allowed is one data file"
        )
    scaled = compute_metrics(results.to_counts(table, is_scaled=True))
    table = table.assign(
        **compute_metrics(results.to_counts(table)),
        **{f"{name}_scaled": scaled[name] for name in TEMPERATURE_SCALED_METRICS},
    )
    table = add_physical_units(table.merge(plan.drop(columns="data"), on="run_id"))
    return table.assign(data=np.where(table["generated"], "demo", table["fingerprint"].str[:12]))


def add_physical_units(table: pd.DataFrame) -> pd.DataFrame:
    """Add what a severity means: parameter and unit."""
    pairs = list(zip(table["condition"].tolist(), table["severity"].tolist(), strict=True))
    known = set(pairs) - {ROTATION_MEAN}
    meant = {pair: (conditions.get_parameter(*pair), conditions.get_unit(pair[0])) for pair in known}
    here = [meant.get(pair, (np.nan, "")) for pair in pairs]
    return table.assign(parameter=[value for value, _ in here], unit=[unit for _, unit in here])


def summarise_seeds(plan: pd.DataFrame, run_results: list[RunResults], table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds for every network and every pair planned for it, measured or not."""
    keys = ["label", "condition", "severity"]
    runs = pd.concat([table[[*keys, *ALL_METRICS]], _average_rotations(run_results, table)])
    over_seeds = runs.groupby(keys)[ALL_METRICS].mean().drop(columns="accuracy")
    over_seeds = over_seeds.join(runs.groupby(keys)["accuracy"].agg(["count", "mean", "std"]))
    rows = over_seeds.reindex(
        pd.MultiIndex.from_tuples(_list_planned_conditions(plan, run_results), names=keys)
    ).reset_index()
    rows = rows.rename(columns={"count": "seeds_done", "mean": "accuracy_mean", "std": "accuracy_std"})
    network = plan.drop_duplicates("label")[["label", *NETWORK_COLUMNS, "data"]]
    network = network.assign(seeds_planned=network["label"].map(plan["label"].value_counts()))
    if len(table):
        network = network.assign(data=table["data"].iloc[0])
    rows = add_physical_units(rows.merge(network, on="label", how="left"))
    rows = rows.assign(ci_low=np.nan, ci_high=np.nan, consistency=np.nan)
    return rows.assign(seeds_done=rows["seeds_done"].fillna(0).astype(int))


def _list_planned_conditions(plan: pd.DataFrame, run_results: list[RunResults]) -> list[tuple[str, str, float]]:
    """List network, condition and severity in the order planned; a network of unknown plan has everyone's."""
    pairs: dict[str, dict[Pair, None]] = {label: {} for label in plan["label"]}
    for label, f in zip(plan["label"], run_results, strict=True):
        pairs[label] |= dict.fromkeys([*f.planned_pairs, *([ROTATION_MEAN] if select_rotations(f) else [])])
    everyones = dict.fromkeys(pair for some in pairs.values() for pair in some)
    return [(label, *pair) for label, some in pairs.items() for pair in some or everyones]


def _average_rotations(run_results: list[RunResults], table: pd.DataFrame) -> pd.DataFrame:
    """One row per run that has every planned angle: its metrics, averaged over them."""
    by_run = table[table["condition"] == "rotation"].groupby(["label", "run_id"])
    means = by_run[ALL_METRICS].mean().assign(size=by_run.size()).reset_index()
    planned = means["run_id"].map({f.run.run_id: len(select_rotations(f)) for f in run_results})
    means = means[means["size"] == planned]
    means = means.assign(condition=ROTATION_MEAN[0], severity=ROTATION_MEAN[1])
    return means[["label", "condition", "severity", *ALL_METRICS]]


def pivot_accuracies(summary: pd.DataFrame) -> pd.DataFrame:
    """One row per network, one column per condition and severity: mean accuracies, for printing."""
    names = [f"{name}@{severity:g}" for name, severity in zip(summary["condition"], summary["severity"], strict=True)]
    named = summary.assign(column=names)
    order = named["column"].drop_duplicates()
    table = named.pivot(index="label", columns="column", values="accuracy_mean")
    return table.reindex(index=summary["label"].drop_duplicates(), columns=order).reset_index()


def make_network_table(plan: pd.DataFrame, run_results: list[RunResults], summary: pd.DataFrame) -> pd.DataFrame:
    """One row per network, see `tables.Tables.networks`; seeds_done are those completely in."""
    fractions = [f.config.data.label_fraction if f.config else np.nan for f in run_results]
    complete = plan.assign(complete=[not f.reason for f in run_results], label_fraction=fractions)
    first = {name: (name, "first") for name in (*NETWORK_COLUMNS, "parameters", "multiply_adds")}
    sums = {"seeds_done": ("complete", "sum"), "seeds_planned": ("complete", "size")}
    networks = complete.groupby("label", sort=False).agg(**first, label_fraction=("label_fraction", "max"), **sums)
    columns = ["accuracy_mean", "ci_low", "ci_high", *ALL_METRICS[1:]]
    clean = summary[summary["condition"] == "clean"].set_index("label")[columns]
    networks = networks.join(clean).reset_index()
    networks = networks.assign(flaw=np.where(networks["head"] == "flatten", FLATTEN_HEAD_FLAW, ""))
    networks = networks.assign(mce=np.nan, mce_low=np.nan, mce_high=np.nan)  # `evidence.corruption_errors` knows
    fronts = {f"front_{cost}": is_pareto_optimal(networks[cost], networks["accuracy_mean"]) for cost in COST_COLUMNS}
    return networks.assign(**fronts)


def find_reference_networks(networks: pd.DataFrame) -> dict[str, str]:
    """Name, for each network, the conventional CNN that its corruption errors are relative to.

    That of the same settings and sizes where there is one, else the only one; networks without any are left out.
    """
    cnns = networks[networks["arch"] == "cnn"]
    alike = ["settings", "image_size", "width", "scale"]
    found = {}
    for network in networks.to_dict("records"):
        same = cnns[(cnns[alike] == [network[name] for name in alike]).all(axis=1)]
        chosen = same if len(same) == 1 else cnns
        if len(chosen) == 1:
            found[network["label"]] = str(chosen["label"].iloc[0])
    return found


def make_class_table(table: pd.DataFrame) -> pd.DataFrame:
    """Precision, recall and F1 by class on clean galaxies, means over seeds; see `tables.Tables.per_class`."""
    clean = table[table["condition"] == "clean"]
    found = _make_long_table(clean["label"], {"class": len(CLASSES)}, compute_per_class(results.to_counts(clean)))
    # pandas leaves out what is nan: a class that one seed never predicts has no precision there
    means = found.groupby(["label", "class"], sort=False)[CLASS_METRICS].mean().reset_index()
    return means.assign(name=np.array(CLASSES)[means["class"]])[["label", "class", "name", *CLASS_METRICS]]


def make_confusion_table(table: pd.DataFrame) -> pd.DataFrame:
    """Confusion matrices on clean galaxies, summed over seeds: label, truth, predicted, count."""
    labels, together = _pool_seeds(table)
    return _make_long_table(labels, {"truth": len(CLASSES), "predicted": len(CLASSES)}, {"count": together.confusion})


def make_reliability_table(table: pd.DataFrame) -> pd.DataFrame:
    """Reliability on clean galaxies, seeds together, raw and scaled; see `tables.Tables.reliability`."""
    parts = []
    for scaled in (False, True):
        labels, together = _pool_seeds(table, scaled)
        parts.append(_make_long_table(labels, {"bin": NUM_BINS}, compute_reliability(together)).assign(scaled=scaled))
    return pd.concat(parts, ignore_index=True)


def _pool_seeds(table: pd.DataFrame, scaled: bool = False) -> tuple[pd.Index[Any], Counts]:
    """Add up each network's counts on clean galaxies over its seeds."""
    clean = table[table["condition"] == "clean"]
    network, labels = pd.factorize(clean["label"])

    def added(values: NDArray[Any]) -> NDArray[Any]:
        sums = np.zeros((len(labels), *values.shape[1:]), values.dtype)
        np.add.at(sums, network, values)
        return sums

    return labels, Counts(*map(added, vars(results.to_counts(clean, scaled)).values()))


def _make_long_table(labels: Iterable[Any], axes: dict[str, int], values: dict[str, NDArray[Any]]) -> pd.DataFrame:
    """Write arrays (L, *axes) as a table with a row for each number, and a column of labels."""
    of_label = np.array(list(labels), dtype=object)
    places = np.indices((len(of_label), *axes.values())).reshape(1 + len(axes), -1)
    columns = {"label": of_label[places[0]], **dict(zip(axes, places[1:], strict=True))}
    return pd.DataFrame(columns | {name: array.ravel() for name, array in values.items()})


def learning_curves(plan: pd.DataFrame, run_results: list[RunResults]) -> pd.DataFrame:
    """Losses and accuracies of every run, epoch by epoch; see `tables.Tables.training`."""
    numbers = ["epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
    rows = [
        (f.run.run_id, label, seed, *(epoch.get(name, np.nan) for name in numbers))
        for label, seed, f in zip(plan["label"], plan["seed"], run_results, strict=True)
        for epoch in f.run.read_metrics()
    ]
    return pd.DataFrame(rows, columns=["run_id", "label", "seed", *numbers])


def make_run_table(plan: pd.DataFrame, run_results: list[RunResults], table: pd.DataFrame) -> pd.DataFrame:
    """One row per planned run; see `tables.Tables.runs`."""
    clean = table[table["condition"] == "clean"].set_index("run_id")["accuracy"]
    reasons = [f.reason for f in run_results]
    return plan[["run_id", "label", "seed", "parameters"]].assign(reason=reasons, accuracy=plan["run_id"].map(clean))
