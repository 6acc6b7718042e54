"""A trained network with the galaxies that it is looked into with, and their features, kept in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track

from galaxyhpc.data.dataset import open_dataset
from galaxyhpc.data.loader import DeviceDataset, load_device_dataset
from galaxyhpc.evaluation import trained_model
from galaxyhpc.evaluation.corruptions import Survey
from galaxyhpc.evaluation.results import CLEAN, Pair
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.inspect import features as latent
from galaxyhpc.inspect.features import InspectError, RunFeatures
from galaxyhpc.storage.run_dir import RunDir


@dataclass(frozen=True)
class InspectContext:
    """A network and the galaxies that it is looked at with."""

    classifier: Classifier
    split: pd.DataFrame
    dataset: DeviceDataset
    survey: Survey
    fingerprint: str
    generated: bool

    @property
    def label(self) -> str:
        """What the network is called in figures, as in the report."""
        return f"{self.classifier.config.model.group_label} {self.classifier.config.model.name}".strip()


def load_context(run: RunDir, device: torch.device) -> InspectContext:
    """Load a trained run and its galaxies.

    Raises
    ------
    rundir.NoRunError, evaluate.NotTrainedError, data.DataError, OSError
    """
    used = trained_model.load(run.path, device)
    galaxies, split = open_dataset(used.config.data, run.sweep_dir)
    survey = Survey(galaxies.mean, galaxies.pixel_scale_arcsec)
    pictures = load_device_dataset(galaxies, device)
    return InspectContext(used, split, pictures, survey, galaxies.fingerprint, used.generated or galaxies.generated)


def load_or_compute_features(
    context: InspectContext, pairs: Sequence[Pair], file: Path, console: Console
) -> RunFeatures:
    """Return the features under these conditions, clean ones first; those in the file already are not made again."""
    used, test = context.classifier, context.split[context.split.split == "test"]
    rows, labels, groups = (test[name].to_numpy(np.int64) for name in ("row", "label", "sky_group"))
    about = (used.run.run_id, used.weights, context.fingerprint, context.generated)
    found = RunFeatures(rows, labels, groups, {}, *about)
    before = latent.load(file)
    if before is not None and latent.is_same_source(before, found):
        found.activations.update(before.activations)
    wanted = [CLEAN, *(pair for pair in pairs if pair != CLEAN)]
    missing = [pair for pair in wanted if pair not in found.activations]
    size = used.config.evaluate.batch_size
    for pair in track(missing, used.run.run_id, console=console, transient=True, disable=not console.is_terminal):
        found.activations[pair] = latent.extract_features(
            used.network, context.dataset, torch.tensor(rows), pair, context.survey, size
        )
    if missing:
        latent.save(file, found)
    return replace(found, activations={pair: found.activations[pair] for pair in wanted})


def check_same_galaxies(runs: Sequence[RunDir]) -> None:
    """Refuse to compare networks on different test galaxies.

    Raises
    ------
    LatentError, rundir.NoRunError, data.DataError, OSError
    """
    first, *others = map(_get_test_galaxies, runs)
    for run, other in zip(runs[1:], others, strict=True):
        if other != first:
            said = [
                f"{run.run_id}: {len(rows)} of data {data[:12]}"
                for run, (data, rows) in ((runs[0], first), (run, other))
            ]
            raise InspectError(
                f"found different test galaxies ({', '.join(said)}); allowed: runs with one data and split"
            )


def _get_test_galaxies(run: RunDir) -> tuple[str, list[int]]:
    """Return the fingerprint of the data and the rows of the test galaxies."""
    galaxies, split = open_dataset(run.load_config().data, run.sweep_dir)
    return galaxies.fingerprint, split.loc[split.split == "test", "row"].tolist()
