"""The report of a sweep as one HTML page: tables and figures, and the page of every run, drawn when it is opened.

Pure: tables, figures and pictures in, one file out, and the same file from the same runs, for it does not say when it
was made. `details.read` gives what it needs of each run; `wanted` says which galaxies' pictures it can show.

    of_runs = [details.read(found.run, counts, mistakes) for found in ...]
    rows = report.wanted(of_runs, tables.hardest)
    report.write(path, tables, about, of_runs, figures, dict(zip(rows, images[rows])), notes)
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as MatplotlibFigure
from numpy.typing import NDArray
from PIL import Image

from galaxyhpc.analysis.collect import RunResults
from galaxyhpc.analysis.misclassified import Misclassification
from galaxyhpc.analysis.tables import GENERATED_NOTICE, ReportInfo, Tables
from galaxyhpc.config.conditions import ROTATION_MEAN
from galaxyhpc.data.dataset import Galaxies, open_converted
from galaxyhpc.data.galaxy10 import CLASSES
from galaxyhpc.report import html_tables, page
from galaxyhpc.report.figures import FIGURES, files, get_caption
from galaxyhpc.report.page import Column, PageFigure, Section, Table, Thumbnail
from galaxyhpc.report.run_pages import RunDetails, make_run_pages, read_details
from galaxyhpc.runtime.parallel import parallel_map
from galaxyhpc.storage.files import write_text

MAX_GALAXY_IMAGES = 400  # of galaxies, about 3 kB each
THUMBNAIL_SIZE_PX = 96  # px
MAX_HARDEST_GALAXIES = 24  # shown for all runs together

GalaxyImages = Mapping[int, NDArray[np.uint8]]


def select_galaxies(
    run_details: Sequence[RunDetails], hardest: pd.DataFrame, max_images: int = MAX_GALAXY_IMAGES
) -> list[int]:
    """Choose rows of the data file to show: the hardest of all runs, then those that most runs' pages have."""
    first = [int(row) for row in hardest["row"][:MAX_HARDEST_GALAXIES]] if len(hardest) else []
    asked = Counter(mistake.row for run in run_details for mistake in run.misclassified)
    rest = sorted(asked.keys() - set(first), key=lambda row: (-asked[row], row))
    return [*first, *rest][:max_images]


def write_html(
    path: Path,
    tables: Tables,
    info: ReportInfo,
    run_details: Sequence[RunDetails],
    figures: Mapping[str, bytes],
    galaxy_images: GalaxyImages,
    notes: Sequence[str] = (),
) -> None:
    """Write the report.

    Parameters
    ----------
    path : of report.html; it appears whole
    tables : of `aggregate`
    about : the sweep
    of_runs : the runs of tables.runs; those without one have a page with less on it
    figures : PNG by the names of `figures.FIGURES`; the page links NAME.pdf beside itself
    pictures : (S, S, 3) uint8 by row of the data file
    notes : plain sentences that no reader may miss
    """
    jpegs = {row: encode_jpeg(picture) for row, picture in galaxy_images.items()}
    order = [
        *(
            _make_overview_section(tables, info, notes),
            html_tables.make_networks_section(tables),
            html_tables.make_robustness_section(tables),
        ),
        *(
            html_tables.make_comparisons_section(tables),
            html_tables.make_classes_section(tables),
            Section("Calibration"),
        ),
        *(html_tables.make_attack_section(tables), Section("Training"), _make_hardest_section(tables, jpegs)),
        *(Section("Other figures"), _make_runs_section(tables), _make_provenance_section(run_details, info)),
    ]
    sections = [section for section in (_add_figures(section, figures) for section in order) if not section.is_empty]
    lead = [part for part in info.question.split("\n\n") if part]
    data = make_run_pages(tables.runs, tables.training, run_details, jpegs)
    write_text(path, page.render_page(info.title, sections, info.generated, lead, data, ["report.js"]))


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Return a (S, S, 3) picture as JPEG, larger ones at PICTURE_SIDE."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((THUMBNAIL_SIZE_PX, THUMBNAIL_SIZE_PX), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _make_overview_section(tables: Tables, info: ReportInfo, notes: Sequence[str]) -> Section:
    """Say what is in, and whatever could mislead."""
    runs, networks = tables.runs, tables.networks
    lacking = runs[runs["reason"] != ""]
    source = GENERATED_NOTICE if info.generated else f"data file with the fingerprint {info.fingerprint[:12]}"
    measured = info.generated or info.fingerprint
    facts = [
        ("runs", f"{len(runs) - len(lacking)} of {len(runs)} planned runs are in"),
        ("networks", f"{len(networks)}{f'; common to all: {info.shared_settings}' if info.shared_settings else ''}"),
        ("galaxies", f"{info.num_test_galaxies:,} test galaxies, {source}" if measured else "nothing is measured yet"),
    ]
    columns = (Column("run", "run_id", "run"), Column("network", "label"), Column("why it is not in", "reason"))
    missing = Table("Missing runs", "Planned runs that no number here includes.", lacking, columns, "missing.csv")
    facts += [("best on clean galaxies", best)] if (best := html_tables.describe_best_network(tables)) else []
    warnings = (*_warn_missing_seeds(networks), *_warn_flaws(networks), *notes)
    return Section("Overview", warnings=warnings, facts=tuple(facts), tables=(missing,) if len(lacking) else ())


def _warn_missing_seeds(networks: pd.DataFrame) -> list[str]:
    """Name networks that lack seeds."""
    partial = networks[networks["seeds_done"] < networks["seeds_planned"]]
    counted = zip(partial["label"], partial["seeds_done"], partial["seeds_planned"], strict=True)
    named = [f"{label} ({done} of {planned})" for label, done, planned in counted]
    return [f"Partial results: not all planned seeds are in of {_format_list(named)}."] if named else []


def _warn_flaws(networks: pd.DataFrame) -> list[str]:
    """Name the flaws that networks reproduce."""
    flawed = networks[networks["flaw"] != ""]
    return [
        f"A flaw is reproduced: {flaw}, by {_format_list(labels.tolist())}. Their numbers are marked so and measure it, too."
        for flaw, labels in flawed.groupby("flaw", sort=False)["label"]
    ]


def _format_list(names: Sequence[str], max_names: int = 12) -> str:
    return ", ".join(names[:max_names]) + (f" and {len(names) - max_names} more" if len(names) > max_names else "")


def _make_hardest_section(tables: Tables, jpegs: Mapping[int, bytes]) -> Section:
    """Show the galaxies that most runs misclassify."""
    title = "Hardest galaxies"
    if tables.hardest.empty:
        return Section(title)
    shown = [
        galaxy for galaxy in tables.hardest.head(MAX_HARDEST_GALAXIES).to_dict("records") if galaxy["row"] in jpegs
    ]
    thumbnails = tuple(_make_thumbnail(galaxy, jpegs[int(galaxy["row"])]) for galaxy in shown)
    words = (
        "Test galaxies that most complete runs get wrong as they are, before any corruption. Where most runs agree, "
    )
    words += "the label may be at fault: it comes from votes of volunteers."
    return Section(title, (words,), thumbnails=thumbnails)


def _make_thumbnail(galaxy: Mapping[Any, Any], image_bytes: bytes) -> Thumbnail:
    truth, predicted = CLASSES[int(galaxy["truth"])], CLASSES[int(galaxy["predicted"])]
    share = f"{100 * galaxy['wrong']:.0f} % of runs"
    return Thumbnail(truth, f"mostly taken for {predicted}; wrong in {share} (row {galaxy['row']})", image_bytes)


def _make_runs_section(tables: Tables) -> Section:
    """List all runs, each of which leads to its page."""
    frame = tables.runs.assign(state=tables.runs["reason"].where(tables.runs["reason"] != "", "complete"))
    columns = (
        *(Column("run", "run_id", "run"), Column("network", "label"), Column("seed", "seed", "number")),
        Column("clean accuracy (%)", "accuracy", "number", scale=100, digits=1),
        *(Column("parameters", "parameters", "number"), Column("state", "state")),
    )
    words = "Each run leads to its page: settings, history, training, measurements, hardest galaxies."
    return Section("Runs", tables=(Table("All runs", words, frame, columns),))


def _make_provenance_section(run_details: Sequence[RunDetails], info: ReportInfo) -> Section:
    """Say which code, versions, machines and data the numbers are from, and when they were made."""
    if not run_details:
        return Section("Provenance")
    values: dict[str, Counter[str]] = {}
    for of in run_details:
        for key, value in of.provenance.items():
            values.setdefault(key, Counter())[value] += 1
    times = sorted(event.time_utc for of in run_details for event in of.events if event.time_utc)
    facts = [("data fingerprint", info.fingerprint or "nothing is measured yet")]
    facts += [("dates of the runs", f"{times[0]} to {times[-1]} UTC")] if times else []
    facts += [(key.replace("versions.", "version of "), _format_counts(found)) for key, found in values.items()]
    mixed = [key for key in ("commit", "uncommitted") if len(values.get(key, ())) > 1]
    warnings = ("The runs were made with different code: see below.",) if mixed else ()
    return Section("Provenance", warnings=warnings, facts=tuple(facts))


def _format_counts(counts: Counter[str]) -> str:
    """`abc`, or `abc (20 runs), def (4 runs)`."""
    if len(counts) == 1:
        return next(iter(counts))
    ordered = sorted(counts.items(), key=lambda value: (-value[1], value[0]))
    return _format_list([f"{value} ({n} run{'s' * (n > 1)})" for value, n in ordered])


def _add_figures(section: Section, figures: Mapping[str, bytes]) -> Section:
    """Put the figures that belong here into a section."""
    here = [name for name in figures if get_caption(name).section == section.title]
    return replace(section, figures=tuple(make_page_figure(name, figures[name]) for name in here))


def make_page_figure(name: str, png: bytes) -> PageFigure:
    """Return a figure with its caption; NAME.pdf lies beside the page."""
    found = get_caption(name)
    return PageFigure(found.title, found.text, f"{found.title}. {found.text}".strip(), png, (f"{name}.pdf",))


MAX_FIGURE_WIDTH_PX = 2400  # px of a figure


def write_report(
    directory: Path,
    tables: Tables,
    info: ReportInfo,
    run_results: Sequence[RunResults],
    metrics_table: pd.DataFrame,
    misclassified: Mapping[str, tuple[Misclassification, ...]],
    notes: Sequence[str],
) -> None:
    """Draw every figure, and put all on one page.

    Parameters
    ----------
    table : of `summaries.measured`
    wrong : the mistakes that a run's page shows, by run
    """
    draw = partial(_draw_figure, tables, info, directory)
    images = dict(zip(FIGURES, parallel_map(draw, list(FIGURES), "figures"), strict=True))
    counts = dict(iter(metrics_table.groupby("run_id", sort=False)))
    of_runs = [read_details(f.run, counts.get(f.run.run_id), misclassified.get(f.run.run_id, ())) for f in run_results]
    galaxies = load_if_converted(run_results)
    rows = select_galaxies(of_runs, tables.hardest) if galaxies else []
    pictures = {row: np.ascontiguousarray(galaxies.images[row].transpose(1, 2, 0)) for row in rows if galaxies}
    planned = [name for name in tables.summary["condition"].unique() if name not in ("clean", ROTATION_MEAN[0])]
    shown = bool(rows and planned)  # without any, one of an earlier report is removed
    sheet = _draw_contact_sheet(galaxies, rows[:3], planned, info.title) if galaxies and shown else None
    images["contact_sheet"] = _save_figure(directory / "contact_sheet", sheet)
    given = {name: image for name, image in images.items() if image is not None}
    write_html(directory / "report.html", tables, info, of_runs, given, pictures, notes)


def _draw_figure(tables: Tables, info: ReportInfo, directory: Path, name: str) -> bytes | None:
    """Draw one of `FIGURES` and write it."""
    return _save_figure(directory / name, FIGURES[name](tables, info))


def _draw_contact_sheet(galaxies: Galaxies, rows: list[int], conditions: list[str], title: str) -> MatplotlibFigure:
    """Show a few of the galaxies under every condition that is planned."""
    from galaxyhpc.report.figures.contact_sheet import (
        draw_dataset_contact_sheet,  # imports torch, which a report without galaxies does without
    )

    return draw_dataset_contact_sheet(galaxies, rows, title, conditions)


def remove_figures(directory: Path) -> None:
    """Remove the figures of an earlier report."""
    for name in (*FIGURES, "contact_sheet"):
        _save_figure(directory / name, None)


def _save_figure(path: Path, figure: MatplotlibFigure | None) -> bytes | None:
    """Write a figure as PNG and PDF, and return the PNG; without one remove both."""
    if figure is None:
        for kind in files.FORMATS:
            path.with_suffix(f".{kind}").unlink(missing_ok=True)
        return None
    return files.save_figure(figure, path, min(150.0, MAX_FIGURE_WIDTH_PX / figure.get_figwidth()))


def load_if_converted(run_results: Sequence[RunResults]) -> Galaxies | None:
    """Open the galaxies where they are converted; a report may be made where the data are not."""
    config = next((f.config for f in run_results if f.counts is not None), None)
    with suppress(OSError, ValueError):
        galaxies = open_converted(config.data) if config else None
        measured = {f.counts["fingerprint"].iloc[0] for f in run_results if f.counts is not None}
        return galaxies if galaxies and measured == {galaxies.fingerprint} else None
    return None
