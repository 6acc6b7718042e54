"""Features of a run's test galaxies (`models.activations`), their file, and latent distances under corruption."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from torch import Tensor, nn

from galaxyhpc.config import conditions
from galaxyhpc.data.loader import DeviceDataset
from galaxyhpc.evaluation.corruptions import Survey, corrupt
from galaxyhpc.evaluation.results import CLEAN, Pair
from galaxyhpc.models.activations import Activations, compute_activations
from galaxyhpc.storage.files import atomic_write

SCHEMA = 1
FEATURE_KINDS = ("penultimate", "pooled")

Array = NDArray[np.float32]


class InspectError(ValueError):
    """Runs, galaxies or conditions that cannot be inspected as requested."""


@dataclass(frozen=True, eq=False)
class RunFeatures:
    """Features of a run's n test galaxies under each condition, clean first."""

    rows: NDArray[np.int64]  # (n,) row of the galaxy in the data file
    labels: NDArray[np.int64]  # (n,) truth
    groups: NDArray[np.int64]  # (n,) sky group
    activations: dict[Pair, Activations]
    run_id: str
    weights: str  # SHA-256 of best.pt
    fingerprint: str  # of the data
    generated: bool  # demo galaxies


@torch.inference_mode()
def extract_features(
    network: nn.Module, dataset: DeviceDataset, indices: Tensor, pair: Pair, survey: Survey, batch_size: int
) -> Activations:
    """Return the features and logits of the galaxies with these rows under one condition, as numpy arrays."""
    batches = []
    for batch in indices.split(batch_size):
        images, _ = dataset.get_batch(batch)
        batches.append(compute_activations(network, corrupt(images, batch.to(images.device), *pair, survey)))
    return Activations(*(torch.cat(parts).cpu().numpy() for parts in zip(*batches, strict=True)))


def save(path: Path, features: RunFeatures) -> None:
    """Write features.h5, atomically: axis 0 of severity, penultimate, pooled and logits is that of condition."""
    names, severities = zip(*features.activations, strict=True)
    arrays = {
        name: np.stack([getattr(activations, name) for activations in features.activations.values()])
        for name in Activations._fields
    }
    are_equal = np.array_equal(arrays["pooled"], arrays["penultimate"])
    with atomic_write(path) as temporary, h5py.File(temporary, "w", libver="v110", locking=False) as file:
        file.attrs.update(schema=SCHEMA, run_id=features.run_id, weights=features.weights)
        file.attrs.update(fingerprint=features.fingerprint, generated=features.generated)
        for name in ("rows", "labels", "groups"):
            file[name] = getattr(features, name)
        file["condition"], file["severity"] = np.array(names, dtype="S"), np.array(severities)
        for name, array in arrays.items():
            if name == "pooled" and are_equal:
                file["pooled"] = file["penultimate"]  # a hard link to the same array
            else:
                file.create_dataset(name, data=array, chunks=(1, *array.shape[1:]), compression="gzip", shuffle=True)


def load(path: Path) -> RunFeatures | None:
    """Read features.h5; None if absent, corrupt or of another schema."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs["schema"] != SCHEMA:
                return None
            names, severities = np.char.decode(file["condition"][:]).tolist(), file["severity"][:].tolist()
            pairs = zip(names, severities, strict=True)
            arrays = zip(*(file[name][:] for name in Activations._fields), strict=True)
            activations = {pair: Activations(*values) for pair, values in zip(pairs, arrays, strict=True)}
            rows, labels, groups = (file[name][:] for name in ("rows", "labels", "groups"))
            run_id, weights, fingerprint = (str(file.attrs[name]) for name in ("run_id", "weights", "fingerprint"))
            generated = bool(file.attrs["generated"])
            return RunFeatures(rows, labels, groups, activations, run_id, weights, fingerprint, generated)
    except (OSError, KeyError, ValueError, RuntimeError, TypeError):
        return None


def compute_typical_distance(features: Array) -> float:
    """Return the median Euclidean distance between two different galaxies, given (n, d) features.

    Raises
    ------
    InspectError
        if it is 0 or not finite, and so no unit of distance
    """
    distance = float(np.median(pdist(features.astype(np.float64)))) if len(features) > 1 else 0.0
    if not 0.0 < distance < np.inf:
        got = f"got a median distance of {distance:g} between {len(features)} galaxies"
        raise InspectError(f"features: {got}; expected > 0: the network does not distinguish them")
    return distance


def compute_distances(clean: Array, corrupted: Array) -> NDArray[np.float64]:
    """Return |f(corrupted) - f(clean)| in units of `compute_typical_distance(clean)`, (n,), given (n, d) features."""
    shifts = corrupted.astype(np.float64) - clean.astype(np.float64)
    distances: NDArray[np.float64] = np.linalg.norm(shifts, axis=1) / compute_typical_distance(clean)
    return distances


def compute_distance_table(features: RunFeatures) -> pd.DataFrame:
    """Compute the latent distances of a run's galaxies under each condition: median and quartiles over galaxies.

    One row per (features, condition, severity): parameter with its unit, n, and median, q25 and q75 in units of
    `typical`, the median distance between two different clean galaxies.
    """
    return pd.DataFrame(
        [_make_row(features, kind, pair) for kind in FEATURE_KINDS for pair in features.activations if pair != CLEAN]
    )


def _make_row(features: RunFeatures, kind: str, pair: Pair) -> dict[str, Any]:
    clean, corrupted = (getattr(features.activations[key], kind) for key in (CLEAN, pair))
    low, middle, high = np.quantile(compute_distances(clean, corrupted), (0.25, 0.5, 0.75))
    return {
        "run_id": features.run_id,
        "features": kind,
        "condition": pair[0],
        "severity": pair[1],
        "parameter": conditions.get_parameter(*pair),
        "unit": conditions.get_unit(pair[0]),
        "n": len(clean),
        "median": middle,
        "q25": low,
        "q75": high,
        "typical": compute_typical_distance(clean),
        "generated": features.generated,
    }


def is_same_source(first: RunFeatures, second: RunFeatures) -> bool:
    """Whether both are of the same weights and the same galaxies."""
    return (first.weights, first.fingerprint) == (second.weights, second.fingerprint) and np.array_equal(
        first.rows, second.rows
    )
