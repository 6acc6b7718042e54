"""Where a network looks: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2).

The heat of class c at a pixel of the last convolutional map A is ReLU(sum over channels k of a_k A_k), a_k the mean
over pixels of the derivative of c's logit by A_k. The channels of a group are channels like others: a turn of the
galaxy by one of the group's elements permutes them and their weights alike, so that the heat turns with the galaxy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from galaxyhpc.inspect.features import ProbedLayers, find_probed_layers


@dataclass(frozen=True)
class GradCamTarget:
    """A galaxy to look at, and two classes to look for."""

    row: int  # in the data file
    truth: int
    predicted: int
    other_class: int  # the predicted class; where that is the truth, the runner-up
    confidence: float  # softmax of the raw logits, of the predicted class


def compute_heat_maps(
    network: nn.Module, images: Tensor, classes: Tensor, layers: ProbedLayers | None = None
) -> Tensor:
    """Return the heat of one class for each image on the last map's grid, (N, s, s), none below 0, of any scale.

    `images` are (N, 3, S, S) in [0, 1], `classes` (N,) int64; the network is in evaluation mode. `where` is found
    in the networks of this project.
    """
    layers, kept = layers or find_probed_layers(network), []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        found = output.detach()  # what came before needs no gradient
        kept.append((found.relu() if layers.has_relu_after else found.clone()).requires_grad_())
        # a ReLU that follows is passed by all pixels: those at 0 would hide their derivative
        return kept[0] + torch.finfo(torch.float32).tiny

    hook = layers.last_map.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = network(images)
            (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), kept)
    finally:
        hook.remove()
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * kept[0].detach()).sum(1).relu()


def upsample(heat: Tensor, size: int) -> Tensor:
    """(N, s, s) -> (N, size, size), each with a maximum of 1 (or 0 everywhere).

    The corners of the grids coincide: on the odd sizes of this project each layer keeps the first and last pixel.
    """
    large = F.interpolate(heat[:, None], size=(size, size), mode="bilinear", align_corners=True)[:, 0]
    highest = large.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, large / highest.clamp_min(torch.finfo(large.dtype).tiny), 0.0)


def make_gradcam_target(row: int, truth: int, probabilities: NDArray[np.float64]) -> GradCamTarget:
    """Put a galaxy and its (classes,) probabilities into a Choice."""
    first, second = np.argsort(-probabilities, kind="stable")[:2]
    return GradCamTarget(row, truth, int(first), int(second if first == truth else first), float(probabilities[first]))


def select_most_confident(
    indices: NDArray[np.int64], labels: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> list[GradCamTarget | None]:
    """Choose of each class in turn its most confidently right galaxy and its most confidently wrong one, None for none.

    `rows` and `labels` are (n,), `shares` the (n, classes) probabilities.
    """
    right, confidence = probabilities.argmax(1) == labels, probabilities.max(1)

    def best(label: int, kind: NDArray[np.bool_]) -> GradCamTarget | None:
        among = np.flatnonzero((labels == label) & kind)
        if not len(among):
            return None
        surest = among[confidence[among].argmax()]
        return make_gradcam_target(int(indices[surest]), label, probabilities[surest])

    return [best(label, kind) for label in np.unique(labels).tolist() for kind in (right, ~right)]
