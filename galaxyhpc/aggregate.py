"""Write the report of a sweep: tables and figures in runs/NAME/report/, and a table on the terminal.

    python -m galaxyhpc.aggregate runs/NAME
    python -m galaxyhpc.aggregate runs/NAME --no-intervals     # a first look at a thousand runs

    results.csv   one row per run, condition and severity     summary.csv   the same per network, over its seeds
    missing.csv   each planned run that is not in, and why    accuracy_angle and accuracy_noise .png, .pdf

It starts from plan.csv, not from the files found, and says how many of the planned runs are in. The condition
rotation_mean of summary.csv is the accuracy over all angles together.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from numpy.typing import NDArray
from rich.table import Table

from galaxyhpc import figures, results
from galaxyhpc.metrics import bootstrap_interval, metrics
from galaxyhpc.planned import NETWORK, Found, PlanError, find, named, read_plan
from galaxyhpc.results import Pair
from galaxyhpc.rundir import NoRunError, planned_runs, refuse_links, replacing, write_text
from galaxyhpc.table import ROTATION_MEAN, make_console, terminal_table

METRICS = ["accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "ece"]
RESULTS = ["run_id", "arch", "group", "width", "seed", "parameters", "condition", "severity", "n", "correct"]
RESULTS += [*METRICS, "data", "head", "scale", "image_size", "settings"]
SUMMARY = ["arch", "group", "condition", "severity", "seeds_done", "seeds_planned"]
SUMMARY += ["accuracy_mean", "accuracy_std", "ci_low", "ci_high"]
SUMMARY += ["data", "width", "head", "scale", "image_size", "settings", "label"]


class AggregateError(ValueError):
    """A sweep that cannot be reported without misleading."""


@dataclass(frozen=True, eq=False)
class Report:
    """A sweep's report; `directory` holds it as files."""

    directory: Path
    results: pd.DataFrame  # one row per run, condition and severity
    summary: pd.DataFrame  # one row per network, condition and severity
    missing: pd.DataFrame  # run_id, reason
    planned: int
    table: Table  # for a terminal


def aggregate(sweep: Path, intervals: bool = True) -> Report:
    """Write runs/NAME/report/ anew from what is there now.

    Raises
    ------
    AggregateError
        where there is no plan, or where runs were measured on different galaxies
    """
    try:
        plan = read_plan(sweep / "plan.csv")
        runs = planned_runs(sweep)
        refuse_links(sweep / "report", *(run.path for run in runs))
        (sweep / "report").mkdir(exist_ok=True)
        with FileLock(sweep / "report" / ".lock"):
            found = [find(run) for run in runs]
            plan, common = named(plan, found)
            return _report(sweep, plan, found, common, intervals)
    except (PlanError, NoRunError) as error:
        raise AggregateError(str(error)) from error


def _report(sweep: Path, plan: pd.DataFrame, found: list[Found], common: str, intervals: bool) -> Report:
    """Make all tables, then write all files."""
    table = measured(plan, found)
    summary, notes = summarise(plan, found, table), ["No intervals were computed, so that nothing is bold."]
    if intervals:
        summary, notes = _with_intervals(plan, found, summary)
    missing = pd.DataFrame([(f.run.run_id, f.reason) for f in found if f.reason], columns=["run_id", "reason"])
    about = _about(sweep, plan, table, common)
    title = about.title + (f"\n{figures.GENERATED}" if about.generated else "")
    notes = [*_progress(len(plan), missing), *_strays(sweep, plan), *notes]
    shown = terminal_table(title, _networks(plan, found), summary, notes)
    report = Report(sweep / "report", table[RESULTS], summary[SUMMARY], missing, len(plan), shown)
    _write(report, summary, about)
    return report


def measured(plan: pd.DataFrame, found: list[Found]) -> pd.DataFrame:
    """All counts with their metrics and what the plan says of their run; different galaxies are refused."""
    tables = [f.table for f in found if f.table is not None and len(f.table)]
    if not tables:
        return pd.DataFrame(columns=[*results.COLUMNS, *METRICS, *plan.columns.drop("run_id")])
    table = pd.concat(tables, ignore_index=True)
    sources = table.drop_duplicates("fingerprint")
    if len(sources) > 1:
        which = [f"{f[:12]} ({run_id})" for f, run_id in zip(sources["fingerprint"], sources["run_id"], strict=True)]
        raise AggregateError(
            f"plan.csv: its runs were measured on different galaxies: {', '.join(which)}; allowed is one data file"
        )
    table = table.assign(**metrics(results.counts(table))).merge(plan.drop(columns="data"), on="run_id")
    return table.assign(data=np.where(table["generated"], "demo", table["fingerprint"].str[:12]))


def summarise(plan: pd.DataFrame, found: list[Found], table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds for every network and every pair planned for it, measured or not."""
    keys = ["label", "condition", "severity"]
    accuracy = pd.concat([table[[*keys, "accuracy"]], _rotation_means(found, table)])
    over_seeds = accuracy.groupby(keys)["accuracy"].agg(["count", "mean", "std"])
    rows = over_seeds.reindex(pd.MultiIndex.from_tuples(_wanted(plan, found), names=keys)).reset_index()
    rows = rows.rename(columns={"count": "seeds_done", "mean": "accuracy_mean", "std": "accuracy_std"})
    network = plan.drop_duplicates("label")[["label", *NETWORK, "data"]]
    network = network.assign(seeds_planned=network["label"].map(plan["label"].value_counts()))
    if len(table):
        network = network.assign(data=table["data"].iloc[0])
    rows = rows.merge(network, on="label", how="left").assign(ci_low=np.nan, ci_high=np.nan)
    return rows.assign(seeds_done=rows["seeds_done"].fillna(0).astype(int))


def _wanted(plan: pd.DataFrame, found: list[Found]) -> list[tuple[str, str, float]]:
    """List network, condition and severity in the order planned; a network of unknown plan has everyone's."""
    pairs: dict[str, dict[Pair, None]] = {label: {} for label in plan["label"]}
    for label, f in zip(plan["label"], found, strict=True):
        pairs[label] |= dict.fromkeys([*f.pairs, *([ROTATION_MEAN] if _angles(f) else [])])
    everyones = dict.fromkeys(pair for some in pairs.values() for pair in some)
    return [(label, *pair) for label, some in pairs.items() for pair in some or everyones]


def _angles(f: Found) -> list[Pair]:
    return [pair for pair in f.pairs if pair[0] == "rotation"]


def _rotation_means(found: list[Found], table: pd.DataFrame) -> pd.DataFrame:
    """One row per run that has every planned angle: its accuracy over all of them."""
    by_run = table[table["condition"] == "rotation"].groupby(["label", "run_id"])["accuracy"]
    means = by_run.agg(["size", "mean"]).reset_index()
    planned = means["run_id"].map({f.run.run_id: len(_angles(f)) for f in found})
    means = means[means["size"] == planned].rename(columns={"mean": "accuracy"})
    return means.assign(condition=ROTATION_MEAN[0], severity=ROTATION_MEAN[1])[
        ["label", "condition", "severity", "accuracy"]
    ]


def _with_intervals(plan: pd.DataFrame, found: list[Found], summary: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Fill ci_low and ci_high in; the notes name networks that must do without."""
    runs = defaultdict(list)
    for label, f in zip(plan["label"], found, strict=True):
        if f.table is not None and len(f.table):
            runs[label].append(f)
    intervals: dict[Hashable, tuple[float, float]] = {}
    notes = []
    for label, of_network in runs.items():
        hits = [_hits(f) for f in of_network]
        unreadable = [f.run.run_id for f, some in zip(of_network, hits, strict=True) if some is None]
        if unreadable:
            notes.append(f"{label}: no intervals, for predictions.h5 of {', '.join(unreadable)} is absent or damaged.")
            continue
        of_pairs = _intervals(of_network, [some for some in hits if some is not None])
        intervals |= {(label, *pair): limits for pair, limits in of_pairs.items()}
    index = summary.set_index(["label", "condition", "severity"]).index
    limits = np.array([intervals.get(key, (np.nan, np.nan)) for key in index]).reshape(-1, 2)
    return summary.assign(ci_low=limits[:, 0], ci_high=limits[:, 1]), notes


@dataclass(frozen=True, eq=False)
class Hits:
    """Which test galaxies a run got right."""

    rows: NDArray[np.int32]  # (n,) in the data file
    groups: NDArray[np.int32]  # (n,) sky group
    right: dict[Pair, NDArray[Any]]  # (n,) of 0 and 1; the fraction of angles for ROTATION_MEAN


def _hits(f: Found) -> Hits | None:
    """Read which galaxies a run got right; None where predictions.h5 does not bear its counts out."""
    read = results.read_predictions(f.run)
    if read is None or f.table is None:
        return None
    right: dict[Pair, NDArray[Any]] = {}
    for condition, severity, correct in zip(*(f.table[c] for c in ("condition", "severity", "correct")), strict=True):
        predicted = read.predicted.get((condition, severity))
        if predicted is None or (predicted == read.labels).sum() != correct:
            return None
        right[condition, severity] = predicted == read.labels
    angles = _angles(f)
    if angles and all(pair in right for pair in angles):
        right[ROTATION_MEAN] = np.array([right[pair] for pair in angles]).mean(axis=0, dtype=np.float32)
    return Hits(read.rows, read.groups, right)


def _intervals(runs: list[Found], hits: list[Hits]) -> dict[Pair, tuple[float, float]]:
    """Bootstrap a network; pairs that the same seeds have go together."""
    for f, other in zip(runs, hits, strict=True):
        if not np.array_equal(other.rows, hits[0].rows):
            which = f"{runs[0].run.run_id} and {f.run.run_id}"
            raise AggregateError(f"plan.csv: {which} were measured on different test galaxies; allowed is one split")
    by_seeds = defaultdict(list)
    for pair in dict.fromkeys(pair for some in hits for pair in some.right):
        by_seeds[tuple(i for i, some in enumerate(hits) if pair in some.right)].append(pair)
    limits: dict[Pair, tuple[float, float]] = {}
    for seeds, pairs in by_seeds.items():
        right = np.array([[hits[i].right[pair] for pair in pairs] for i in seeds], dtype=np.float32)
        low, high = bootstrap_interval(right, hits[0].groups)
        limits |= dict(zip(pairs, zip(low.tolist(), high.tolist(), strict=True), strict=True))
    return limits


def _networks(plan: pd.DataFrame, found: list[Found]) -> pd.DataFrame:
    """One row per network: label, parameters, seeds_done (completely in) and seeds_planned."""
    complete = plan.assign(complete=[not f.reason for f in found]).groupby("label", sort=False)
    sums = {"seeds_done": ("complete", "sum"), "seeds_planned": ("complete", "size")}
    return complete.agg(parameters=("parameters", "first"), **sums).reset_index()


def _about(sweep: Path, plan: pd.DataFrame, table: pd.DataFrame, common: str) -> figures.About:
    """Say what is shown: the sweep, what its networks share, on how many galaxies of which kind."""
    title = f"{sweep.resolve().name}: test accuracy in %" + (f"; {common}" if common else "")
    if table.empty:
        return figures.About(title, bool((plan["data"] == "demo").any()), np.nan)
    first = table.iloc[0]
    chance = first["confusion"].sum(axis=1).max() / first["n"]
    sizes = sorted(set(table["n"]))
    title += f"; {sizes[0]}{f' to {sizes[-1]}' if len(sizes) > 1 else ''} test galaxies"
    return figures.About(title, bool(table["generated"].any()), float(chance))


def _progress(planned: int, missing: pd.DataFrame) -> list[str]:
    """Say how many runs are in, and why the others are not, the commonest reasons first."""
    said = [f"{planned - len(missing)} of {planned} planned runs are in."]
    reasons = Counter(missing["reason"]).most_common()
    said += [f"  {n} x {reason}" for reason, n in reasons[:5]]
    left = sum(n for _, n in reasons[5:])
    return said + [f"  {left} for other reasons: see missing.csv"] * bool(left)


def _strays(sweep: Path, plan: pd.DataFrame) -> list[str]:
    """Name runs in the directory that the plan does not know."""
    there = sorted({path.parent.name for path in sweep.glob("*/config.json")} - set(plan["run_id"]))
    more = f" and {len(there) - 5} more" if len(there) > 5 else ""
    return [f"Not in the plan and left out: {', '.join(there[:5])}{more}."] if there else []


def _write(report: Report, summary: pd.DataFrame, about: figures.About) -> None:
    for name in ("results", "summary", "missing"):
        write_text(report.directory / f"{name}.csv", getattr(report, name).to_csv(index=False, float_format="%.8g"))
    for name in ("accuracy_angle", "accuracy_noise"):
        figure = getattr(figures, name)(summary, about)
        for kind, quirk in (("png", {}), ("pdf", {"CreationDate": None})):  # the same numbers give the same file
            with replacing(report.directory / f"{name}.{kind}") as aside:
                figure.savefig(aside, format=kind, dpi=150, metadata=quirk)
            figure.set_layout_engine("none")  # laid out once for both, half the time of a small report


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m galaxyhpc.aggregate`."""
    parser = argparse.ArgumentParser(prog="galaxyhpc.aggregate", description="Write the report of a sweep.")
    parser.add_argument("sweep", type=Path, help="runs/NAME")
    parser.add_argument("--no-intervals", action="store_true", help="skip the bootstrap")
    options = parser.parse_args(arguments)
    try:
        report = aggregate(options.sweep, intervals=not options.no_intervals)
    except AggregateError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    show(report)
    return 0


def show(report: Report) -> None:
    """Print a report's table and where its files are."""
    console = make_console()
    console.print(report.table)
    console.print(report.directory, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
