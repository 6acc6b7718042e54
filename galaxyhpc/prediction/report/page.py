"""The sections of report.html, and the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from galaxyhpc.prediction.columns import FLAGS
from galaxyhpc.prediction.report import figures
from galaxyhpc.prediction.report.summary import (
    ATYPICAL,
    CONFIDENT,
    Counts,
    SurveySummary,
    compute_sky_facts,
    get_ranges,
    summarize,
)
from galaxyhpc.prediction.report.throughput import measure_throughput
from galaxyhpc.prediction.survey import Attempts, SurveyDir, SurveySettings
from galaxyhpc.report import page
from galaxyhpc.report.figures.defaults import use_default_style
from galaxyhpc.report.figures.plain import make_page_figure
from galaxyhpc.report.page import Column, Section, Table
from galaxyhpc.runtime.console import format_count
from galaxyhpc.storage.files import write_text

Z_95 = 1.96  # standard deviations of a normal distribution on each side of 95 %
MAX_LISTED = 8  # missing units named by their number
LABELS = {
    "entropy": "entropy of the probabilities (nats)",
    "disagreement": "mutual information of class and run (nats)",
    "typicality": "typicality",
}
NOTES = {
    "entropy": "0: sure of one class; {high:.2f}: all classes alike.",
    "disagreement": "The part of the entropy that comes from the runs disagreeing; 0 where all agree.",
    "typicality": "Flat for galaxies like those of the training; a peak at 0 is of galaxies unlike them.",
}


def write_report(survey: SurveyDir) -> Path:
    """Write report.html into the directory of a prediction, finished or not; return the file.

    Raises
    ------
    SurveyError, OSError
    """
    write_text(survey.report_file, render(survey))
    return survey.report_file


@use_default_style()
def render(survey: SurveyDir) -> str:
    """Return the page as HTML."""
    settings, planned = survey.read_settings(), survey.read_units()
    done, set_aside = survey.list_done(), survey.list_set_aside()
    numbers = [unit.number for unit in planned]
    parts = [survey.get_part(number) for number in numbers if number in done]
    summary = summarize(parts, tuple(settings.identity["classes"]), len(settings.runs))
    missing = [number for number in numbers if number not in done and number not in set_aside]
    sources = {unit.number: unit.source for unit in planned}
    table, total = measure_throughput(survey)
    sections = [
        _make_summary_section(summary, settings, len(planned), missing, set_aside, total),
        _make_classes_section(summary),
        _make_sky_section(summary),
        _make_histograms_section(summary),
        _make_flags_section(summary),
        _make_throughput_section(table, total),
        _make_failures_section(summary, missing, set_aside, sources),
    ]
    lead = (f"Classified by {' and '.join(settings.identity['weights'])}: {_describe_done(summary, len(planned))}.",)
    title = f"{summary.num_galaxies:,} galaxies of {survey.path.name}"
    return page.render_page(title, sections, summary.generated, lead)


def _describe_done(summary: SurveySummary, num_units: int) -> str:
    return f"{summary.num_parts:,} of {format_count(num_units, 'unit')} complete"


def _make_summary_section(
    summary: SurveySummary,
    settings: SurveySettings,
    num_units: int,
    missing: list[int],
    set_aside: dict[int, Attempts],
    total: dict[str, float],
) -> Section:
    weights, temperatures = settings.identity["weights"], settings.identity["temperatures"]
    facts = [
        ("galaxies", f"{summary.num_galaxies:,}, of which {summary.num_classified:,} have a class"),
        ("units", _describe_done(summary, num_units)),
        *((f"run {run_id}", _describe_run(digest, temperatures[run_id])) for run_id, digest in weights.items()),
        ("inputs", ", ".join(settings.inputs)),
        ("parts on disk", f"{summary.num_bytes / 1e6:,.1f} MB"),
        ("throughput", f"{total['rate']:,.0f} images/s" if total["galaxies"] else "not recorded"),
    ]
    return Section("Summary", warnings=tuple(_list_warnings(summary, missing, set_aside)), facts=tuple(facts))


def _describe_run(digest: str, temperature: float | None) -> str:
    scaling = "not calibrated" if temperature is None else f"temperature {temperature:.3f}"
    return f"weights {digest[:12]} (SHA-256), {scaling}"


def _list_warnings(summary: SurveySummary, missing: list[int], set_aside: dict[int, Attempts]) -> list[str]:
    """Return what a reader of the numbers has to know, a line each."""
    lines = []
    if summary.generated:
        lines.append("Networks were trained on GENERATED galaxies: do not rely on their classes for real ones.")
    if missing:
        names = ", ".join(map(str, missing[:MAX_LISTED])) + (", ..." if len(missing) > MAX_LISTED else "")
        lines.append(f"Incomplete: {format_count(len(missing), 'unit')} without predictions ({names}).")
    if set_aside:
        lines.append(f"{format_count(len(set_aside), 'unit')} set aside after repeated failures: see Failures.")
    if summary.damaged:
        lines.append(f"{format_count(len(summary.damaged), 'part')} damaged and left out: see Failures.")
    if not summary.is_calibrated:
        lines.append("The probabilities are RAW, not calibrated: `galaxyhpc evaluate RUN` fits a temperature.")
    if summary.has_typicality and summary.num_atypical > 2 * ATYPICAL * summary.num_classified:
        percent = 100 * summary.num_atypical / summary.num_classified
        lines.append(
            f"{percent:.1f} % of the galaxies are unlike those of the training (typicality of at most {ATYPICAL:g}; "
            f"{100 * ATYPICAL:g} % are expected): their classes are extrapolated."
        )
    return lines


def _make_classes_section(summary: SurveySummary) -> Section:
    if not summary.num_classified:
        return Section("Classes", paragraphs=("No galaxy has a class.",))
    error = Z_95 * np.sqrt(summary.variance)
    frame = pd.DataFrame(
        {
            "name": summary.class_names,
            "label": range(len(summary.class_names)),
            "galaxies": summary.counts,
            "percent": 100 * summary.counts / summary.num_classified,
            "confident": summary.confident,
            "expected": summary.expected,
            "low": np.maximum(summary.expected - error, 0),
            "high": np.minimum(summary.expected + error, summary.num_classified),
        }
    )
    columns = [
        Column("class", "name"),
        Column("label", "label", "number"),
        Column("galaxies", "galaxies", "number"),
        Column("fraction (%)", "percent", "number", digits=2),
        Column(f"probability above {CONFIDENT:g}", "confident", "number"),
    ]
    caption = "Galaxies by their most probable class."
    if summary.is_calibrated:
        columns.append(Column("sum of probabilities", ("expected", "low", "high"), "interval"))
        caption += (
            " The sum of the probabilities estimates the true number of a class without a bias to the common ones; in "
            "brackets its 95 % interval, if the probabilities are calibrated for this survey and galaxies independent. "
            "They were calibrated on galaxies of the training's survey."
        )
    commonest = int(summary.counts.argmax())
    alt = f"Bars of galaxies per class; most, {summary.counts[commonest]:,}, are {summary.class_names[commonest]}"
    drawn = figures.draw_classes(summary.counts, summary.confident, summary.class_names, summary.generated)
    title = "Galaxies of each class"
    figure = make_page_figure(title, "Most probable classes; dark: with a probability above 0.9.", alt, drawn)
    return Section("Classes", figures=(figure,), tables=(Table("Counts", caption, frame, tuple(columns)),))


def _make_sky_section(summary: SurveySummary) -> Section:
    if not summary.num_positions:
        return Section("Sky", paragraphs=("The galaxies have no positions.",))
    facts = compute_sky_facts(summary.sky)
    caption = (
        f"{summary.num_positions:,} galaxies with positions in {facts['cells']:,.0f} of {len(summary.sky):,} HEALPix "
        f"cells (nside {figures.get_nside(summary.sky)}, equatorial), {facts['area']:,.0f} square degrees; on average "
        f"{facts['density']:,.2f} per square degree of them. Mollweide projection, right ascension increasing to the "
        "left."
    )
    alt = f"All-sky map of the density of {summary.num_positions:,} galaxies"
    figure = make_page_figure("Density", caption, alt, figures.draw_sky(summary.sky, summary.generated))
    return Section("Sky", figures=(figure,))


def _make_histograms_section(summary: SurveySummary) -> Section:
    drawn = []
    for name, limits in get_ranges(len(summary.class_names), summary.num_runs).items():
        counts = summary.histograms[name]
        if not counts.any():
            continue
        caption = NOTES[name].format(high=limits[1])
        alt = f"Histogram of {name}: half of the galaxies are below {_find_median(counts, limits):.3f}"
        figure = figures.draw_histogram(counts, limits, LABELS[name], summary.generated)
        drawn.append(make_page_figure(name.capitalize(), caption, alt, figure))
    return Section("Uncertainty", paragraphs=() if drawn else ("No galaxy has a class.",), figures=tuple(drawn))


def _find_median(counts: Counts, limits: tuple[float, float]) -> float:
    """Return the upper edge of the bin with the median."""
    number = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2)) + 1
    return limits[0] + (limits[1] - limits[0]) * number / len(counts)


def _make_flags_section(summary: SurveySummary) -> Section:
    meanings = FLAGS | {"filled": "pixels without a value, taken as sky"}
    frame = pd.DataFrame(
        {
            "flag": list(meanings),
            "meaning": list(meanings.values()),
            "galaxies": [summary.flags[name] for name in meanings],
            "percent": [100 * summary.flags[name] / max(summary.num_classified, 1) for name in meanings],
        }
    )
    columns = (
        Column("flag", "flag"),
        Column("meaning", "meaning"),
        Column("galaxies", "galaxies", "number"),
        Column("fraction (%)", "percent", "number", digits=3),
    )
    caption = "Galaxies with a class whose images have a flaw. The classes of blank images mean nothing."
    return Section("Image quality", tables=(Table("Flags", caption, frame, columns),))


def _make_throughput_section(table: pd.DataFrame, total: dict[str, float]) -> Section:
    if table.empty:
        return Section("Throughput", paragraphs=("No task has recorded a unit.",))
    columns = (
        Column("task", "task"),
        Column("nodes", "hosts"),
        Column("units", "units", "number"),
        Column("galaxies", "galaxies", "number"),
        Column("hours at work", "hours", "number", digits=3),
        Column("images/s", "rate", "number", digits=1),
    )
    caption = "From the times of finished units; units that were made again count twice."
    paragraph = (
        f"All tasks together: {total['galaxies']:,.0f} galaxies in {total['hours']:,.3f} hours with at least one task "
        f"at work, {total['rate']:,.1f} images/s, reading and writing included."
    )
    return Section("Throughput", paragraphs=(paragraph,), tables=(Table("Tasks", caption, table, columns),))


def _make_failures_section(
    summary: SurveySummary, missing: list[int], set_aside: dict[int, Attempts], sources: dict[int, str]
) -> Section:
    tables = [
        *_make_units_table(missing, set_aside, sources),
        *_make_damaged_table(summary),
        *_make_errors_table(summary),
    ]
    return Section("Failures", paragraphs=() if tables else ("None.",), tables=tuple(tables))


def _make_units_table(missing: list[int], set_aside: dict[int, Attempts], sources: dict[int, str]) -> list[Table]:
    rows = [(number, sources[number], f"set aside: {attempts.reason}") for number, attempts in set_aside.items()]
    rows += [(number, sources[number], "not done") for number in missing]
    if not rows:
        return []
    frame = pd.DataFrame(rows, columns=["unit", "source", "reason"])
    columns = (Column("unit", "unit", "number"), Column("source", "source"), Column("reason", "reason"))
    caption = "Rerun predict for those that are not done. Galaxies of these units are in no number of this page."
    return [Table("Units without predictions", caption, frame, columns)]


def _make_damaged_table(summary: SurveySummary) -> list[Table]:
    if not summary.damaged:
        return []
    frame = pd.DataFrame({"part": list(summary.damaged), "reason": list(summary.damaged.values())})
    columns = (Column("part", "part"), Column("reason", "reason"))
    return [Table("Damaged parts", "Rerun predict, which makes them again.", frame, columns)]


def _make_errors_table(summary: SurveySummary) -> list[Table]:
    if not summary.num_errors:
        return []
    counted = summary.errors.most_common()
    rest = summary.num_errors - sum(count for _, count in counted)
    frame = pd.DataFrame(counted + ([("other reasons", rest)] if rest else []), columns=["reason", "galaxies"])
    percent = 100 * summary.num_errors / max(summary.num_galaxies, 1)
    caption = f"{summary.num_errors:,} galaxies ({percent:.2g} %) have no class; the column error says why."
    return [Table("Images", caption, frame, (Column("reason", "reason"), Column("galaxies", "galaxies", "number")))]
