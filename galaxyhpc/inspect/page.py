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

from galaxyhpc.analysis.tables import About
from galaxyhpc.data.dataset import CLASSES
from galaxyhpc.evaluation.calibration import probabilities
from galaxyhpc.evaluation.results import CLEAN
from galaxyhpc.inspect import embedding, features, figures, gradcam
from galaxyhpc.inspect.features import Features, LatentError
from galaxyhpc.inspect.figures import Panel
from galaxyhpc.inspect.inputs import Subject
from galaxyhpc.report import page
from galaxyhpc.report.figures import files
from galaxyhpc.storage.files import write_text

MOST_GALAXIES = 60  # in one figure
DOTS = 130.0  # per inch
CHOSEN = (
    "Of each class the most confidently right galaxy (left) and the most confidently wrong one, where there is one."
)
UNITS = (
    "Distance between the features of a galaxy under a condition and of the clean one, in units of the median distance "
    "between two different clean galaxies of the same network; under turns and flips it is the equivariance error. "
    "Little is not good by itself: a network that learned little is moved little. "
)


def distance_table(looked: Subject, found: Features) -> pd.DataFrame:
    """Tell how far each condition moves the galaxies, with the network's name."""
    config = looked.used.config
    return features.distance_table(found).assign(label=looked.label, group=config.model.groups, seed=config.seed)


def told_apart(table: pd.DataFrame) -> pd.DataFrame:
    """Call runs by their ids where two are the same seed of networks called alike, such as of two widths."""
    runs = table[["run_id", "label", "seed"]].drop_duplicates()
    alike = runs.loc[runs.duplicated(["label", "seed"]), "label"]
    return table.assign(label=table["label"].where(~table["label"].isin(alike), table["run_id"]))


def distance_section(table: pd.DataFrame, title: str, output: Path) -> list[page.Section]:
    """Write latent_distance.csv and its figure, for one network or several."""
    if table.empty:  # clean galaxies alone
        return []
    write_table(output / "latent_distance.csv", table)
    generated, several = bool(table["generated"].any()), table["label"].nunique() > 1
    seeds = table[["label", "seed"]].drop_duplicates()["label"].value_counts()
    spread = f"Line: median over {table['n'].iloc[0]} test galaxies, band: quartiles"
    note = f"Penultimate features. {UNITS}{spread}{', means over seeds' if seeds.max() > 1 else ''}."
    drawn = table[table["features"] == "penultimate"]
    figure = figures.latent_distance(figures.about(title, generated), drawn, note)
    alt = "Curves of the median distance against severity, one panel per condition" + ", one per network" * several
    head = page.Figure("Latent distance", note, alt, *written(figure, output / "latent_distance"))
    columns = [page.Column("network", "label"), page.Column("seed", "seed", "number")] if several else []
    columns += [page.Column(name, name) for name in ("features", "condition")]
    columns += [page.Column("severity", "parameter", "number", digits=2), page.Column("unit", "unit")]
    columns.append(page.Column("moved", ("median", "q25", "q75"), "interval", digits=3))
    shown = page.Table("Latent distances", UNITS, table, tuple(columns), "latent_distance.csv")
    return [page.Section("Latent distance", figures=(head,), tables=(shown,))]


def embedding_section(looked: Subject, found: Features, output: Path, console: Console) -> list[page.Section]:
    """Write embedding.csv, the clean galaxies in two dimensions, and its figure."""
    known, methods = found.seen[CLEAN].penultimate.astype(np.float64), embedding.available()
    features.typical_distance(known)  # refuses what has no distances
    steps = track(methods, "embedding", console=console, transient=True, disable=not console.is_terminal)
    placed = {method: embedding.METHODS[method](known) for method in steps}
    if "UMAP" not in methods:
        console.print(embedding.NO_UMAP)
    write_table(output / "embedding.csv", coordinates(found, placed))
    note = f"Penultimate features, {known.shape[1]} numbers for each of {len(known)} clean test galaxies."
    figure = figures.embedding(about(looked), placed, found.labels, note)
    caption = f"{note} {' '.join(figures.MEANING[method] for method in placed)}"
    alt = f"Scatter plots by {' and '.join(placed)}, galaxies coloured by class"
    shown = page.Figure("Clean galaxies", caption, alt, *written(figure, output / "embedding"))
    return [page.Section("Embedding", figures=(shown,))]


def coordinates(found: Features, placed: Mapping[str, NDArray[np.float64]]) -> pd.DataFrame:
    """Put each method's (n, 2) places into columns such as tsne_1 and tsne_2, beside what is known of the galaxies."""
    table = pd.DataFrame({"row": found.rows, "class": found.labels, "name": [CLASSES[label] for label in found.labels]})
    table = table.assign(predicted=found.seen[CLEAN].logits.argmax(1), generated=found.generated)
    for method, places in placed.items():
        name = method.replace("-", "").lower()
        table[f"{name}_1"], table[f"{name}_2"] = places.T
    return table


def chosen(looked: Subject, found: Features, rows: Sequence[int] | None) -> list[gradcam.Choice | None]:
    """Return the galaxies to look at: those named, or each class's most confidently right and wrong one."""
    if rows is None:
        return gradcam.most_confident(found.rows, found.labels, probabilities(found.seen[CLEAN].logits))
    with torch.inference_mode():
        images, labels = looked.pictures.take(torch.tensor(rows))
        shares = probabilities(looked.used.network(images).float().cpu().numpy())
    return [gradcam.described(*each) for each in zip(rows, labels.tolist(), shares, strict=True)]


def check_rows(looked: Subject, rows: Sequence[int]) -> None:
    """Refuse rows that the data file does not have.

    Raises
    ------
    LatentError
    """
    if bad := [row for row in rows if not 0 <= row < len(looked.split)]:
        raise LatentError(f"--galaxies: found row {bad[0]}; allowed: 0 to {len(looked.split) - 1}, of the data file")
    if len(rows) > MOST_GALAXIES:
        raise LatentError(f"--galaxies: found {len(rows)} rows; allowed: at most {MOST_GALAXIES}")


def panels(looked: Subject, choices: Sequence[gradcam.Choice | None]) -> tuple[list[Panel | None], int]:
    """Return the galaxies with their heat maps, and the side of the map these were enlarged from, in cells."""
    some = [choice for choice in choices if choice is not None]
    images, labels = looked.pictures.take(torch.tensor([choice.row for choice in some]))
    others = torch.tensor([choice.other for choice in some], device=labels.device)
    heat = [gradcam.heat_maps(looked.used.network, images, classes) for classes in (labels, others)]
    truth, other = (gradcam.enlarged(each, images.shape[-1]).cpu().numpy() for each in heat)
    pixels, splits = images.permute(0, 2, 3, 1).cpu().numpy(), looked.split["split"]
    made = iter(map(Panel, some, pixels, truth, other, (splits[choice.row] for choice in some)))
    return [None if choice is None else next(made) for choice in choices], heat[0].shape[-1]


def gradcam_section(looked: Subject, found: Features, rows: Sequence[int] | None, output: Path) -> list[page.Section]:
    """Write gradcam.png: where the network looks for the true class, and for the one it says or would say next."""
    drawn, side = panels(looked, chosen(looked, found, rows))
    which = (
        "The galaxies asked for." if rows else CHOSEN
    ) + " Heat, each map to its own maximum: of the true class, and"
    detail = f"The last convolutional map has only {side} x {side} cells: finer detail is interpolation."
    note = f"{which} of the class that was said or, where that is right, of the next one. {detail} Confidence: softmax."
    figure = figures.grad_cam(about(looked), drawn, note)
    alt = "Images of galaxies, each beside itself with heat maps of two classes laid over it"
    shown = page.Figure("Heat maps", note, alt, *written(figure, output / "gradcam", ("png",)))
    return [page.Section("Grad-CAM", figures=(shown,))]


def about(looked: Subject) -> About:
    """Return what all figures of a run say."""
    return figures.about(looked.used.run.run_id, looked.generated)


def written(figure: Figure, path: Path, kinds: Sequence[str] = files.KINDS) -> tuple[bytes, tuple[str, ...]]:
    """Write a figure beside the page; return the PNG and the names of the files."""
    return files.save(figure, path, DOTS, kinds), tuple(f"{path.name}.{kind}" for kind in kinds)


def write_table(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False, float_format="%.6g"))


def write(output: Path, title: str, sections: Sequence[page.Section], generated: bool, lead: Sequence[str]) -> Path:
    """Write inspect.html, all in one file; return where."""
    write_text(output / "inspect.html", page.render(title, sections, generated, lead))
    return output / "inspect.html"
