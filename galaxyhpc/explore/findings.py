"""What to know before training on a source of galaxies, in lines of text."""

from __future__ import annotations

import numpy as np

from galaxyhpc.analysis.tables import GENERATED_NOTICE
from galaxyhpc.data.given_split import describe_division
from galaxyhpc.explore.dataset_summary import DatasetSummary
from galaxyhpc.runtime.console import format_count

MAX_LISTED = 8  # images named by their row


def format_title(summary: DatasetSummary) -> str:
    """Return a title such as `697 galaxies in sample.h5`, with a notice if they are generated."""
    generated = f" - {GENERATED_NOTICE}" if summary.galaxies.generated else ""
    return f"{len(summary.galaxies.labels):,} galaxies in {summary.path.name}{generated}"


def describe_findings(summary: DatasetSummary) -> list[str]:
    """Return the facts to know before training on these galaxies, one line each."""
    pairs = format_count(len(summary.duplicates), "pair")
    conflicts, known = int(summary.pairs["conflict"].sum()), int(np.isfinite(summary.redshift).sum())
    dropped = format_count(int((summary.split["split"] == "dropped").sum()), "galaxy", "galaxies")
    lines = [
        _describe_class_counts(summary),
        f"{pairs} of duplicates, {conflicts:,} of them with conflicting labels ({dropped} dropped from the split); "
        f'{format_count(len(summary.overlaps), "pair")} of other frames closer than {summary.config.link_arcsec:g}"',
        f"Divided {describe_division(summary.galaxies.columns)}",
        f"Redshift known for {known:,} of {len(summary.redshift):,} galaxies",
    ]
    if left_out := summary.galaxies.num_left_out:
        lines.insert(1, f"{format_count(left_out, 'galaxy', 'galaxies')} of other classes left out")
    empty = np.flatnonzero(summary.photometry["has_empty_band"])
    if len(empty):
        rows = ", ".join(map(str, empty[:MAX_LISTED])) + (", ..." if len(empty) > MAX_LISTED else "")
        lines.append(f"{format_count(len(empty), 'image')} blank or with an empty band: row {rows}")
    if summary.galaxies.num_grey:
        lines.append(f"{format_count(summary.galaxies.num_grey, 'image')} grey: three equal bands")
    if summary.galaxies.num_filled:
        lines.append(f"{format_count(summary.galaxies.num_filled, 'image')} with pixels without a value, taken as sky")
    if summary.rejection:
        lines.append(f"A launch would reject this file: {summary.rejection}")
    return lines


def _describe_class_counts(summary: DatasetSummary) -> str:
    counts, names = summary.class_counts, summary.class_names
    rarest, commonest = int(counts.argmin()), int(counts.argmax())
    if counts[rarest] == counts[commonest]:
        return f"{format_count(int(counts[rarest]), 'galaxy', 'galaxies')} in each of the {len(names)} classes"
    return f"From {counts[rarest]:,} ({names[rarest]}) to {counts[commonest]:,} ({names[commonest]}) galaxies per class"


def describe_chance(summary: DatasetSummary) -> str:
    """Return the accuracy of always naming the commonest class."""
    counts, names = summary.class_counts, summary.class_names
    chance = f"{100 * counts.max() / counts.sum():.1f} %"
    if counts.min() == counts.max():
        return f"All classes have the same number of galaxies: the chance level of the accuracy is {chance}."
    commonest = names[int(counts.argmax())]
    return f"The fraction of the commonest class ({commonest}, {chance}) is the chance level of the accuracy."
