"""The figures of a report as files, and the page that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from galaxyhpc import details
from galaxyhpc.analysis.collect import Found
from galaxyhpc.analysis.misclassified import Mistake
from galaxyhpc.analysis.tables import About, Tables
from galaxyhpc.config.conditions import ROTATION_MEAN
from galaxyhpc.data.dataset import Galaxies, converted
from galaxyhpc.report.figures import FIGURES, files
from galaxyhpc.report.html_report import wanted, write
from galaxyhpc.runtime.parallel import mapped

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
    of_runs = [details.read(f.run, counts.get(f.run.run_id), wrong.get(f.run.run_id, ())) for f in found]
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


def _contact_sheet(galaxies: Galaxies, rows: list[int], planned: list[str], title: str) -> Figure:
    """Show a few of the galaxies under every condition that is planned."""
    from galaxyhpc.report.figures.contact_sheet import (
        of_galaxies,  # imports torch, which a report without galaxies does without
    )

    return of_galaxies(galaxies, rows, title, planned)


def remove(directory: Path) -> None:
    """Remove the figures of an earlier report."""
    for name in (*FIGURES, "contact_sheet"):
        _save(directory / name, None)


def _save(path: Path, figure: Figure | None) -> bytes | None:
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
