"""Typicality of a galaxy: how usual its features inside a trained network are among galaxies of the same survey.

The distance of a galaxy is that of Mahalanobis between its pooled features (`models.activations`) and the training
galaxies, with Ledoit and Wolf's (2004) covariance: Lee et al. 2018 (arXiv:1807.03888, equation 2) with one Gaussian in
place of one per class. Its typicality is the conformal p-value of Bates et al. 2023 (arXiv:2104.08279),

    (1 + number of validation galaxies that are at least as far) / (1 + number of validation galaxies),

in (0, 1]. Galaxies of the survey of the training have all values alike: 1 % of them have a typicality of at most 0.01.
The validation galaxies bound it: of 140 the smallest value is 1/141.

Four networks trained on a sample of Galaxy10 DECaLS tell EFIGI (another survey) from test galaxies with an AUC of 0.90
to 0.98, a star, noise and blank images with 0.91 to 1.00, and three of them a patch of almost blank sky with 0.96 to
1.00; the fourth takes it for a galaxy (0.43). No distance to the k nearest training galaxies does better on all of
these. Galaxies of a class that a network was not trained on are typical (0.57), and so are slightly blurred ones
(0.57 to 0.62): a typical galaxy may well have a wrong class (tests/benchmarks/typicality.json).

Typicality is computed once per run and kept in typicality.h5, with the SHA-256 of the weights.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from galaxyhpc.data.dataset import open_dataset
from galaxyhpc.data.loader import DeviceDataset, load_device_dataset
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.models.activations import compute_activations
from galaxyhpc.runtime.lock import hold
from galaxyhpc.storage.files import atomic_write
from galaxyhpc.storage.run_dir import RunDir

SCHEMA = 1
MAX_GALAXIES = 10_000  # of each kind, evenly from all
MIN_RELATIVE_STD = 1e-6  # of the largest: other features are dead, and ignored

Features = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Typicality:
    """The galaxies of a run that the features of others are compared with."""

    mean: NDArray[np.float64]  # (F,) of the training galaxies
    whitening: NDArray[np.float64]  # (F, F); |whitening.T (x - mean)| is the distance of features x
    distances: NDArray[np.float64]  # (m,) of the validation galaxies, ascending
    weights: str  # SHA-256 of best.pt

    def compute_distances(self, features: Features) -> NDArray[np.float64]:
        """Return the distances of (n, F) features, (n,); infinite for features that are not finite."""
        is_finite: NDArray[np.bool_] = np.asarray(np.isfinite(features).all(axis=1))
        shifts = np.where(is_finite[:, None], features, 0.0) - self.mean
        return np.where(is_finite, np.linalg.norm(shifts @ self.whitening, axis=1), np.inf)

    def compute(self, features: Features) -> NDArray[np.float32]:
        """Return the typicality of (n, F) features, (n,), in (0, 1]."""
        num_nearer = np.searchsorted(self.distances, self.compute_distances(features), side="left")
        num_galaxies = len(self.distances)
        return ((1 + num_galaxies - num_nearer) / (1 + num_galaxies)).astype(np.float32)


def fit_typicality(training: Features, validation: Features, weights: str) -> Typicality:
    """Fit the distance to (n, F) features of training galaxies, and calibrate it with (m, F) of validation galaxies."""
    mean, std = training.mean(0, dtype=np.float64), training.std(0, dtype=np.float64)
    scale = np.where(std > MIN_RELATIVE_STD * std.max(), std, np.inf)
    precision = LedoitWolf(assume_centered=True).fit((training - mean) / scale).precision_
    whitening = np.linalg.cholesky(precision) / scale[:, None]
    uncalibrated = Typicality(mean, whitening, np.empty(0), weights)
    return Typicality(mean, whitening, np.sort(uncalibrated.compute_distances(validation)), weights)


def get_typicality(classifier: Classifier) -> Typicality:
    """Return the typicality of a run; it is computed from its galaxies if no process has done so for these weights.

    In the directory of somebody else's run, where nothing can be kept, it is computed each time.

    Raises
    ------
    DataError, OSError
        The galaxies of the training are not there.
    """
    if known := load(classifier.run, classifier.weights):
        return known
    if not os.access(classifier.run.path, os.W_OK):
        return _compute_typicality(classifier)
    with hold(classifier.run.path / ".lock-typicality", timeout=None):
        if known := load(classifier.run, classifier.weights):
            return known
        typicality = _compute_typicality(classifier)
        save(classifier.run, typicality)
    return typicality


def _compute_typicality(classifier: Classifier) -> Typicality:
    galaxies, split = open_dataset(classifier.config.data, classifier.run.sweep_dir)
    dataset = load_device_dataset(galaxies, next(classifier.network.parameters()).device)
    rows = (split.loc[split.split == name, "row"].to_numpy(np.int64) for name in ("train", "validation"))
    training, validation = (_extract_features(classifier, dataset, _take_evenly(part)) for part in rows)
    return fit_typicality(training, validation, classifier.weights)


def _take_evenly(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return at most MAX_GALAXIES rows, at equal steps."""
    count = min(len(rows), MAX_GALAXIES)
    return rows[np.arange(count) * len(rows) // count]


@torch.inference_mode()
def _extract_features(classifier: Classifier, dataset: DeviceDataset, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the pooled features, (n, F), of the galaxies with these rows, to the precision that predictions have."""
    batches = torch.from_numpy(rows).split(classifier.config.evaluate.batch_size)
    parts = [compute_activations(classifier.network, dataset.get_batch(batch)[0]).pooled for batch in batches]
    return np.asarray(torch.cat(parts).half().cpu().numpy().astype(np.float64))


def get_typicality_file(run: RunDir) -> Path:
    return run.path / "typicality.h5"


def save(run: RunDir, typicality: Typicality) -> None:
    """Write typicality.h5, atomically."""
    with atomic_write(get_typicality_file(run)) as temporary, h5py.File(temporary, "w", locking=False) as file:
        file.attrs.update(schema=SCHEMA, weights=typicality.weights)
        for name in ("mean", "whitening", "distances"):
            file.create_dataset(name, data=getattr(typicality, name), fletcher32=True, chunks=True)


def load(run: RunDir, weights: str) -> Typicality | None:
    """Read typicality.h5; None if absent, corrupt or of other weights."""
    try:
        with h5py.File(get_typicality_file(run), "r", locking=False) as file:
            if file.attrs["schema"] != SCHEMA or file.attrs["weights"] != weights:
                return None
            mean, whitening, distances = (file[name][:] for name in ("mean", "whitening", "distances"))
    except (OSError, KeyError, ValueError, RuntimeError, TypeError):
        return None
    return Typicality(mean, whitening, distances, weights)
