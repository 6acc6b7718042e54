"""Typicality of images that are not from the survey of the training: what it tells from test galaxies, and what not.

    python tests/benchmarks/typicality.py OUT.json RUN... --efigi DIRECTORY --fits DIRECTORY

RUN is trained on Galaxy10 DECaLS or a sample of it. The others are galaxies of EFIGI, which is SDSS (the directory has
images_88px.tar), cutouts of FITS images in g, r and z of a saturated star, of almost blank sky and of two galaxies, all
at 2.5 times the scale of the training; noise and blank images; and test galaxies that were changed. The measure is the
area under the ROC curve (AUC), 0.5 for images that are as typical as test galaxies, with its 95 % interval by a
bootstrap over images. The cutouts of one FITS image are parts of one picture: their interval is not one of stars, or
skies, in general. Classes of the data that a run was not trained on are measured as well. Also compared: the distances
that typicality could have been made of.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from galaxyhpc.benchmark.environment import describe_environment
from galaxyhpc.config.schema import DataConfig
from galaxyhpc.data.dataset import Galaxies, open_dataset
from galaxyhpc.data.images.fits_images import read_fits
from galaxyhpc.data.sources.conversion import resize
from galaxyhpc.evaluation import trained_model
from galaxyhpc.evaluation.corruptions import Survey, corrupt
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.evaluation.typicality import get_typicality
from galaxyhpc.models.activations import compute_activations

FITS = {
    "saturated star": "testcase6",
    "blank sky": "mzlsbass3",
    "FITS galaxy 9": "testcase9",
    "FITS galaxy 3": "testcase3",
}
NUM_EFIGI, NUM_CUTOUTS, NUM_BOOTSTRAP = 500, 64, 1000

Images = NDArray[np.uint8]  # (n, 3, S, S)
Floats = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--efigi", type=Path, required=True)
    parser.add_argument("--fits", type=Path, required=True)
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": describe_environment("cpu", torch.get_num_threads()), "runs": {}}
    for path in options.runs:
        results["runs"][path.name] = measure_run(trained_model.load(path, torch.device("cpu")), options)
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure_run(classifier: Classifier, options: argparse.Namespace) -> dict[str, Any]:
    """Return the AUC of every kind of images, and that of every distance."""
    galaxies, split = open_dataset(classifier.config.data, classifier.run.sweep_dir)
    rows = {name: split.loc[split.split == name, "row"].to_numpy() for name in ("train", "validation", "test")}
    features = {name: extract(classifier, np.array(galaxies.images[own])) for name, own in rows.items()}
    others = {name: extract(classifier, images) for name, images in make_others(classifier, galaxies, rows, options)}
    typicality = get_typicality(classifier)
    test, distances = typicality.compute(features["test"]), typicality.compute_distances(features["test"])
    result = {
        "classes": len(classifier.config.data.class_names),
        "image_size": classifier.image_size,
        "features": features["train"].shape[1],
        "galaxies": {name: len(own) for name, own in rows.items()},
        "test accuracy": measure_accuracy(classifier, galaxies, rows["test"]),
        "test galaxies of at most 0.05": float((test <= 0.05).mean()),
        "images": {},
        "distances": {},
    }
    for name, values in others.items():
        result["images"][name] = measure(distances, typicality.compute_distances(values)) | {
            "of at most 0.05": float((typicality.compute(values) <= 0.05).mean())
        }
        print(classifier.run.run_id, name, result["images"][name], flush=True)
    for name, compute in make_distances(features["train"]).items():
        near = compute(features["test"])
        result["distances"][name] = {kind: measure_auc(near, compute(values)) for kind, values in others.items()}
    return result


@torch.inference_mode()
def extract(classifier: Classifier, images: Images) -> Floats:
    """Return the pooled features, (n, F), as predictions have them."""
    batches = torch.from_numpy(np.ascontiguousarray(images)).split(32)
    parts = [compute_activations(classifier.network, batch.float() / 255).pooled for batch in batches]
    return torch.cat(parts).half().numpy().astype(np.float64)


@torch.inference_mode()
def measure_accuracy(classifier: Classifier, galaxies: Galaxies, rows: NDArray[np.int64]) -> float:
    batches = torch.from_numpy(np.array(galaxies.images[rows])).split(32)
    predicted = torch.cat([classifier.network(batch.float() / 255).argmax(1) for batch in batches])
    return float((predicted.numpy() == galaxies.labels[rows]).mean())


def make_others(
    classifier: Classifier, galaxies: Galaxies, rows: dict[str, NDArray[np.int64]], options: argparse.Namespace
) -> list[tuple[str, Images]]:
    """Return images by their kind."""
    size, config, rng = classifier.image_size, classifier.config.data, np.random.default_rng(0)
    test = np.array(galaxies.images[rows["test"]])
    quarter = size // 4
    zoomed = test[:, :, quarter : size - quarter, quarter : size - quarter].transpose(0, 2, 3, 1)
    kinds = [("EFIGI", read_efigi(options.efigi / "images_88px.tar", size, rng))]
    kinds += [(kind, cut_out(options.fits / f"{name}_grz.fits", config, size, rng)) for kind, name in FITS.items()]
    kinds += [
        ("uniform noise", rng.integers(0, 256, (64, 3, size, size), np.uint8)),
        ("faint noise", np.clip(rng.normal(8, 4, (64, 3, size, size)), 0, 255).astype(np.uint8)),
        ("blank", np.stack([np.full((3, size, size), grey, np.uint8) for grey in range(0, 256, 4)])),
        ("test, rotated by 90 degrees", np.rot90(test, 1, (2, 3)).copy()),
        ("test, grey", np.repeat(np.rint(test.mean(1, keepdims=True)).astype(np.uint8), 3, 1)),
        ("test, zoomed 2 times", np.concatenate([resize(np.ascontiguousarray(i)[None], size) for i in zoomed])),
    ]
    survey = Survey(galaxies.mean, galaxies.pixel_scale_arcsec)
    for condition, severity in (("psf_moffat", 2.0), ("shot_noise", 5.0)):
        kinds.append((f"test, {condition} {severity:g}", corrupt_all(test, condition, severity, survey)))
    unseen = read_unseen_classes(config, size)
    return kinds + ([("classes not in the training", unseen)] if len(unseen) else [])


def read_efigi(archive: Path, size: int, rng: np.random.Generator) -> Images:
    """Return a random sample of EFIGI."""
    with tarfile.open(archive) as file:
        members = [member for member in file.getmembers() if member.isfile()]
        chosen = [members[index] for index in rng.choice(len(members), NUM_EFIGI, replace=False)]
        contents = [file.extractfile(member).read() for member in chosen]  # type: ignore[union-attr]
    images = [np.array(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents]
    return np.concatenate([resize(image[None], size) for image in images])


def cut_out(path: Path, config: DataConfig, size: int, rng: np.random.Generator) -> Images:
    """Return cutouts of 80 to 100 % of an image's side, at random places and in all eight orientations."""
    image, cutouts = read_fits(path, config).pixels, []
    for number in range(NUM_CUTOUTS):
        side = int(rng.integers(int(0.8 * len(image)), len(image) + 1))
        y, x = rng.integers(0, len(image) - side + 1, 2)
        cutout = np.rot90(image[y : y + side, x : x + side], number % 4)
        cutout = cutout[:, ::-1] if number % 8 > 3 else cutout
        cutouts.append(resize(np.ascontiguousarray(cutout)[None], size))
    return np.concatenate(cutouts)


def corrupt_all(images: Images, condition: str, severity: float, survey: Survey) -> Images:
    pixels = corrupt(torch.from_numpy(images).float() / 255, torch.arange(len(images)), condition, severity, survey)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def read_unseen_classes(config: DataConfig, size: int) -> Images:
    """Return the galaxies of an HDF5 file whose labels are above those of the run's classes."""
    with h5py.File(config.source) as file:
        rows = np.flatnonzero(file["ans"][:] >= len(config.class_names))
        images = file["images"][rows] if len(rows) else np.empty((0, size, size, 3), np.uint8)
    return np.concatenate([resize(image[None], size) for image in images]) if len(rows) else images


def make_distances(training: Floats) -> dict[str, Callable[[Floats], Floats]]:
    """Return distances from the training galaxies: those of the k-th nearest one, and of Mahalanobis."""
    mean, std = training.mean(0), training.std(0) + 1e-9

    def scale(features: Floats) -> Floats:
        return (features - mean) / std

    def normalize(features: Floats) -> Floats:
        return features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-12)

    covariance = LedoitWolf().fit(scale(training))
    distances = {"Mahalanobis": lambda features: covariance.mahalanobis(scale(features))}
    for name, change in (("scaled", scale), ("unit length", normalize)):
        for k in (1, 5, 10):
            neighbours = NearestNeighbors(n_neighbors=k).fit(change(training))
            distances[f"{k} nearest, {name}"] = partial(measure_neighbours, neighbours, change)
    return distances


def measure_neighbours(neighbours: NearestNeighbors, change: Callable[[Floats], Floats], features: Floats) -> Floats:
    """Return the distance of the farthest of the k nearest training galaxies, (n,)."""
    distances, _ = neighbours.kneighbors(change(features))
    return np.asarray(distances[:, -1])


def measure_auc(near: Floats, far: Floats) -> float:
    return float(roc_auc_score(np.arange(len(near) + len(far)) >= len(near), np.concatenate([near, far])))


def measure(near: Floats, far: Floats) -> dict[str, float | int]:
    """Return the AUC with its 95 % interval."""
    rng = np.random.default_rng(0)
    drawn = [measure_auc(rng.choice(near, len(near)), rng.choice(far, len(far))) for _ in range(NUM_BOOTSTRAP)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"n": len(far), "auc": measure_auc(near, far), "low": float(low), "high": float(high)}


if __name__ == "__main__":
    main()
