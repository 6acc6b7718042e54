"""The page about a file of galaxies: its sections, from facts to words, tables and figures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from galaxyhpc.analysis.tables import GENERATED_NOTICE
from galaxyhpc.data.galaxy10 import CLASSES
from galaxyhpc.data.split import DUPLICATE_RADIUS_ARCSEC, SPLITS
from galaxyhpc.explore import figures as draw
from galaxyhpc.explore.dataset_summary import (
    APERTURE_FRACTION,
    BORDER_FRACTION,
    DatasetSummary,
    compute_class_percentiles,
    count_by_split,
)
from galaxyhpc.explore.examples import make_examples_section, make_noise_section, make_opening_section
from galaxyhpc.report import page
from galaxyhpc.report.page import Column, Section, Table

MAX_PAIR_IMAGES = 4  # pairs of each kind as pictures
BYTE_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def format_title(summary: DatasetSummary) -> str:
    """`697 galaxies in sample.h5`, and whether they are generated."""
    generated = f" - {GENERATED_NOTICE}" if summary.galaxies.generated else ""
    return f"{len(summary.galaxies.labels):,} galaxies in {summary.path.name}{generated}"


def describe_findings(summary: DatasetSummary) -> list[str]:
    """Say in one line each what must be known before training on these galaxies."""
    least, most = int(summary.class_counts.argmin()), int(summary.class_counts.argmax())
    conflicts, known = int(summary.pairs["conflict"].sum()), int(np.isfinite(summary.redshift).sum())
    dropped = int((summary.split["split"] == "dropped").sum())
    said = [
        f"From {summary.class_counts[least]:,} ({CLASSES[least]}) to {summary.class_counts[most]:,} ({CLASSES[most]}) galaxies a class",
        f"{_format_count(len(summary.duplicates), 'pair')} of duplicates, {conflicts:,} of them with conflicting labels "
        f"({_format_count(dropped, 'galaxy', 'galaxies')} dropped from the split); "
        f'{_format_count(len(summary.overlaps), "pair")} of other frames nearer than {summary.config.link_arcsec:g}"',
        f"Redshift known for {known:,} of {len(summary.redshift):,} galaxies",
    ]
    if summary.empty_classes:
        said.append(f"A launch would refuse this file: no {'; no '.join(summary.empty_classes)}")
    return said


def render(summary: DatasetSummary) -> str:
    """Return the page as HTML."""
    lead = [". ".join(describe_findings(summary)) + "."]
    return page.render_page(
        format_title(summary), [section(summary) for section in SECTIONS], summary.galaxies.generated, lead
    )


def _format_count(count: int, singular: str, plural: str = "") -> str:
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def _format_bytes(num_bytes: float) -> str:
    for unit, name in BYTE_UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes:.0f} bytes"


def _add_class_names(frame: pd.DataFrame) -> pd.DataFrame:
    """Put the classes' numbers and names before a frame of ten rows."""
    return pd.DataFrame({"class": range(len(CLASSES)), "name": CLASSES}).join(frame.reset_index(drop=True))


CLASS_COLUMNS = (Column("class", "name"), Column("label", "class", "number"))


def _make_count_columns(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, name, "number") for name in names)


def _make_file_section(summary: DatasetSummary) -> Section:
    layout, galaxies = summary.layout, summary.galaxies
    count, side, size = layout.shape[0], layout.shape[1], galaxies.images.shape[-1]
    whole = int(np.prod(layout.shape))
    measured = (
        f"the median pxscale of {layout.num_pixel_scales:,}"
        if layout.num_pixel_scales
        else "assumed: the file has no pxscale"
    )
    chunks = f"chunks of {layout.chunks}" if layout.chunks else "in one piece"
    packed = (
        f"{layout.compression}, {_format_bytes(layout.stored_bytes)} of {_format_bytes(whole)}"
        if layout.compression
        else "none"
    )
    return Section(
        "File",
        facts=(
            ("file", f"{summary.path} ({_format_bytes(layout.file_bytes)})"),
            ("galaxies", f"{count:,}" + (f" ({GENERATED_NOTICE})" if galaxies.generated else "")),
            ("images", f"{side} x {side} px, 3 colours, uint8; {chunks}"),
            ("compression", packed),
            (
                "pixel scale",
                f'{layout.field_arcsec / side:.4g}" per pixel, a field of {layout.field_arcsec:.3g}" ({measured})',
            ),
            ("mean of all pixels", f"{galaxies.mean:.2f} of 255"),
            ("arrays", "; ".join(layout.arrays)),
            ("fingerprint", f"{galaxies.fingerprint} (SHA-256 of pixels, labels and positions)"),
            ("looked at", f'at {size} x {size} px, {galaxies.pixel_scale_arcsec:.4g}" per pixel'),
        ),
    )


def _make_classes_section(summary: DatasetSummary) -> Section:
    counts = summary.class_counts
    frame = _add_class_names(pd.DataFrame({"galaxies": counts, "share": 100 * counts / counts.sum()}))
    commonest = f"{CLASSES[int(counts.argmax())]}, {100 * counts.max() / counts.sum():.1f} %"
    figure = draw.make_page_figure(
        "Galaxies of each class",
        f"Always naming the commonest class ({commonest}) is right that often: chance, for accuracy.",
        "Bars of galaxies per class: " + "; ".join(f"{n} {c:,}" for n, c in zip(CLASSES, counts, strict=True)) + ".",
        draw.draw_class_counts(counts, summary.galaxies.generated),
    )
    columns = (
        *CLASS_COLUMNS,
        Column("galaxies", "galaxies", "number"),
        Column("share (%)", "share", "number", digits=1),
    )
    table = Table("Class counts", "Labels as the file gives them, array ans.", frame, columns)
    return Section("Classes", figures=(figure,), tables=(table,))


def _make_sky_section(summary: DatasetSummary) -> Section:
    galaxies = summary.galaxies
    low, high = float(galaxies.dec.min()), float(galaxies.dec.max())
    figure = draw.make_page_figure(
        "Where the galaxies are",
        "Mollweide projection of the whole sky, right ascension (degrees) growing to the left. Splits are those of the "
        "section Split.",
        f"All-sky map of {len(galaxies.ra):,} galaxies, declination {low:.1f} to {high:.1f} degrees, by split.",
        draw.draw_sky(summary.split, galaxies.generated),
    )
    words = f"Declination from {low:.1f}° to {high:.1f}°. Neighbours on the sky are never divided between splits."
    return Section("Sky", paragraphs=(words,), figures=(figure,))


def _make_percentile_table(title: str, caption: str, frame: pd.DataFrame, digits: int) -> Table:
    """A table of what `spread` found: counts, then the median with the middle 68 %."""
    columns = (
        *CLASS_COLUMNS,
        Column("known", "known", "number"),
        Column("missing", "missing", "number"),
        Column("median", "median", "number", digits=digits),
        Column("16 %", "low", "number", digits=digits),
        Column("84 %", "high", "number", digits=digits),
    )
    return Table(title, caption, _add_class_names(frame), columns)


def make_redshift_section(summary: DatasetSummary) -> Section:
    """Show the redshifts of each class, or say that there are none."""
    labels, known = summary.galaxies.labels, int(np.isfinite(summary.redshift).sum())
    if not known:
        has = (
            "has no array redshift"
            if not any(a.startswith("redshift:") for a in summary.layout.arrays)
            else ("holds NaN for every galaxy in its array redshift")
        )
        return Section("Redshift", paragraphs=(f"This file {has}: there is nothing to show.",))
    missing = len(labels) - known
    figure = draw.make_page_figure(
        "Redshift by class",
        f"The width is the density of each class, the bar its middle 68 %, the dot its median. Redshift is known for "
        f"{known:,} galaxies; {missing:,} without one (NaN) are left out.",
        "Violins of redshift for each class; medians and spreads are in the table below.",
        draw.draw_violins(summary.redshift, labels, "redshift", summary.galaxies.generated),
    )
    table = _make_percentile_table(
        "Redshift", "missing: NaN in the file.", compute_class_percentiles(summary.redshift, labels), 3
    )
    return Section("Redshift", figures=(figure,), tables=(table,))


def _make_photometry_section(summary: DatasetSummary) -> Section:
    galaxies, light = summary.galaxies, summary.photometry
    without = int(light["snr"].isna().sum())
    field = galaxies.pixel_scale_arcsec * galaxies.images.shape[-1]
    words = (
        f"Measured on the mean of the three colours at {galaxies.images.shape[-1]} px. Brightness: mean in the middle "
        f'disc, {APERTURE_FRACTION * field:.1f}" in radius. Background: median of a frame at the border, '
        f'{BORDER_FRACTION * field:.1f}" wide. Signal-to-noise: (brightness - background) / (1.4826 x the median absolute '
        "deviation in that frame).",
        "This is the ratio of a mean central pixel to one pixel's scatter, in pictures stretched for the eye: good to "
        "compare galaxies of one file at one size, not a photometric measurement. Neighbours in the frame count as "
        "scatter."
        + (
            f" {_format_count(without, 'galaxy', 'galaxies')} without any scatter at the border: left out."
            * (without > 0)
        ),
    )
    kinds = {"brightness": ("Brightness by class", "mean in the middle (DN, 0 to 255)", False, 1)}
    kinds["snr"] = ("Signal-to-noise by class", "signal-to-noise of a mean central pixel", True, 1)
    figures, tables = [], []
    for key, (name, what, log, digits) in kinds.items():
        values = light[key].to_numpy()
        caption = "The width is the density of each class, the bar its middle 68 %, the dot its median."
        below = int((values <= 0).sum()) if log else 0
        caption += " The axis is logarithmic." * log + f" {below:,} at or below 0 are not shown." * (below > 0)
        drawn = draw.draw_violins(values, galaxies.labels, what, galaxies.generated, log)
        figures.append(
            draw.make_page_figure(name, caption, f"Violins: {name.lower()}; numbers in the table below.", drawn)
        )
        tables.append(
            _make_percentile_table(name, what + ".", compute_class_percentiles(values, galaxies.labels), digits)
        )
    return Section("Brightness and noise", paragraphs=words, figures=tuple(figures), tables=tuple(tables))


def _make_pairs_section(summary: DatasetSummary) -> Section:
    pairs, link = summary.pairs, summary.config.link_arcsec
    duplicates, overlaps = summary.duplicates, summary.overlaps
    involved = len(np.unique(duplicates[["first", "second"]]))
    words = (
        f"Duplicates are pairs with identical pixels or positions within {DUPLICATE_RADIUS_ARCSEC:g} arcsec; under two labels they "
        f'conflict. Frames nearer than {link:g}" show common sky: a network that trained on one has seen the other.',
    )
    said = (
        ("duplicates", f"{_format_count(len(duplicates), 'pair')} of {_format_count(involved, 'galaxy', 'galaxies')}"),
        ("identical pixels", _format_count(int(pairs["same_pixels"].sum()), "pair")),
        (f"within {DUPLICATE_RADIUS_ARCSEC:g} arcsec", _format_count(int(pairs["same_place"].sum()), "pair")),
        ("conflicting labels", _format_count(int(pairs["conflict"].sum()), "pair")),
        (f'other frames nearer than {link:g}"', _format_count(len(overlaps), "pair")),
    )
    figures = [
        _make_pair_figure(summary, duplicates.sort_values("conflict", ascending=False, kind="stable"), "Duplicates"),
        _make_pair_figure(summary, overlaps, "Overlapping frames"),
    ]
    return Section(
        "Duplicates and overlaps",
        paragraphs=words,
        facts=said,
        figures=tuple(figure for figure in figures if figure),
        tables=_make_pair_tables(summary),
    )


def _make_pair_figure(summary: DatasetSummary, pairs: pd.DataFrame, title: str) -> page.PageFigure | None:
    """Show the first SHOWN of these pairs, side by side."""
    if pairs.empty:
        return None
    shown, labels = pairs[:MAX_PAIR_IMAGES], summary.galaxies.labels
    rows = shown[["first", "second"]].to_numpy().ravel()
    names = [f"{row}: {CLASSES[labels[row]]}" for row in rows]
    drawn = draw.draw_pairs(summary.galaxies.images[rows], names, summary.galaxies.generated)
    told = "; ".join(
        f'{pair.first} and {pair.second}, {pair.arcsec:.2f}"{", conflicting labels" if pair.conflict else ""}'
        for pair in shown.itertuples()
    )
    caption = f"{len(shown)} of {_format_count(len(pairs), 'pair')}, side by side: {told}."
    return draw.make_page_figure(title, caption, f"Pictures of pairs of galaxies: rows {told}.", drawn)


def _make_pair_tables(summary: DatasetSummary) -> tuple[Table, ...]:
    labels, split = summary.galaxies.labels, summary.split["split"].to_numpy()
    names = np.array(CLASSES, dtype=object)
    first, second = summary.pairs["first"].to_numpy(), summary.pairs["second"].to_numpy()
    frame = summary.pairs.assign(
        first_class=names[labels[first]], second_class=names[labels[second]], split=split[first]
    )
    ends = (
        Column("row", "first", "number"),
        Column("class", "first_class"),
        Column("other row", "second", "number"),
        Column("other class", "second_class"),
        Column("arcsec", "arcsec", "number", digits=2),
    )
    both = Column("in the split", "split")
    kind = (Column("identical pixels", "same_pixels"), Column("conflict", "conflict"), both)
    tables = (
        Table("Duplicates", "All of them; rows count from 0.", frame[frame["duplicate"]], (*ends, *kind)),
        Table("Overlapping frames", "All of them; a pair is never divided.", frame[~frame["duplicate"]], (*ends, both)),
    )
    return tuple(table for table in tables if len(table.frame))


def _make_split_section(summary: DatasetSummary) -> Section:
    split, config = summary.split, summary.config
    counts, totals, sizes = count_by_split(split), split["split"].value_counts(), split["sky_group"].value_counts()
    fractions = f"{config.validation_fraction:.0%} validation, {config.test_fraction:.0%} test"
    words = (
        f"As a launch with the default settings divides these galaxies ({fractions}, split_seed {config.split_seed}). "
        f'Pieces of sky are divided, not galaxies: what is nearer than {config.link_arcsec:g}" or has the same pixels '
        "stays together.",
        f"Dropped: {_format_count(int(totals.get('dropped', 0)), 'galaxy', 'galaxies')} with the pixels or the position "
        f"(within {DUPLICATE_RADIUS_ARCSEC:g} arcsec) of one of another label; which label is right, nobody knows.",
    )
    refused = (f"A launch would refuse this file with these settings: no {'; no '.join(summary.empty_classes)}.",)
    said = [(str(name), f"{totals.get(name, 0):,} ({totals.get(name, 0) / len(split):.1%})") for name in counts]
    several = int((sizes > 1).sum())
    said.append(
        ("pieces of sky", f"{len(sizes):,}, of them {several:,} with several galaxies; the largest has {sizes.max()}")
    )
    figure = draw.make_page_figure(
        "How each class is divided",
        "In per cent of the class.",
        "Stacked bars: the share of each class in each split; numbers in the table below.",
        draw.draw_split_fractions(counts, summary.galaxies.generated),
    )
    frame = _add_class_names(counts).assign(total=counts.sum(axis=1).to_numpy())
    table = Table(
        "Galaxies by class and split", "", frame, (*CLASS_COLUMNS, *_make_count_columns(*SPLITS, "dropped", "total"))
    )
    return Section(
        "Split",
        paragraphs=words,
        warnings=refused if summary.empty_classes else (),
        facts=tuple(said),
        figures=(figure,),
        tables=(table,),
    )


SECTIONS = (
    _make_file_section,
    _make_classes_section,
    make_examples_section,
    _make_sky_section,
    make_redshift_section,
    _make_photometry_section,
    _make_pairs_section,
    _make_split_section,
    make_opening_section,
    make_noise_section,
)
