"""The data frames of a sweep's report: counts, intervals, attacks, and the flaws a reader must know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from galaxyhpc.analysis import summary as summaries
from galaxyhpc.analysis import uncertainty
from galaxyhpc.analysis.attack_success import success_table
from galaxyhpc.analysis.collect import Found
from galaxyhpc.analysis.tables import About, Tables
from galaxyhpc.config.schema import DataConfig
from galaxyhpc.config.yaml_loader import question
from galaxyhpc.evaluation.attack_results import Attacked

WITHOUT = "No intervals were computed, so that nothing is bold, compared or drawn."


BUDGETS = 40  # points of the curve of success against queries
LINK_ARCSEC = DataConfig().link_arcsec  # frames nearer than this show the same sky


def from_counts(plan: pd.DataFrame, found: list[Found], table: pd.DataFrame, summary: pd.DataFrame) -> Tables:
    """All tables that need no predictions but for the intervals in `summary`."""
    return Tables(
        summary=summary,
        networks=summaries.describe(plan, found, summary),
        per_class=summaries.classes(table),
        confusion=summaries.confusions(table),
        reliability=summaries.reliabilities(table),
        runs=summaries.runs(plan, found, table),
        attack=attacked(plan, found),
    )


def attacked(plan: pd.DataFrame, found: list[Found]) -> pd.DataFrame:
    """Rates of success of the one-pixel attacks that are complete; see `tables.Tables.attack`."""
    attacks: dict[str, list[Attacked]] = {}
    for label, f in zip(plan["label"], found, strict=True):
        if f.attack is not None:
            attacks.setdefault(label, []).append(f.attack)
    budgets = [one.source.budget for of in attacks.values() for one in of]
    if not budgets:
        return pd.DataFrame()
    steps = np.unique(np.geomspace(1, max(budgets), BUDGETS).round().astype(int)).tolist()
    return success_table(attacks, steps)


def with_evidence(tables: Tables, gathered: uncertainty.Gathered) -> Tables:
    """Add what follows from the predictions galaxy by galaxy."""
    known, networks = gathered.networks, tables.networks
    references = summaries.references(networks)
    errors, means = uncertainty.corruption_errors(known, references)
    if len(networks) > len(references):
        gathered.notes.append(
            "No mean corruption error where there is not exactly one conventional CNN to compare with."
        )
    added = replace(
        tables,
        networks=networks.drop(columns=list(means.columns[1:])).merge(means, on="label", how="left"),
        per_class=tables.per_class.merge(uncertainty.recall_intervals(known), on=["label", "class"], how="left"),
    )
    several = {"comparisons": uncertainty.compare(known), "corruption_error": errors}
    several["hardest"] = uncertainty.hardest(known.values())
    return replace(added, **{name: table for name, table in several.items() if len(table)})


def flaws(found: list[Found]) -> list[str]:
    """Name what makes every number of a sweep suspicious, in words; what is one network's stands in its name."""
    known = [f.config for f in found if f.config]
    said = []
    if any(config.data.link_arcsec < LINK_ARCSEC for config in known):
        least = min(config.data.link_arcsec for config in known)
        said.append(
            f"FLAW: data.link_arcsec is {least:g}, below {LINK_ARCSEC:g}: training and test galaxies may share sky."
        )
    if any(config.data.conflicting_duplicates == "keep" for config in known):
        said.append("FLAW: galaxies that occur twice under different labels were kept.")
    return said


def _about(sweep: Path, plan: pd.DataFrame, table: pd.DataFrame, common: str) -> About:
    """Say what is shown: the sweep, what its networks share, on how many galaxies of which kind."""
    text = sweep / "sweep.yaml"
    asked = question(text.read_text(encoding="utf-8", errors="replace")) if text.is_file() else ""
    title = sweep.resolve().name + (f": {common}" if common else "")
    if table.empty:
        return About(title, bool((plan["data"] == "demo").any()), np.nan, asked, "", 0, common)
    first = table.iloc[0]
    chance = first["confusion"].sum(axis=1).max() / first["n"]
    sizes = sorted(set(table["n"]))
    title += f"; {sizes[0]}{f' to {sizes[-1]}' if len(sizes) > 1 else ''} test galaxies"
    generated = bool(table["generated"].any())
    return About(title, generated, float(chance), asked, first["fingerprint"], int(sizes[0]), common)


def _strays(sweep: Path, plan: pd.DataFrame) -> list[str]:
    """Name runs in the directory that the plan does not know."""
    there = sorted({path.parent.name for path in sweep.glob("*/config.json")} - set(plan["run_id"]))
    more = f" and {len(there) - 5} more" if len(there) > 5 else ""
    return [f"Not in the plan and left out: {', '.join(there[:5])}{more}."] if there else []
