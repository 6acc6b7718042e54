"""Runs with weights that nobody trained: it matters only that different galaxies get different probabilities."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from galaxyhpc.config.schema import DataConfig, ModelConfig, RunConfig
from galaxyhpc.data.simulate import render_image
from galaxyhpc.models.build_model import build_model
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

SIDE = 40  # px of the images; the networks' are 33


@cache
def make_galaxies(number: int) -> NDArray[np.uint8]:
    """Galaxies of all classes, (number, SIDE, SIDE, 3)."""
    return np.stack([render_image(row % 10, [row, row % 10], SIDE) for row in range(number)])


def write_galaxies(path: Path, number: int) -> Path:
    """Write an HDF5 file of galaxies with positions."""
    with h5py.File(path, "w") as file:
        file["images"] = make_galaxies(number)
        file["ra"], file["dec"] = np.linspace(0, 359, number), np.linspace(-80, 80, number)
    return path


def write_run(sweep: Path, seed: int = 0) -> RunDir:
    """Write a run with random weights, as if it had been trained on generated galaxies."""
    config = RunConfig(
        data=DataConfig(image_size=33),
        model=ModelConfig(architecture="cnn", scale=0.1),
        seed=seed,
    )
    run = RunDir(sweep / config.run_id)
    write_text(run.config_file, config.model_dump_json())
    torch.manual_seed(seed)
    network = build_model(config.model, 33).train()
    pixels = torch.from_numpy(make_galaxies(30).transpose(0, 3, 1, 2)[:, :, :33, :33] / np.float32(255))
    for _ in range(20):  # statistics of batch normalisation that fit the galaxies
        network(pixels)
    torch.save({"run_id": run.run_id, "model": network.state_dict()}, run.best_file)
    return run
