"""HTML page of a dataset: its sections, with text, tables and figures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from galaxyhpc.analysis.tables import GENERATED_NOTICE
from galaxyhpc.data.given_split import describe_division, describe_dropped, describe_split_origin
from galaxyhpc.data.split import DUPLICATE_RADIUS_ARCSEC, SPLITS
from galaxyhpc.explore import figures
from galaxyhpc.explore.class_tables import CLASS_COLUMNS, MAX_SHOWN_CLASSES, add_class_names, get_shown_names
from galaxyhpc.explore.dataset_summary import DatasetSummary, count_by_split
from galaxyhpc.explore.distributions import make_photometry_section, make_redshift_section
from galaxyhpc.explore.examples import make_examples_section, make_noise_section, make_opening_section
from galaxyhpc.explore.findings import describe_chance, describe_findings, format_title
from galaxyhpc.report import page
from galaxyhpc.report.figures.defaults import use_default_style
from galaxyhpc.report.figures.plain import make_page_figure
from galaxyhpc.report.page import Column, Section, Table
from galaxyhpc.runtime.console import format_count

MAX_PAIR_IMAGES = 4  # pairs of each kind shown as images
BYTE_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


@use_default_style()
def render(summary: DatasetSummary) -> str:
    """Return the page as HTML."""
    lead = [". ".join(describe_findings(summary)) + "."]
    return page.render_page(
        format_title(summary), [section(summary) for section in SECTIONS], summary.galaxies.generated, lead
    )


def _format_bytes(num_bytes: float) -> str:
    for unit, name in BYTE_UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes:.0f} bytes"


def _make_count_columns(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, name, "number") for name in names)


def _make_file_section(summary: DatasetSummary) -> Section:
    galaxies, size = summary.galaxies, summary.galaxies.images.shape[-1]
    left_out = f", {galaxies.num_left_out:,} of other classes left out" if galaxies.num_left_out else ""
    return Section(
        "Source",
        facts=(
            ("source", str(summary.path)),
            (
                "galaxies",
                f"{len(galaxies.labels):,}{left_out}" + (f" ({GENERATED_NOTICE})" if galaxies.generated else ""),
            ),
            ("images", f"{_format_sides(galaxies.published_sizes)}, 3 colours"),
            ("pixel scale", _format_pixel_scale(summary)),
            *_list_layout_facts(summary),
            ("mean of all pixels", f"{galaxies.mean:.2f} of 255"),
            ("fingerprint", f"{galaxies.fingerprint} (SHA-256 of pixels, labels, positions and class names)"),
            ("analysed", f"at {size} x {size} px"),
        ),
    )


def _format_sides(sizes: tuple[int, ...]) -> str:
    smallest, largest = min(sizes), max(sizes)
    if smallest == largest:
        return f"{smallest} x {smallest} px"
    return f"from {smallest} x {smallest} to {largest} x {largest} px, each resized"


def _format_pixel_scale(summary: DatasetSummary) -> str:
    galaxies, sizes = summary.galaxies, summary.galaxies.published_sizes
    field = galaxies.pixel_scale_arcsec * galaxies.images.shape[-1]
    if not np.isfinite(field):
        return "unknown; data.field_arcsec gives it, which conditions in arcsec need"
    published = f'{field / sizes[0]:.4g}" per pixel, ' if len(sizes) == 1 else ""
    is_assumed = summary.layout and not summary.layout.has_pixel_scale and summary.config.field_arcsec is None
    return f'{published}a field of {field:.3g}"' + (" (assumed: the file has no pxscale)" if is_assumed else "")


def _list_layout_facts(summary: DatasetSummary) -> tuple[tuple[str, str], ...]:
    """Return how an HDF5 file holds its images; nothing for other sources."""
    layout, compression = summary.layout, "none"
    if layout is None:
        return ()
    if layout.compression:
        uncompressed = _format_bytes(int(np.prod(layout.shape)))
        compression = f"{layout.compression}, {_format_bytes(layout.stored_bytes)} of {uncompressed}"
    chunks = f"chunks of {layout.chunks}" if layout.chunks else "contiguous"
    return (
        ("file size", _format_bytes(layout.file_bytes)),
        ("storage", f"uint8 in {chunks}; compression: {compression}"),
        ("arrays", "; ".join(layout.arrays)),
    )


def _make_classes_section(summary: DatasetSummary) -> Section:
    counts, names = summary.class_counts, summary.class_names
    frame = add_class_names(pd.DataFrame({"galaxies": counts, "percent": 100 * counts / counts.sum()}), names)
    shown = summary.select_largest_classes(MAX_SHOWN_CLASSES)
    shown_names = [names[label] for label in shown]
    figure = make_page_figure(
        "Galaxies of each class",
        f"{describe_chance(summary)}{figures.describe_left_out(shown, names)}",
        f"Bars of galaxies per class: {'; '.join(f'{names[label]} {counts[label]:,}' for label in shown)}.",
        figures.draw_class_counts(counts[shown], shown_names, summary.galaxies.generated),
    )
    columns = (
        *CLASS_COLUMNS,
        Column("galaxies", "galaxies", "number"),
        Column("fraction (%)", "percent", "number", digits=1),
    )
    table = Table("Class counts", "Labels of the source.", frame, columns)
    return Section("Classes", figures=(figure,), tables=(table,))


def _make_sky_section(summary: DatasetSummary) -> Section:
    galaxies = summary.galaxies
    known = int(np.isfinite(galaxies.dec).sum())
    if not known:
        return Section("Sky", paragraphs=("The source has no positions.",))
    low, high = float(np.nanmin(galaxies.dec)), float(np.nanmax(galaxies.dec))
    figure = make_page_figure(
        "Positions of the galaxies",
        "Mollweide projection of the whole sky, right ascension (degrees) increasing to the left. Splits are those of "
        "the section Split.",
        f"All-sky map of {known:,} galaxies, declination {low:.1f} to {high:.1f} degrees, by split.",
        figures.draw_sky(summary.split, galaxies.generated),
    )
    paragraph = f"Declination from {low:.1f}° to {high:.1f}°. A sky group is never divided between splits."
    return Section("Sky", paragraphs=(paragraph,), figures=(figure,))


def _make_pairs_section(summary: DatasetSummary) -> Section:
    pairs, link = summary.pairs, summary.config.link_arcsec
    duplicates, overlaps = summary.duplicates, summary.overlaps
    involved = len(np.unique(duplicates[["first", "second"]]))
    paragraph = (
        f"Duplicates are pairs with identical pixels or positions within {DUPLICATE_RADIUS_ARCSEC:g} arcsec; with two "
        "labels they conflict. Where positions are unknown, nearly identical images are duplicates, too: compressed, "
        f'resized or turned. Frames closer than {link:g}" overlap: training on one leaks the other.'
    )
    facts = (
        ("duplicates", f"{format_count(len(duplicates), 'pair')} of {format_count(involved, 'galaxy', 'galaxies')}"),
        ("identical pixels", format_count(int(pairs["same_pixels"].sum()), "pair")),
        (f"within {DUPLICATE_RADIUS_ARCSEC:g} arcsec", format_count(int(pairs["same_place"].sum()), "pair")),
        ("nearly identical", format_count(int(pairs["near_pixels"].sum()), "pair")),
        ("conflicting labels", format_count(int(pairs["conflict"].sum()), "pair")),
        (f'other frames closer than {link:g}"', format_count(len(overlaps), "pair")),
    )
    page_figures = (
        _make_pair_figure(summary, duplicates.sort_values("conflict", ascending=False, kind="stable"), "Duplicates"),
        _make_pair_figure(summary, overlaps, "Overlapping frames"),
    )
    return Section(
        "Duplicates and overlaps",
        paragraphs=(paragraph,),
        facts=facts,
        figures=tuple(figure for figure in page_figures if figure),
        tables=_make_pair_tables(summary),
    )


def _make_pair_figure(summary: DatasetSummary, pairs: pd.DataFrame, title: str) -> page.PageFigure | None:
    """Show the first MAX_PAIR_IMAGES of these pairs, side by side."""
    if pairs.empty:
        return None
    shown, labels = pairs[:MAX_PAIR_IMAGES], summary.galaxies.labels
    rows = shown[["first", "second"]].to_numpy().ravel()
    names = [f"{row}: {summary.class_names[labels[row]]}" for row in rows]
    figure = figures.draw_pairs(summary.galaxies.images[rows], names, summary.galaxies.generated)
    values = zip(*(shown[name].tolist() for name in ("first", "second", "arcsec", "conflict")), strict=True)
    descriptions = "; ".join(
        f"{first} and {second}"
        + (f', {arcsec:.2f}"' if np.isfinite(arcsec) else "")
        + (", conflicting labels" if conflict else "")
        for first, second, arcsec, conflict in values
    )
    caption = f"{len(shown)} of {format_count(len(pairs), 'pair')}, side by side: {descriptions}."
    return make_page_figure(title, caption, f"Images of pairs of galaxies: rows {descriptions}.", figure)


def _make_pair_tables(summary: DatasetSummary) -> tuple[Table, ...]:
    labels, split = summary.galaxies.labels, summary.split["split"].to_numpy()
    names = np.array(summary.class_names, dtype=object)
    first, second = summary.pairs["first"].to_numpy(), summary.pairs["second"].to_numpy()
    frame = summary.pairs.assign(
        first_class=names[labels[first]], second_class=names[labels[second]], split=split[first]
    )
    columns = (
        Column("row", "first", "number"),
        Column("class", "first_class"),
        Column("other row", "second", "number"),
        Column("other class", "second_class"),
        Column("arcsec", "arcsec", "number", digits=2),
    )
    split_column = Column("in the split", "split")
    kinds = (Column("identical pixels", "same_pixels"), Column("nearly", "near_pixels"))
    duplicate_columns = (*columns, *kinds, Column("conflict", "conflict"))
    duplicates, overlaps = frame[frame["duplicate"]], frame[~frame["duplicate"]]
    tables = (
        Table("Duplicates", "All pairs; rows count from 0.", duplicates, (*duplicate_columns, split_column)),
        Table("Overlapping frames", "All pairs; a split never separates a pair.", overlaps, (*columns, split_column)),
    )
    return tuple(table for table in tables if len(table.frame))


def _make_split_section(summary: DatasetSummary) -> Section:
    split, config = summary.split, summary.config
    counts = count_by_split(split, len(summary.class_names))
    totals, sizes = split["split"].value_counts(), split["sky_group"].value_counts()
    shown = get_shown_names(summary)
    fractions = f"{config.validation_fraction:.0%} validation, {config.test_fraction:.0%} test"
    paragraphs = (
        f"The split of a launch with these settings ({fractions}, split_seed {config.split_seed}), divided "
        f"{describe_division(summary.galaxies.columns)}.",
        f'Galaxies closer than {config.link_arcsec:g}", or of one group where the source has groups, stay together, as '
        "do those with the same pixels, or nearly these where positions are unknown.",
        f"Origin: {describe_split_origin(config, summary.galaxies.columns, split, summary.galaxies.digests)}.",
        f"Dropped: {describe_dropped(config, summary.galaxies.columns, split)}; which label is correct is unknown.",
    )
    warning = f"A launch would reject this file with these settings: {summary.rejection}."
    facts = [(str(name), f"{totals.get(name, 0):,} ({totals.get(name, 0) / len(split):.1%})") for name in counts]
    num_shared = int((sizes > 1).sum())
    facts.append(
        ("sky groups", f"{len(sizes):,}, of them {num_shared:,} with several galaxies; the largest has {sizes.max()}")
    )
    figure = make_page_figure(
        "Split of each class",
        f"In per cent of the class.{figures.describe_left_out(list(shown), summary.class_names)}",
        "Stacked bars: the fraction of each class in each split; numbers in the table below.",
        figures.draw_split_fractions(counts.loc[list(shown)], list(shown.values()), summary.galaxies.generated),
    )
    frame = add_class_names(counts, summary.class_names).assign(total=counts.sum(axis=1).to_numpy())
    table = Table(
        "Galaxies by class and split", "", frame, (*CLASS_COLUMNS, *_make_count_columns(*SPLITS, "dropped", "total"))
    )
    return Section(
        "Split",
        paragraphs=paragraphs,
        warnings=(warning,) if summary.rejection else (),
        facts=tuple(facts),
        figures=(figure,),
        tables=(table,),
    )


SECTIONS = (
    _make_file_section,
    _make_classes_section,
    make_examples_section,
    _make_sky_section,
    make_redshift_section,
    make_photometry_section,
    _make_pairs_section,
    _make_split_section,
    make_opening_section,
    make_noise_section,
)
