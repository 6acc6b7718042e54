"""Success rates of the one-pixel attack: how many queries change how many correct classifications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from galaxyhpc.analysis.statistics import clopper_pearson
from galaxyhpc.evaluation.attacks.attack_results import AttackResults

SUCCESS_COLUMNS = ("label", "set", "budget", "n", "successes", "rate", "low", "high", "seeds")


class AttackError(ValueError):
    """Attacks that cannot be compared."""


def compute_success_rates(attacks: Mapping[str, Sequence[AttackResults]], budgets: Sequence[int]) -> pd.DataFrame:
    """Compute how often each network is fooled within each budget of queries: a table of SUCCESS_COLUMNS.

    Set `own` has, for each run, the galaxies that it classifies correctly; set `common` those that all runs of all
    networks classify correctly. `rate` is the mean over the seeds of a network; `n` and `successes` are means over
    them, rounded, and the interval is Clopper and Pearson's for these: all seeds attack the same galaxies, so summed
    counts would overstate the sample size. The interval excludes the variance between trainings.

    Parameters
    ----------
    attacks : network label -> the attacks of its runs, all with the same population and number of iterations
    budgets : numbers of queries; those above an attack's own budget are left out

    Raises
    ------
    AttackError
    """
    all_attacks = [attack for runs in attacks.values() for attack in runs]
    kinds = {(a.spec.population, a.spec.iterations, a.spec.fingerprint) for a in all_attacks}
    if len(kinds) > 1:
        texts = [f"{p} candidates, {i} iterations, galaxies {data[:12]}" for p, i, data in sorted(kinds)]
        raise AttackError(f"one-pixel attack: got different settings: {'; '.join(texts)}; expected one")
    common = set.intersection(*(set(attack.table["row"]) for attack in all_attacks)) if all_attacks else set()
    rows = []
    for label, runs in attacks.items():
        shared = [attack.table[attack.table["row"].isin(common)] for attack in runs]
        for name, tables in (("own", [attack.table for attack in runs]), ("common", shared)):
            rows += [
                {"label": label, "set": name, **_compute_rate(tables, budget)}
                for budget in budgets
                if runs and budget <= runs[0].spec.budget
            ]
    return pd.DataFrame(rows, columns=list(SUCCESS_COLUMNS))


def _compute_rate(tables: Sequence[pd.DataFrame], budget: int) -> dict[str, Any]:
    """Return the row of one network, one set and one budget, from a table per seed."""
    sizes = np.array([len(table) for table in tables], dtype=float)
    num_successes = np.array([(table["success"] & (table["queries"] <= budget)).sum() for table in tables], dtype=float)
    rate = float((num_successes / sizes).mean()) if sizes.all() else np.nan
    n = round(sizes.mean())
    successes = round(rate * n) if sizes.all() else 0
    low, high = clopper_pearson(successes, n)
    counts = {"budget": budget, "n": n, "successes": successes, "rate": rate}
    return {**counts, "low": float(low), "high": float(high), "seeds": len(tables)}
