"""The tables of a sweep's report: `sweep_tables` makes them, `report` draws them.

`label` names a network, all its seeds pooled; rates are fractions in [0, 1], nan where not measured. A table without
data has no rows, and may have no columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

GENERATED_NOTICE = "GENERATED galaxies (demo)"


@dataclass(frozen=True)
class ReportInfo:
    """The description of a sweep in its tables, figures and page."""

    title: str
    generated: bool  # demo galaxies
    chance_accuracy: float  # accuracy of always predicting the majority class, 0 to 1; nan if unknown
    question: str = ""  # of the sweep: paragraphs separated by empty lines
    fingerprint: str = ""  # of the data file; empty before any measurement
    num_test_galaxies: int = 0  # 0 before any measurement
    shared_settings: str = ""  # what all networks share
    class_names: tuple[str, ...] = ()  # in the order of the labels; empty if no run can be read
    majority_class: str = ""  # the most frequent among the test galaxies; empty before any measurement

    def describe_chance(self) -> str:
        """Say what a network has to beat; nothing before any measurement."""
        if not math.isfinite(self.chance_accuracy):
            return ""
        name = f", {self.majority_class}" if self.majority_class else ""
        return f"Always predicting the most frequent class{name}: {100 * self.chance_accuracy:.1f} %."


@dataclass(frozen=True, eq=False)
class Tables:
    """All tables of a sweep; each comment lists the columns of the table below it."""

    # label, arch, group, condition, severity, parameter, unit, seeds_done, seeds_planned, accuracy_mean, accuracy_std,
    # ci_low, ci_high, balanced_accuracy, macro_f1, nll, brier, ece, nll_scaled, brier_scaled, ece_scaled, consistency
    summary: pd.DataFrame
    # label, arch, group, parameters, multiply_adds, label_fraction, seeds_done, seeds_planned, flaw, accuracy_mean,
    # ci_low, ci_high (clean galaxies), mce, mce_low, mce_high, pareto_parameters, pareto_multiply_adds
    networks: pd.DataFrame
    # label, class, name, precision, recall, f1, recall_low, recall_high, support (clean galaxies)
    per_class: pd.DataFrame = field(default_factory=pd.DataFrame)
    # label, truth, predicted, count (clean, summed over seeds); of many classes, no zeros
    confusion: pd.DataFrame = field(default_factory=pd.DataFrame)
    # label, scaled, bin, galaxies, accuracy, confidence (clean galaxies, seeds pooled)
    reliability: pd.DataFrame = field(default_factory=pd.DataFrame)
    # a, b, difference, ci_low, ci_high, seeds, only_a, only_b, p, p_holm, significant: one row per unordered pair
    comparisons: pd.DataFrame = field(default_factory=pd.DataFrame)
    # label, condition, ce: errors summed over severities, divided by the CNN's
    corruption_error: pd.DataFrame = field(default_factory=pd.DataFrame)
    # label, set (own or common), budget (queries), n, successes, rate, low, high, seeds
    attack: pd.DataFrame = field(default_factory=pd.DataFrame)
    # run_id, label, seed, epoch, train_loss, train_accuracy, validation_loss, validation_accuracy
    training: pd.DataFrame = field(default_factory=pd.DataFrame)
    # run_id, label, seed, fold, reason (empty if complete), parameters; accuracy, balanced_accuracy, macro_f1 (clean)
    runs: pd.DataFrame = field(default_factory=pd.DataFrame)
    # row (in split.csv), truth, predicted (most frequent wrong class), fraction_wrong (of complete runs); id if known
    hardest: pd.DataFrame = field(default_factory=pd.DataFrame)


def sort_by_accuracy(networks: pd.DataFrame) -> pd.DataFrame:
    """Sort networks from the best on clean galaxies to the worst, unmeasured ones last."""
    return networks.sort_values("accuracy_mean", ascending=False, kind="stable")


def format_network_name(network: dict[Any, Any], runs_note: str | None = None) -> str:
    """Return the name of a network with its flaw and, if runs are missing, how many are complete."""
    done, planned = network["seeds_done"], network["seeds_planned"]
    if runs_note is None:
        runs_note = "" if done == planned else f"{done}/{planned} runs"
    return ", ".join(part for part in (str(network["label"]), network["flaw"], runs_note) if part)


def format_network_names(networks: pd.DataFrame) -> dict[str, str]:
    """Return the names of networks by their labels."""
    return {str(network["label"]): format_network_name(network) for network in networks.to_dict("records")}
