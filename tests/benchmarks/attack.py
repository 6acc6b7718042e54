"""How many one-pixel candidates a second: one image at a time, as attacks are written, against ours. A few minutes.

    python tests/benchmarks/attack.py tests/benchmarks/attack.json

All ways are measured in turn, again and again, in seconds on all cores of a machine that has nothing else to do; the
medians are compared. scipy's differential evolution drives (a) e2cnn's own modules a candidate per pass, as the study's
code does, (b) the network as evaluation loads it, a candidate per pass, and (c) that a population per pass
(`vectorized`); ours (d) is `galaxyhpc.evaluation.attack` on 8 galaxies. No galaxy is left out for being fooled already:
its label is one that the network never says.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from scipy.optimize import differential_evolution
from torch import Tensor, nn

from galaxyhpc.benchmark.e2cnn_model import E2cnnModel
from galaxyhpc.config.schema import DataConfig, ModelConfig, RunConfig
from galaxyhpc.evaluation.attack import draw_first_candidates, make_target, mutate, score
from galaxyhpc.evaluation.evaluate import load_network
from galaxyhpc.models.build_model import build_model
from galaxyhpc.models.steerable_cnn import StudyCNN
from galaxyhpc.storage.files import write_text
from galaxyhpc.storage.run_dir import RunDir

POPULATION, GALAXIES, REPEATS = 400, 8, 5
NETWORKS = {
    "quickstart: C4 steerable CNN, equal parameters, scale 0.25, 33 px": (
        {"group": "C4", "scale": 0.25, "width": "parameters"},
        33,
    ),
    "C4 steerable CNN, equal fields, scale 0.25, 33 px": ({"group": "C4", "scale": 0.25}, 33),
    "C4 steerable CNN, equal parameters, scale 0.5, 65 px": (
        {"group": "C4", "scale": 0.5, "width": "parameters"},
        65,
    ),
}


def of_e2cnn(network: nn.Module, size: int) -> nn.Module:
    """Return the same network in e2cnn's own modules."""
    assert isinstance(network, StudyCNN)
    return E2cnnModel(network, size).eval()


def loaded(settings: dict[str, Any], size: int) -> nn.Module:
    """Return the network of a run with these settings, as evaluation loads it."""
    config = RunConfig(data=DataConfig(image_size=size), model=ModelConfig(**settings))
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / config.run_id)
        write_text(run.config_file, config.model_dump_json())
        torch.save({"model": build_model(config.model, size).state_dict()}, run.best_file)
        return load_network(run, config, torch.device("cpu"))


def scipys(network: nn.Module, image: Tensor, vectorized: bool) -> Callable[[], int]:
    """Return an attack on one image by scipy, which tells how many candidates it asked about."""
    size, asked = image.shape[-1], 0

    def probability(found: np.ndarray) -> np.ndarray:
        nonlocal asked
        candidates = np.atleast_2d(found.T)
        asked += len(candidates)
        images = image.repeat(len(candidates), 1, 1, 1)
        x, y = (torch.from_numpy(candidates[:, axis].astype(int).clip(0, size - 1)) for axis in (0, 1))
        images[torch.arange(len(candidates)), :, y, x] = torch.from_numpy(candidates[:, 2:]).float()
        with torch.inference_mode():
            shares: np.ndarray = network(images).softmax(1)[:, 0].numpy()
        return shares if vectorized else shares[0]

    def attack() -> int:
        nonlocal asked
        asked = 0
        bounds = [(0, size), (0, size), (0, 1), (0, 1), (0, 1)]
        start = np.random.default_rng(0).random((POPULATION if vectorized else POPULATION // 10, 5))
        start *= [size, size, 1, 1, 1]
        how = {"vectorized": vectorized, "updating": "deferred" if vectorized else "immediate"}
        differential_evolution(probability, bounds, init=start, maxiter=0, polish=False, tol=0, **how)
        return asked

    return attack


def ours(network: nn.Module, images: Tensor) -> Callable[[], int]:
    """Return a generation of our attack on all images."""
    rows = torch.arange(len(images))
    parents = draw_first_candidates(rows, POPULATION, images.shape[-1])

    @torch.inference_mode()
    def attack() -> int:
        target = make_target(network, images, torch.zeros(len(images), dtype=torch.int64), rows, 256)
        score(target, mutate(parents, rows, 1, images.shape[-1]), lambda queries: True)
        return len(images) * POPULATION

    return attack


def measured(settings: dict[str, Any], size: int) -> dict[str, Any]:
    """Time all ways in turn."""
    torch.manual_seed(0)
    network, images = loaded(settings, size), torch.rand(GALAXIES, 3, size, size)
    ways = {
        "e2cnn_one_at_a_time": scipys(of_e2cnn(network, size), images[0], vectorized=False),
        "one_at_a_time": scipys(network, images[0], vectorized=False),
        "population_at_a_time": scipys(network, images[0], vectorized=True),
        "ours": ours(network, images),
    }
    for name in ways:
        ways[name]()  # what is done once is not counted
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            begun = time.perf_counter()
            rates[name].append(way() / (time.perf_counter() - begun))
    found: dict[str, Any] = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    ratios = {name: [a / b for a, b in zip(rates["ours"], rates[name], strict=True)] for name in list(ways)[:-1]}
    for name, values in ratios.items():
        found[f"ours_to_{name}"] = [round(value, 1) for value in (min(values), statistics.median(values), max(values))]
    return found


def main() -> None:
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads",
        "unit": "candidates per second; ratios: smallest, median, largest of the repeats",
    }
    for name, (settings, size) in track(NETWORKS.items(), "networks"):
        found[name] = measured(settings, size)
        print(name, found[name], flush=True)
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
