"""One-pixel candidates per second: one image at a time, as in common attacks, against ours. A few minutes.

    python tests/benchmarks/attack.py tests/benchmarks/attack.json

All implementations are timed in alternating rounds, on all cores of an idle machine; medians are compared. scipy's
differential evolution drives (a) e2cnn's own modules with one candidate per pass, as the code of Pandya et al. 2023
(arXiv:2311.01500), (b) the network as evaluation loads it with one candidate per pass, and (c) the same with a
population per pass (`vectorized`); ours (d) is `galaxyhpc.evaluation.attacks.attack` on 8 galaxies. No galaxy is
skipped as already fooled: its label is one that the network never predicts.
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
from galaxyhpc.evaluation.attacks.attack import draw_first_candidates, make_target, mutate, score
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


def convert_to_e2cnn(network: nn.Module, size: int) -> nn.Module:
    """Convert a network to e2cnn's own modules."""
    assert isinstance(network, StudyCNN)
    return E2cnnModel(network, size).eval()


def load_model(settings: dict[str, Any], size: int) -> nn.Module:
    """Return the network of a run with these settings, as evaluation loads it."""
    config = RunConfig(data=DataConfig(image_size=size), model=ModelConfig(**settings))
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / config.run_id)
        write_text(run.config_file, config.model_dump_json())
        torch.save({"model": build_model(config.model, size).state_dict()}, run.best_file)
        return load_network(run, config, torch.device("cpu"))


def make_scipy_attack(network: nn.Module, image: Tensor, vectorized: bool) -> Callable[[], int]:
    """Return an attack on one image by scipy, which returns the number of evaluated candidates."""
    size, num_candidates = image.shape[-1], 0

    def probability(solution: np.ndarray) -> np.ndarray:
        nonlocal num_candidates
        candidates = np.atleast_2d(solution.T)
        num_candidates += len(candidates)
        images = image.repeat(len(candidates), 1, 1, 1)
        x, y = (torch.from_numpy(candidates[:, axis].astype(int).clip(0, size - 1)) for axis in (0, 1))
        images[torch.arange(len(candidates)), :, y, x] = torch.from_numpy(candidates[:, 2:]).float()
        with torch.inference_mode():
            probabilities: np.ndarray = network(images).softmax(1)[:, 0].numpy()
        return probabilities if vectorized else probabilities[0]

    def attack() -> int:
        nonlocal num_candidates
        num_candidates = 0
        bounds = [(0, size), (0, size), (0, 1), (0, 1), (0, 1)]
        population = np.random.default_rng(0).random((POPULATION if vectorized else POPULATION // 10, 5))
        population *= [size, size, 1, 1, 1]
        options = {"vectorized": vectorized, "updating": "deferred" if vectorized else "immediate"}
        differential_evolution(probability, bounds, init=population, maxiter=0, polish=False, tol=0, **options)
        return num_candidates

    return attack


def make_our_attack(network: nn.Module, images: Tensor) -> Callable[[], int]:
    """Return a generation of our attack on all images."""
    indices = torch.arange(len(images))
    parents = draw_first_candidates(indices, POPULATION, images.shape[-1])

    @torch.inference_mode()
    def attack() -> int:
        target = make_target(network, images, torch.zeros(len(images), dtype=torch.int64), indices, 256)
        score(target, mutate(parents, indices, 1, images.shape[-1]), lambda queries: True)
        return len(images) * POPULATION

    return attack


def measure_rates(settings: dict[str, Any], size: int) -> dict[str, Any]:
    """Time all implementations in alternating rounds."""
    torch.manual_seed(0)
    network, images = load_model(settings, size), torch.rand(GALAXIES, 3, size, size)
    attacks = {
        "e2cnn_one_at_a_time": make_scipy_attack(convert_to_e2cnn(network, size), images[0], vectorized=False),
        "one_at_a_time": make_scipy_attack(network, images[0], vectorized=False),
        "population_at_a_time": make_scipy_attack(network, images[0], vectorized=True),
        "ours": make_our_attack(network, images),
    }
    for name in attacks:
        attacks[name]()  # warm-up
    rates: dict[str, list[float]] = {name: [] for name in attacks}
    for _ in range(REPEATS):
        for name, attack in attacks.items():
            start = time.perf_counter()
            rates[name].append(attack() / (time.perf_counter() - start))
    results: dict[str, Any] = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    ratios = {name: [a / b for a, b in zip(rates["ours"], rates[name], strict=True)] for name in list(attacks)[:-1]}
    for name, values in ratios.items():
        results[f"ours_to_{name}"] = [
            round(value, 1) for value in (min(values), statistics.median(values), max(values))
        ]
    return results


def main() -> None:
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads",
        "unit": "candidates per second; ratios: smallest, median, largest of the repeats",
    }
    for name, (settings, size) in track(NETWORKS.items(), "networks"):
        results[name] = measure_rates(settings, size)
        print(name, results[name], flush=True)
        Path(sys.argv[1]).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
