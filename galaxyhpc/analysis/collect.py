"""What a sweep planned, what of it is in, and why the rest is not.

Runs are one network where all that decides their weights but the seed is the same. Settings that the plan has no
column for are compared too and become part of the network's name, so that two arms are never averaged as one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from galaxyhpc.config import conditions
from galaxyhpc.config.schema import RunConfig, flat
from galaxyhpc.config.setting_parser import DEFAULTS
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.attack_results import Attacked, wanted_attack
from galaxyhpc.evaluation.results import Pair
from galaxyhpc.storage.run_dir import RunDir, state

COLUMNS = {
    **dict.fromkeys(("run_id", "arch", "group", "width", "head", "data"), str),
    "scale": float,
    "image_size": int,
    "seed": int,
    "parameters": int,
}
NETWORK = ["arch", "group", "width", "head", "scale", "image_size", "settings"]
COVERED = ("architecture", "group", "restriction", "depth", "widen", "width", "head", "scale")  # of the model
HELD = ("schema", "seed", "data.image_size", *(f"model.{name}" for name in COVERED))  # the plan's columns have them

STATES = {
    "planned": "never submitted",
    "submitted": "submitted, not started yet",
    "running": "still running, or killed without a word",
    "stopped": "stopped before its end",
    "failed": "failed",
    "trained": "trained but not evaluated",
    "evaluated": "evaluated, but results.csv is absent or damaged",
}
MOST_NAMED = 4  # conditions that a run lacks
FLAT_HEAD = "flattening head (not invariant)"
WIDTHS = {"fields": "equal fields", "parameters": "equal parameters", "multiply_adds": "equal multiply-adds"}


class PlanError(ValueError):
    """A plan that cannot be read, or that would be reported wrongly."""


@dataclass(frozen=True, eq=False)
class Found:
    """What there is of one planned run."""

    run: RunDir
    config: RunConfig | None = None
    pairs: tuple[Pair, ...] = ()  # conditions and severities that it is to be measured under
    table: pd.DataFrame | None = None  # of results.read_counts, the planned pairs alone; none where there is none
    reason: str = ""  # why it is not in; empty if it is
    attack: Attacked | None = None  # complete, and as planned


def read_plan(path: Path) -> pd.DataFrame:
    """Read plan.csv: one row per planned run."""
    try:
        plan = pd.read_csv(path, keep_default_na=False, dtype=COLUMNS)
    except FileNotFoundError:
        raise PlanError(f"{path}: not found; allowed is the directory of a sweep that was launched") from None
    except (OSError, ValueError) as error:
        raise PlanError(f"{path}: {_line(error)}") from error
    absent = [name for name in COLUMNS if name not in plan.columns]
    if absent:
        raise PlanError(f"{path}: without {', '.join(absent)}; needed are {', '.join(COLUMNS)}")
    if plan.empty:
        raise PlanError(f"{path}: no run in it; needed is one row per planned run")
    twice = plan["run_id"][plan["run_id"].duplicated()]
    if len(twice):
        raise PlanError(f"{path}: {twice.iloc[0]} stands in it more than once; allowed is each run once")
    return plan


def find(run: RunDir) -> Found:
    """Look for a planned run's results, and for the reason where they are not all there."""
    if not run.path.is_dir():
        return Found(run, reason="its directory is absent")
    try:
        config = run.load_config()
        pairs = conditions.pairs(config.evaluate.conditions)
    except (OSError, ValueError) as error:
        return Found(run, reason=f"its config.json cannot be used: {_line(error)}")
    table = results.read_counts(run)
    if table is None:
        return Found(run, config, pairs, reason=_why(run))
    measured = list(zip(table["condition"].tolist(), table["severity"].tolist(), strict=True))
    planned = set(pairs)
    if not planned.issuperset(measured):
        table = table[[pair in planned for pair in measured]]
    attack = wanted_attack(run, config.evaluate.attack, table["weights"].iloc[0]) if len(table) else None
    table = table if len(table) else None
    lacks = _lacks(pairs, set(measured))
    if config.evaluate.attack.galaxies and attack is None:
        lacks = ", ".join(filter(None, (lacks, "the one-pixel attack")))
    return Found(run, config, pairs, table, lacks and f"partly evaluated, lacks {lacks}{_since(run)}", attack)


def _lacks(pairs: tuple[Pair, ...], measured: set[Pair]) -> str:
    """Name planned conditions that are not measured: `rotation (12 of 48)`."""
    lacking = Counter(name for name, severity in pairs if (name, severity) not in measured)
    planned = Counter(name for name, _ in pairs)
    named = [f"{name} ({n} of {planned[name]})" for name, n in lacking.items()]
    more = f" and {len(named) - MOST_NAMED} more conditions" if len(named) > MOST_NAMED else ""
    return ", ".join(named[:MOST_NAMED]) + more


def _why(run: RunDir) -> str:
    """Say a run's state in words."""
    now = state(run)
    return STATES[now.name] + (f": {now.why}" if now.why and now.name != "planned" else "")


def _since(run: RunDir) -> str:
    """Say what became of an evaluation that is not complete; one that is was complete when fewer were planned."""
    return "" if state(run).name == "evaluated" else f"; {_why(run)}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def named(plan: pd.DataFrame, found: list[Found]) -> tuple[pd.DataFrame, str]:
    """Add `settings` and `label`, a network's name; what all networks share is the second value.

    Raises
    ------
    PlanError
        where two runs are the same seed of one network: their mean would pass for one over seeds
    """
    plan = plan.assign(settings=_settings(found))
    networks = plan[NETWORK].drop_duplicates()
    words = {key: _words(*key) for key in networks.itertuples(index=False, name=None)}
    common = [word for word in next(iter(words.values())) if all(word in some for some in words.values())]
    labels = [_label(key, words[key], common) for key in plan[NETWORK].itertuples(index=False, name=None)]
    plan = plan.assign(label=labels)
    known = plan[[f.config is not None for f in found]]
    twins = known[known.duplicated(["label", "seed"], keep=False)].sort_values(["label", "seed"], kind="stable")
    if len(twins):
        which, first = " and ".join(twins["run_id"].iloc[:2]), twins.iloc[0]
        raise PlanError(
            f"plan.csv: {which} are both seed {first['seed']} of {first['label']}; allowed is one run for each"
        )
    return plan, ", ".join(common)


def _words(*key: Any) -> list[str]:
    """Say what belongs to a network's name besides its group and architecture."""
    _, _, width, _, scale, image_size, settings = key
    size = f"fields x {scale:g}" if scale != 1 else ""
    return [word for word in (WIDTHS.get(width, width), size, f"{image_size} px", settings) if word]


def _label(key: tuple[Any, ...], words: list[str], common: list[str]) -> str:
    arch, group, _, head, *_ = key
    flaw = [FLAT_HEAD] if head == "flatten" else []
    return ", ".join([f"{group} {arch}".strip(), *flaw, *(word for word in words if word not in common)])


def _settings(found: list[Found]) -> list[str]:
    """Name, for each run, the settings in which runs differ and that the plan has no column for."""
    flattened = [flat(f.config.identity()) if f.config else {} for f in found]
    known = [one for one in flattened if one]
    differing = [
        key
        for key in sorted({key for one in known for key in one if not key.startswith(HELD)})
        if len({one.get(key) for one in known}) > 1
    ]
    unknown = "settings unknown" if differing else ""
    # an identity leaves out what is unset: an option of another architecture, or one that has a default to tell
    told = {key: str(DEFAULTS[key]) for key in differing if key in DEFAULTS and not key.startswith("model.")}
    whole = [one and told | one for one in flattened]
    return [
        ", ".join(f"{key.removeprefix('model.')} {one[key]}" for key in differing if key in one) if one else unknown
        for one in whole
    ]
