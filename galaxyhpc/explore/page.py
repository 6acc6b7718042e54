"""The page about a file of galaxies: its sections, from facts to words, tables and figures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from galaxyhpc.analysis.tables import GENERATED
from galaxyhpc.data.galaxy10 import CLASSES
from galaxyhpc.data.split import SAME_ARCSEC, SPLITS
from galaxyhpc.explore import figures as draw
from galaxyhpc.explore.dataset_summary import APERTURE, BORDER, Facts, split_counts, spread
from galaxyhpc.explore.examples import examples, noise, opening
from galaxyhpc.report import page
from galaxyhpc.report.page import Column, Section, Table

SHOWN = 4  # pairs of each kind as pictures
BYTES = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def title(facts: Facts) -> str:
    """`697 galaxies in sample.h5`, and whether they are generated."""
    generated = f" - {GENERATED}" if facts.galaxies.generated else ""
    return f"{len(facts.galaxies.labels):,} galaxies in {facts.path.name}{generated}"


def findings(facts: Facts) -> list[str]:
    """Say in one line each what must be known before training on these galaxies."""
    least, most = int(facts.counts.argmin()), int(facts.counts.argmax())
    conflicts, known = int(facts.pairs["conflict"].sum()), int(np.isfinite(facts.redshift).sum())
    dropped = int((facts.split["split"] == "dropped").sum())
    said = [
        f"From {facts.counts[least]:,} ({CLASSES[least]}) to {facts.counts[most]:,} ({CLASSES[most]}) galaxies a class",
        f"{_many(len(facts.duplicates), 'pair')} of duplicates, {conflicts:,} of them with conflicting labels "
        f"({_many(dropped, 'galaxy', 'galaxies')} dropped from the split); "
        f'{_many(len(facts.overlaps), "pair")} of other frames nearer than {facts.config.link_arcsec:g}"',
        f"Redshift known for {known:,} of {len(facts.redshift):,} galaxies",
    ]
    if facts.empty:
        said.append(f"A launch would refuse this file: no {'; no '.join(facts.empty)}")
    return said


def render(facts: Facts) -> str:
    """Return the page as HTML."""
    lead = [". ".join(findings(facts)) + "."]
    return page.render(title(facts), [section(facts) for section in SECTIONS], facts.galaxies.generated, lead)


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def _size(count: float) -> str:
    for unit, name in BYTES:
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """Put the classes' numbers and names before a frame of ten rows."""
    return pd.DataFrame({"class": range(len(CLASSES)), "name": CLASSES}).join(frame.reset_index(drop=True))


CLASS = (Column("class", "name"), Column("label", "class", "number"))


def _counted(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, name, "number") for name in names)


def _file(facts: Facts) -> Section:
    layout, galaxies = facts.layout, facts.galaxies
    count, side, size = layout.shape[0], layout.shape[1], galaxies.images.shape[-1]
    whole = int(np.prod(layout.shape))
    measured = f"the median pxscale of {layout.scales:,}" if layout.scales else "assumed: the file has no pxscale"
    chunks = f"chunks of {layout.chunks}" if layout.chunks else "in one piece"
    packed = f"{layout.compression}, {_size(layout.stored)} of {_size(whole)}" if layout.compression else "none"
    return Section(
        "File",
        facts=(
            ("file", f"{facts.path} ({_size(layout.bytes)})"),
            ("galaxies", f"{count:,}" + (f" ({GENERATED})" if galaxies.generated else "")),
            ("images", f"{side} x {side} px, 3 colours, uint8; {chunks}"),
            ("compression", packed),
            ("pixel scale", f'{layout.field / side:.4g}" per pixel, a field of {layout.field:.3g}" ({measured})'),
            ("mean of all pixels", f"{galaxies.mean:.2f} of 255"),
            ("arrays", "; ".join(layout.arrays)),
            ("fingerprint", f"{galaxies.fingerprint} (SHA-256 of pixels, labels and positions)"),
            ("looked at", f'at {size} x {size} px, {galaxies.pixel_scale:.4g}" per pixel'),
        ),
    )


def _classes(facts: Facts) -> Section:
    counts = facts.counts
    frame = _named(pd.DataFrame({"galaxies": counts, "share": 100 * counts / counts.sum()}))
    commonest = f"{CLASSES[int(counts.argmax())]}, {100 * counts.max() / counts.sum():.1f} %"
    figure = draw.framed(
        "Galaxies of each class",
        f"Always naming the commonest class ({commonest}) is right that often: chance, for accuracy.",
        "Bars of galaxies per class: " + "; ".join(f"{n} {c:,}" for n, c in zip(CLASSES, counts, strict=True)) + ".",
        draw.class_counts(counts, facts.galaxies.generated),
    )
    columns = (*CLASS, Column("galaxies", "galaxies", "number"), Column("share (%)", "share", "number", digits=1))
    table = Table("Class counts", "Labels as the file gives them, array ans.", frame, columns)
    return Section("Classes", figures=(figure,), tables=(table,))


def _sky(facts: Facts) -> Section:
    galaxies = facts.galaxies
    low, high = float(galaxies.dec.min()), float(galaxies.dec.max())
    figure = draw.framed(
        "Where the galaxies are",
        "Mollweide projection of the whole sky, right ascension (degrees) growing to the left. Splits are those of the "
        "section Split.",
        f"All-sky map of {len(galaxies.ra):,} galaxies, declination {low:.1f} to {high:.1f} degrees, by split.",
        draw.sky(facts.split, galaxies.generated),
    )
    words = f"Declination from {low:.1f}° to {high:.1f}°. Neighbours on the sky are never divided between splits."
    return Section("Sky", words=(words,), figures=(figure,))


def _spread_table(title: str, caption: str, frame: pd.DataFrame, digits: int) -> Table:
    """A table of what `spread` found: counts, then the median with the middle 68 %."""
    columns = (
        *CLASS,
        Column("known", "known", "number"),
        Column("missing", "missing", "number"),
        Column("median", "median", "number", digits=digits),
        Column("16 %", "low", "number", digits=digits),
        Column("84 %", "high", "number", digits=digits),
    )
    return Table(title, caption, _named(frame), columns)


def redshift(facts: Facts) -> Section:
    """Show the redshifts of each class, or say that there are none."""
    labels, known = facts.galaxies.labels, int(np.isfinite(facts.redshift).sum())
    if not known:
        has = (
            "has no array redshift"
            if not any(a.startswith("redshift:") for a in facts.layout.arrays)
            else ("holds NaN for every galaxy in its array redshift")
        )
        return Section("Redshift", words=(f"This file {has}: there is nothing to show.",))
    missing = len(labels) - known
    figure = draw.framed(
        "Redshift by class",
        f"The width is the density of each class, the bar its middle 68 %, the dot its median. Redshift is known for "
        f"{known:,} galaxies; {missing:,} without one (NaN) are left out.",
        "Violins of redshift for each class; medians and spreads are in the table below.",
        draw.violins(facts.redshift, labels, "redshift", facts.galaxies.generated),
    )
    table = _spread_table("Redshift", "missing: NaN in the file.", spread(facts.redshift, labels), 3)
    return Section("Redshift", figures=(figure,), tables=(table,))


def _light(facts: Facts) -> Section:
    galaxies, light = facts.galaxies, facts.light
    without = int(light["snr"].isna().sum())
    field = galaxies.pixel_scale * galaxies.images.shape[-1]
    words = (
        f"Measured on the mean of the three colours at {galaxies.images.shape[-1]} px. Brightness: mean in the middle "
        f'disc, {APERTURE * field:.1f}" in radius. Background: median of a frame at the border, '
        f'{BORDER * field:.1f}" wide. Signal-to-noise: (brightness - background) / (1.4826 x the median absolute '
        "deviation in that frame).",
        "This is the ratio of a mean central pixel to one pixel's scatter, in pictures stretched for the eye: good to "
        "compare galaxies of one file at one size, not a photometric measurement. Neighbours in the frame count as "
        "scatter."
        + (f" {_many(without, 'galaxy', 'galaxies')} without any scatter at the border: left out." * (without > 0)),
    )
    kinds = {"brightness": ("Brightness by class", "mean in the middle (DN, 0 to 255)", False, 1)}
    kinds["snr"] = ("Signal-to-noise by class", "signal-to-noise of a mean central pixel", True, 1)
    figures, tables = [], []
    for key, (name, what, log, digits) in kinds.items():
        values = light[key].to_numpy()
        caption = "The width is the density of each class, the bar its middle 68 %, the dot its median."
        below = int((values <= 0).sum()) if log else 0
        caption += " The axis is logarithmic." * log + f" {below:,} at or below 0 are not shown." * (below > 0)
        drawn = draw.violins(values, galaxies.labels, what, galaxies.generated, log)
        figures.append(draw.framed(name, caption, f"Violins: {name.lower()}; numbers in the table below.", drawn))
        tables.append(_spread_table(name, what + ".", spread(values, galaxies.labels), digits))
    return Section("Brightness and noise", words=words, figures=tuple(figures), tables=tuple(tables))


def _pairs(facts: Facts) -> Section:
    pairs, link = facts.pairs, facts.config.link_arcsec
    duplicates, overlaps = facts.duplicates, facts.overlaps
    involved = len(np.unique(duplicates[["first", "second"]]))
    words = (
        f"Duplicates are pairs with identical pixels or positions within {SAME_ARCSEC:g} arcsec; under two labels they "
        f'conflict. Frames nearer than {link:g}" show common sky: a network that trained on one has seen the other.',
    )
    said = (
        ("duplicates", f"{_many(len(duplicates), 'pair')} of {_many(involved, 'galaxy', 'galaxies')}"),
        ("identical pixels", _many(int(pairs["same_pixels"].sum()), "pair")),
        (f"within {SAME_ARCSEC:g} arcsec", _many(int(pairs["same_place"].sum()), "pair")),
        ("conflicting labels", _many(int(pairs["conflict"].sum()), "pair")),
        (f'other frames nearer than {link:g}"', _many(len(overlaps), "pair")),
    )
    figures = [
        _pair_figure(facts, duplicates.sort_values("conflict", ascending=False, kind="stable"), "Duplicates"),
        _pair_figure(facts, overlaps, "Overlapping frames"),
    ]
    return Section(
        "Duplicates and overlaps",
        words=words,
        facts=said,
        figures=tuple(figure for figure in figures if figure),
        tables=_pair_tables(facts),
    )


def _pair_figure(facts: Facts, pairs: pd.DataFrame, title: str) -> page.Figure | None:
    """Show the first SHOWN of these pairs, side by side."""
    if pairs.empty:
        return None
    shown, labels = pairs[:SHOWN], facts.galaxies.labels
    rows = shown[["first", "second"]].to_numpy().ravel()
    names = [f"{row}: {CLASSES[labels[row]]}" for row in rows]
    drawn = draw.pairs(facts.galaxies.images[rows], names, facts.galaxies.generated)
    told = "; ".join(
        f'{pair.first} and {pair.second}, {pair.arcsec:.2f}"{", conflicting labels" if pair.conflict else ""}'
        for pair in shown.itertuples()
    )
    caption = f"{len(shown)} of {_many(len(pairs), 'pair')}, side by side: {told}."
    return draw.framed(title, caption, f"Pictures of pairs of galaxies: rows {told}.", drawn)


def _pair_tables(facts: Facts) -> tuple[Table, ...]:
    labels, split = facts.galaxies.labels, facts.split["split"].to_numpy()
    names = np.array(CLASSES, dtype=object)
    first, second = facts.pairs["first"].to_numpy(), facts.pairs["second"].to_numpy()
    frame = facts.pairs.assign(first_class=names[labels[first]], second_class=names[labels[second]], split=split[first])
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


def _split(facts: Facts) -> Section:
    split, config = facts.split, facts.config
    counts, totals, sizes = split_counts(split), split["split"].value_counts(), split["sky_group"].value_counts()
    fractions = f"{config.validation_fraction:.0%} validation, {config.test_fraction:.0%} test"
    words = (
        f"As a launch with the default settings divides these galaxies ({fractions}, split_seed {config.split_seed}). "
        f'Pieces of sky are divided, not galaxies: what is nearer than {config.link_arcsec:g}" or has the same pixels '
        "stays together.",
        f"Dropped: {_many(int(totals.get('dropped', 0)), 'galaxy', 'galaxies')} with the pixels or the position "
        f"(within {SAME_ARCSEC:g} arcsec) of one of another label; which label is right, nobody knows.",
    )
    refused = (f"A launch would refuse this file with these settings: no {'; no '.join(facts.empty)}.",)
    said = [(str(name), f"{totals.get(name, 0):,} ({totals.get(name, 0) / len(split):.1%})") for name in counts]
    several = int((sizes > 1).sum())
    said.append(
        ("pieces of sky", f"{len(sizes):,}, of them {several:,} with several galaxies; the largest has {sizes.max()}")
    )
    figure = draw.framed(
        "How each class is divided",
        "In per cent of the class.",
        "Stacked bars: the share of each class in each split; numbers in the table below.",
        draw.split_shares(counts, facts.galaxies.generated),
    )
    frame = _named(counts).assign(total=counts.sum(axis=1).to_numpy())
    table = Table("Galaxies by class and split", "", frame, (*CLASS, *_counted(*SPLITS, "dropped", "total")))
    return Section(
        "Split",
        words=words,
        warnings=refused if facts.empty else (),
        facts=tuple(said),
        figures=(figure,),
        tables=(table,),
    )


SECTIONS = (_file, _classes, examples, _sky, redshift, _light, _pairs, _split, opening, noise)
