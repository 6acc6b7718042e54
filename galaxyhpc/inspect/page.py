"""What `inspect` writes of a run: tables, figures, and the sections of the page that holds them."""

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
from galaxyhpc.data.dataset import CLASSES
from galaxyhpc.evaluation.calibration import softmax
from galaxyhpc.evaluation.results import CLEAN
from galaxyhpc.inspect import embedding, features, figures, gradcam
from galaxyhpc.inspect.features import InspectError, RunFeatures
from galaxyhpc.inspect.figures import Panel
from galaxyhpc.inspect.inputs import InspectContext
from galaxyhpc.report import page
from galaxyhpc.report.figures import files
from galaxyhpc.storage.files import write_text

MAX_GALAXIES = 60  # in one figure
FIGURE_DPI = 130.0  # per inch
SELECTION_NOTE = (
    "Of each class the most confidently right galaxy (left) and the most confidently wrong one, where there is one."
)
DISTANCE_NOTE = (
    "Distance between the features of a galaxy under a condition and of the clean one, in units of the median distance "
    "between two different clean galaxies of the same network; under turns and flips it is the equivariance error. "
    "Little is not good by itself: a network that learned little is moved little. "
)


def make_distance_table(context: InspectContext, run_features: RunFeatures) -> pd.DataFrame:
    """Tell how far each condition moves the galaxies, with the network's name."""
    config = context.classifier.config
    return features.compute_distance_table(run_features).assign(
        label=context.label, group=config.model.group_label, seed=config.seed
    )


def disambiguate_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Call runs by their ids where two are the same seed of networks called alike, such as of two widths."""
    runs = table[["run_id", "label", "seed"]].drop_duplicates()
    alike = runs.loc[runs.duplicated(["label", "seed"]), "label"]
    return table.assign(label=table["label"].where(~table["label"].isin(alike), table["run_id"]))


def write_distance_section(table: pd.DataFrame, title: str, output: Path) -> list[page.Section]:
    """Write latent_distance.csv and its figure, for one network or several."""
    if table.empty:  # clean galaxies alone
        return []
    write_table(output / "latent_distance.csv", table)
    generated, several = bool(table["generated"].any()), table["label"].nunique() > 1
    seeds = table[["label", "seed"]].drop_duplicates()["label"].value_counts()
    spread = f"Line: median over {table['n'].iloc[0]} test galaxies, band: quartiles"
    note = f"Penultimate features. {DISTANCE_NOTE}{spread}{', means over seeds' if seeds.max() > 1 else ''}."
    drawn = table[table["features"] == "penultimate"]
    figure = figures.draw_latent_distance(figures.make_about(title, generated), drawn, note)
    alt = "Curves of the median distance against severity, one panel per condition" + ", one per network" * several
    head = page.PageFigure("Latent distance", note, alt, *save_figure(figure, output / "latent_distance"))
    columns = [page.Column("network", "label"), page.Column("seed", "seed", "number")] if several else []
    columns += [page.Column(name, name) for name in ("features", "condition")]
    columns += [page.Column("severity", "parameter", "number", digits=2), page.Column("unit", "unit")]
    columns.append(page.Column("moved", ("median", "q25", "q75"), "interval", digits=3))
    shown = page.Table("Latent distances", DISTANCE_NOTE, table, tuple(columns), "latent_distance.csv")
    return [page.Section("Latent distance", figures=(head,), tables=(shown,))]


def write_embedding_section(
    context: InspectContext, run_features: RunFeatures, output: Path, console: Console
) -> list[page.Section]:
    """Write embedding.csv, the clean galaxies in two dimensions, and its figure."""
    known, methods = run_features.activations[CLEAN].penultimate.astype(np.float64), embedding.get_available_methods()
    features.compute_typical_distance(known)  # refuses what has no distances
    steps = track(methods, "embedding", console=console, transient=True, disable=not console.is_terminal)
    placed = {method: embedding.METHODS[method](known) for method in steps}
    if "UMAP" not in methods:
        console.print(embedding.UMAP_MISSING_MESSAGE)
    write_table(output / "embedding.csv", make_coordinate_table(run_features, placed))
    note = f"Penultimate features, {known.shape[1]} numbers for each of {len(known)} clean test galaxies."
    figure = figures.draw_embedding(make_about(context), placed, run_features.labels, note)
    caption = f"{note} {' '.join(figures.METHOD_NOTES[method] for method in placed)}"
    alt = f"Scatter plots by {' and '.join(placed)}, galaxies coloured by class"
    shown = page.PageFigure("Clean galaxies", caption, alt, *save_figure(figure, output / "embedding"))
    return [page.Section("Embedding", figures=(shown,))]


def make_coordinate_table(run_features: RunFeatures, embeddings: Mapping[str, NDArray[np.float64]]) -> pd.DataFrame:
    """Put each method's (n, 2) places into columns such as tsne_1 and tsne_2, beside what is known of the galaxies."""
    table = pd.DataFrame(
        {
            "row": run_features.rows,
            "class": run_features.labels,
            "name": [CLASSES[label] for label in run_features.labels],
        }
    )
    table = table.assign(predicted=run_features.activations[CLEAN].logits.argmax(1), generated=run_features.generated)
    for method, places in embeddings.items():
        name = method.replace("-", "").lower()
        table[f"{name}_1"], table[f"{name}_2"] = places.T
    return table


def select_galaxies(
    context: InspectContext, run_features: RunFeatures, indices: Sequence[int] | None
) -> list[gradcam.GradCamTarget | None]:
    """Return the galaxies to look at: those named, or each class's most confidently right and wrong one."""
    if indices is None:
        return gradcam.select_most_confident(
            run_features.rows, run_features.labels, softmax(run_features.activations[CLEAN].logits)
        )
    with torch.inference_mode():
        images, labels = context.dataset.get_batch(torch.tensor(indices))
        shares = softmax(context.classifier.network(images).float().cpu().numpy())
    return [gradcam.make_gradcam_target(*each) for each in zip(indices, labels.tolist(), shares, strict=True)]


def check_indices(context: InspectContext, indices: Sequence[int]) -> None:
    """Refuse rows that the data file does not have.

    Raises
    ------
    LatentError
    """
    if bad := [row for row in indices if not 0 <= row < len(context.split)]:
        raise InspectError(f"--galaxies: found row {bad[0]}; allowed: 0 to {len(context.split) - 1}, of the data file")
    if len(indices) > MAX_GALAXIES:
        raise InspectError(f"--galaxies: found {len(indices)} rows; allowed: at most {MAX_GALAXIES}")


def make_panels(
    context: InspectContext, targets: Sequence[gradcam.GradCamTarget | None]
) -> tuple[list[Panel | None], int]:
    """Return the galaxies with their heat maps, and the side of the map these were enlarged from, in cells."""
    some = [choice for choice in targets if choice is not None]
    images, labels = context.dataset.get_batch(torch.tensor([choice.row for choice in some]))
    others = torch.tensor([choice.other_class for choice in some], device=labels.device)
    heat = [gradcam.compute_heat_maps(context.classifier.network, images, classes) for classes in (labels, others)]
    truth, other = (gradcam.upsample(each, images.shape[-1]).cpu().numpy() for each in heat)
    pixels, splits = images.permute(0, 2, 3, 1).cpu().numpy(), context.split["split"]
    made = iter(map(Panel, some, pixels, truth, other, (splits[choice.row] for choice in some)))
    return [None if choice is None else next(made) for choice in targets], heat[0].shape[-1]


def write_gradcam_section(
    context: InspectContext, run_features: RunFeatures, indices: Sequence[int] | None, output: Path
) -> list[page.Section]:
    """Write gradcam.png: where the network looks for the true class, and for the one it says or would say next."""
    drawn, side = make_panels(context, select_galaxies(context, run_features, indices))
    which = (
        "The galaxies asked for." if indices else SELECTION_NOTE
    ) + " Heat, each map to its own maximum: of the true class, and"
    detail = f"The last convolutional map has only {side} x {side} cells: finer detail is interpolation."
    note = f"{which} of the class that was said or, where that is right, of the next one. {detail} Confidence: softmax."
    figure = figures.draw_grad_cam(make_about(context), drawn, note)
    alt = "Images of galaxies, each beside itself with heat maps of two classes laid over it"
    shown = page.PageFigure("Heat maps", note, alt, *save_figure(figure, output / "gradcam", ("png",)))
    return [page.Section("Grad-CAM", figures=(shown,))]


def make_about(context: InspectContext) -> ReportInfo:
    """Return what all figures of a run say."""
    return figures.make_about(context.classifier.run.run_id, context.generated)


def save_figure(figure: Figure, path: Path, formats: Sequence[str] = files.FORMATS) -> tuple[bytes, tuple[str, ...]]:
    """Write a figure beside the page; return the PNG and the names of the files."""
    return files.save_figure(figure, path, FIGURE_DPI, formats), tuple(f"{path.name}.{kind}" for kind in formats)


def write_table(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False, float_format="%.6g"))


def write_page(
    output: Path, title: str, sections: Sequence[page.Section], generated: bool, lead: Sequence[str]
) -> Path:
    """Write inspect.html, all in one file; return where."""
    write_text(output / "inspect.html", page.render_page(title, sections, generated, lead))
    return output / "inspect.html"
