"""The one-pixel attack (Su, Vargas and Sakurai 2019, IEEE Trans. Evol. Comput. 23, 828; arXiv:1710.08864).

Differential evolution looks for the pixel whose change takes most from the probability of the true class. A candidate
is (x, y, r, g, b); a child is a + 0.5 (b - c) of three different candidates, without crossover, and takes its parent's
place where it does better. The first candidates lie uniformly over the image, their colours are drawn from
N(128, 127). The attack ends at the first image of another class, or when its queries are spent.

It happens in the raw image, in 8 bits per colour as images are published: what is found is an image that could be.
All galaxies still standing evolve together, their candidates in full batches. Every draw is a function of galaxy,
iteration and candidate: networks meet the same first candidates, and batches of another size find the same pixels.
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
from galaxyhpc.evaluation.attack_results import (
    AttackResults,
    AttackSpec,
    make_empty_table,
    read,
    read_finished_attack,
    save,
)
from galaxyhpc.evaluation.one_pixel import OnePixelNetwork, supports_one_pixel
from galaxyhpc.evaluation.results import RunLogits
from galaxyhpc.runtime.rng import make_key, uniform
from galaxyhpc.storage.run_dir import RunDir

DIFFERENTIAL_WEIGHT = 0.5  # of the difference of two candidates, in a child
MIN_IMPROVEMENT_NATS = 1e-6  # nats that a child has to gain: less is what another size of batches may change
MIN_LOGIT_MARGIN = 1e-4  # of a wrong class's logit over the true one's, so that every way to compute them agrees
GALAXIES_PER_CHUNK = 64  # galaxies that evolve together, after which the table is saved

LogitsFn = Callable[[Tensor], Tensor]  # (N, 3, S, S) in [0, 1] -> (N, 10)
QueryFn = Callable[[Tensor, Tensor], Tensor]  # numbers of galaxies (N,) and pixels (N, 5) -> logits (N, 10)
ShouldStopFn = Callable[[], bool]
QueryCallback = Callable[[int], bool]  # told of queries made or spared; False: a signal came


@dataclass(frozen=True, eq=False)
class Target:
    """Galaxies under attack, and the network that is asked about them."""

    query: QueryFn
    image_size: int  # px
    labels: Tensor  # (G,) int64, the truth, which the network predicts
    indices: Tensor  # (G,) int64, in the data file
    image_indices: Tensor  # (G,) int64, by which the network knows them
    batch_size: int

    def select(self, mask: Tensor) -> Target:
        """Return these galaxies alone."""
        return replace(
            self, labels=self.labels[mask], indices=self.indices[mask], image_indices=self.image_indices[mask]
        )


@torch.inference_mode()
def make_target(network: LogitsFn, images: Tensor, labels: Tensor, indices: Tensor, batch_size: int) -> Target:
    """Show a network the images (G, 3, S, S) in [0, 1]; one whose pixels reach little is asked about that alone."""

    def ask(numbers: Tensor, found: Tensor) -> Tensor:
        return network(set_pixels(images[numbers], found))

    asked = OnePixelNetwork(network, images) if supports_one_pixel(network) else ask
    return Target(
        asked, images.shape[-1], labels, indices, torch.arange(len(indices), device=indices.device), batch_size
    )


def draw_first_candidates(indices: Tensor, num_candidates: int, image_size: int) -> Tensor:
    """Draw (G, count, 5) float64 candidates: x and y in [0, size], r, g and b in [0, 1]."""
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
    first, second, third = (parents.gather(1, which[..., None].expand_as(parents)) for which in (a, b, c))
    found = first + DIFFERENTIAL_WEIGHT * (second - third)
    return torch.cat([found[..., :2].clamp(0.0, image_size), found[..., 2:].clamp(0.0, 1.0)], dim=-1)


def to_pixels(candidates: Tensor, image_size: int) -> Tensor:
    """Return (..., 5) int64: column and row in 0..size-1, colours in 0..255."""
    places = candidates[..., :2].floor().clamp(0, image_size - 1)
    return torch.cat([places, (candidates[..., 2:] * 255.0).round()], dim=-1).long()


def set_pixels(images: Tensor, pixels: Tensor) -> Tensor:
    """Put one pixel (N, 5) into each of (N, 3, S, S) images, which are copied."""
    images = images.clone()
    images[torch.arange(len(images), device=images.device), :, pixels[:, 1], pixels[:, 0]] = (
        pixels[:, 2:].float() / 255.0
    )
    return images


def score(target: Target, candidates: Tensor, on_queries: QueryCallback) -> tuple[Tensor, Tensor] | None:
    """Return log-probabilities of the truth, float64, and predicted classes, (G, P) both; None where a signal came."""
    scores, classes = [], []
    found, count = to_pixels(candidates, target.image_size).flatten(0, 1), candidates.shape[1]
    for which in torch.arange(len(found), device=found.device).split(target.batch_size):
        of = which // count
        logits, truth = target.query(target.image_indices[of], found[which]).double(), target.labels[of, None]
        scores.append(logits.log_softmax(1).gather(1, truth)[:, 0])
        best, wrong = logits.scatter(1, truth, -torch.inf).max(1)
        classes.append(torch.where(best - logits.gather(1, truth)[:, 0] > MIN_LOGIT_MARGIN, wrong, truth[:, 0]))
        if not on_queries(len(which)):
            return None
    return torch.cat(scores).view(-1, count), torch.cat(classes).view(-1, count)


@torch.inference_mode()
def attack(target: Target, settings: AttackConfig, on_queries: QueryCallback) -> NDArray[np.int64] | None:
    """Attack galaxies together; None where a signal came.

    Returns
    -------
    (G, 7) int64: queries, x, y, r, g, b and the predicted class; `attack_results` says of which image
    """
    count, size = settings.population, target.image_size
    answer = torch.zeros(len(target.indices), 7, dtype=torch.int64, device=target.indices.device)
    standing = torch.arange(len(target.indices), device=target.indices.device)
    population = candidates = draw_first_candidates(target.indices, count, size)
    best = torch.full(population.shape[:2], torch.inf, dtype=torch.float64, device=population.device)
    for iteration in range(settings.iterations + 1):
        if iteration:
            candidates = mutate(population, target.indices, iteration, size)
        found = score(target, candidates, on_queries)
        if found is None:
            return None
        scores, classes = found
        wins = scores < best - MIN_IMPROVEMENT_NATS
        population, best = torch.where(wins[..., None], candidates, population), torch.where(wins, scores, best)
        fooled = classes != target.labels[:, None]
        over = fooled.any(1)
        first = fooled.int().argmax(1)
        answer[standing[over]] = _make_outcome(candidates, classes, first, size, iteration * count + first + 1)[over]
        on_queries(int(over.sum()) * count * (settings.iterations - iteration))  # spared
        left = ~over
        target, standing, population, best = target.select(left), standing[left], population[left], best[left]
        if not len(standing):
            break
    budget = torch.full_like(standing, count * (settings.iterations + 1))
    unmoved = target.labels[:, None].expand_as(best)
    answer[standing] = _make_outcome(population, unmoved, best.argmin(1), size, budget)
    result: NDArray[np.int64] = answer.cpu().numpy()
    return result


def _make_outcome(
    candidates: Tensor, classes: Tensor, candidate_indices: Tensor, image_size: int, queries: Tensor
) -> Tensor:
    """Return the (G, 7) outcome with the chosen candidate of each galaxy."""
    each = torch.arange(len(candidate_indices), device=candidate_indices.device)
    pixel = to_pixels(candidates[each, candidate_indices], image_size)
    return torch.cat([queries[:, None], pixel, classes[each, candidate_indices][:, None]], dim=1)


def select_galaxies(indices: NDArray[Any], labels: NDArray[Any], max_galaxies: int) -> NDArray[np.int64]:
    """Return which galaxies are attacked, as indices: as many of each class as there are, the same for all networks.

    A larger number holds those of a smaller one.
    """
    draws = uniform(make_key("attacked"), torch.from_numpy(indices.astype(np.int64)), 1)[:, 0].numpy()
    table = pd.DataFrame({"label": labels, "draw": draws})
    turn = table.groupby("label")["draw"].rank(method="first")
    order: NDArray[np.int64] = table.assign(turn=turn).sort_values(["turn", "label"]).index.to_numpy()
    return order[:max_galaxies]


def is_finished(run: RunDir, settings: AttackConfig, weights: str) -> bool:
    """Whether these weights were attacked as the settings want."""
    return settings.galaxies == 0 or read_finished_attack(run, settings, weights) is not None


def attack_run(
    run: RunDir,
    network: nn.Module,
    dataset: DeviceDataset,
    run_logits: RunLogits,
    config: EvaluateConfig,
    should_stop: ShouldStopFn,
) -> bool:
    """Attack the test galaxies that a run's network classifies rightly, those that are not attacked yet.

    False where `halted` said so; galaxies that were finished with are saved then.
    """
    settings = config.attack
    source = AttackSpec(
        run.run_id, run_logits.weights, run_logits.fingerprint, run_logits.generated, **settings.model_dump()
    )
    which = select_galaxies(run_logits.rows, run_logits.labels, settings.galaxies)
    before = read(run)
    table = before.table if before is not None and before.spec.is_same_attack(source) else make_empty_table()
    table = table[table["row"].isin(run_logits.rows[which])]
    new = which[~np.isin(run_logits.rows[which], table["row"])]
    right = new[_is_correct(network, dataset, run_logits, new, config.batch_size)]
    save(run, AttackResults(source, table, is_complete=len(right) == 0))
    bar = Progress(console=Console(), transient=True, disable=not Console().is_terminal)
    task = bar.add_task(f"{run.run_id}: one-pixel attack", total=len(right) * source.budget)

    def go_on(queries: int) -> bool:
        bar.advance(task, queries)
        return not should_stop()

    with bar:
        for start in range(0, len(right), GALAXIES_PER_CHUNK):
            part = right[start : start + GALAXIES_PER_CHUNK]
            rows = torch.from_numpy(run_logits.rows[part].astype(np.int64))
            images, labels = dataset.get_batch(rows)
            found = attack(
                make_target(network, images, labels, rows.to(images.device), config.batch_size), settings, go_on
            )
            if found is None:
                return False
            table = pd.concat([table, _make_table(run_logits, part, found)], ignore_index=True)
            save(run, AttackResults(source, table, is_complete=start + GALAXIES_PER_CHUNK >= len(right)))
    return True


def _is_correct(
    network: nn.Module, dataset: DeviceDataset, run_logits: RunLogits, positions: NDArray[np.int64], batch_size: int
) -> NDArray[np.bool_]:
    """Tell which of these galaxies the network classifies rightly as they are."""
    logits, labels = predict(
        network, dataset, torch.from_numpy(run_logits.rows[positions].astype(np.int64)), batch_size
    )
    right: NDArray[np.bool_] = (logits.argmax(1) == labels).cpu().numpy()
    return right


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
