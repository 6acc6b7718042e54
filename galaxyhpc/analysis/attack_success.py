"""How often an attack of a given number of queries changes a correct classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from galaxyhpc.analysis.statistics import clopper_pearson
from galaxyhpc.evaluation.attack_results import AttackResults

SUCCESS_COLUMNS = ("label", "set", "budget", "n", "successes", "rate", "low", "high", "seeds")


class AttackError(ValueError):
    """Attacks that cannot be compared."""


def compute_success_rates(attacks: Mapping[str, Sequence[AttackResults]], budgets: Sequence[int]) -> pd.DataFrame:
    """Return how often networks were fooled within so many queries: a table of RATES.

    Set `own` has, for each run, the galaxies that it classifies rightly; set `common` those that all runs of all
    networks do. `rate` is the mean over a network's seeds; n and `successes` are means over them, rounded, and the
    interval is Clopper and Pearson's for these. The seeds met the same galaxies: the sums of their counts would
    pretend that there were several times as many. It says nothing of the chance of the training.

    Parameters
    ----------
    attacks : a network's label -> its runs' attacks, all with one population and number of iterations
    budgets : queries; those above the budget that was spent are left out

    Raises
    ------
    AttackError
    """
    every = [one for runs in attacks.values() for one in runs]
    kinds = {(one.spec.population, one.spec.iterations, one.spec.fingerprint) for one in every}
    if len(kinds) > 1:
        found = "; ".join(f"{p} candidates, {i} iterations, galaxies {data[:12]}" for p, i, data in sorted(kinds))
        raise AttackError(f"attacks of several kinds: {found}; allowed is one")
    common = set.intersection(*(set(one.table["row"]) for one in every)) if every else set()
    rows = []
    for label, runs in attacks.items():
        shared = [one.table[one.table["row"].isin(common)] for one in runs]
        for name, tables in (("own", [one.table for one in runs]), ("common", shared)):
            rows += [
                {"label": label, "set": name, **_compute_rate(tables, budget)}
                for budget in budgets
                if runs and budget <= runs[0].spec.budget
            ]
    return pd.DataFrame(rows, columns=list(SUCCESS_COLUMNS))


def _compute_rate(tables: Sequence[pd.DataFrame], budget: int) -> dict[str, Any]:
    """Return the row of one network, one set and one budget, from a table per seed."""
    sizes = np.array([len(table) for table in tables], dtype=float)
    fooled = np.array([(table["success"] & (table["queries"] <= budget)).sum() for table in tables], dtype=float)
    rate = float((fooled / sizes).mean()) if sizes.all() else np.nan
    n = round(sizes.mean())
    successes = round(rate * n) if sizes.all() else 0
    low, high = clopper_pearson(successes, n)
    numbers = {"budget": budget, "n": n, "successes": successes, "rate": rate}
    return {**numbers, "low": float(low), "high": float(high), "seeds": len(tables)}
