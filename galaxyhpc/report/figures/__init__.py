"""Figures of a sweep, each a function of its tables; `FIGURES` names them in the order of a report.

A figure is None where the sweep has nothing of its kind, such as no attack.
"""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from galaxyhpc.analysis.tables import About, Tables
from galaxyhpc.report.figures.comparison import consistency, corruption_error, groups, pareto
from galaxyhpc.report.figures.curves import angle, attack, polar, severity
from galaxyhpc.report.figures.panels import confusion, reliability, training
from galaxyhpc.report.figures.style import looks

__all__ = ["FIGURES", "looks"]

# the name of each figure's file
FIGURES: dict[str, Callable[[Tables, About], Figure | None]] = {
    "accuracy_angle": angle,
    "accuracy_polar": polar,
    "accuracy_severity": severity,
    "corruption_error": corruption_error,
    "consistency": consistency,
    "comparison": groups,
    "pareto": pareto,
    "confusion": confusion,
    "reliability": reliability,
    "attack": attack,
    "training": training,
}
