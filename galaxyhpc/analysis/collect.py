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
from galaxyhpc.config.schema import RunConfig, flatten
from galaxyhpc.config.setting_parser import DEFAULTS
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.attack_results import AttackResults, read_finished_attack
from galaxyhpc.evaluation.results import Pair
from galaxyhpc.storage.events import RunState
from galaxyhpc.storage.run_dir import RunDir, read_state

PLAN_DTYPES = {
    **dict.fromkeys(("run_id", "arch", "group", "width", "head", "data"), str),
    "scale": float,
    "image_size": int,
    "seed": int,
    "parameters": int,
}
NETWORK_COLUMNS = ["arch", "group", "width", "head", "scale", "image_size", "settings"]
MODEL_KEYS_IN_PLAN = (
    "architecture",
    "group",
    "restriction",
    "depth",
    "widen",
    "width",
    "head",
    "scale",
)  # of the model
KEYS_IN_PLAN = (
    "schema",
    "seed",
    "data.image_size",
    *(f"model.{name}" for name in MODEL_KEYS_IN_PLAN),
)  # the plan's columns have them

STATE_REASONS = {
    RunState.PLANNED: "never submitted",
    RunState.SUBMITTED: "submitted, not started yet",
    RunState.RUNNING: "still running, or killed without a word",
    RunState.STOPPED: "stopped before its end",
    RunState.FAILED: "failed",
    RunState.TRAINED: "trained but not evaluated",
    RunState.EVALUATED: "evaluated, but results.csv is absent or damaged",
}
MAX_LISTED_CONDITIONS = 4  # conditions that a run lacks
FLATTEN_HEAD_FLAW = "flattening head (not invariant)"
WIDTH_LABELS = {"fields": "equal fields", "parameters": "equal parameters", "multiply_adds": "equal multiply-adds"}


class PlanError(ValueError):
    """A plan that cannot be read, or that would be reported wrongly."""


@dataclass(frozen=True, eq=False)
class RunResults:
    """What there is of one planned run."""

    run: RunDir
    config: RunConfig | None = None
    planned_pairs: tuple[Pair, ...] = ()  # conditions and severities that it is to be measured under
    counts: pd.DataFrame | None = None  # of results.read_counts, the planned pairs alone; none where there is none
    reason: str = ""  # why it is not in; empty if it is
    attack: AttackResults | None = None  # complete, and as planned


def read_plan(path: Path) -> pd.DataFrame:
    """Read plan.csv: one row per planned run."""
    try:
        plan = pd.read_csv(path, keep_default_na=False, dtype=PLAN_DTYPES)
    except FileNotFoundError:
        raise PlanError(f"{path}: not found; allowed is the directory of a sweep that was launched") from None
    except (OSError, ValueError) as error:
        raise PlanError(f"{path}: {_format_error(error)}") from error
    absent = [name for name in PLAN_DTYPES if name not in plan.columns]
    if absent:
        raise PlanError(f"{path}: without {', '.join(absent)}; needed are {', '.join(PLAN_DTYPES)}")
    if plan.empty:
        raise PlanError(f"{path}: no run in it; needed is one row per planned run")
    twice = plan["run_id"][plan["run_id"].duplicated()]
    if len(twice):
        raise PlanError(f"{path}: {twice.iloc[0]} stands in it more than once; allowed is each run once")
    return plan


def collect_run(run: RunDir) -> RunResults:
    """Look for a planned run's results, and for the reason where they are not all there."""
    if not run.path.is_dir():
        return RunResults(run, reason="its directory is absent")
    try:
        config = run.load_config()
        pairs = conditions.list_severity_pairs(config.evaluate.conditions)
    except (OSError, ValueError) as error:
        return RunResults(run, reason=f"its config.json cannot be used: {_format_error(error)}")
    table = results.read_counts(run)
    if table is None:
        return RunResults(run, config, pairs, reason=_describe_state(run))
    measured = list(zip(table["condition"].tolist(), table["severity"].tolist(), strict=True))
    planned = set(pairs)
    if not planned.issuperset(measured):
        table = table[[pair in planned for pair in measured]]
    attack = read_finished_attack(run, config.evaluate.attack, table["weights"].iloc[0]) if len(table) else None
    table = table if len(table) else None
    lacks = _list_missing_conditions(pairs, set(measured))
    if config.evaluate.attack.galaxies and attack is None:
        lacks = ", ".join(filter(None, (lacks, "the one-pixel attack")))
    return RunResults(
        run, config, pairs, table, lacks and f"partly evaluated, lacks {lacks}{_describe_incomplete_state(run)}", attack
    )


def _list_missing_conditions(planned_pairs: tuple[Pair, ...], measured_pairs: set[Pair]) -> str:
    """Name planned conditions that are not measured: `rotation (12 of 48)`."""
    lacking = Counter(name for name, severity in planned_pairs if (name, severity) not in measured_pairs)
    planned = Counter(name for name, _ in planned_pairs)
    named = [f"{name} ({n} of {planned[name]})" for name, n in lacking.items()]
    more = f" and {len(named) - MAX_LISTED_CONDITIONS} more conditions" if len(named) > MAX_LISTED_CONDITIONS else ""
    return ", ".join(named[:MAX_LISTED_CONDITIONS]) + more


def _describe_state(run: RunDir) -> str:
    """Say a run's state in words."""
    now = read_state(run)
    return STATE_REASONS[now.name] + (f": {now.reason}" if now.reason and now.name != RunState.PLANNED else "")


def _describe_incomplete_state(run: RunDir) -> str:
    """Say what became of an evaluation that is not complete; one that is was complete when fewer were planned."""
    return "" if read_state(run).name == RunState.EVALUATED else f"; {_describe_state(run)}"


def _format_error(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def label_networks(plan: pd.DataFrame, run_results: list[RunResults]) -> tuple[pd.DataFrame, str]:
    """Add `settings` and `label`, a network's name; what all networks share is the second value.

    Raises
    ------
    PlanError
        where two runs are the same seed of one network: their mean would pass for one over seeds
    """
    plan = plan.assign(settings=_describe_differing_settings(run_results))
    networks = plan[NETWORK_COLUMNS].drop_duplicates()
    words = {key: _get_name_parts(*key) for key in networks.itertuples(index=False, name=None)}
    common = [word for word in next(iter(words.values())) if all(word in some for some in words.values())]
    labels = [
        _format_label(key, words[key], common) for key in plan[NETWORK_COLUMNS].itertuples(index=False, name=None)
    ]
    plan = plan.assign(label=labels)
    known = plan[[f.config is not None for f in run_results]]
    twins = known[known.duplicated(["label", "seed"], keep=False)].sort_values(["label", "seed"], kind="stable")
    if len(twins):
        which, first = " and ".join(twins["run_id"].iloc[:2]), twins.iloc[0]
        raise PlanError(
            f"plan.csv: {which} are both seed {first['seed']} of {first['label']}; allowed is one run for each"
        )
    return plan, ", ".join(common)


def _get_name_parts(*network_key: Any) -> list[str]:
    """Say what belongs to a network's name besides its group and architecture."""
    _, _, width, _, scale, image_size, settings = network_key
    size = f"fields x {scale:g}" if scale != 1 else ""
    return [word for word in (WIDTH_LABELS.get(width, width), size, f"{image_size} px", settings) if word]


def _format_label(network_key: tuple[Any, ...], name_parts: list[str], shared_parts: list[str]) -> str:
    arch, group, _, head, *_ = network_key
    flaw = [FLATTEN_HEAD_FLAW] if head == "flatten" else []
    return ", ".join([f"{group} {arch}".strip(), *flaw, *(word for word in name_parts if word not in shared_parts)])


def _flatten_identity(config: RunConfig) -> dict[str, str]:
    """Return dotted key: text of what decides the weights, without model options that are left at their defaults."""
    defaults = flatten(RunConfig.model_validate({"model": {"group": "C1"}}).get_identity())
    settings = flatten(config.get_identity())
    return {key: text for key, text in settings.items() if not key.startswith("model.") or text != defaults[key]}


def _describe_differing_settings(run_results: list[RunResults]) -> list[str]:
    """Name, for each run, the settings in which runs differ and that the plan has no column for."""
    flattened = [_flatten_identity(f.config) if f.config else {} for f in run_results]
    known = [one for one in flattened if one]
    differing = [
        key
        for key in sorted({key for one in known for key in one if not key.startswith(KEYS_IN_PLAN)})
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
