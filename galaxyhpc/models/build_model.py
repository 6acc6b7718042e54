"""Building of networks from settings, at equal fields, parameters or multiply-adds.

Every network takes raw images (N, 3, S, S) in [0, 1] and returns logits (N, classes). Equal parameters and equal
multiply-adds mean equal to those of the C1 steerable CNN with the same scale, head and image size. The fields are found
by search, on networks built on torch's meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.config.schema import BASELINES, ModelConfig
from galaxyhpc.models import e2resnet, e2wrn, steerable_cnn
from galaxyhpc.models.cnn import build_cnn
from galaxyhpc.models.opening import Opening
from galaxyhpc.models.steerable_cnn import IN_CHANNELS
from galaxyhpc.steerable.layers import SteerableConv


class Family(NamedTuple):
    """An architecture: its fields as a function of one factor, and its constructor from fields."""

    scale_fields: Callable[[ModelConfig, float], tuple[int, ...]]
    build: Callable[[ModelConfig, Sequence[int], int, int], nn.Module]  # fields, image size, classes


def _scale_no_fields(config: ModelConfig, factor: float) -> tuple[int, ...]:
    return ()


def _build_baseline(config: ModelConfig, fields: Sequence[int], image_size: int, num_classes: int) -> nn.Module:
    from galaxyhpc.models.baselines import build_baseline

    return build_baseline(config, num_classes)


FAMILIES = {
    "steerable_cnn": Family(steerable_cnn.scale_fields, steerable_cnn.build_steerable_cnn),
    "cnn": Family(steerable_cnn.scale_fields, build_cnn),
    "e2wrn": Family(e2wrn.scale_fields, e2wrn.build_e2wrn),
    "e2resnet": Family(e2resnet.scale_fields, e2resnet.build_e2resnet),
    **dict.fromkeys(BASELINES, Family(_scale_no_fields, _build_baseline)),
}
WIDTH_TOLERANCE = 0.01  # relative difference of equal costs


def build_model(config: ModelConfig, image_size: int, num_classes: int = len(GALAXY10_CLASSES)) -> nn.Module:
    """Build the network for images of `image_size` px with new random weights."""
    network = _build_architecture(config, _compute_fields(config, image_size, num_classes), image_size, num_classes)
    if config.opening:
        network.front = nn.Sequential(Opening(config.opening), network.get_submodule("front"))
    return network


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def multiply_adds(model: nn.Module, image_size: int, num_images: int = 2) -> int:
    """Count the multiply-adds of dense convolutions and linear layers for one image in inference.

    Blurs, normalisations and the expansion of filters are left out.
    """
    total = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output[0].numel() * _compute_fan_in(layer)

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | SteerableConv)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    tensors = {k: v.to("meta") for k, v in chain(model.named_parameters(), model.named_buffers())}
    try:  # two images at least, because batch norm refuses to train on one
        functional_call(model, tensors, (torch.empty(num_images, IN_CHANNELS, image_size, image_size, device="meta"),))
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _build_architecture(config: ModelConfig, fields: Sequence[int], image_size: int, num_classes: int) -> nn.Module:
    return FAMILIES[config.architecture].build(config, fields, image_size, num_classes)


@cache
def _compute_fields(config: ModelConfig, image_size: int, num_classes: int) -> tuple[int, ...]:
    """Return the fields of every part: the study's times one factor, then adjusted by single fields."""
    scale_fields = FAMILIES[config.architecture].scale_fields
    if config.width == "fields":
        return scale_fields(config, config.scale)

    def compute_cost(settings: ModelConfig, fields: tuple[int, ...]) -> int:
        with torch.device("meta"):
            model = _build_architecture(settings, fields, image_size, num_classes)
        return count_parameters(model) if config.width == "parameters" else multiply_adds(model, image_size)

    reference = ModelConfig(group="C1", scale=config.scale, head=config.head)
    expected_cost = compute_cost(reference, steerable_cnn.scale_fields(reference, config.scale))
    return _search_fields(
        lambda fields: compute_cost(config, fields) / expected_cost - 1,
        lambda factor: scale_fields(config, factor),
        config.scale,
    )


def _search_fields(
    excess: Callable[[tuple[int, ...]], float], scale_fields: Callable[[float], tuple[int, ...]], scale: float
) -> tuple[int, ...]:
    """Search fields with an excess near 0; one factor leaves up to 5 % where blocks have one or two fields."""
    excess = cache(excess)
    low, high, candidates = 0.0, 2 * scale, []
    while excess(scale_fields(high)) < 0:
        high *= 2
    for _ in range(12):
        factor = (low + high) / 2
        candidates.append(scale_fields(factor))
        low, high = (low, factor) if excess(candidates[-1]) > 0 else (factor, high)

    def compute_gap(fields: tuple[int, ...]) -> float:
        return abs(excess(fields))

    best = min(candidates, key=compute_gap)
    while compute_gap(best) > WIDTH_TOLERANCE:
        close_neighbours = (fields for fields in _list_neighbours(best) if compute_gap(fields) <= WIDTH_TOLERANCE)
        neighbour = next(close_neighbours, None) or min(_list_neighbours(best), key=compute_gap)
        if compute_gap(neighbour) >= compute_gap(best):
            break
        best = neighbour
    return best


def _list_neighbours(fields: tuple[int, ...]) -> list[tuple[int, ...]]:
    """List the fields with one more or one less in a single block, the last and widest blocks first."""
    changed = [(b, fields[b] + step) for b in reversed(range(len(fields))) for step in (-1, 1)]
    return [(*fields[:b], count, *fields[b + 1 :]) for b, count in changed if count > 0]


def _compute_fan_in(layer: Any) -> int:
    """Count the multiply-adds of one value of a layer's output."""
    if isinstance(layer, SteerableConv):
        return layer.in_fields * layer.basis[0, 0].numel()
    return int(layer.weight[0].numel())
