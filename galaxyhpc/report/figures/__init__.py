"""Figures of a sweep, each a function of its tables; `FIGURES` lists them in the order of a report.

A figure is None if the sweep has no data for it, such as no attack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import galaxyhpc.report.figures.defaults  # before matplotlib  # noqa: F401

# isort: split
from matplotlib.figure import Figure

from galaxyhpc.analysis.tables import ReportInfo, Tables
from galaxyhpc.report.figures.comparison import draw_comparison, draw_consistency, draw_corruption_error, draw_pareto
from galaxyhpc.report.figures.curves import (
    draw_angle_curves,
    draw_attack_curves,
    draw_polar_curves,
    draw_severity_curves,
)
from galaxyhpc.report.figures.panels import draw_confusion, draw_reliability, draw_training_curves
from galaxyhpc.report.figures.style import assign_styles

__all__ = ["FIGURES", "assign_styles"]

# by file name
FIGURES: dict[str, Callable[[Tables, ReportInfo], Figure | None]] = {
    "accuracy_angle": draw_angle_curves,
    "accuracy_polar": draw_polar_curves,
    "accuracy_severity": draw_severity_curves,
    "corruption_error": draw_corruption_error,
    "consistency": draw_consistency,
    "comparison": draw_comparison,
    "pareto": draw_pareto,
    "confusion": draw_confusion,
    "reliability": draw_reliability,
    "attack": draw_attack_curves,
    "training": draw_training_curves,
}


@dataclass(frozen=True)
class Caption:
    """The section and title of a figure, and a description."""

    section: str
    title: str
    text: str


# by the names of FIGURES, and contact_sheet
CAPTIONS: dict[str, Caption] = {
    "accuracy_angle": Caption(
        "Robustness",
        "Accuracy against the angle of rotation",
        "Test galaxies are rotated by the angle on the horizontal axis. One curve per network, the mean over its "
        "runs, with 95 % intervals. A rotation-invariant network has a flat curve.",
    ),
    "accuracy_polar": Caption(
        "Robustness",
        "Accuracy against rotation, polar",
        "Accuracy is the distance from the centre, the angle is the rotation. If rotation does not change accuracy, "
        "the curve is a circle.",
    ),
    "accuracy_severity": Caption(
        "Robustness",
        "Accuracy against severity",
        "One panel per condition: clean galaxies on the left, the most severe on the right. One curve per network, the "
        "mean over its runs, with its 95 % interval.",
    ),
    "corruption_error": Caption(
        "Robustness",
        "Corruption error",
        "One row per network, one column per condition: its errors divided by those of the conventional CNN. Below 1 "
        "is better than the CNN; the first column is the mean.",
    ),
    "consistency": Caption(
        "Robustness",
        "Consistency with clean",
        "One row per network, one column per condition: fraction of galaxies with the same prediction as when clean, "
        "right or wrong.",
    ),
    "contact_sheet": Caption(
        "Robustness",
        "Examples of each condition",
        "One row per condition, its severities from left to right, on test galaxies.",
    ),
    "comparison": Caption(
        "Comparisons",
        "Which differences are significant",
        "The networks in the order of their accuracy on clean galaxies. A bar joins networks without a significant "
        "difference between any two.",
    ),
    "pareto": Caption(
        "Networks",
        "Accuracy against cost",
        "Each point is a network: its accuracy on clean galaxies with the 95 % interval, against its cost. The grey "
        "line is the Pareto front: no cheaper network is as accurate. Most of its steps are within the intervals.",
    ),
    "confusion": Caption(
        "Classes",
        "Confusion matrices",
        "One panel per network: rows are the true class, columns the predicted one, clean galaxies, all runs "
        "pooled. Entries off the diagonal are errors.",
    ),
    "reliability": Caption(
        "Calibration",
        "Reliability",
        "One panel per network: accuracy against confidence, before and after temperature scaling. On the diagonal the "
        "network is calibrated.",
    ),
    "attack": Caption(
        "One-pixel attack",
        "Success against the number of queries",
        "Fraction of galaxies whose predicted class one changed pixel changes, against the number of queries to the "
        "network, with exact 95 % intervals.",
    ),
    "training": Caption(
        "Training",
        "Training curves",
        "One column per network: accuracy above, loss below, over the epochs. Grey is training, colour is validation, "
        "one line per seed.",
    ),
}


def get_caption(name: str) -> Caption:
    """Return the caption of a figure; an unknown figure is titled by its name."""
    return CAPTIONS.get(name, Caption("Other figures", name.replace("_", " ").capitalize(), ""))
