"""Runs with weights that nobody trained: it matters only that different galaxies get different probabilities."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import h5py
import numpy as np
import torch
from helpers.sources import encode
from numpy.typing import NDArray
from torch import nn

from galaxyhpc.config.schema import DataConfig, ModelConfig, RunConfig
from galaxyhpc.data.simulate import render_image
from galaxyhpc.data.sources.conversion import resize
from galaxyhpc.models.build_model import build_model
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

SIDE = 40  # px of the images; the networks' are 33


@cache
def make_galaxies(number: int, first: int = 0) -> NDArray[np.uint8]:
    """Galaxies of all classes, each one different, (number, SIDE, SIDE, 3)."""
    return np.stack([render_image(row % 10, [row, row % 10], SIDE) for row in range(first, first + number)])


def write_galaxies(path: Path, number: int, first: int = 0) -> Path:
    """Write an HDF5 file of galaxies with positions."""
    with h5py.File(path, "w") as file:
        file["images"] = make_galaxies(number, first)
        rows = np.arange(first, first + number)
        file["ra"], file["dec"] = rows * 0.7 % 360, rows * 0.3 % 120 - 60
    return path


def write_shards(directory: Path, num_shards: int, num_galaxies: int) -> list[str]:
    """Write shards of parquet with the same few images in each, and return the ids, each of which there is once."""
    import pyarrow
    from pyarrow import parquet

    directory.mkdir()
    contents, ids = [encode(image) for image in make_galaxies(20)], []
    for shard in range(num_shards):
        rows = range(shard * num_galaxies, (shard + 1) * num_galaxies)
        names = [f"g{row:07}" for row in rows]
        columns = {"image": [contents[row % 20] for row in rows], "id": names}
        columns |= {"ra": [row * 0.01 % 360 for row in rows], "dec": [row * 0.003 % 120 - 60 for row in rows]}
        parquet.write_table(pyarrow.table(columns), directory / f"shard-{shard:03}.parquet")
        ids += names
    return ids


def read_ids(output: Path) -> list[str]:
    """Return the ids in the parts of a prediction."""
    from pyarrow import parquet

    parts = sorted((output / "parts").glob("*.parquet"))
    return [name for part in parts for name in parquet.read_table(part, columns=["id"])["id"].to_pylist()]


def read_parts(output: Path) -> dict[str, bytes]:
    """Return the contents of the parts, which have to be all that there is."""
    return {path.name: path.read_bytes() for path in sorted((output / "parts").iterdir())}


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
    images = np.stack([resize(image[None], 33)[0] for image in make_galaxies(30)])
    pixels = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        for _ in range(20):  # statistics of batch normalisation that fit the galaxies
            network(pixels)
        logits = network.eval()(pixels)
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        factor = 3 / logits.std(dim=0, keepdim=True).T  # probabilities that differ between galaxies
        last.weight *= factor
        last.bias.copy_((last.bias - logits.mean(dim=0)) * factor[:, 0])
    torch.save({"run_id": run.run_id, "model": network.state_dict()}, run.best_file)
    return run
