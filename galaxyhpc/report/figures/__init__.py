"""Figures of a sweep, each a function of its tables; `FIGURES` names them in the order of a report.

A figure is None where the sweep has nothing of its kind, such as no attack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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

# the name of each figure's file
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
    """The section of a figure, its title, and in words what it shows."""

    section: str
    title: str
    text: str


# by the names of figures.FIGURES
CAPTIONS: dict[str, Caption] = {
    "accuracy_angle": Caption(
        "Robustness",
        "Accuracy against the angle of rotation",
        "The test galaxies are turned by the angle on the horizontal axis. One curve per network, the mean over its "
        "seeds, with 95 % intervals. A network that respects rotations has a level curve.",
    ),
    "accuracy_polar": Caption(
        "Robustness",
        "The same around the circle",
        "Accuracy is the distance from the centre, the angle of rotation runs around it. Where rotation does no harm "
        "the curve is a circle.",
    ),
    "accuracy_severity": Caption(
        "Robustness",
        "Accuracy against severity",
        "One panel per condition: clean galaxies on the left, the most severe on the right. One curve per network, the "
        "mean over its seeds, with its 95 % interval.",
    ),
    "corruption_error": Caption(
        "Robustness",
        "Corruption error",
        "One row per network, one column per condition: its errors divided by those of the conventional CNN. Below 1 "
        "it errs less than the CNN; the first column is the mean.",
    ),
    "consistency": Caption(
        "Robustness",
        "How often the answer stays",
        "One row per network, one column per condition: the share of galaxies that keep the class they are given when "
        "clean, right or wrong.",
    ),
    "contact_sheet": Caption(
        "Robustness",
        "What the conditions look like",
        "One row per condition, its severities from left to right, on test galaxies.",
    ),
    "comparison": Caption(
        "Comparisons",
        "Which networks can be told apart",
        "The networks in the order of their accuracy on clean galaxies. A bar joins those of which no two can be told "
        "apart.",
    ),
    "pareto": Caption(
        "Networks",
        "Accuracy against cost",
        "Each point is a network: its accuracy on clean galaxies with the 95 % interval, against what it costs. On the "
        "grey line stand those that nothing cheaper beats; most of its steps are within the intervals.",
    ),
    "confusion": Caption(
        "Classes",
        "Confusion matrices",
        "One panel per network: rows are the true class, columns the predicted one, clean galaxies of all seeds "
        "together. What is off the diagonal is wrong.",
    ),
    "reliability": Caption(
        "Calibration",
        "Reliability",
        "One panel per network: how often it is right against how sure it says it is, before and after temperature "
        "scaling. On the diagonal its confidence can be believed.",
    ),
    "attack": Caption(
        "One-pixel attack",
        "Success against the number of queries",
        "The share of galaxies whose class one changed pixel changes, against the queries that the attack may make, "
        "with exact 95 % intervals.",
    ),
    "training": Caption(
        "Training",
        "Training curves",
        "One column per network: accuracy above, loss below, over the epochs. Grey is training, colour is validation, "
        "one line per seed.",
    ),
}


def get_caption(name: str) -> Caption:
    """Return the caption of a figure; one that is not known is called by its name."""
    return CAPTIONS.get(name, Caption("Other figures", name.replace("_", " ").capitalize(), ""))
