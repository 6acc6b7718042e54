"""The files of a report: CSV tables, LaTeX, figures, HTML."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock
from rich.table import Table

from galaxyhpc.analysis import summary as summaries
from galaxyhpc.analysis import uncertainty
from galaxyhpc.analysis.attack_success import AttackError
from galaxyhpc.analysis.collect import PlanError, RunResults, collect_run, label_networks, read_plan
from galaxyhpc.analysis.sweep_tables import (
    NO_INTERVALS_NOTE,
    add_prediction_tables,
    list_flaws,
    list_unplanned_runs,
    make_count_tables,
    make_report_info,
)
from galaxyhpc.analysis.tables import GENERATED_NOTICE, ReportInfo, Tables
from galaxyhpc.report import latex
from galaxyhpc.report.terminal import make_terminal_table
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDirError
from galaxyhpc.storage.sweep_dir import read_planned_runs, refuse_symlinks

RESULTS_COLUMNS = [
    "run_id",
    "arch",
    "group",
    "width",
    "seed",
    "parameters",
    "condition",
    "severity",
    "parameter",
    "unit",
]
RESULTS_COLUMNS += ["n", "correct", *summaries.ALL_METRICS, "data", "head", "scale", "image_size", "settings"]
SUMMARY_COLUMNS = ["arch", "group", "condition", "severity", "parameter", "unit", "seeds_done", "seeds_planned"]
SUMMARY_COLUMNS += ["accuracy_mean", "accuracy_std", "ci_low", "ci_high", *summaries.ALL_METRICS[1:], "consistency"]
SUMMARY_COLUMNS += ["data", "width", "head", "scale", "image_size", "settings", "label"]
CSV_QUOTE, CSV_SPECIAL_CHARACTERS = '"', ',"\r\n'  # what a CSV field is put into, and where it has to be


class AggregateError(ValueError):
    """A sweep that cannot be reported without misleading."""


@dataclass(frozen=True, eq=False)
class Report:
    """A sweep's report; `directory` holds it as files."""

    directory: Path
    tables: Tables
    results: pd.DataFrame  # one row per run, condition and severity
    notes: tuple[str, ...]  # what no reader may miss
    console_table: Table  # for a terminal

    @property
    def summary(self) -> pd.DataFrame:
        """One row per network, condition and severity."""
        return self.tables.summary

    @property
    def missing_runs(self) -> pd.DataFrame:
        """run_id and reason of each planned run that is not in."""
        runs = self.tables.runs
        return runs.loc[runs["reason"] != "", ["run_id", "reason"]].reset_index(drop=True)


def aggregate(sweep: Path, compute_intervals: bool = True) -> Report:
    """Write runs/NAME/report/ anew from what is there now.

    Raises
    ------
    AggregateError
        where there is no plan, or where runs were measured on different galaxies
    """
    try:
        plan = read_plan(sweep / "plan.csv")
        runs = read_planned_runs(sweep)
        refuse_symlinks(sweep / "report", *(run.path for run in runs))
        (sweep / "report").mkdir(exist_ok=True)
        with FileLock(sweep / "report" / ".lock"):
            found = [collect_run(run) for run in runs]
            plan, common = label_networks(plan, found)
            return _build_report(sweep, plan, found, common, compute_intervals)
    except (PlanError, RunDirError, AttackError) as error:
        raise AggregateError(str(error)) from error


def _build_report(
    sweep: Path, plan: pd.DataFrame, run_results: list[RunResults], shared_settings: str, compute_intervals: bool
) -> Report:
    """Make all tables, then write all files."""
    table = summaries.make_metrics_table(plan, run_results)
    gathered = (
        uncertainty.load_predictions(plan, run_results)
        if compute_intervals
        else uncertainty.SweepPredictions({}, {}, [NO_INTERVALS_NOTE])
    )
    summary = uncertainty.add_intervals(summaries.summarise_seeds(plan, run_results, table), gathered.networks)
    tables = make_count_tables(plan, run_results, table, summary)
    if compute_intervals:
        tables = add_prediction_tables(replace(tables, training=summaries.learning_curves(plan, run_results)), gathered)
    about = make_report_info(sweep, plan, table, shared_settings)
    notes = (*list_unplanned_runs(sweep, plan), *list_flaws(run_results), *gathered.notes)
    title = f"test accuracy in %: {about.title}" + (f"\n{GENERATED_NOTICE}" if about.generated else "")
    shown = make_terminal_table(title, tables.networks, tables.summary, [*_describe_progress(tables.runs), *notes])
    tables = replace(tables, summary=tables.summary[SUMMARY_COLUMNS])
    report = Report(sweep / "report", tables, table[RESULTS_COLUMNS], notes, shown)
    _write_tables(report, about)
    if compute_intervals:
        from galaxyhpc.report.html_report import write_report  # imports matplotlib, which tables do without

        write_report(report.directory, report.tables, about, run_results, table, gathered.misclassified, notes)
    else:
        _remove_old_figures(report.directory)
    return report


def _describe_progress(runs: pd.DataFrame) -> list[str]:
    """Say how many runs are in, and why the others are not, the commonest reasons first."""
    reasons = Counter(runs.loc[runs["reason"] != "", "reason"])
    said = [f"{len(runs) - reasons.total()} of {len(runs)} planned runs are in."]
    said += [f"  {n} x {reason}" for reason, n in reasons.most_common()[:5]]
    left = sum(n for _, n in reasons.most_common()[5:])
    return said + [f"  {left} for other reasons: see missing.csv"] * bool(left)


def _write_tables(report: Report, info: ReportInfo) -> None:
    """Write every table; one there is nothing of is removed, should an earlier report have left it."""
    tables = {
        "results": report.results,
        "missing": report.missing_runs,
        "wide": summaries.pivot_accuracies(report.summary),
    }
    named = ("summary", "networks", "per_class", "confusion", "reliability", "comparisons", "corruption_error")
    tables |= {name: getattr(report.tables, name) for name in (*named, "attack", "hardest")}
    for name, table in tables.items():
        path = report.directory / f"{name}.csv"
        if len(table.columns):
            write_text(path, format_csv(table))
        else:
            path.unlink(missing_ok=True)
    write_text(report.directory / "tables.tex", latex.format_document(report.tables, info))


def format_csv(table: pd.DataFrame) -> str:
    """Write numbers with 8 digits; a third of the time that pandas takes with a format, which tells on 1,000 runs."""
    columns = [_format_column(table[name]) for name in table]
    row = ",".join(form for form, _ in columns)
    rows = zip(*(values for _, values in columns), strict=True)
    return "\n".join([",".join(table.columns), *map(row.__mod__, rows), ""])


def _format_column(column: pd.Series[Any]) -> tuple[str, list[Any]]:
    """Return how a value is written, and the values."""
    kind = column.dtype.kind
    if kind == "f" and column.notna().all():
        return "%.8g", column.tolist()
    if kind == "f":
        return "%s", [f"{value:.8g}" if value == value else "" for value in column.tolist()]
    if kind in "iub":
        return "%s", column.tolist()
    values = column.fillna("").tolist()
    quoted = {
        text: f'"{text.replace(CSV_QUOTE, 2 * CSV_QUOTE)}"'
        for text in set(values)
        if set(text) & set(CSV_SPECIAL_CHARACTERS)
    }
    return "%s", [quoted.get(text, text) for text in values]


def _remove_old_figures(directory: Path) -> None:
    """Remove what would show the numbers of an earlier report beside the tables of this one."""
    (directory / "report.html").unlink(missing_ok=True)
    if any(path.suffix in (".png", ".pdf") for path in directory.iterdir()):
        from galaxyhpc.report.html_report import remove_figures

        remove_figures(directory)


def print_report(report: Report) -> None:
    """Print a report's table and where its files are."""
    console = make_console()
    console.print(report.console_table)
    console.print(report.directory, soft_wrap=True)
