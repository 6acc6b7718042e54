"""Pipeline (stand-in)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from galaxyhpc.data.images.image_files import GalaxyImage
from galaxyhpc.data.sources.conversion import resize
from galaxyhpc.data.survey.units import UnitGalaxies, decode_image
from galaxyhpc.evaluation.trained_model import Classifier


class PredictedBatch(NamedTuple):
    rows: NDArray[np.int64]
    ids: list[str]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    sources: list[str]
    logits: NDArray[np.float32]  # (runs, n, K)
    features: NDArray[np.float16] | None
    num_filled: NDArray[np.int64]
    flaws: list[str]
    upsampled: NDArray[np.bool_]
    saturated: NDArray[np.bool_]
    errors: list[str]


@torch.inference_mode()
def classify_galaxies(
    galaxies: Iterable[UnitGalaxies],
    classifiers: Sequence[Classifier],
    num_workers: int,
    batch_size: int | None,
    with_features: bool,
) -> Iterator[PredictedBatch]:
    config = classifiers[0].config.data
    for batch in galaxies:
        images = [decode_image(encoded, config, True) for encoded in batch.encoded]
        n = len(images)
        logits = np.full((len(classifiers), n, len(config.class_names)), np.nan, np.float32)
        known = [i for i, image in enumerate(images) if isinstance(image, GalaxyImage)]
        if known:
            pixels = np.stack([resize(images[i].pixels[None], config.image_size)[0] for i in known])  # type: ignore[union-attr]
            for number, classifier in enumerate(classifiers):
                logits[number, known] = classifier.network(torch.from_numpy(pixels).float() / 255.0).numpy()
        yield PredictedBatch(
            batch.rows,
            batch.ids,
            batch.ra,
            batch.dec,
            [""] * n,
            logits,
            None,
            np.array([getattr(image, "num_filled", 0) for image in images]),
            [getattr(image, "flaw", "") for image in images],
            np.zeros(n, bool),
            np.zeros(n, bool),
            ["" if isinstance(image, GalaxyImage) else str(image) for image in images],
        )
