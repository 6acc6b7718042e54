"""Outputs of `inspect`: tables, figures, and the sections of the page with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from galaxyhpc.analysis.tables import ReportInfo
from galaxyhpc.evaluation.calibration import softmax
from galaxyhpc.evaluation.results import CLEAN
from galaxyhpc.inspect import embedding, features, figures, gradcam
from galaxyhpc.inspect.features import InspectError, RunFeatures
from galaxyhpc.inspect.figures import Panel
from galaxyhpc.inspect.inputs import InspectContext
from galaxyhpc.report import page
from galaxyhpc.report.figures import files
from galaxyhpc.report.figures.defaults import use_default_style
from galaxyhpc.storage.files import write_text

MAX_GALAXIES = 60  # in one figure
FIGURE_DPI = 130.0  # per inch
SELECTION_NOTE = (
    "The most confident correct prediction (left) and the most confident wrong one (right) of each class, if any"
)
DISTANCE_NOTE = (
    "Distance between the features of a galaxy under a condition and of the clean one, in units of the median distance "
    "between two different clean galaxies of the same network; under rotations and flips it is the equivariance "
    "error. A small distance alone is not good: an undertrained network has small ones. "
)


def make_distance_table(context: InspectContext, run_features: RunFeatures) -> pd.DataFrame:
    """Return `compute_distance_table` with the network's label, group and seed."""
    config = context.classifier.config
    return features.compute_distance_table(run_features).assign(
        label=context.label, group=config.model.group_label, seed=config.seed
    )


def disambiguate_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Replace labels by run ids where two runs have the same label and seed, such as networks of two widths."""
    runs = table[["run_id", "label", "seed"]].drop_duplicates()
    ambiguous = runs.loc[runs.duplicated(["label", "seed"]), "label"]
    return table.assign(label=table["label"].where(~table["label"].isin(ambiguous), table["run_id"]))


@use_default_style()
def write_distance_section(table: pd.DataFrame, title: str, output: Path) -> list[page.Section]:
    """Write latent_distance.csv and its figure, for one network or several."""
    if table.empty:  # clean galaxies alone
        return []
    write_table(output / "latent_distance.csv", table)
    generated, has_several_networks = bool(table["generated"].any()), table["label"].nunique() > 1
    seeds = table[["label", "seed"]].drop_duplicates()["label"].value_counts()
    spread = f"Line: median over {table['n'].iloc[0]} test galaxies, band: quartiles"
    note = f"Penultimate features. {DISTANCE_NOTE}{spread}{', means over seeds' if seeds.max() > 1 else ''}."
    penultimate = table[table["features"] == "penultimate"]
    figure = figures.draw_latent_distance(figures.make_about(title, generated), penultimate, note)
    alt = "Curves of the median distance against severity, one panel per condition"
    alt += ", one per network" * has_several_networks
    page_figure = page.PageFigure("Latent distance", note, alt, *save_figure(figure, output / "latent_distance"))
    columns = [page.Column("network", "label"), page.Column("seed", "seed", "number")] if has_several_networks else []
    columns += [page.Column(name, name) for name in ("features", "condition")]
    columns += [page.Column("severity", "parameter", "number", digits=2), page.Column("unit", "unit")]
    columns.append(page.Column("distance", ("median", "q25", "q75"), "interval", digits=3))
    page_table = page.Table("Latent distances", DISTANCE_NOTE, table, tuple(columns), "latent_distance.csv")
    return [page.Section("Latent distance", figures=(page_figure,), tables=(page_table,))]


@use_default_style()
def write_embedding_section(
    context: InspectContext, run_features: RunFeatures, output: Path, console: Console
) -> list[page.Section]:
    """Write embedding.csv, the clean galaxies in two dimensions, and its figure."""
    clean, methods = run_features.activations[CLEAN].penultimate.astype(np.float64), embedding.get_available_methods()
    features.compute_typical_distance(clean)  # raises if all galaxies have the same features
    steps = track(methods, "embedding", console=console, transient=True, disable=not console.is_terminal)
    embeddings = {method: embedding.METHODS[method](clean) for method in steps}
    if "UMAP" not in methods:
        console.print(embedding.UMAP_MISSING_MESSAGE)
    write_table(output / "embedding.csv", make_coordinate_table(run_features, embeddings, context.class_names))
    note = f"Penultimate features, {clean.shape[1]} numbers for each of {len(clean)} clean test galaxies."
    figure = figures.draw_embedding(make_about(context), embeddings, run_features.labels, note)
    caption = f"{note} {' '.join(figures.METHOD_NOTES[method] for method in embeddings)}"
    alt = f"Scatter plots by {' and '.join(embeddings)}, galaxies coloured by class"
    page_figure = page.PageFigure("Clean galaxies", caption, alt, *save_figure(figure, output / "embedding"))
    return [page.Section("Embedding", figures=(page_figure,))]


def make_coordinate_table(
    run_features: RunFeatures, embeddings: Mapping[str, NDArray[np.float64]], class_names: Sequence[str]
) -> pd.DataFrame:
    """Return a table of galaxies with each method's (n, 2) embedding as columns such as tsne_1 and tsne_2."""
    table = pd.DataFrame(
        {
            "row": run_features.rows,
            "class": run_features.labels,
            "name": [class_names[label] for label in run_features.labels],
        }
    )
    table = table.assign(predicted=run_features.activations[CLEAN].logits.argmax(1), generated=run_features.generated)
    for method, coordinates in embeddings.items():
        name = method.replace("-", "").lower()
        table[f"{name}_1"], table[f"{name}_2"] = coordinates.T
    return table


def select_galaxies(
    context: InspectContext, run_features: RunFeatures, indices: Sequence[int] | None
) -> list[gradcam.GradCamTarget | None]:
    """Return the Grad-CAM targets of these rows, or of each class's most confident correct and wrong predictions."""
    if indices is None:
        targets = gradcam.select_most_confident(
            run_features.rows, run_features.labels, softmax(run_features.activations[CLEAN].logits)
        )
        return targets[:MAX_GALAXIES]
    with torch.inference_mode():
        images, labels = context.dataset.get_batch(torch.tensor(indices))
        probabilities = softmax(context.classifier.network(images).float().cpu().numpy())
    return list(map(gradcam.make_gradcam_target, indices, labels.tolist(), probabilities))


def check_indices(context: InspectContext, indices: Sequence[int]) -> None:
    """Check that there are at most MAX_GALAXIES rows, and that all are in the data file.

    Raises
    ------
    InspectError
    """
    if bad := [row for row in indices if not 0 <= row < len(context.split)]:
        last = len(context.split) - 1
        raise InspectError(f"--galaxies: got row {bad[0]}; expected rows of the data file, 0 to {last}")
    if len(indices) > MAX_GALAXIES:
        raise InspectError(f"--galaxies: got {len(indices)} rows; expected at most {MAX_GALAXIES}")


def make_panels(
    context: InspectContext, targets: Sequence[gradcam.GradCamTarget | None]
) -> tuple[list[Panel | None], int]:
    """Return the panels of the targets, and the side of the last convolutional map, in pixels of the map."""
    existing = [target for target in targets if target is not None]
    images, labels = context.dataset.get_batch(torch.tensor([target.row for target in existing]))
    others = torch.tensor([target.other_class for target in existing], device=labels.device)
    heat = [gradcam.compute_heat_maps(context.classifier.network, images, classes) for classes in (labels, others)]
    truth, other = (gradcam.upsample(heat_maps, images.shape[-1]).cpu().numpy() for heat_maps in heat)
    pixels, splits = images.permute(0, 2, 3, 1).cpu().numpy(), context.split["split"]
    panels = iter(map(Panel, existing, pixels, truth, other, (splits[target.row] for target in existing)))
    return [None if target is None else next(panels) for target in targets], heat[0].shape[-1]


@use_default_style()
def write_gradcam_section(
    context: InspectContext, run_features: RunFeatures, indices: Sequence[int] | None, output: Path
) -> list[page.Section]:
    """Write gradcam.png, heat maps of the true class and of the predicted or second one, and return its section."""
    panels, side = make_panels(context, select_galaxies(context, run_features, indices))
    num_left_out = len(np.unique(run_features.labels)) - MAX_GALAXIES // 2
    selection = SELECTION_NOTE + (f"; {num_left_out} classes are left out." if num_left_out > 0 else ".")
    note = (
        f"{'The galaxies of --galaxies.' if indices else selection} Heat maps, each normalized to its maximum: of "
        "the true class, and of the predicted class or, if that is correct, of the second most probable one. The last "
        f"convolutional map has {side} x {side} pixels: finer detail is interpolation. Confidence: softmax."
    )
    figure = figures.draw_grad_cam(make_about(context), panels, note)
    alt = "Images of galaxies, each beside the same image with overlaid heat maps of two classes"
    page_figure = page.PageFigure("Heat maps", note, alt, *save_figure(figure, output / "gradcam", ("png",)))
    return [page.Section("Grad-CAM", figures=(page_figure,))]


def make_about(context: InspectContext) -> ReportInfo:
    """Return the title and notices of all figures of a run."""
    return figures.make_about(context.classifier.run.run_id, context.generated, context.class_names)


def save_figure(figure: Figure, path: Path, formats: Sequence[str] = files.FORMATS) -> tuple[bytes, tuple[str, ...]]:
    """Write a figure in these formats; return the PNG's bytes and the names of the files."""
    return files.save_figure(figure, path, FIGURE_DPI, formats), tuple(f"{path.name}.{kind}" for kind in formats)


def write_table(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False, float_format="%.6g"))


def write_page(
    output: Path, title: str, sections: Sequence[page.Section], generated: bool, lead: Sequence[str]
) -> Path:
    """Write inspect.html, a self-contained file; return its path."""
    write_text(output / "inspect.html", page.render_page(title, sections, generated, lead))
    return output / "inspect.html"
