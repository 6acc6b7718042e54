"""Write the files of a report: CSV tables, LaTeX, figures, HTML."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from galaxyhpc.analysis import summary, uncertainty
from galaxyhpc.analysis.attack_success import AttackError
from galaxyhpc.analysis.collect import (
    CollectedSweep,
    PlanError,
    collect_run,
    get_class_names,
    label_networks,
    make_plan_table,
)
from galaxyhpc.analysis.sweep_tables import (
    NO_INTERVALS_NOTE,
    add_prediction_tables,
    describe_folds,
    list_flaws,
    list_unplanned_runs,
    make_count_tables,
    make_report_info,
    name_hardest_galaxies,
    read_galaxy_names,
)
from galaxyhpc.analysis.tables import GENERATED_NOTICE, ReportInfo, Tables
from galaxyhpc.report import latex
from galaxyhpc.report.terminal import make_terminal_table
from galaxyhpc.runtime.console import ConsoleTable, make_console
from galaxyhpc.runtime.lock import hold
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir, RunDirError
from galaxyhpc.storage.sweep_dir import refuse_symlinks

RESULTS_COLUMNS = [
    *("run_id", "arch", "group", "width", "seed", "parameters", "condition", "severity", "parameter", "unit"),
    *("n", "correct", *summary.ALL_METRICS, "data", "head", "scale", "image_size", "settings", "fold"),
]
SUMMARY_COLUMNS = [
    *("arch", "group", "condition", "severity", "parameter", "unit", "seeds_done", "seeds_planned"),
    *("accuracy_mean", "accuracy_std", "ci_low", "ci_high", *summary.ALL_METRICS[1:], "consistency"),
    *("data", "width", "head", "scale", "image_size", "settings", "label"),
]
MAX_LISTED_REASONS = 5


class AggregateError(ValueError):
    """A sweep that cannot be reported without misleading."""


@dataclass(frozen=True, eq=False)
class Report:
    """The report of a sweep; `directory` holds it as files."""

    directory: Path
    tables: Tables
    results: pd.DataFrame  # one row per run, condition and severity
    notes: tuple[str, ...]  # warnings that every reader must see
    console_table: ConsoleTable

    @property
    def summary(self) -> pd.DataFrame:
        """One row per network, condition and severity."""
        return self.tables.summary

    @property
    def missing_runs(self) -> pd.DataFrame:
        """run_id and reason of each planned run that is not complete."""
        runs = self.tables.runs
        return runs.loc[runs["reason"] != "", ["run_id", "reason"]].reset_index(drop=True)


def aggregate(sweep_dir: Path, compute_intervals: bool = True) -> Report:
    """Write runs/NAME/report/ anew from the results that exist now.

    Raises
    ------
    AggregateError
        if there is no plan, or if runs were measured on different galaxies
    """
    report_dir = sweep_dir / "report"
    try:
        plan = make_plan_table(sweep_dir)
        runs = [RunDir(sweep_dir / run_id) for run_id in plan["run_id"]]
        refuse_symlinks(report_dir, *(run.path for run in runs))
        report_dir.mkdir(exist_ok=True)
        with hold(report_dir / ".lock", timeout=None):
            sweep = label_networks(CollectedSweep(plan, [collect_run(run) for run in runs]))
            return _build_report(sweep_dir, sweep, compute_intervals)
    except (PlanError, RunDirError, AttackError) as error:
        raise AggregateError(str(error)) from error


def _build_report(sweep_dir: Path, sweep: CollectedSweep, compute_intervals: bool) -> Report:
    """Make all tables, then write all files."""
    class_names = get_class_names(sweep)
    metrics_table = summary.make_metrics_table(sweep)
    predictions = uncertainty.SweepPredictions({}, {}, [NO_INTERVALS_NOTE])
    if compute_intervals:
        predictions = uncertainty.load_predictions(sweep)
    seed_summary = uncertainty.add_intervals(summary.summarise_seeds(sweep, metrics_table), predictions.networks)
    tables = make_count_tables(sweep, metrics_table, seed_summary, class_names)
    names = read_galaxy_names(sweep_dir)
    if compute_intervals:
        tables = add_prediction_tables(replace(tables, training=summary.learning_curves(sweep)), predictions)
        tables = name_hardest_galaxies(tables, names)
    info = make_report_info(sweep_dir, sweep, metrics_table, class_names)
    notes = (
        *list_unplanned_runs(sweep_dir, sweep),
        *list_flaws(sweep_dir, sweep),
        *describe_folds(sweep),
        *predictions.notes,
    )
    title = f"test accuracy in %: {info.title}" + (f"\n{GENERATED_NOTICE}" if info.generated else "")
    footer = [*filter(None, [info.describe_chance()]), *_describe_progress(tables.runs), *notes]
    console_table = make_terminal_table(title, tables.networks, tables.summary, footer)
    tables = replace(tables, summary=tables.summary[SUMMARY_COLUMNS])
    report = Report(sweep_dir / "report", tables, metrics_table[RESULTS_COLUMNS], notes, console_table)
    _write_tables(report, info)
    if compute_intervals:
        from galaxyhpc.report.html_report import write_report  # imports matplotlib, which tables do without

        write_report(report.directory, tables, info, sweep, metrics_table, predictions.misclassified, names, notes)
    else:
        _remove_old_figures(report.directory)
    return report


def _describe_progress(runs: pd.DataFrame) -> list[str]:
    """Count the complete runs and the reasons of the others, the most frequent first."""
    reasons = Counter(runs.loc[runs["reason"] != "", "reason"])
    lines = [f"{len(runs) - reasons.total()}/{len(runs)} runs complete"]
    lines += [f"  {n} x {reason}" for reason, n in reasons.most_common()[:MAX_LISTED_REASONS]]
    others = sum(n for _, n in reasons.most_common()[MAX_LISTED_REASONS:])
    return lines + [f"  {others} for other reasons: see missing.csv"] * bool(others)


def _write_tables(report: Report, info: ReportInfo) -> None:
    """Write every table, and remove those of an earlier report that are empty now."""
    names = ("summary", "networks", "per_class", "confusion", "reliability", "comparisons", "corruption_error")
    tables = {
        "results": report.results,
        "missing": report.missing_runs,
        "wide": summary.pivot_accuracies(report.summary),
        **{name: getattr(report.tables, name) for name in (*names, "attack", "hardest")},
    }
    for name, table in tables.items():
        path = report.directory / f"{name}.csv"
        if len(table.columns):
            write_text(path, table.to_csv(index=False, float_format="%.8g", lineterminator="\n"))
        else:
            path.unlink(missing_ok=True)
    write_text(report.directory / "tables.tex", latex.format_document(report.tables, info))


def _remove_old_figures(directory: Path) -> None:
    """Remove the page and figures of an earlier report, whose numbers differ from the new tables."""
    (directory / "report.html").unlink(missing_ok=True)
    if any(path.suffix in (".png", ".pdf") for path in directory.iterdir()):
        from galaxyhpc.report.html_report import remove_figures

        remove_figures(directory)


def print_report(report: Report) -> None:
    """Print the table of a report and the directory of its files."""
    console = make_console()
    console.print(report.console_table)
    console.print(report.directory, soft_wrap=True)
