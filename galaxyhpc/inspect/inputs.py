"""Inputs of an inspection: a trained network, its galaxies, and their features, cached in a file."""

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
from galaxyhpc.inspect import features
from galaxyhpc.inspect.features import InspectError, RunFeatures
from galaxyhpc.storage.run_dir import RunDir


@dataclass(frozen=True)
class InspectContext:
    """A trained network and the galaxies it is applied to."""

    classifier: Classifier
    split: pd.DataFrame
    dataset: DeviceDataset
    survey: Survey
    fingerprint: str
    generated: bool

    @property
    def label(self) -> str:
        """Name of the network in figures, as in the report."""
        return f"{self.classifier.config.model.group_label} {self.classifier.config.model.name}".strip()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.classifier.config.data.class_names


def load_context(run: RunDir, device: torch.device) -> InspectContext:
    """Load a trained run and its galaxies.

    Raises
    ------
    RunDirError, NotTrainedError, DataError, OSError
    """
    classifier = trained_model.load(run.path, device)
    galaxies, split = open_dataset(classifier.config.data, run.sweep_dir)
    survey = Survey(galaxies.mean, galaxies.pixel_scale_arcsec)
    dataset = load_device_dataset(galaxies, device)
    generated = classifier.generated or galaxies.generated
    return InspectContext(classifier, split, dataset, survey, galaxies.fingerprint, generated)


def load_or_compute_features(
    context: InspectContext, pairs: Sequence[Pair], file: Path, console: Console
) -> RunFeatures:
    """Return the features under these conditions, clean first; only those missing in the file are computed."""
    classifier, test = context.classifier, context.split[context.split.split == "test"]
    rows, labels, groups = (test[name].to_numpy(np.int64) for name in ("row", "label", "sky_group"))
    source = (classifier.run.run_id, classifier.weights, context.fingerprint, context.generated)
    run_features = RunFeatures(rows, labels, groups, {}, *source)
    cached = features.load(file)
    if cached is not None and features.is_same_source(cached, run_features):
        run_features.activations.update(cached.activations)
    pairs = [CLEAN, *(pair for pair in pairs if pair != CLEAN)]
    missing = [pair for pair in pairs if pair not in run_features.activations]
    batch_size, is_hidden = classifier.config.evaluate.batch_size, not console.is_terminal
    for pair in track(missing, classifier.run.run_id, console=console, transient=True, disable=is_hidden):
        run_features.activations[pair] = features.extract_features(
            classifier.network, context.dataset, torch.tensor(rows), pair, context.survey, batch_size
        )
    if missing:
        features.save(file, run_features)
    return replace(run_features, activations={pair: run_features.activations[pair] for pair in pairs})


def check_same_galaxies(runs: Sequence[RunDir]) -> None:
    """Check that all runs have the same test galaxies.

    Raises
    ------
    InspectError, RunDirError, DataError, OSError
    """
    first, *others = map(_get_test_galaxies, runs)
    for run, other in zip(runs[1:], others, strict=True):
        if other != first:
            descriptions = [
                f"{run.run_id}: {len(rows)} of data {fingerprint[:12]}"
                for run, (fingerprint, rows) in ((runs[0], first), (run, other))
            ]
            raise InspectError(
                f"got different test galaxies ({', '.join(descriptions)}); expected runs of the same data and split"
            )


def _get_test_galaxies(run: RunDir) -> tuple[str, list[int]]:
    """Return the fingerprint of the data and the rows of the test galaxies."""
    galaxies, split = open_dataset(run.load_config().data, run.sweep_dir)
    return galaxies.fingerprint, split.loc[split.split == "test", "row"].tolist()
