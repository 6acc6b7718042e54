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

from galaxyhpc.analysis.collect import Found
from galaxyhpc.analysis.misclassified import Mistake
from galaxyhpc.analysis.tables import GENERATED, About, Tables
from galaxyhpc.config.conditions import ROTATION_MEAN
from galaxyhpc.data.dataset import Galaxies, converted
from galaxyhpc.data.galaxy10 import CLASSES
from galaxyhpc.report import html_tables, page
from galaxyhpc.report.figures import FIGURES, caption, files
from galaxyhpc.report.page import Column, Figure, Section, Table, Thumbnail
from galaxyhpc.report.run_pages import Details, read, run_pages
from galaxyhpc.runtime.parallel import mapped
from galaxyhpc.storage.files import write_text

MOST_PICTURES = 400  # of galaxies, about 3 kB each
PICTURE_SIDE = 96  # px
HARDEST = 24  # shown for all runs together

Pictures = Mapping[int, NDArray[np.uint8]]


def wanted(of_runs: Sequence[Details], hardest: pd.DataFrame, most: int = MOST_PICTURES) -> list[int]:
    """Choose rows of the data file to show: the hardest of all runs, then those that most runs' pages have."""
    first = [int(row) for row in hardest["row"][:HARDEST]] if len(hardest) else []
    asked = Counter(mistake.row for run in of_runs for mistake in run.mistakes)
    rest = sorted(asked.keys() - set(first), key=lambda row: (-asked[row], row))
    return [*first, *rest][:most]


def write(
    path: Path,
    tables: Tables,
    about: About,
    of_runs: Sequence[Details],
    figures: Mapping[str, bytes],
    pictures: Pictures,
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
    jpegs = {row: jpeg(picture) for row, picture in pictures.items()}
    order = [
        *(_overview(tables, about, notes), html_tables.networks(tables), html_tables.robustness(tables)),
        *(html_tables.comparisons(tables), html_tables.classes(tables), Section("Calibration")),
        *(html_tables.attack(tables), Section("Training"), _hardest(tables, jpegs)),
        *(Section("Other figures"), _runs(tables), _provenance(of_runs, about)),
    ]
    sections = [section for section in (_illustrated(section, figures) for section in order) if not section.empty]
    lead = [part for part in about.question.split("\n\n") if part]
    data = run_pages(tables.runs, tables.training, of_runs, jpegs)
    write_text(path, page.render(about.title, sections, about.generated, lead, data, ["report.js"]))


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """Return a (S, S, 3) picture as JPEG, larger ones at PICTURE_SIDE."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _overview(tables: Tables, about: About, notes: Sequence[str]) -> Section:
    """Say what is in, and whatever could mislead."""
    runs, networks = tables.runs, tables.networks
    lacking = runs[runs["reason"] != ""]
    source = GENERATED if about.generated else f"data file with the fingerprint {about.fingerprint[:12]}"
    measured = about.generated or about.fingerprint
    facts = [
        ("runs", f"{len(runs) - len(lacking)} of {len(runs)} planned runs are in"),
        ("networks", f"{len(networks)}{f'; common to all: {about.common}' if about.common else ''}"),
        ("galaxies", f"{about.galaxies:,} test galaxies, {source}" if measured else "nothing is measured yet"),
    ]
    columns = (Column("run", "run_id", "run"), Column("network", "label"), Column("why it is not in", "reason"))
    missing = Table("Missing runs", "Planned runs that no number here includes.", lacking, columns, "missing.csv")
    facts += [("best on clean galaxies", best)] if (best := html_tables.best(tables)) else []
    warnings = (*_partial(networks), *_flaws(networks), *notes)
    return Section("Overview", warnings=warnings, facts=tuple(facts), tables=(missing,) if len(lacking) else ())


def _partial(networks: pd.DataFrame) -> list[str]:
    """Name networks that lack seeds."""
    partial = networks[networks["seeds_done"] < networks["seeds_planned"]]
    counted = zip(partial["label"], partial["seeds_done"], partial["seeds_planned"], strict=True)
    named = [f"{label} ({done} of {planned})" for label, done, planned in counted]
    return [f"Partial results: not all planned seeds are in of {_listed(named)}."] if named else []


def _flaws(networks: pd.DataFrame) -> list[str]:
    """Name the flaws that networks reproduce."""
    flawed = networks[networks["flaw"] != ""]
    return [
        f"A flaw is reproduced: {flaw}, by {_listed(labels.tolist())}. Their numbers are marked so and measure it, too."
        for flaw, labels in flawed.groupby("flaw", sort=False)["label"]
    ]


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _hardest(tables: Tables, jpegs: Mapping[int, bytes]) -> Section:
    """Show the galaxies that most runs misclassify."""
    title = "Hardest galaxies"
    if tables.hardest.empty:
        return Section(title)
    shown = [galaxy for galaxy in tables.hardest.head(HARDEST).to_dict("records") if galaxy["row"] in jpegs]
    thumbnails = tuple(_thumbnail(galaxy, jpegs[int(galaxy["row"])]) for galaxy in shown)
    words = (
        "Test galaxies that most complete runs get wrong as they are, before any corruption. Where most runs agree, "
    )
    words += "the label may be at fault: it comes from votes of volunteers."
    return Section(title, (words,), thumbnails=thumbnails)


def _thumbnail(galaxy: Mapping[Any, Any], picture: bytes) -> Thumbnail:
    truth, predicted = CLASSES[int(galaxy["truth"])], CLASSES[int(galaxy["predicted"])]
    share = f"{100 * galaxy['wrong']:.0f} % of runs"
    return Thumbnail(truth, f"mostly taken for {predicted}; wrong in {share} (row {galaxy['row']})", picture)


def _runs(tables: Tables) -> Section:
    """List all runs, each of which leads to its page."""
    frame = tables.runs.assign(state=tables.runs["reason"].where(tables.runs["reason"] != "", "complete"))
    columns = (
        *(Column("run", "run_id", "run"), Column("network", "label"), Column("seed", "seed", "number")),
        Column("clean accuracy (%)", "accuracy", "number", scale=100, digits=1),
        *(Column("parameters", "parameters", "number"), Column("state", "state")),
    )
    words = "Each run leads to its page: settings, history, training, measurements, hardest galaxies."
    return Section("Runs", tables=(Table("All runs", words, frame, columns),))


def _provenance(of_runs: Sequence[Details], about: About) -> Section:
    """Say which code, versions, machines and data the numbers are from, and when they were made."""
    if not of_runs:
        return Section("Provenance")
    values: dict[str, Counter[str]] = {}
    for of in of_runs:
        for key, value in of.provenance.items():
            values.setdefault(key, Counter())[value] += 1
    times = sorted(event.when for of in of_runs for event in of.events if event.when)
    facts = [("data fingerprint", about.fingerprint or "nothing is measured yet")]
    facts += [("dates of the runs", f"{times[0]} to {times[-1]} UTC")] if times else []
    facts += [(key.replace("versions.", "version of "), _counted(found)) for key, found in values.items()]
    mixed = [key for key in ("commit", "uncommitted") if len(values.get(key, ())) > 1]
    warnings = ("The runs were made with different code: see below.",) if mixed else ()
    return Section("Provenance", warnings=warnings, facts=tuple(facts))


def _counted(found: Counter[str]) -> str:
    """`abc`, or `abc (20 runs), def (4 runs)`."""
    if len(found) == 1:
        return next(iter(found))
    ordered = sorted(found.items(), key=lambda value: (-value[1], value[0]))
    return _listed([f"{value} ({n} run{'s' * (n > 1)})" for value, n in ordered])


def _illustrated(section: Section, figures: Mapping[str, bytes]) -> Section:
    """Put the figures that belong here into a section."""
    here = [name for name in figures if caption(name).section == section.title]
    return replace(section, figures=tuple(captioned(name, figures[name]) for name in here))


def captioned(name: str, png: bytes) -> Figure:
    """Return a figure with its caption; NAME.pdf lies beside the page."""
    found = caption(name)
    return Figure(found.title, found.words, f"{found.title}. {found.words}".strip(), png, (f"{name}.pdf",))


WIDEST = 2400  # px of a figure


def write_page(
    directory: Path,
    tables: Tables,
    about: About,
    found: Sequence[Found],
    table: pd.DataFrame,
    wrong: Mapping[str, tuple[Mistake, ...]],
    notes: Sequence[str],
) -> None:
    """Draw every figure, and put all on one page.

    Parameters
    ----------
    table : of `summaries.measured`
    wrong : the mistakes that a run's page shows, by run
    """
    draw = partial(_drawn, tables, about, directory)
    images = dict(zip(FIGURES, mapped(draw, list(FIGURES), "figures"), strict=True))
    counts = dict(iter(table.groupby("run_id", sort=False)))
    of_runs = [read(f.run, counts.get(f.run.run_id), wrong.get(f.run.run_id, ())) for f in found]
    galaxies = at_hand(found)
    rows = wanted(of_runs, tables.hardest) if galaxies else []
    pictures = {row: np.ascontiguousarray(galaxies.images[row].transpose(1, 2, 0)) for row in rows if galaxies}
    planned = [name for name in tables.summary["condition"].unique() if name not in ("clean", ROTATION_MEAN[0])]
    shown = bool(rows and planned)  # without any, one of an earlier report is removed
    sheet = _contact_sheet(galaxies, rows[:3], planned, about.title) if galaxies and shown else None
    images["contact_sheet"] = _save(directory / "contact_sheet", sheet)
    given = {name: image for name, image in images.items() if image is not None}
    write(directory / "report.html", tables, about, of_runs, given, pictures, notes)


def _drawn(tables: Tables, about: About, directory: Path, name: str) -> bytes | None:
    """Draw one of `FIGURES` and write it."""
    return _save(directory / name, FIGURES[name](tables, about))


def _contact_sheet(galaxies: Galaxies, rows: list[int], planned: list[str], title: str) -> MatplotlibFigure:
    """Show a few of the galaxies under every condition that is planned."""
    from galaxyhpc.report.figures.contact_sheet import (
        of_galaxies,  # imports torch, which a report without galaxies does without
    )

    return of_galaxies(galaxies, rows, title, planned)


def remove(directory: Path) -> None:
    """Remove the figures of an earlier report."""
    for name in (*FIGURES, "contact_sheet"):
        _save(directory / name, None)


def _save(path: Path, figure: MatplotlibFigure | None) -> bytes | None:
    """Write a figure as PNG and PDF, and return the PNG; without one remove both."""
    if figure is None:
        for kind in files.KINDS:
            path.with_suffix(f".{kind}").unlink(missing_ok=True)
        return None
    return files.save(figure, path, min(150.0, WIDEST / figure.get_figwidth()))


def at_hand(found: Sequence[Found]) -> Galaxies | None:
    """Open the galaxies where they are converted; a report may be made where the data are not."""
    config = next((f.config for f in found if f.table is not None), None)
    with suppress(OSError, ValueError):
        galaxies = converted(config.data) if config else None
        measured = {f.table["fingerprint"].iloc[0] for f in found if f.table is not None}
        return galaxies if galaxies and measured == {galaxies.fingerprint} else None
    return None
