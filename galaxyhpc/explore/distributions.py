"""Sections with the distribution of a measurement in each class: redshift, brightness and noise."""

from __future__ import annotations

import numpy as np

from galaxyhpc.explore import figures
from galaxyhpc.explore.class_tables import get_shown_names, make_percentile_table
from galaxyhpc.explore.dataset_summary import (
    APERTURE_FRACTION,
    BORDER_FRACTION,
    DatasetSummary,
    compute_class_percentiles,
)
from galaxyhpc.report.figures.plain import make_page_figure
from galaxyhpc.report.page import PageFigure, Section, Table
from galaxyhpc.runtime.console import format_count

VIOLIN_CAPTION = "The width is the density of each class, the bar its central 68 %, the dot its median."


def make_redshift_section(summary: DatasetSummary) -> Section:
    """Show the redshifts of each class, or a note that there are none."""
    labels, known = summary.galaxies.labels, int(np.isfinite(summary.redshift).sum())
    if not known:
        reason = "The source has no redshifts."
        return Section("Redshift", paragraphs=(reason,))
    missing, names = len(labels) - known, get_shown_names(summary)
    figure = make_page_figure(
        "Redshift by class",
        f"{VIOLIN_CAPTION}{figures.describe_left_out(list(names), summary.class_names)} Redshift is known for "
        f"{known:,} galaxies; {missing:,} without one (NaN) are left out.",
        "Violins of redshift for each class; medians and percentiles are in the table below.",
        figures.draw_violins(summary.redshift, labels, names, "redshift", summary.galaxies.generated),
    )
    percentiles = compute_class_percentiles(summary.redshift, labels, len(summary.class_names))
    table = make_percentile_table("Redshift", "missing: NaN in the file.", percentiles, summary.class_names, digits=3)
    return Section("Redshift", figures=(figure,), tables=(table,))


def make_photometry_section(summary: DatasetSummary) -> Section:
    galaxies, photometry = summary.galaxies, summary.photometry
    size, num_no_scatter = galaxies.images.shape[-1], int(photometry["snr"].isna().sum())
    left_out = ""
    if num_no_scatter:
        left_out = f" Left out, without scatter at the border: {format_count(num_no_scatter, 'galaxy', 'galaxies')}."
    paragraphs = (
        f"Measured on the mean of the three colours at {size} px. Brightness: mean in the central disc, "
        f"{APERTURE_FRACTION:.3f} of the side in radius. Background: median of a frame at the border, "
        f"{BORDER_FRACTION:.3f} wide. Signal-to-noise: (brightness - background) / (1.4826 x the median "
        "absolute deviation in that frame).",
        "This is the ratio of a mean central pixel to the scatter of one pixel, in stretched images: it compares "
        "galaxies of one file at one size and is no calibrated photometry. Neighbours in the frame count as scatter."
        f"{left_out}",
    )
    brightness = _make_violins(summary, "brightness", "Brightness by class", "central mean (DN, 0 to 255)", log=False)
    snr = _make_violins(summary, "snr", "Signal-to-noise by class", "signal-to-noise of a mean central pixel", log=True)
    page_figures, tables = (brightness[0], snr[0]), (brightness[1], snr[1])
    return Section("Brightness and noise", paragraphs=paragraphs, figures=page_figures, tables=tables)


def _make_violins(summary: DatasetSummary, column: str, title: str, ylabel: str, log: bool) -> tuple[PageFigure, Table]:
    """Return the figure and the table of a column of the photometry, by class."""
    galaxies, values = summary.galaxies, summary.photometry[column].to_numpy()
    num_hidden = int((values <= 0).sum()) if log else 0
    names = get_shown_names(summary)
    caption = (
        VIOLIN_CAPTION + figures.describe_left_out(list(names), summary.class_names) + " The axis is logarithmic." * log
    )
    caption += f" {num_hidden:,} at or below 0 are not shown." * (num_hidden > 0)
    alt = f"Violins: {title.lower()}; numbers in the table below."
    figure = figures.draw_violins(values, galaxies.labels, names, ylabel, galaxies.generated, log)
    percentiles = compute_class_percentiles(values, galaxies.labels, len(summary.class_names))
    table = make_percentile_table(title, f"{ylabel}.", percentiles, summary.class_names, digits=1)
    return make_page_figure(title, caption, alt, figure), table
