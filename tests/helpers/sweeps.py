"""Small collected sweeps of two networks, C1 and D4, with two seeds each, evaluated on 40 made-up galaxies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from galaxyhpc.analysis.collect import CollectedSweep, collect_run, label_networks
from galaxyhpc.config.schema import DataConfig, EvaluateConfig, ModelConfig, RunConfig
from galaxyhpc.evaluation import results
from galaxyhpc.evaluation.results import Pair, RunLogits
from galaxyhpc.storage.run_dir import RunDir

PAIRS: tuple[Pair, ...] = (("clean", 0.0), *(("rotation", 7.5 * n) for n in range(48)))
NUM_GALAXIES = 40


def make_config(group: str, seed: int, fold: int = 0) -> RunConfig:
    data = DataConfig(source="demo", cache="/nowhere", fold=fold)
    evaluate = EvaluateConfig(conditions=("clean", "rotation"))
    return RunConfig(model=ModelConfig(group=group), data=data, evaluate=evaluate, seed=seed)


def save_results(run: RunDir, num_wrong: int, pairs: Sequence[Pair] = PAIRS, first_row: int = 0) -> None:
    """Save results of a run that misclassifies the first galaxies as the next class."""
    labels = np.arange(NUM_GALAXIES, dtype=np.uint8) % 10
    predicted = np.where(np.arange(NUM_GALAXIES) < num_wrong, (labels + 1) % 10, labels)
    logits = {pair: 4 * np.eye(10, dtype=np.float32)[predicted] for pair in pairs}
    rows = np.arange(first_row, first_row + NUM_GALAXIES, dtype=np.int32)
    groups = rows // 2
    results.save(run, RunLogits(rows, labels, groups, logits, "a" * 64, "f" * 64, True))
    run.record("evaluated")


def make_plan(configs: Sequence[RunConfig]) -> pd.DataFrame:
    common = {"scale": 1.0, "parameters": 380_000, "multiply_adds": 10**8, "data": "demo", "image_size": 65}
    rows = [
        {
            **common,
            "run_id": c.run_id,
            "arch": c.model.architecture,
            "group": c.model.group,
            "seed": c.seed,
            "width": c.model.width,
            "head": c.model.head,
        }
        for c in configs
    ]
    return pd.DataFrame(rows)


def collect_sweep(directory: Path, num_wrong: Sequence[int | None] = (20, 16, 4, 4)) -> CollectedSweep:
    """Make the runs C1 seed 0, C1 seed 1, D4 seed 0, D4 seed 1; those with None have no results."""
    configs = [make_config(group, seed) for group in ("C1", "D4") for seed in (0, 1)]
    runs = [RunDir(directory / config.run_id) for config in configs]
    for run, config, wrong in zip(runs, configs, num_wrong, strict=True):
        run.path.mkdir(parents=True)
        run.config_file.write_text(config.model_dump_json())
        if wrong is not None:
            save_results(run, wrong)
    return label_networks(CollectedSweep(make_plan(configs), [collect_run(run) for run in runs]))
