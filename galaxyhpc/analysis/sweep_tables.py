"""Assemble the tables of a sweep's report, its title, and the warnings that a reader needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from galaxyhpc.analysis import summary, uncertainty
from galaxyhpc.analysis.attack_success import compute_success_rates
from galaxyhpc.analysis.collect import CollectedSweep
from galaxyhpc.analysis.tables import ReportInfo, Tables
from galaxyhpc.config.schema import DataConfig
from galaxyhpc.config.yaml_loader import parse_question
from galaxyhpc.data import DataError
from galaxyhpc.data.canonical_split import NUM_FOLDS
from galaxyhpc.data.split_file import SPLIT_FILE_NAME, read_flaw_of_division, read_split_table
from galaxyhpc.evaluation.attacks.attack_results import AttackResults

NO_INTERVALS_NOTE = "No intervals were computed, so nothing is bold, compared or drawn."
NUM_BUDGETS = 40  # points of the curve of success against queries
DEFAULT_LINK_ARCSEC = DataConfig().link_arcsec  # frames nearer than this show the same sky
MAX_LISTED_RUNS = 5


def make_count_tables(
    sweep: CollectedSweep, metrics_table: pd.DataFrame, seed_summary: pd.DataFrame, class_names: Sequence[str]
) -> Tables:
    """Make all tables that need no predictions, except for the intervals in `seed_summary`."""
    return Tables(
        summary=seed_summary,
        networks=summary.make_network_table(sweep, seed_summary),
        per_class=summary.make_class_table(metrics_table, class_names),
        confusion=summary.make_confusion_table(metrics_table),
        reliability=summary.make_reliability_table(metrics_table),
        runs=summary.make_run_table(sweep, metrics_table),
        attack=make_attack_table(sweep),
    )


def make_attack_table(sweep: CollectedSweep) -> pd.DataFrame:
    """Compute success rates of the complete one-pixel attacks; see `tables.Tables.attack`."""
    folds: dict[tuple[str, int], list[AttackResults]] = {}
    for label, seed, run in sweep.iterate_labelled():
        if run.attack is not None:
            folds.setdefault((label, seed), []).append(run.attack)
    attacks: dict[str, list[AttackResults]] = {label: [] for label, _ in folds}
    for (label, _), parts in folds.items():
        if len(parts) == sweep.plan["fold"].nunique():  # one attack on the galaxies of all folds
            attacks[label].append(replace(parts[0], table=pd.concat([part.table for part in parts])))
    budgets = [attack.spec.budget for network_attacks in attacks.values() for attack in network_attacks]
    if not budgets:
        return pd.DataFrame()
    steps = np.unique(np.geomspace(1, max(budgets), NUM_BUDGETS).round().astype(int)).tolist()
    return compute_success_rates(attacks, steps)


def add_prediction_tables(tables: Tables, predictions: uncertainty.SweepPredictions) -> Tables:
    """Add the tables that need predictions of single galaxies."""
    networks = predictions.networks
    references = summary.find_reference_networks(tables.networks)
    errors, means = uncertainty.compute_corruption_errors(networks, references)
    if len(tables.networks) > len(references):
        predictions.notes.append("No mean corruption error without exactly one conventional CNN as the reference.")
    recalls = uncertainty.make_recall_interval_table(networks)
    tables = replace(
        tables,
        networks=tables.networks.drop(columns=list(means.columns[1:])).merge(means, on="label", how="left"),
        per_class=tables.per_class.merge(recalls, on=["label", "class"], how="left"),
    )
    optional = {"comparisons": uncertainty.compare_networks(networks), "corruption_error": errors}
    optional["hardest"] = uncertainty.find_hardest_galaxies(networks.values())
    return replace(tables, **{name: table for name, table in optional.items() if len(table)})


def read_galaxy_names(sweep_dir: Path) -> dict[int, str]:
    """Return the id of each galaxy by its row; empty if their source has none."""
    try:
        split = read_split_table(sweep_dir / SPLIT_FILE_NAME)
    except DataError:  # absent or damaged; the numbers stand without names
        return {}
    return dict(zip(split["row"].tolist(), split["id"].tolist(), strict=True)) if "id" in split else {}


def name_hardest_galaxies(tables: Tables, names: Mapping[int, str]) -> Tables:
    """Add the column id to the hardest galaxies if there are names of `read_galaxy_names`."""
    if tables.hardest.empty or not names:
        return tables
    return replace(tables, hardest=tables.hardest.assign(id=tables.hardest["row"].map(names)))


def list_flaws(sweep_dir: Path, sweep: CollectedSweep) -> list[str]:
    """Describe the flaws that make every number of a sweep suspicious; a network's own flaw is part of its label."""
    data = [run.config.data for run in sweep.runs if run.config]
    flaws = []
    if any(config.link_arcsec < DEFAULT_LINK_ARCSEC for config in data):
        lowest = min(config.link_arcsec for config in data)
        limit = f"{lowest:g}, below {DEFAULT_LINK_ARCSEC:g}"
        flaws.append(f"FLAW: data.link_arcsec is {limit}: training and test galaxies may share sky.")
    if any(config.conflicting_duplicates == "keep" for config in data):
        flaws.append("FLAW: galaxies that occur twice under different labels were kept.")
    if flaw := read_flaw_of_division(sweep_dir / SPLIT_FILE_NAME):
        flaws.append(f"FLAW: {flaw}.")
    return flaws


def describe_folds(sweep: CollectedSweep) -> list[str]:
    """Say which folds of a cross-validation the numbers are from, and what a run is; nothing for a single fold."""
    folds = sorted(set(sweep.plan["fold"]))
    if len(folds) == 1:
        return []
    return [
        f"Cross-validation: folds {', '.join(map(str, folds))} of {NUM_FOLDS} are the test set in turn. There is a run "
        "for each seed and fold, and means and spreads are over runs; intervals and tests pool the folds of a seed."
    ]


def make_report_info(
    sweep_dir: Path, sweep: CollectedSweep, metrics_table: pd.DataFrame, class_names: tuple[str, ...]
) -> ReportInfo:
    """Describe a sweep: its title and question, what its networks share, its galaxies."""
    path, shared = sweep_dir / "sweep.yaml", sweep.shared_settings
    question = parse_question(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else ""
    title = sweep_dir.resolve().name + (f": {shared}" if shared else "")
    if metrics_table.empty:
        return ReportInfo(
            title, bool((sweep.plan["data"] == "demo").any()), np.nan, question, "", 0, shared, class_names
        )
    first = metrics_table.iloc[0]
    class_counts = first["confusion"].sum(axis=1)
    sizes = sorted(set(metrics_table["n"]))
    title += f"; {sizes[0]}{f' to {sizes[-1]}' if len(sizes) > 1 else ''} test galaxies"
    generated = bool(metrics_table["generated"].any())
    return ReportInfo(
        title,
        generated,
        float(class_counts.max() / first["n"]),
        question,
        first["fingerprint"],
        int(sizes[0]),
        shared,
        class_names,
        class_names[int(class_counts.argmax())],
    )


def list_unplanned_runs(sweep_dir: Path, sweep: CollectedSweep) -> list[str]:
    """Name runs in the directory that are not in the plan."""
    unplanned = sorted({path.parent.name for path in sweep_dir.glob("*/config.json")} - set(sweep.plan["run_id"]))
    more = f" and {len(unplanned) - MAX_LISTED_RUNS} more" if len(unplanned) > MAX_LISTED_RUNS else ""
    return [f"Not in the plan, ignored: {', '.join(unplanned[:MAX_LISTED_RUNS])}{more}."] if unplanned else []
