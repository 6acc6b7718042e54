"""Write the report of a sweep as one HTML page, with its figures beside it.

The page holds tables, figures and a page for every run, which is drawn when opened. It does not say when it was made:
the same runs give the same file.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from galaxyhpc.analysis.collect import CollectedSweep
from galaxyhpc.analysis.misclassified import Misclassification
from galaxyhpc.analysis.tables import GENERATED_NOTICE, ReportInfo, Tables
from galaxyhpc.config.conditions import ROTATION_MEAN
from galaxyhpc.data.galaxies import Galaxies, open_converted
from galaxyhpc.report import html_tables, page
from galaxyhpc.report.figures import FIGURES, files, get_caption
from galaxyhpc.report.figures.defaults import use_default_style
from galaxyhpc.report.page import Column, PageFigure, Section, Table, Thumbnail
from galaxyhpc.report.run_pages import RunDetails, make_run_pages, read_details
from galaxyhpc.runtime.console import format_count
from galaxyhpc.runtime.parallel import parallel_map
from galaxyhpc.storage.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

MAX_GALAXY_IMAGES = 400  # on the page, about 3 kB each
THUMBNAIL_SIZE_PX = 96
MAX_HARDEST_GALAXIES = 24  # shown for all runs together
MAX_FIGURE_WIDTH_PX = 2400
MAX_FIGURE_DPI = 150.0

GalaxyImages = Mapping[int, NDArray[np.uint8]]


def write_report(
    directory: Path,
    tables: Tables,
    info: ReportInfo,
    sweep: CollectedSweep,
    metrics_table: pd.DataFrame,
    misclassified: Mapping[str, tuple[Misclassification, ...]],
    names: Mapping[int, str],
    notes: Sequence[str],
) -> None:
    """Draw every figure, and write report.html.

    Parameters
    ----------
    metrics_table : of `summary.make_metrics_table`
    misclassified : run_id -> the galaxies that the run's page shows
    names : of galaxies by row of the data file; those without one are called by their row
    """
    pngs = dict(
        zip(
            FIGURES, parallel_map(partial(_draw_figure, tables, info, directory), list(FIGURES), "figures"), strict=True
        )
    )
    counts = dict(iter(metrics_table.groupby("run_id", sort=False)))
    run_details = [
        read_details(run.run, counts.get(run.run.run_id), misclassified.get(run.run.run_id, ())) for run in sweep.runs
    ]
    galaxies = load_if_converted(sweep)
    rows = select_galaxies(run_details, tables.hardest) if galaxies else []
    images = {row: np.ascontiguousarray(galaxies.images[row].transpose(1, 2, 0)) for row in rows if galaxies}
    conditions = [name for name in tables.summary["condition"].unique() if name not in ("clean", ROTATION_MEAN[0])]
    pngs["contact_sheet"] = _write_contact_sheet(directory, galaxies, rows[:3], conditions, info.title, names)
    drawn = {name: png for name, png in pngs.items() if png is not None}
    write_html(directory / "report.html", tables, info, run_details, drawn, images, notes, names)


def select_galaxies(
    run_details: Sequence[RunDetails], hardest: pd.DataFrame, max_images: int = MAX_GALAXY_IMAGES
) -> list[int]:
    """Select the rows of the data file to show: the hardest of all runs, then those that most runs' pages show."""
    first = [int(row) for row in hardest["row"][:MAX_HARDEST_GALAXIES]] if len(hardest) else []
    num_pages = Counter(galaxy.row for run in run_details for galaxy in run.misclassified)
    others = sorted(num_pages.keys() - set(first), key=lambda row: (-num_pages[row], row))
    return [*first, *others][:max_images]


def load_if_converted(sweep: CollectedSweep) -> Galaxies | None:
    """Open the converted galaxies; None if they are not on this machine, or not those of the runs."""
    measured = [run for run in sweep.runs if run.counts is not None]
    fingerprints = {run.counts["fingerprint"].iloc[0] for run in measured if run.counts is not None}
    with suppress(OSError, ValueError):
        galaxies = open_converted(measured[0].config.data) if measured and measured[0].config else None
        return galaxies if galaxies and fingerprints == {galaxies.fingerprint} else None
    return None


def write_html(
    path: Path,
    tables: Tables,
    info: ReportInfo,
    run_details: Sequence[RunDetails],
    figures: Mapping[str, bytes],
    galaxy_images: GalaxyImages,
    notes: Sequence[str] = (),
    names: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Write report.html, atomically.

    Parameters
    ----------
    tables : of `build.aggregate`
    run_details : of the runs in tables.runs; runs without details have a page with less on it
    figures : PNG by the names of `figures.FIGURES`; the page links NAME.pdf beside itself
    galaxy_images : (S, S, 3) uint8 by row of the data file
    notes : warnings that every reader must see
    names : of galaxies by row of the data file
    """
    jpegs = {row: encode_jpeg(image) for row, image in galaxy_images.items()}
    sections = [
        _make_overview_section(tables, info, notes),
        html_tables.make_networks_section(tables),
        html_tables.make_robustness_section(tables),
        html_tables.make_comparisons_section(tables),
        html_tables.make_classes_section(tables),
        Section("Calibration"),
        html_tables.make_attack_section(tables),
        Section("Training"),
        _make_hardest_section(tables, jpegs, info.class_names),
        Section("Other figures"),
        _make_runs_section(tables),
        _make_provenance_section(run_details, info),
    ]
    sections = [section for section in (_add_figures(section, figures) for section in sections) if not section.is_empty]
    lead = [paragraph for paragraph in info.question.split("\n\n") if paragraph]
    data = make_run_pages(tables.runs, tables.training, run_details, jpegs, info.class_names, names)
    write_text(path, page.render_page(info.title, sections, info.generated, lead, data, ["report.js"]))


def _make_overview_section(tables: Tables, info: ReportInfo, notes: Sequence[str]) -> Section:
    """Summarise what is complete, with every warning."""
    runs, networks = tables.runs, tables.networks
    missing = runs[runs["reason"] != ""]
    source = GENERATED_NOTICE if info.generated else f"data file with the fingerprint {info.fingerprint[:12]}"
    is_measured = info.generated or info.fingerprint
    shared = f"; common to all: {info.shared_settings}" if info.shared_settings else ""
    facts = [
        ("runs", f"{len(runs) - len(missing)}/{len(runs)} runs complete"),
        ("networks", f"{len(networks)}{shared}"),
        ("galaxies", f"{info.num_test_galaxies:,} test galaxies, {source}" if is_measured else "no measurements yet"),
    ]
    facts += [("classes", f"{len(info.class_names)}. {info.describe_chance()}")] if info.class_names else []
    facts += [("best on clean galaxies", best)] if (best := html_tables.describe_best_network(tables)) else []
    columns = (Column("run", "run_id", "run"), Column("network", "label"), Column("reason", "reason"))
    table = Table("Missing runs", "Planned runs that no number here includes.", missing, columns, "missing.csv")
    warnings = (*_warn_missing_runs(networks), *_warn_flaws(networks), *notes)
    return Section("Overview", warnings=warnings, facts=tuple(facts), tables=(table,) if len(missing) else ())


def _warn_missing_runs(networks: pd.DataFrame) -> list[str]:
    """Name networks with missing runs."""
    partial = networks[networks["seeds_done"] < networks["seeds_planned"]]
    columns = zip(partial["label"], partial["seeds_done"], partial["seeds_planned"], strict=True)
    names = [f"{label} ({num_done} of {num_planned})" for label, num_done, num_planned in columns]
    return [f"Partial results: not all planned runs are complete of {_format_list(names)}."] if names else []


def _warn_flaws(networks: pd.DataFrame) -> list[str]:
    """Name the flaws that networks reproduce."""
    flawed = networks[networks["flaw"] != ""]
    return [
        f"Flaw reproduced: {flaw}, by {_format_list(labels.tolist())}. Their numbers are marked and include its effect."
        for flaw, labels in flawed.groupby("flaw", sort=False)["label"]
    ]


def _format_list(names: Sequence[str], max_names: int = 12) -> str:
    return ", ".join(names[:max_names]) + (f" and {len(names) - max_names} more" if len(names) > max_names else "")


def _make_hardest_section(tables: Tables, jpegs: Mapping[int, bytes], class_names: Sequence[str]) -> Section:
    """Show the galaxies that most runs misclassify."""
    title = "Hardest galaxies"
    if tables.hardest.empty:
        return Section(title)
    galaxies = tables.hardest.head(MAX_HARDEST_GALAXIES).to_dict("records")
    thumbnails = tuple(_make_thumbnail(g, jpegs[int(g["row"])], class_names) for g in galaxies if g["row"] in jpegs)
    paragraph = (
        "Clean test galaxies that most complete runs misclassify. Where most runs agree, the label may be wrong: it "
        "often comes from votes of volunteers."
    )
    return Section(title, (paragraph,), thumbnails=thumbnails)


def _make_thumbnail(galaxy: Mapping[Any, Any], jpeg: bytes, class_names: Sequence[str]) -> Thumbnail:
    truth, predicted = class_names[int(galaxy["truth"])], class_names[int(galaxy["predicted"])]
    percent = f"{100 * galaxy['fraction_wrong']:.0f} % of runs"
    name = galaxy.get("id") or f"row {galaxy['row']}"
    return Thumbnail(truth, f"mostly predicted as {predicted}; wrong in {percent} ({name})", jpeg)


def _make_runs_section(tables: Tables) -> Section:
    """List all runs, each with a link to its page."""
    frame = tables.runs.assign(state=tables.runs["reason"].where(tables.runs["reason"] != "", "complete"))
    columns = (
        Column("run", "run_id", "run"),
        Column("network", "label"),
        Column("seed", "seed", "number"),
        *([Column("fold", "fold", "number")] if frame["fold"].nunique() > 1 else []),
        Column("clean accuracy (%)", "accuracy", "number", scale=100, digits=1),
        Column("balanced accuracy (%)", "balanced_accuracy", "number", scale=100, digits=1),
        Column("macro F1 (%)", "macro_f1", "number", scale=100, digits=1),
        Column("parameters", "parameters", "number"),
        Column("state", "state"),
    )
    caption = "Each run links to its page: settings, history, training, measurements, hardest galaxies."
    return Section("Runs", tables=(Table("All runs", caption, frame, columns),))


def _make_provenance_section(run_details: Sequence[RunDetails], info: ReportInfo) -> Section:
    """List the code, versions, machines, data and dates of the runs."""
    if not run_details:
        return Section("Provenance")
    values: dict[str, Counter[str]] = {}
    for run in run_details:
        for key, value in run.provenance.items():
            values.setdefault(key, Counter())[value] += 1
    times = sorted(event.time_utc for run in run_details for event in run.events if event.time_utc)
    facts = [("data fingerprint", info.fingerprint or "no measurements yet")]
    facts += [("dates of the runs", f"{times[0]} to {times[-1]} UTC")] if times else []
    facts += [(key.replace("versions.", "version of "), _format_counts(counts)) for key, counts in values.items()]
    differing_keys = [key for key in ("commit", "uncommitted") if len(values.get(key, ())) > 1]
    warnings = ("The runs used different versions of the code: see below.",) if differing_keys else ()
    return Section("Provenance", warnings=warnings, facts=tuple(facts))


def _format_counts(counts: Counter[str]) -> str:
    """Return `abc`, or `abc (20 runs), def (4 runs)`."""
    if len(counts) == 1:
        return next(iter(counts))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return _format_list([f"{value} ({format_count(n, 'run')})" for value, n in ordered])


def _add_figures(section: Section, figures: Mapping[str, bytes]) -> Section:
    """Add the figures that belong to a section."""
    names = [name for name in figures if get_caption(name).section == section.title]
    return replace(section, figures=tuple(make_page_figure(name, figures[name]) for name in names))


def make_page_figure(name: str, png: bytes) -> PageFigure:
    """Return a figure with its caption; NAME.pdf lies beside the page."""
    caption = get_caption(name)
    return PageFigure(caption.title, caption.text, f"{caption.title}. {caption.text}".strip(), png, (f"{name}.pdf",))


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a (S, S, 3) image as JPEG, shrunk to THUMBNAIL_SIZE_PX if larger."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((THUMBNAIL_SIZE_PX, THUMBNAIL_SIZE_PX), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


@use_default_style()
def _draw_figure(tables: Tables, info: ReportInfo, directory: Path, name: str) -> bytes | None:
    """Draw one of `FIGURES` and write it."""
    return _save_figure(directory / name, FIGURES[name](tables, info))


@use_default_style()
def _write_contact_sheet(
    directory: Path,
    galaxies: Galaxies | None,
    rows: list[int],
    conditions: list[str],
    title: str,
    names: Mapping[int, str],
) -> bytes | None:
    """Draw a few of the galaxies under every planned condition; without any, remove that of an earlier report."""
    from galaxyhpc.report.figures.contact_sheet import draw_dataset_contact_sheet  # imports torch: only with galaxies

    figure = None
    if galaxies and rows and conditions:
        figure = draw_dataset_contact_sheet(galaxies, rows, title, conditions, names)
    return _save_figure(directory / "contact_sheet", figure)


def _save_figure(path: Path, figure: MatplotlibFigure | None) -> bytes | None:
    """Write a figure as PNG and PDF, and return the PNG; without a figure remove both."""
    if figure is None:
        for kind in files.FORMATS:
            path.with_suffix(f".{kind}").unlink(missing_ok=True)
        return None
    return files.save_figure(figure, path, min(MAX_FIGURE_DPI, MAX_FIGURE_WIDTH_PX / figure.get_figwidth()))


def remove_figures(directory: Path) -> None:
    """Remove the figures of an earlier report."""
    for name in (*FIGURES, "contact_sheet"):
        _save_figure(directory / name, None)
