"""Small multiples with one panel per network: confusion matrix, reliability, learning curves."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from galaxyhpc.analysis.tables import ReportInfo, Tables, format_network_name
from galaxyhpc.report.figures.style import (
    PanelGrid,
    format_class_name,
    make_figure,
    select_best_networks,
    select_with_styles,
    style_axes,
    wrap_text,
    write_cells,
    write_empty_reason,
)

MAX_CONFUSION_PANELS, MAX_PANELS = 9, 12  # networks in a figure
MAX_COLUMNS = 4
MAX_MATRIX_CLASSES = 40  # rows of a confusion matrix
MIN_CELL_INCHES = 0.17  # of a confusion matrix
NUMBERS_CELL_INCHES = 0.25  # of a cell that holds per cent and galaxies
RAW_COLOUR, SCALED_COLOUR = "#D55E00", "#0072B2"
NO_DATA_TEXT = "not measured yet"


def draw_confusion(tables: Tables, info: ReportInfo) -> Figure | None:
    """Draw the confusion matrix of each network, in per cent of the true class; None without results."""
    if tables.confusion.empty:
        return None
    selected, note = select_best_networks(tables.networks, MAX_CONFUSION_PANELS)
    num_columns = min(3, len(selected))
    num_rows = -(-len(selected) // num_columns)
    names = tables.per_class.drop_duplicates("class").set_index("class")["name"]
    classes = select_confused_classes(tables.confusion, names.index.sort_values().to_numpy())
    count, side = len(classes), max(3.1, MIN_CELL_INCHES * len(classes))
    grid = PanelGrid(num_rows, num_columns, side, side, (0.15, 0.45), left=2.0, bottom=2.0, top=0.4)
    notes = ["Clean galaxies. Large: per cent of the true class; small: galaxies, all runs pooled.", note]
    if side / count < NUMBERS_CELL_INCHES:
        notes[0] = "Clean galaxies, all runs pooled: per cent of the true class."
    if count < len(names):
        notes.append(
            f"Shown: the {count} of {len(names):,} classes with the most errors; per cent of all galaxies of a class."
        )
    figure, panels = make_figure(info, "Confusion of classes", notes, grid, num_panels=len(selected))
    ticks = [format_class_name(names[label]) for label in classes]
    confusion_by_label = dict(iter(tables.confusion.groupby("label", sort=False)))
    for n, (axes, network) in enumerate(zip(panels, selected.to_dict("records"), strict=True)):
        axes.set_title(wrap_text(format_network_name(network), 44), fontsize=9, loc="left")
        if network["label"] in confusion_by_label:
            _draw_matrix(axes, confusion_by_label[network["label"]], classes)
        else:
            axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
            write_empty_reason(axes, NO_DATA_TEXT)
        is_lowest = n + num_columns >= len(selected)
        axes.set_xticks(range(count), ticks if is_lowest else [], rotation=90, fontsize=8)
        axes.set_yticks(range(count), ticks if n % num_columns == 0 else [], fontsize=8)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted" if is_lowest else "")
        axes.set_ylabel("truth" if n % num_columns == 0 else "")
    return figure


def select_confused_classes(confusion: pd.DataFrame, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Select the labels that a matrix shows: all, or those with the most errors, as truth or prediction."""
    if len(labels) <= MAX_MATRIX_CLASSES:
        return labels
    errors = confusion[confusion["truth"] != confusion["predicted"]]
    num_errors = sum(
        errors.groupby(role)["count"].sum().reindex(labels, fill_value=0) for role in ("truth", "predicted")
    )
    return np.sort(num_errors.sort_values(ascending=False, kind="stable").index[:MAX_MATRIX_CLASSES])  # type: ignore[union-attr]


def _draw_matrix(axes: Axes, table: pd.DataFrame, classes: NDArray[np.int64]) -> None:
    """Draw the matrix of some classes, in per cent of all galaxies of the true class; cells without are empty."""
    totals = table.groupby("truth")["count"].sum().reindex(classes, fill_value=0).to_numpy(float)
    shown = table[table["truth"].isin(classes) & table["predicted"].isin(classes)]
    counts = np.zeros((len(classes), len(classes)))
    counts[np.searchsorted(classes, shown["truth"]), np.searchsorted(classes, shown["predicted"])] = shown["count"]
    percent = 100 * counts / np.maximum(totals[:, None], 1)
    axes.imshow(percent, vmin=0, vmax=100, cmap="Blues")
    axes.spines[:].set_color("0.8")
    side = axes.get_position().width * axes.figure.get_size_inches()[0]  # type: ignore[union-attr]
    has_counts, row = side / len(classes) >= NUMBERS_CELL_INCHES, len(classes) / side  # cells in an inch
    size, shift = (7.0, 0.037 * row) if has_counts else (5.0, 0.0)
    for is_dark, colour in ((False, "0.15"), (True, "white")):
        cells = np.argwhere((counts > 0) & ((percent > 55) == is_dark)).tolist()
        large = [(predicted, truth - shift, f"{percent[truth, predicted]:.0f}", size) for truth, predicted in cells]
        small = [(predicted, truth + 0.087 * row, f"{counts[truth, predicted]:.0f}", 4.5) for truth, predicted in cells]
        write_cells(axes, [*large, *(small if has_counts else [])], colour)


def draw_reliability(tables: Tables, info: ReportInfo) -> Figure | None:
    """Draw accuracy against confidence for each network, raw and scaled; None without results."""
    if tables.reliability.empty:
        return None
    selected, note = select_best_networks(tables.networks, MAX_PANELS)
    notes = ["Clean galaxies, all runs pooled, 15 bins; ECE is the mean over runs.", note]
    notes += ["Scaled: logits divided by one temperature, fitted on validation galaxies."]
    figure, panels = _make_panel_pairs(info, "Reliability", notes, len(selected), 2.5, 0.25)
    clean = tables.summary[tables.summary["condition"] == "clean"].set_index("label")
    bins_by_label = dict(iter(tables.reliability.groupby("label", sort=False)))
    for n, ((upper, lower), network) in enumerate(zip(panels, selected.to_dict("records"), strict=True)):
        upper.set_title(wrap_text(format_network_name(network), 34), fontsize=9, loc="left")
        upper.plot([0, 100], [0, 100], color="0.6", lw=0.8)
        for axes in (upper, lower):
            axes.set_xlim(0, 100)
        upper.set_ylim(0, 100)
        if network["label"] in bins_by_label:
            _draw_reliability_panel(upper, lower, bins_by_label[network["label"]], clean.loc[network["label"]])
        else:
            write_empty_reason(upper, NO_DATA_TEXT)
        lower.set_xlabel("confidence (%)", fontsize=8)
        if n % MAX_COLUMNS == 0:
            upper.set_ylabel("accuracy (%)", fontsize=8)
            lower.set_ylabel("galaxies", fontsize=8)
    return figure


def _draw_reliability_panel(upper: Axes, lower: Axes, bins: pd.DataFrame, clean: pd.Series) -> None:
    for is_scaled, colour, name, column in (
        (False, RAW_COLOUR, "unscaled", "ece"),
        (True, SCALED_COLOUR, "scaled", "ece_scaled"),
    ):
        rows = bins[bins["scaled"] == is_scaled].sort_values("bin")
        if rows.empty:
            continue
        occupied = rows[rows["galaxies"] > 0]
        text = f"{name}, ECE {100 * clean[column]:.1f} %"
        x, y = 100 * occupied["confidence"].to_numpy(float), 100 * occupied["accuracy"].to_numpy(float)
        upper.plot(x, y, marker="s" if is_scaled else "o", ms=3.2, lw=1.1, color=colour, label=text)
        edges = np.linspace(0, 100, len(rows) + 1)
        lower.stairs(rows["galaxies"], edges, fill=not is_scaled, color=colour, alpha=1.0 if is_scaled else 0.35)
    upper.legend(loc="upper left", fontsize=7, frameon=False, handlelength=1.5, borderpad=0.1)


def draw_training_curves(tables: Tables, info: ReportInfo) -> Figure | None:
    """Draw accuracy and loss against the epoch, one line per seed; None if no run has started."""
    if tables.training.empty:
        return None
    selected, note = select_best_networks(tables.networks, MAX_PANELS)
    styles = select_with_styles(tables)[1]
    notes = ["One line per seed: grey on training galaxies (augmented), coloured on validation galaxies.", note]
    notes += ["Horizontal line: always the majority class."] if np.isfinite(info.chance_accuracy) else []
    figure, panels = _make_panel_pairs(info, "Training", notes, len(selected), 2.6, 0.45)
    curves = tables.training[tables.training["label"].isin(selected["label"])]
    curves_by_label = dict(iter(curves.groupby("label", sort=False)))
    losses = curves[["train_loss", "validation_loss"]].to_numpy(float)
    highest = float(np.nanquantile(losses, 0.99)) * 1.05 if np.isfinite(losses).any() else 1.0
    for n, ((upper, lower), network) in enumerate(zip(panels, selected.to_dict("records"), strict=True)):
        upper.set_title(wrap_text(format_network_name(network), 34), fontsize=9, loc="left")
        upper.set_ylim(0, 100)
        lower.set_ylim(0, highest)
        if network["label"] in curves_by_label:
            _draw_training_panel(upper, lower, curves_by_label[network["label"]], styles[network["label"]]["color"])
        else:
            write_empty_reason(upper, "not started yet")
        if np.isfinite(info.chance_accuracy):
            upper.axhline(100 * info.chance_accuracy, color="0.5", lw=0.8)
        lower.set_xlabel("epoch", fontsize=8)
        if n % MAX_COLUMNS == 0:
            upper.set_ylabel("accuracy (%)", fontsize=8)
            lower.set_ylabel("loss (nats)", fontsize=8)
    return figure


def _draw_training_panel(upper: Axes, lower: Axes, history: pd.DataFrame, colour: str) -> None:
    for _, run in history.groupby("run_id", sort=False):
        epoch: NDArray[np.float64] = run["epoch"].to_numpy(float)
        for axes, metric, unit in ((upper, "accuracy", 100.0), (lower, "loss", 1.0)):
            axes.plot(epoch, unit * run[f"train_{metric}"].to_numpy(float), color="0.65", lw=0.8)
            axes.plot(epoch, unit * run[f"validation_{metric}"].to_numpy(float), color=colour, lw=0.9)


def _make_panel_pairs(
    info: ReportInfo, heading: str, notes: list[str], num_panels: int, panel_height: float, lower_fraction: float
) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """Make panels in two parts that share the horizontal axis; the lower takes `lower_fraction` of the height."""
    columns = min(MAX_COLUMNS, num_panels)
    grid = PanelGrid(
        -(-num_panels // columns), columns, 2.35, panel_height, (0.35, 1.0), left=0.7, bottom=0.55, top=0.4
    )
    figure, uppers = make_figure(info, heading, notes, grid, num_panels=num_panels)
    pairs = []
    for upper in uppers:
        box = upper.get_position()
        lower = figure.add_axes((box.x0, box.y0, box.width, (lower_fraction - 0.03) * box.height))
        upper.set_position((box.x0, box.y0 + lower_fraction * box.height, box.width, (1 - lower_fraction) * box.height))
        for axes in (upper, lower):
            style_axes(axes)
            axes.tick_params(labelsize=7)
        upper.tick_params(labelbottom=False)
        pairs.append((upper, lower))
    return figure, pairs
