"""The one-pixel attack (Su, Vargas and Sakurai 2019, IEEE Trans. Evol. Comput. 23, 828; arXiv:1710.08864).

Differential evolution searches the pixel whose change reduces the probability of the true class most. A candidate is
(x, y, r, g, b); a child is a + 0.5 (b - c) of three different candidates, without crossover, and replaces its parent if
it scores better. The first candidates are uniform over the image, with colours from N(128, 127). The attack ends at
the first misclassified image, or when its query budget is spent.

The pixel is set in the raw image, in 8 bits per colour as images are published. All active galaxies evolve together,
their candidates in full batches. Every random number depends on galaxy, iteration and candidate alone: all networks
get the same first candidates, and the batch size does not change the pixels found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from galaxyhpc.config.schema import AttackConfig, EvaluateConfig
from galaxyhpc.data.loader import DeviceDataset, predict
from galaxyhpc.evaluation.attacks.attack_results import (
    AttackResults,
    AttackSpec,
    make_empty_table,
    read,
    read_finished_attack,
    save,
)
from galaxyhpc.evaluation.attacks.one_pixel import OnePixelNetwork, supports_one_pixel
from galaxyhpc.evaluation.results import RunLogits
from galaxyhpc.runtime.rng import make_key, uniform
from galaxyhpc.storage.run_dir import RunDir

DIFFERENTIAL_WEIGHT = 0.5  # of the difference of two candidates, in a child
MIN_IMPROVEMENT_NATS = 1e-6  # of a child over its parent: smaller gains may depend on the batch size
MIN_LOGIT_MARGIN = 1e-4  # of a wrong class's logit over the true one's: smaller margins may depend on the kernels
GALAXIES_PER_CHUNK = 64  # galaxies that evolve together, after which the table is saved

LogitsFn = Callable[[Tensor], Tensor]  # (N, 3, S, S) in [0, 1] -> (N, K)
QueryFn = Callable[[Tensor, Tensor], Tensor]  # indices of images (N,) and pixels (N, 5) -> logits (N, K)
ShouldStopFn = Callable[[], bool]
QueryCallback = Callable[[int], bool]  # takes the number of queries made or saved; returns False on a signal


@dataclass(frozen=True, eq=False)
class Target:
    """Galaxies under attack, and the network under attack."""

    query: QueryFn
    image_size: int  # px
    labels: Tensor  # (G,) int64, the truth, which the network predicts
    indices: Tensor  # (G,) int64, rows of the data file
    image_indices: Tensor  # (G,) int64, arguments of `query`
    batch_size: int

    def select(self, mask: Tensor) -> Target:
        """Return a target of the galaxies where the (G,) mask is True."""
        return replace(
            self, labels=self.labels[mask], indices=self.indices[mask], image_indices=self.image_indices[mask]
        )


@torch.inference_mode()
def make_target(network: LogitsFn, images: Tensor, labels: Tensor, indices: Tensor, batch_size: int) -> Target:
    """Make a target of (G, 3, S, S) images in [0, 1], with the fast OnePixelNetwork if it supports the network."""

    def query_images(image_indices: Tensor, pixels: Tensor) -> Tensor:
        return network(set_pixels(images[image_indices], pixels))

    query = OnePixelNetwork(network, images) if supports_one_pixel(network) else query_images
    image_indices = torch.arange(len(indices), device=indices.device)
    return Target(query, images.shape[-1], labels, indices, image_indices, batch_size)


def draw_first_candidates(indices: Tensor, num_candidates: int, image_size: int) -> Tensor:
    """Draw (G, P, 5) float64 candidates: x and y in [0, image_size], r, g and b in [0, 1]."""
    draws = uniform(make_key("attack"), indices, 5 * num_candidates).view(len(indices), num_candidates, 5)
    colours = (128.0 + 127.0 * torch.special.ndtri(draws[..., 2:])) / 255.0
    return torch.cat([draws[..., :2] * image_size, colours.clamp(0.0, 1.0)], dim=-1)


def mutate(parents: Tensor, indices: Tensor, iteration: int, image_size: int) -> Tensor:
    """Return (G, P, 5) candidates a + 0.5 (b - c), where a, b and c are three different parents, kept in bounds."""
    count = parents.shape[1]
    draws = uniform(make_key("attack", iteration), indices, 3 * count).view(len(indices), count, 3)
    a, b, c = (draws * torch.tensor([count, count - 1, count - 2], device=draws.device)).long().unbind(-1)
    b = (a + 1 + b) % count
    c = c + (c >= torch.minimum(a, b))
    c = c + (c >= torch.maximum(a, b))
    first, second, third = (parents.gather(1, indices[..., None].expand_as(parents)) for indices in (a, b, c))
    children = first + DIFFERENTIAL_WEIGHT * (second - third)
    return torch.cat([children[..., :2].clamp(0.0, image_size), children[..., 2:].clamp(0.0, 1.0)], dim=-1)


def to_pixels(candidates: Tensor, image_size: int) -> Tensor:
    """Round (..., 5) candidates to int64: column and row in 0..image_size-1, colours in 0..255."""
    positions = candidates[..., :2].floor().clamp(0, image_size - 1)
    return torch.cat([positions, (candidates[..., 2:] * 255.0).round()], dim=-1).long()


def set_pixels(images: Tensor, pixels: Tensor) -> Tensor:
    """Return a copy of (N, 3, S, S) images with one pixel of each set to `pixels` (N, 5)."""
    images = images.clone()
    images[torch.arange(len(images), device=images.device), :, pixels[:, 1], pixels[:, 0]] = (
        pixels[:, 2:].float() / 255.0
    )
    return images


def score(target: Target, candidates: Tensor, on_queries: QueryCallback) -> tuple[Tensor, Tensor] | None:
    """Return log-probabilities of the truth, float64, and predicted classes, both (G, P); None on a signal."""
    scores, classes = [], []
    pixels, count = to_pixels(candidates, target.image_size).flatten(0, 1), candidates.shape[1]
    for batch in torch.arange(len(pixels), device=pixels.device).split(target.batch_size):
        galaxies = batch // count
        logits = target.query(target.image_indices[galaxies], pixels[batch]).double()
        truth = target.labels[galaxies, None]
        scores.append(logits.log_softmax(1).gather(1, truth)[:, 0])
        best, wrong_class = logits.scatter(1, truth, -torch.inf).max(1)
        classes.append(torch.where(best - logits.gather(1, truth)[:, 0] > MIN_LOGIT_MARGIN, wrong_class, truth[:, 0]))
        if not on_queries(len(batch)):
            return None
    return torch.cat(scores).view(-1, count), torch.cat(classes).view(-1, count)


@torch.inference_mode()
def attack(target: Target, settings: AttackConfig, on_queries: QueryCallback) -> NDArray[np.int64] | None:
    """Attack all galaxies of a target; None on a signal.

    Returns
    -------
    (G, 7) int64: queries, x, y, r, g, b and the predicted class, of the image that `attack_results` describes
    """
    count, size = settings.population, target.image_size
    outcomes = torch.zeros(len(target.indices), 7, dtype=torch.int64, device=target.indices.device)
    active = torch.arange(len(target.indices), device=target.indices.device)
    population = candidates = draw_first_candidates(target.indices, count, size)
    best = torch.full(population.shape[:2], torch.inf, dtype=torch.float64, device=population.device)
    for iteration in range(settings.iterations + 1):
        if iteration:
            candidates = mutate(population, target.indices, iteration, size)
        scored = score(target, candidates, on_queries)
        if scored is None:
            return None
        scores, classes = scored
        is_better = scores < best - MIN_IMPROVEMENT_NATS
        population = torch.where(is_better[..., None], candidates, population)
        best = torch.where(is_better, scores, best)
        is_misclassified = classes != target.labels[:, None]
        succeeded, first = is_misclassified.any(1), is_misclassified.int().argmax(1)
        queries = iteration * count + first + 1
        outcomes[active[succeeded]] = _make_outcome(candidates, classes, first, size, queries)[succeeded]
        on_queries(int(succeeded.sum()) * count * (settings.iterations - iteration))  # saved
        keep = ~succeeded
        target, active, population, best = target.select(keep), active[keep], population[keep], best[keep]
        if not len(active):
            break
    budget = torch.full_like(active, count * (settings.iterations + 1))
    truth = target.labels[:, None].expand_as(best)
    outcomes[active] = _make_outcome(population, truth, best.argmin(1), size, budget)
    result: NDArray[np.int64] = outcomes.cpu().numpy()
    return result


def _make_outcome(
    candidates: Tensor, classes: Tensor, candidate_indices: Tensor, image_size: int, queries: Tensor
) -> Tensor:
    """Return the (G, 7) outcomes of one candidate of each galaxy."""
    galaxies = torch.arange(len(candidate_indices), device=candidate_indices.device)
    pixels = to_pixels(candidates[galaxies, candidate_indices], image_size)
    return torch.cat([queries[:, None], pixels, classes[galaxies, candidate_indices][:, None]], dim=1)


def select_galaxies(indices: NDArray[Any], labels: NDArray[Any], max_galaxies: int) -> NDArray[np.int64]:
    """Select the galaxies to attack, as positions in `indices`: the same for all networks, balanced over the classes.

    A larger selection contains the smaller ones.
    """
    draws = uniform(make_key("attacked"), torch.from_numpy(indices.astype(np.int64)), 1)[:, 0].numpy()
    table = pd.DataFrame({"label": labels, "draw": draws})
    rank = table.groupby("label")["draw"].rank(method="first")
    order: NDArray[np.int64] = table.assign(rank=rank).sort_values(["rank", "label"]).index.to_numpy()
    return order[:max_galaxies]


def is_finished(run: RunDir, settings: AttackConfig, weights: str) -> bool:
    """Whether these weights were attacked with these settings, or no attack is configured."""
    return settings.galaxies == 0 or read_finished_attack(run, settings, weights) is not None


def attack_run(
    run: RunDir,
    network: nn.Module,
    dataset: DeviceDataset,
    run_logits: RunLogits,
    config: EvaluateConfig,
    should_stop: ShouldStopFn,
) -> bool:
    """Attack the correctly classified test galaxies of a run that are not attacked yet.

    Returns False if `should_stop` returned True; finished chunks of galaxies are saved by then.
    """
    settings = config.attack
    spec = AttackSpec(
        run.run_id, run_logits.weights, run_logits.fingerprint, run_logits.generated, **settings.model_dump()
    )
    selected = select_galaxies(run_logits.rows, run_logits.labels, settings.galaxies)
    previous = read(run)
    table = previous.table if previous is not None and previous.spec.is_same_attack(spec) else make_empty_table()
    table = table[table["row"].isin(run_logits.rows[selected])]
    new = selected[~np.isin(run_logits.rows[selected], table["row"])]
    correct = new[_is_correct(network, dataset, run_logits, new, config.batch_size)]
    save(run, AttackResults(spec, table, is_complete=len(correct) == 0))
    bar = Progress(console=Console(), transient=True, disable=not Console().is_terminal)
    task = bar.add_task(f"{run.run_id}: one-pixel attack", total=len(correct) * spec.budget)

    def on_queries(num_queries: int) -> bool:
        bar.advance(task, num_queries)
        return not should_stop()

    with bar:
        for start in range(0, len(correct), GALAXIES_PER_CHUNK):
            chunk = correct[start : start + GALAXIES_PER_CHUNK]
            indices = torch.from_numpy(run_logits.rows[chunk].astype(np.int64))
            images, labels = dataset.get_batch(indices)
            target = make_target(network, images, labels, indices.to(images.device), config.batch_size)
            outcomes = attack(target, settings, on_queries)
            if outcomes is None:
                return False
            table = pd.concat([table, _make_table(run_logits, chunk, outcomes)], ignore_index=True)
            save(run, AttackResults(spec, table, is_complete=start + GALAXIES_PER_CHUNK >= len(correct)))
    return True


def _is_correct(
    network: nn.Module, dataset: DeviceDataset, run_logits: RunLogits, positions: NDArray[np.int64], batch_size: int
) -> NDArray[np.bool_]:
    """Return which of these clean galaxies the network classifies correctly."""
    indices = torch.from_numpy(run_logits.rows[positions].astype(np.int64))
    logits, labels = predict(network, dataset, indices, batch_size)
    is_correct: NDArray[np.bool_] = (logits.argmax(1) == labels).cpu().numpy()
    return is_correct


def _make_table(run_logits: RunLogits, positions: NDArray[np.int64], outcomes: NDArray[np.int64]) -> pd.DataFrame:
    galaxies = {
        "row": run_logits.rows[positions],
        "label": run_logits.labels[positions],
        "sky_group": run_logits.groups[positions],
    }
    queries, *pixel, predicted = outcomes.T
    outcome = dict(zip(("queries", "x", "y", "r", "g", "b", "predicted"), (queries, *pixel, predicted), strict=True))
    table = pd.DataFrame(galaxies | {"success": predicted != galaxies["label"]} | outcome)
    return table.astype(dict(make_empty_table().dtypes))
