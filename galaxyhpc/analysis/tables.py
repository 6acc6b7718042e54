"""The tables of a sweep that its report shows: `aggregate` makes them, `figures`, `latex` and `report` draw them.

`label` names a network, its seeds together; rates are fractions in [0, 1], nan where nothing is in. Whatever is
absent is a table without rows, and such a table may lack columns too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

GENERATED_NOTICE = "GENERATED galaxies (demo)"


@dataclass(frozen=True)
class ReportInfo:
    """What every table and figure of a sweep says of it, and what its page says besides."""

    title: str
    generated: bool  # demo galaxies
    chance_accuracy: float  # accuracy of always naming the commonest class, 0 to 1; nan if unknown
    question: str = ""  # that the sweep asks: paragraphs with an empty line between
    fingerprint: str = ""  # of the data file; empty where nothing is measured
    num_test_galaxies: int = 0  # test galaxies, 0 where nothing is measured
    shared_settings: str = ""  # what all networks share


@dataclass(frozen=True, eq=False)
class Tables:
    """All that is known of a sweep; the columns are those that each comment names."""

    # label, arch, group, condition, severity, parameter, unit, seeds_done, seeds_planned, accuracy_mean, accuracy_std,
    # ci_low, ci_high, balanced_accuracy, macro_f1, nll, brier, ece, nll_scaled, brier_scaled, ece_scaled, consistency
    summary: pd.DataFrame
    # label, arch, group, parameters, multiply_adds, label_fraction, seeds_done, seeds_planned, flaw, accuracy_mean,
    # ci_low, ci_high (clean galaxies), mce, mce_low, mce_high, front_parameters, front_multiply_adds
    networks: pd.DataFrame
    # label, class, name, precision, recall, f1, recall_low, recall_high, support (clean galaxies)
    per_class: pd.DataFrame = field(default_factory=pd.DataFrame)
    # label, truth, predicted, count (clean galaxies, summed over seeds)
    confusion: pd.DataFrame = field(default_factory=pd.DataFrame)
    # label, scaled, bin, galaxies, accuracy, confidence (clean galaxies, seeds together)
    reliability: pd.DataFrame = field(default_factory=pd.DataFrame)
    # a, b, difference, ci_low, ci_high, seeds, only_a, only_b, p, p_holm, separable: one row per unordered pair
    comparisons: pd.DataFrame = field(default_factory=pd.DataFrame)
    # label, condition, ce: errors summed over severities, divided by the CNN's
    corruption_error: pd.DataFrame = field(default_factory=pd.DataFrame)
    # label, set (own or common), budget (queries), n, successes, rate, low, high, seeds
    attack: pd.DataFrame = field(default_factory=pd.DataFrame)
    # run_id, label, seed, epoch, train_loss, train_accuracy, validation_loss, validation_accuracy
    training: pd.DataFrame = field(default_factory=pd.DataFrame)
    # run_id, label, seed, reason (empty if complete), accuracy (clean galaxies), parameters
    runs: pd.DataFrame = field(default_factory=pd.DataFrame)
    # row (of the galaxy), truth, predicted (its commonest mistake), wrong (fraction of complete runs)
    hardest: pd.DataFrame = field(default_factory=pd.DataFrame)


def sort_by_accuracy(networks: pd.DataFrame) -> pd.DataFrame:
    """Order networks from the best on clean galaxies to the worst, unmeasured ones last."""
    return networks.sort_values("accuracy_mean", ascending=False, kind="stable")


def format_network_name(network: dict[Any, Any], seeds_note: str | None = None) -> str:
    """Name a network with what a reader must know of it: its flaw, and how many of its seeds are in."""
    done, planned = network["seeds_done"], network["seeds_planned"]
    if seeds_note is None:
        seeds_note = "" if done == planned else f"{done}/{planned} seeds"
    return ", ".join(part for part in (str(network["label"]), network["flaw"], seeds_note) if part)


def format_network_names(networks: pd.DataFrame) -> dict[str, str]:
    """Name networks by their labels."""
    return {str(network["label"]): format_network_name(network) for network in networks.to_dict("records")}
