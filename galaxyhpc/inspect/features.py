"""What a network makes of galaxies on its way to the classes: features, kept in a file, and how far noise moves them.

| family              | pooled                                                  | penultimate                        |
|---------------------|---------------------------------------------------------|------------------------------------|
| steerable_cnn, cnn  | group pooling's output averaged over the pixels, (N, F); | the 32 inputs of the last linear   |
|                     | `cnn` pools a group of one, which changes nothing       | layer, behind two layers of an MLP |
| e2resnet            | the network's order: averaged over the pixels, then the | = pooled: there is one linear layer |
|                     | largest of a field's |G| channels                       |                                    |
| e2wrn               | the last map, of trivial fields, averaged: no group is  | = pooled                           |
|                     | left to pool                                            |                                    |
| torchvision's       | the last map averaged over the pixels                   | = pooled                           |

With a flattening head `pooled` is averaged all the same and `penultimate`, as all the network says, is not invariant.
`places` is the one function that knows where in a network these, and the last convolutional map, are found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
from galaxyhpc.models.e2resnet import E2ResNet
from galaxyhpc.models.e2wrn import E2WRN
from galaxyhpc.models.steerable_cnn import StudyCNN
from galaxyhpc.storage.files import atomic_write

SCHEMA = 1
FEATURE_KINDS = ("penultimate", "pooled")

Array = NDArray[np.float32]


class InspectError(ValueError):
    """Features that cannot be compared."""


@dataclass(frozen=True)
class ProbedLayers:
    """The modules at which a network is looked into."""

    last_map: nn.Module  # its output is what the last convolution made, (N, C, s, s), C with the group's channels
    has_relu_after: bool  # outside of any module, so that `last_map` gives the map before it
    group_pool: nn.Module | None  # where pooled and penultimate features differ
    last_linear: nn.Linear


class Activations(NamedTuple):
    """Features and logits of n galaxies, float32."""

    penultimate: Any  # (n, p)
    pooled: Any  # (n, q)
    logits: Any  # (n, classes)


@dataclass(frozen=True, eq=False)
class RunFeatures:
    """What a run sees in its n test galaxies, clean ones first."""

    rows: NDArray[np.int64]  # (n,) row of the galaxy in the data file
    labels: NDArray[np.int64]  # (n,) truth, 0 to 9
    groups: NDArray[np.int64]  # (n,) sky group
    activations: dict[Pair, Activations]
    run_id: str
    weights: str  # SHA-256 of best.pt
    fingerprint: str  # of the data
    generated: bool  # demo galaxies


def unwrap(network: nn.Module) -> nn.Module:
    """Return a network without what stands before it, as torchvision's normalisation does."""
    while isinstance(inner := getattr(network, "network", None), nn.Module):
        network = inner
    return network


def find_probed_layers(network: nn.Module) -> ProbedLayers:
    """Find the modules that are looked into, in any network that `models.build_model` builds."""
    network = unwrap(network)
    last_linear = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    if isinstance(network, StudyCNN):
        last_relu = [module for module in network.blocks.modules() if isinstance(module, nn.ReLU)][-1]
        return ProbedLayers(last_relu, False, network.group_pool, last_linear)  # before the pool: more pixels
    if isinstance(network, E2ResNet):
        return ProbedLayers(network.stages, False, None, last_linear)
    if isinstance(network, E2WRN):
        return ProbedLayers(network.norm, True, None, last_linear)
    if hasattr(network, "layer4"):
        return ProbedLayers(network.get_submodule("layer4"), False, None, last_linear)
    return ProbedLayers(network.get_submodule("features"), True, None, last_linear)  # DenseNet


def compute_activations(network: nn.Module, images: Tensor) -> Activations:
    """(N, 3, S, S) images in [0, 1] -> their features and logits, as tensors on the network's device."""
    where, found = find_probed_layers(network), {}

    def remember(name: str, value: Tensor) -> None:
        found[name] = value.detach().float()

    hooks = [where.last_linear.register_forward_pre_hook(lambda _, inputs: remember("penultimate", inputs[0]))]
    if where.group_pool is not None:
        pool = where.group_pool
        hooks.append(pool.register_forward_hook(lambda _, inputs, output: remember("pooled", output.mean((2, 3)))))
    try:
        logits = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return Activations(found["penultimate"], found.get("pooled", found["penultimate"]), logits.float())


@torch.inference_mode()
def extract_features(
    network: nn.Module, dataset: DeviceDataset, indices: Tensor, pair: Pair, survey: Survey, batch_size: int
) -> Activations:
    """Return what a network sees in the galaxies of these rows under one condition, as numpy arrays."""
    parts = []
    for some in indices.split(batch_size):
        images, _ = dataset.get_batch(some)
        parts.append(compute_activations(network, corrupt(images, some.to(images.device), *pair, survey)))
    return Activations(*(torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)))


def save(path: Path, features: RunFeatures) -> None:
    """Write features.h5, whole: row k of condition, severity, penultimate, pooled and logits belong together."""
    names, severities = zip(*features.activations, strict=True)
    arrays = {
        name: np.stack([getattr(each, name) for each in features.activations.values()]) for name in Activations._fields
    }
    alike = np.array_equal(arrays["pooled"], arrays["penultimate"])
    with atomic_write(path) as aside, h5py.File(aside, "w", libver="v110", locking=False) as file:
        file.attrs.update(schema=SCHEMA, run_id=features.run_id, weights=features.weights)
        file.attrs.update(fingerprint=features.fingerprint, generated=features.generated)
        for name in ("rows", "labels", "groups"):
            file[name] = getattr(features, name)
        file["condition"], file["severity"] = np.array(names, dtype="S"), np.array(severities)
        for name, array in arrays.items():
            if name == "pooled" and alike:
                file["pooled"] = file["penultimate"]  # a second name of the same array
            else:
                file.create_dataset(name, data=array, chunks=(1, *array.shape[1:]), compression="gzip", shuffle=True)


def load(path: Path) -> RunFeatures | None:
    """Read features.h5; None where there is none, or one that is damaged or of another version."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs["schema"] != SCHEMA:
                return None
            names, severities = np.char.decode(file["condition"][:]).tolist(), file["severity"][:].tolist()
            stacked = zip(*(file[name][:] for name in Activations._fields), strict=True)
            seen = {
                pair: Activations(*each)
                for pair, each in zip(zip(names, severities, strict=True), stacked, strict=True)
            }
            rows, labels, groups = (file[name][:] for name in ("rows", "labels", "groups"))
            run_id, weights, fingerprint = (str(file.attrs[name]) for name in ("run_id", "weights", "fingerprint"))
            about = (run_id, weights, fingerprint, bool(file.attrs["generated"]))
            return RunFeatures(rows, labels, groups, seen, *about)
    except (OSError, KeyError, ValueError, RuntimeError, TypeError):
        return None


def compute_typical_distance(features: Array) -> float:
    """Return the median Euclidean distance between two different galaxies, given (n, d) features.

    Raises
    ------
    LatentError
        if it is nothing, or no number: then no other distance can be told in units of it
    """
    found = float(np.median(pdist(features.astype(np.float64)))) if len(features) > 1 else 0.0
    if not 0.0 < found < np.inf:
        what = f"found a median distance of {found:g} between the features of {len(features)} galaxies"
        raise InspectError(f"{what}; allowed: more than 0: this network sees no difference between them")
    return found


def compute_distances(clean: Array, corrupted: Array) -> NDArray[np.float64]:
    """Return |f(corrupted) - f(clean)| in units of `typical_distance(clean)`, (n,), given (n, d) features."""
    moved = corrupted.astype(np.float64) - clean.astype(np.float64)
    shifts: NDArray[np.float64] = np.linalg.norm(moved, axis=1) / compute_typical_distance(clean)
    return shifts


def compute_distance_table(features: RunFeatures) -> pd.DataFrame:
    """Tell how far each condition moves the galaxies of a run: median and quartiles over them.

    One row per (features, condition, severity): parameter with its unit, n, median, q25, q75 in units of `typical`,
    the median distance between two different clean galaxies.
    """
    return pd.DataFrame(
        [_make_row(features, kind, pair) for kind in FEATURE_KINDS for pair in features.activations if pair != CLEAN]
    )


def _make_row(features: RunFeatures, kind: str, pair: Pair) -> dict[str, Any]:
    clean, corrupted = (getattr(features.activations[each], kind) for each in (CLEAN, pair))
    low, middle, high = np.quantile(compute_distances(clean, corrupted), (0.25, 0.5, 0.75))
    about = {"condition": pair[0], "severity": pair[1], "parameter": conditions.get_parameter(*pair)}
    quartiles = {"median": middle, "q25": low, "q75": high, "typical": compute_typical_distance(clean)}
    whole = {"unit": conditions.get_unit(pair[0]), "n": len(clean), **quartiles}
    return {"run_id": features.run_id, "features": kind, **about, **whole, "generated": features.generated}


def is_same_source(first: RunFeatures, second: RunFeatures) -> bool:
    """Whether these are of the same weights and the same galaxies."""
    return (first.weights, first.fingerprint) == (second.weights, second.fingerprint) and np.array_equal(
        first.rows, second.rows
    )
