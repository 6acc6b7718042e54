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
from galaxyhpc.analysis.collect import Found, PlanError, find, named, read_plan
from galaxyhpc.analysis.sweep_tables import WITHOUT, _about, _strays, flaws, from_counts, with_evidence
from galaxyhpc.analysis.tables import GENERATED, About, Tables
from galaxyhpc.report import latex
from galaxyhpc.report.terminal import terminal_table
from galaxyhpc.runtime.console import make_console
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import NoRunError
from galaxyhpc.storage.sweep_dir import planned_runs, refuse_links

RESULTS = ["run_id", "arch", "group", "width", "seed", "parameters", "condition", "severity", "parameter", "unit"]
RESULTS += ["n", "correct", *summaries.ALL_METRICS, "data", "head", "scale", "image_size", "settings"]
SUMMARY = ["arch", "group", "condition", "severity", "parameter", "unit", "seeds_done", "seeds_planned"]
SUMMARY += ["accuracy_mean", "accuracy_std", "ci_low", "ci_high", *summaries.ALL_METRICS[1:], "consistency"]
SUMMARY += ["data", "width", "head", "scale", "image_size", "settings", "label"]
QUOTE, SPECIAL = '"', ',"\r\n'  # what a CSV field is put into, and where it has to be


class AggregateError(ValueError):
    """A sweep that cannot be reported without misleading."""


@dataclass(frozen=True, eq=False)
class Report:
    """A sweep's report; `directory` holds it as files."""

    directory: Path
    tables: Tables
    results: pd.DataFrame  # one row per run, condition and severity
    notes: tuple[str, ...]  # what no reader may miss
    table: Table  # for a terminal

    @property
    def summary(self) -> pd.DataFrame:
        """One row per network, condition and severity."""
        return self.tables.summary

    @property
    def missing(self) -> pd.DataFrame:
        """run_id and reason of each planned run that is not in."""
        runs = self.tables.runs
        return runs.loc[runs["reason"] != "", ["run_id", "reason"]].reset_index(drop=True)


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
    except (PlanError, NoRunError, AttackError) as error:
        raise AggregateError(str(error)) from error


def _report(sweep: Path, plan: pd.DataFrame, found: list[Found], common: str, intervals: bool) -> Report:
    """Make all tables, then write all files."""
    table = summaries.measured(plan, found)
    gathered = uncertainty.gather(plan, found) if intervals else uncertainty.Gathered({}, {}, [WITHOUT])
    summary = uncertainty.with_intervals(summaries.summarise(plan, found, table), gathered.networks)
    tables = from_counts(plan, found, table, summary)
    if intervals:
        tables = with_evidence(replace(tables, training=summaries.courses(plan, found)), gathered)
    about = _about(sweep, plan, table, common)
    notes = (*_strays(sweep, plan), *flaws(found), *gathered.notes)
    title = f"test accuracy in %: {about.title}" + (f"\n{GENERATED}" if about.generated else "")
    shown = terminal_table(title, tables.networks, tables.summary, [*_progress(tables.runs), *notes])
    tables = replace(tables, summary=tables.summary[SUMMARY])
    report = Report(sweep / "report", tables, table[RESULTS], notes, shown)
    _write_tables(report, about)
    if intervals:
        from galaxyhpc.report.html_report import write_page  # imports matplotlib, which tables do without

        write_page(report.directory, report.tables, about, found, table, gathered.mistakes, notes)
    else:
        _remove_pictures(report.directory)
    return report


def _progress(runs: pd.DataFrame) -> list[str]:
    """Say how many runs are in, and why the others are not, the commonest reasons first."""
    reasons = Counter(runs.loc[runs["reason"] != "", "reason"])
    said = [f"{len(runs) - reasons.total()} of {len(runs)} planned runs are in."]
    said += [f"  {n} x {reason}" for reason, n in reasons.most_common()[:5]]
    left = sum(n for _, n in reasons.most_common()[5:])
    return said + [f"  {left} for other reasons: see missing.csv"] * bool(left)


def _write_tables(report: Report, about: About) -> None:
    """Write every table; one there is nothing of is removed, should an earlier report have left it."""
    tables = {"results": report.results, "missing": report.missing, "wide": summaries.wide(report.summary)}
    named = ("summary", "networks", "per_class", "confusion", "reliability", "comparisons", "corruption_error")
    tables |= {name: getattr(report.tables, name) for name in (*named, "attack", "hardest")}
    for name, table in tables.items():
        path = report.directory / f"{name}.csv"
        if len(table.columns):
            write_text(path, csv_text(table))
        else:
            path.unlink(missing_ok=True)
    write_text(report.directory / "tables.tex", latex.document(report.tables, about))


def csv_text(table: pd.DataFrame) -> str:
    """Write numbers with 8 digits; a third of the time that pandas takes with a format, which tells on 1,000 runs."""
    columns = [_written(table[name]) for name in table]
    row = ",".join(form for form, _ in columns)
    rows = zip(*(values for _, values in columns), strict=True)
    return "\n".join([",".join(table.columns), *map(row.__mod__, rows), ""])


def _written(column: pd.Series[Any]) -> tuple[str, list[Any]]:
    """Return how a value is written, and the values."""
    kind = column.dtype.kind
    if kind == "f" and column.notna().all():
        return "%.8g", column.tolist()
    if kind == "f":
        return "%s", [f"{value:.8g}" if value == value else "" for value in column.tolist()]
    if kind in "iub":
        return "%s", column.tolist()
    values = column.fillna("").tolist()
    quoted = {text: f'"{text.replace(QUOTE, 2 * QUOTE)}"' for text in set(values) if set(text) & set(SPECIAL)}
    return "%s", [quoted.get(text, text) for text in values]


def _remove_pictures(directory: Path) -> None:
    """Remove what would show the numbers of an earlier report beside the tables of this one."""
    (directory / "report.html").unlink(missing_ok=True)
    if any(path.suffix in (".png", ".pdf") for path in directory.iterdir()):
        from galaxyhpc.report.html_report import remove

        remove(directory)


def show(report: Report) -> None:
    """Print a report's table and where its files are."""
    console = make_console()
    console.print(report.table)
    console.print(report.directory, soft_wrap=True)
