"""Collect a sweep: its plan, the results of its runs, and the reason where results are missing.

Runs belong to one network if they differ in nothing but the seed and the fold that they are tested on. Settings without
a column in plan.csv are compared too and become part of the network's label, so two arms of a sweep are never averaged
as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from galaxyhpc.config import conditions
from galaxyhpc.config.schema import RunConfig, flatten
from galaxyhpc.config.settings import DEFAULTS
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.attacks.attack_results import AttackResults, read_finished_attack
from galaxyhpc.evaluation.results import Pair
from galaxyhpc.storage.events import RunState
from galaxyhpc.storage.run_dir import RunDir, read_state
from galaxyhpc.storage.sweep_dir import read_plan

PLAN_DTYPES = {
    **dict.fromkeys(("run_id", "arch", "group", "width", "head", "data"), str),
    "scale": float,
    "image_size": int,
    "seed": int,
    "parameters": int,
    "multiply_adds": int,
}
NETWORK_COLUMNS = ["arch", "group", "width", "head", "scale", "image_size", "settings"]
MODEL_KEYS_IN_PLAN = ("architecture", "group", "restriction", "depth", "widen", "width", "head", "scale")
KEYS_IN_PLAN = ("schema", "seed", "data.fold", "data.image_size", *(f"model.{name}" for name in MODEL_KEYS_IN_PLAN))

STATE_REASONS = {
    RunState.PLANNED: "never submitted",
    RunState.SUBMITTED: "submitted, not started yet",
    RunState.RUNNING: "still running, or killed without a record",
    RunState.STOPPED: "stopped before its end",
    RunState.FAILED: RunState.FAILED,
    RunState.TRAINED: "trained but not evaluated",
    RunState.EVALUATED: "evaluated, but results.csv is missing or damaged",
}
MAX_LISTED_CONDITIONS = 4  # missing conditions of a run that are named
FLATTEN_HEAD_FLAW = "flattening head (not invariant)"
WIDTH_LABELS = {"fields": "equal fields", "parameters": "equal parameters", "multiply_adds": "equal multiply-adds"}


class PlanError(ValueError):
    """A plan that cannot be read, or whose report would mislead."""


@dataclass(frozen=True, eq=False)
class RunResults:
    """The results of one planned run."""

    run: RunDir
    config: RunConfig | None = None
    planned_pairs: tuple[Pair, ...] = ()  # conditions and severities to be measured
    counts: pd.DataFrame | None = None  # of results.read_counts, planned pairs only; None without results
    reason: str = ""  # why the run is not complete; empty if it is
    attack: AttackResults | None = None  # complete, and as planned


@dataclass(frozen=True, eq=False)
class CollectedSweep:
    """The plan of a sweep, one row per run, and the results of these runs in the same order."""

    plan: pd.DataFrame  # columns of plan.csv; `label_networks` adds settings, fold and label
    runs: list[RunResults]
    shared_settings: str = ""  # what all networks have in common; `label_networks` sets it

    def iterate_labelled(self) -> Iterator[tuple[str, int, RunResults]]:
        """Yield network label, training seed and results of each run."""
        return zip(self.plan["label"], self.plan["seed"], self.runs, strict=True)


def make_plan_table(sweep_dir: Path) -> pd.DataFrame:
    """Return plan.csv as a table of one row per planned run.

    Raises
    ------
    PlanError, RunDirError
    """
    path = sweep_dir / "plan.csv"
    rows = read_plan(sweep_dir)
    if not rows:
        raise PlanError(f"{path}: got no rows; expected one row per planned run")
    plan = pd.DataFrame(rows)
    missing = [name for name in PLAN_DTYPES if name not in plan.columns]
    if missing:
        raise PlanError(f"{path}: no column {', '.join(missing)}; expected {', '.join(PLAN_DTYPES)}")
    for name, dtype in PLAN_DTYPES.items():
        try:
            plan[name] = plan[name].astype(dtype)
        except ValueError as error:
            raise PlanError(f"{path}: {name}: {_format_error(error)}") from error
    return plan


def collect_run(run: RunDir) -> RunResults:
    """Read the results of a planned run, or find the reason why they are incomplete."""
    if not run.path.is_dir():
        return RunResults(run, reason="its directory is missing")
    try:
        config = run.load_config()
        planned_pairs = conditions.list_severity_pairs(config.evaluate.conditions)
    except (OSError, ValueError) as error:
        return RunResults(run, reason=f"its config.json cannot be used: {_format_error(error)}")
    counts = results.read_counts(run)
    if counts is None:
        return RunResults(run, config, planned_pairs, reason=_describe_state(run))
    measured_pairs = list(zip(counts["condition"].tolist(), counts["severity"].tolist(), strict=True))
    num_classes = len(config.data.class_names)
    if counts["confusion"].iloc[0].shape[0] != num_classes:
        got = f"its results are of {counts['confusion'].iloc[0].shape[0]} classes; expected {num_classes}"
        return RunResults(run, config, planned_pairs, reason=got)
    planned = set(planned_pairs)
    if not planned.issuperset(measured_pairs):
        counts = counts[[pair in planned for pair in measured_pairs]]
    attack = read_finished_attack(run, config.evaluate.attack, counts["weights"].iloc[0]) if len(counts) else None
    missing = _list_missing_conditions(planned_pairs, set(measured_pairs))
    if config.evaluate.attack.galaxies and attack is None:
        missing = ", ".join(filter(None, (missing, "the one-pixel attack")))
    reason = f"partly evaluated, without {missing}{_describe_incomplete_state(run)}" if missing else ""
    return RunResults(run, config, planned_pairs, counts if len(counts) else None, reason, attack)


def get_class_names(sweep: CollectedSweep) -> tuple[str, ...]:
    """Return the names of the classes, the same of all runs; none if no run can be read.

    Raises
    ------
    PlanError
        if the classes of two runs differ: their results cannot be averaged or compared
    """
    runs_by_names = {run.config.data.class_names: run.run.run_id for run in reversed(sweep.runs) if run.config}
    if len(runs_by_names) > 1:
        texts = [f"{run_id} has {len(names)}: {names[0]}, ..." for names, run_id in runs_by_names.items()]
        raise PlanError(f"plan.csv: got runs with other classes: {'; '.join(texts[:2])}; expected the same of all runs")
    return next(iter(runs_by_names), ())


def _list_missing_conditions(planned_pairs: tuple[Pair, ...], measured_pairs: set[Pair]) -> str:
    """Name planned conditions that are not measured: `rotation (12 of 48)`."""
    num_missing = Counter(name for name, severity in planned_pairs if (name, severity) not in measured_pairs)
    num_planned = Counter(name for name, _ in planned_pairs)
    texts = [f"{name} ({n} of {num_planned[name]})" for name, n in num_missing.items()]
    more = f" and {len(texts) - MAX_LISTED_CONDITIONS} more conditions" if len(texts) > MAX_LISTED_CONDITIONS else ""
    return ", ".join(texts[:MAX_LISTED_CONDITIONS]) + more


def _describe_state(run: RunDir) -> str:
    """Describe the state of a run in words."""
    state = read_state(run)
    return STATE_REASONS[state.name] + (f": {state.reason}" if state.reason and state.name != RunState.PLANNED else "")


def _describe_incomplete_state(run: RunDir) -> str:
    """Describe the state of an incomplete evaluation; a finished one was complete when fewer pairs were planned."""
    return "" if read_state(run).name == RunState.EVALUATED else f"; {_describe_state(run)}"


def _format_error(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def label_networks(sweep: CollectedSweep) -> CollectedSweep:
    """Add the columns `settings`, `fold` and `label`, the name of a network, to the plan.

    Raises
    ------
    PlanError
        if two runs are the same seed and fold of one network: their mean would pass for one over seeds
    """
    folds = [run.config.data.fold if run.config else 0 for run in sweep.runs]
    plan = sweep.plan.assign(settings=_describe_differing_settings(sweep.runs), fold=folds)
    keys = list(plan[NETWORK_COLUMNS].itertuples(index=False, name=None))
    name_parts = {key: _get_name_parts(*key) for key in keys}
    shared = [part for part in name_parts[keys[0]] if all(part in parts for parts in name_parts.values())]
    plan = plan.assign(label=[_format_label(key, name_parts[key], shared) for key in keys])
    known = plan[[run.config is not None for run in sweep.runs]]
    keys_of_run = ["label", "seed", "fold"]
    duplicates = known[known.duplicated(keys_of_run, keep=False)].sort_values(keys_of_run, kind="stable")
    if len(duplicates):
        run_ids, first = " and ".join(duplicates["run_id"].iloc[:2]), duplicates.iloc[0]
        raise PlanError(
            f"plan.csv: {run_ids} are both seed {first['seed']} of {first['label']}; expected one run per seed"
        )
    return CollectedSweep(plan, sweep.runs, ", ".join(shared))


def _get_name_parts(*network_key: Any) -> list[str]:
    """Return the parts of a network's name besides its group and architecture."""
    _, _, width, _, scale, image_size, settings = network_key
    size = f"fields x {scale:g}" if scale != 1 else ""
    return [part for part in (WIDTH_LABELS.get(width, width), size, f"{image_size} px", settings) if part]


def _format_label(network_key: tuple[Any, ...], name_parts: list[str], shared_parts: list[str]) -> str:
    arch, group, _, head, *_ = network_key
    flaw = [FLATTEN_HEAD_FLAW] if head == "flatten" else []
    return ", ".join([f"{group} {arch}".strip(), *flaw, *(part for part in name_parts if part not in shared_parts)])


def _flatten_identity(config: RunConfig) -> dict[str, str]:
    """Return dotted key: text of what decides the weights, without model options that are left at their defaults."""
    defaults = flatten(RunConfig.model_validate({"model": {"group": "C1"}}).get_identity())
    settings = flatten(config.get_identity())
    return {key: text for key, text in settings.items() if not key.startswith("model.") or text != defaults[key]}


def _describe_differing_settings(run_results: list[RunResults]) -> list[str]:
    """Name, for each run, the settings without a column in the plan in which runs differ."""
    settings = [_flatten_identity(run.config) if run.config else {} for run in run_results]
    known = [values for values in settings if values]
    keys = sorted({key for values in known for key in values if not key.startswith(KEYS_IN_PLAN)})
    differing = [key for key in keys if len({values.get(key) for values in known}) > 1]
    unknown = "settings unknown" if differing else ""
    # an identity leaves out unset options: those of another architecture, and those with a default to name
    defaults = {key: str(DEFAULTS[key]) for key in differing if key in DEFAULTS and not key.startswith("model.")}
    complete = [values and defaults | values for values in settings]
    return [
        ", ".join(f"{key.removeprefix('model.')} {values[key]}" for key in differing if key in values)
        if values
        else unknown
        for values in complete
    ]
