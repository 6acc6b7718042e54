"""Grad-CAM heat maps (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2).

The heat of class c at a pixel of the last convolutional map A is ReLU(sum over channels k of a_k A_k), a_k the mean
over pixels of the derivative of c's logit by A_k. The heat is equivariant: a transformation of the galaxy by a group
element permutes a field's channels and their weights in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from galaxyhpc.models.activations import ProbedLayers, find_probed_layers


@dataclass(frozen=True)
class GradCamTarget:
    """A galaxy and the two classes of its heat maps: `truth` and `other_class`."""

    row: int  # in the data file
    truth: int
    predicted: int
    other_class: int  # the predicted class or, if that is the truth, the second most probable one
    confidence: float  # softmax of the raw logits, of the predicted class


def compute_heat_maps(
    network: nn.Module, images: Tensor, classes: Tensor, layers: ProbedLayers | None = None
) -> Tensor:
    """Return the heat of one class for each image on the last map's grid, (N, s, s), >= 0, of arbitrary scale.

    `images` are (N, 3, S, S) in [0, 1], `classes` (N,) int64; the network is in evaluation mode. `layers` may be left
    out for the networks of this project.
    """
    layers, maps = layers or find_probed_layers(network), []

    def replace_map(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        values = output.detach()  # earlier layers need no gradient
        maps.append((values.relu() if layers.has_relu_after else values.clone()).requires_grad_())
        # pixels at 0 would have no derivative behind another ReLU: make all of them positive
        return maps[0] + torch.finfo(torch.float32).tiny

    hook = layers.last_map.register_forward_hook(replace_map)
    try:
        with torch.enable_grad():
            logits = network(images)
            (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), maps)
    finally:
        hook.remove()
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * maps[0].detach()).sum(1).relu()


def upsample(heat: Tensor, size: int) -> Tensor:
    """Interpolate (N, s, s) to (N, size, size), each normalized to a maximum of 1 (or 0 everywhere).

    The corners of the grids coincide: on the odd sizes of this project each layer keeps the first and last pixel.
    """
    upsampled = F.interpolate(heat[:, None], size=(size, size), mode="bilinear", align_corners=True)[:, 0]
    maximum = upsampled.amax((1, 2), keepdim=True)
    return torch.where(maximum > 0, upsampled / maximum.clamp_min(torch.finfo(upsampled.dtype).tiny), 0.0)


def make_gradcam_target(row: int, truth: int, probabilities: NDArray[np.float64]) -> GradCamTarget:
    """Make the target of a galaxy from its (classes,) probabilities."""
    first, second = np.argsort(-probabilities, kind="stable")[:2]
    return GradCamTarget(row, truth, int(first), int(second if first == truth else first), float(probabilities[first]))


def select_most_confident(
    indices: NDArray[np.int64], labels: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> list[GradCamTarget | None]:
    """Select each class's most confident correct prediction and its most confident wrong one, None if there is none.

    `indices` and `labels` are (n,), `probabilities` (n, classes).
    """
    is_correct, confidence = probabilities.argmax(1) == labels, probabilities.max(1)

    def select(label: int, mask: NDArray[np.bool_]) -> GradCamTarget | None:
        candidates = np.flatnonzero((labels == label) & mask)
        if not len(candidates):
            return None
        best = candidates[confidence[candidates].argmax()]
        return make_gradcam_target(int(indices[best]), label, probabilities[best])

    return [select(label, mask) for label in np.unique(labels).tolist() for mask in (is_correct, ~is_correct)]
