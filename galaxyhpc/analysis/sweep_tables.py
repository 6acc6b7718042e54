"""The data frames of a sweep's report: counts, intervals, attacks, and the flaws a reader must know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from galaxyhpc.analysis import summary as summaries
from galaxyhpc.analysis import uncertainty
from galaxyhpc.analysis.attack_success import compute_success_rates
from galaxyhpc.analysis.collect import RunResults
from galaxyhpc.analysis.tables import ReportInfo, Tables
from galaxyhpc.config.schema import DataConfig
from galaxyhpc.config.yaml_loader import parse_question
from galaxyhpc.evaluation.attack_results import AttackResults

NO_INTERVALS_NOTE = "No intervals were computed, so that nothing is bold, compared or drawn."


NUM_BUDGETS = 40  # points of the curve of success against queries
DEFAULT_LINK_ARCSEC = DataConfig().link_arcsec  # frames nearer than this show the same sky


def make_count_tables(
    plan: pd.DataFrame, run_results: list[RunResults], table: pd.DataFrame, summary: pd.DataFrame
) -> Tables:
    """All tables that need no predictions but for the intervals in `summary`."""
    return Tables(
        summary=summary,
        networks=summaries.make_network_table(plan, run_results, summary),
        per_class=summaries.make_class_table(table),
        confusion=summaries.make_confusion_table(table),
        reliability=summaries.make_reliability_table(table),
        runs=summaries.make_run_table(plan, run_results, table),
        attack=make_attack_table(plan, run_results),
    )


def make_attack_table(plan: pd.DataFrame, run_results: list[RunResults]) -> pd.DataFrame:
    """Rates of success of the one-pixel attacks that are complete; see `tables.Tables.attack`."""
    attacks: dict[str, list[AttackResults]] = {}
    for label, f in zip(plan["label"], run_results, strict=True):
        if f.attack is not None:
            attacks.setdefault(label, []).append(f.attack)
    budgets = [one.spec.budget for of in attacks.values() for one in of]
    if not budgets:
        return pd.DataFrame()
    steps = np.unique(np.geomspace(1, max(budgets), NUM_BUDGETS).round().astype(int)).tolist()
    return compute_success_rates(attacks, steps)


def add_prediction_tables(tables: Tables, sweep_predictions: uncertainty.SweepPredictions) -> Tables:
    """Add what follows from the predictions galaxy by galaxy."""
    known, networks = sweep_predictions.networks, tables.networks
    references = summaries.find_reference_networks(networks)
    errors, means = uncertainty.compute_corruption_errors(known, references)
    if len(networks) > len(references):
        sweep_predictions.notes.append(
            "No mean corruption error where there is not exactly one conventional CNN to compare with."
        )
    added = replace(
        tables,
        networks=networks.drop(columns=list(means.columns[1:])).merge(means, on="label", how="left"),
        per_class=tables.per_class.merge(
            uncertainty.make_recall_interval_table(known), on=["label", "class"], how="left"
        ),
    )
    several = {"comparisons": uncertainty.compare_networks(known), "corruption_error": errors}
    several["hardest"] = uncertainty.find_hardest_galaxies(known.values())
    return replace(added, **{name: table for name, table in several.items() if len(table)})


def list_flaws(run_results: list[RunResults]) -> list[str]:
    """Name what makes every number of a sweep suspicious, in words; what is one network's stands in its name."""
    known = [f.config for f in run_results if f.config]
    said = []
    if any(config.data.link_arcsec < DEFAULT_LINK_ARCSEC for config in known):
        least = min(config.data.link_arcsec for config in known)
        said.append(
            f"FLAW: data.link_arcsec is {least:g}, below {DEFAULT_LINK_ARCSEC:g}: training and test galaxies may share sky."
        )
    if any(config.data.conflicting_duplicates == "keep" for config in known):
        said.append("FLAW: galaxies that occur twice under different labels were kept.")
    return said


def make_report_info(sweep: Path, plan: pd.DataFrame, table: pd.DataFrame, shared_settings: str) -> ReportInfo:
    """Say what is shown: the sweep, what its networks share, on how many galaxies of which kind."""
    text = sweep / "sweep.yaml"
    asked = parse_question(text.read_text(encoding="utf-8", errors="replace")) if text.is_file() else ""
    title = sweep.resolve().name + (f": {shared_settings}" if shared_settings else "")
    if table.empty:
        return ReportInfo(title, bool((plan["data"] == "demo").any()), np.nan, asked, "", 0, shared_settings)
    first = table.iloc[0]
    chance = first["confusion"].sum(axis=1).max() / first["n"]
    sizes = sorted(set(table["n"]))
    title += f"; {sizes[0]}{f' to {sizes[-1]}' if len(sizes) > 1 else ''} test galaxies"
    generated = bool(table["generated"].any())
    return ReportInfo(title, generated, float(chance), asked, first["fingerprint"], int(sizes[0]), shared_settings)


def list_unplanned_runs(sweep: Path, plan: pd.DataFrame) -> list[str]:
    """Name runs in the directory that the plan does not know."""
    there = sorted({path.parent.name for path in sweep.glob("*/config.json")} - set(plan["run_id"]))
    more = f" and {len(there) - 5} more" if len(there) > 5 else ""
    return [f"Not in the plan and left out: {', '.join(there[:5])}{more}."] if there else []
