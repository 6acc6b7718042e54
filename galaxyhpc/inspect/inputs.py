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

from galaxyhpc.data.dataset import load_split, prepare
from galaxyhpc.data.loader import Pictures, load_pictures
from galaxyhpc.evaluation import trained_model
from galaxyhpc.evaluation.corruptions import Survey
from galaxyhpc.evaluation.results import CLEAN, Pair
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.inspect import features as latent
from galaxyhpc.inspect.features import Features, LatentError
from galaxyhpc.storage.run_dir import RunDir


@dataclass(frozen=True)
class Subject:
    """A network and the galaxies that it is looked at with."""

    used: Classifier
    split: pd.DataFrame
    pictures: Pictures
    survey: Survey
    fingerprint: str
    generated: bool

    @property
    def label(self) -> str:
        """What the network is called in figures, as in the report."""
        return f"{self.used.config.model.groups} {self.used.config.model.name}".strip()


def subject(run: RunDir, device: torch.device) -> Subject:
    """Load a trained run and its galaxies.

    Raises
    ------
    rundir.NoRunError, evaluate.NotTrainedError, data.DataError, OSError
    """
    used = trained_model.load(run.path, device)
    galaxies = prepare(used.config.data)
    split = load_split(used.config.data, galaxies, run.sweep)
    survey = Survey(galaxies.mean, galaxies.pixel_scale)
    pictures = load_pictures(galaxies, device)
    return Subject(used, split, pictures, survey, galaxies.fingerprint, used.generated or galaxies.generated)


def features(looked: Subject, pairs: Sequence[Pair], file: Path, console: Console) -> Features:
    """Return the features under these conditions, clean ones first; those in the file already are not made again."""
    used, test = looked.used, looked.split[looked.split.split == "test"]
    rows, labels, groups = (test[name].to_numpy(np.int64) for name in ("row", "label", "sky_group"))
    about = (used.run.run_id, used.weights, looked.fingerprint, looked.generated)
    found = Features(rows, labels, groups, {}, *about)
    before = latent.load(file)
    if before is not None and latent.same_source(before, found):
        found.seen.update(before.seen)
    wanted = [CLEAN, *(pair for pair in pairs if pair != CLEAN)]
    missing = [pair for pair in wanted if pair not in found.seen]
    size = used.config.evaluate.batch_size
    for pair in track(missing, used.run.run_id, console=console, transient=True, disable=not console.is_terminal):
        found.seen[pair] = latent.look_at_all(
            used.network, looked.pictures, torch.tensor(rows), pair, looked.survey, size
        )
    if missing:
        latent.save(file, found)
    return replace(found, seen={pair: found.seen[pair] for pair in wanted})


def check_same_galaxies(runs: Sequence[RunDir]) -> None:
    """Refuse to compare networks on different test galaxies.

    Raises
    ------
    LatentError, rundir.NoRunError, data.DataError, OSError
    """
    first, *others = map(_test_galaxies, runs)
    for run, other in zip(runs[1:], others, strict=True):
        if other != first:
            said = [
                f"{run.run_id}: {len(rows)} of data {data[:12]}"
                for run, (data, rows) in ((runs[0], first), (run, other))
            ]
            raise LatentError(
                f"found different test galaxies ({', '.join(said)}); allowed: runs with one data and split"
            )


def _test_galaxies(run: RunDir) -> tuple[str, list[int]]:
    """Return the fingerprint of the data and the rows of the test galaxies."""
    data = run.load_config().data
    galaxies = prepare(data)
    split = load_split(data, galaxies, run.sweep)
    return galaxies.fingerprint, split.loc[split.split == "test", "row"].tolist()
