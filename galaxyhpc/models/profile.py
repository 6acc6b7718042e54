"""What a network costs and keeps, found before it is trained: counted on torch's meta device, which has no memory.

A narrow twin (the same network with few fields) has the same symmetry and the same gradients flowing, and is really
computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from galaxyhpc.config.schema import ModelConfig, RunConfig

META_BATCH_SIZE = (
    1009  # images on the meta device: no layer has as many channels, so what has as many rows belongs to the images
)
PROCESS_BYTES = 5e8  # Python, torch and e2cnn, before any network
FILTER_COPIES = 4  # of the largest filter and its gradient: in the convolution's order of memory, and as blocks
TRANSIENT_COPIES = 3  # of the largest map: its gradient, the gradient of its input, a layer's working copy


@dataclass(frozen=True)
class NetworkProfile:
    """What a network costs; the last four are numbers of values."""

    parameters: int
    multiply_adds: int  # per image, in inference
    saved_activations: int = 0  # for the backward pass, per image
    largest_activation: int = 0  # map, per image
    saved_filters: int = 0  # expanded ones, kept for the backward pass
    largest_filter: int = 0


def get_micro_batch_size(config: RunConfig) -> int:
    """Return the most images that a process has in one pass."""
    share = math.ceil(config.train.batch_size / config.resources.num_tasks)
    return min(share, config.resources.micro_batch or share)


def estimate_training_bytes(profile: NetworkProfile, config: RunConfig) -> float:
    """Estimate the memory of a training process at its peak, the images of the data set apart.

    Bytes
    -----
    500 MB for the process, 16 per parameter (weight, gradient, Adam's two moments; 12 for sgd; 4 more for an average),
    and 4 per value (2 in bfloat16) of: images x (maps kept for the backward pass + 3 x the largest), filters expanded
    + 4 x the largest. With a micro-batch, filters and the sums of their gradients stay in float32: 8 per value, and
    2 more in bfloat16.
    """
    size = 2 if config.train.precision == "bfloat16" else 4
    maps = get_micro_batch_size(config) * (profile.saved_activations + TRANSIENT_COPIES * profile.largest_activation)
    states = (16 if config.train.optimizer == "adamw" else 12) + (4 if config.train.ema_decay else 0)
    whole = get_micro_batch_size(config) == math.ceil(config.train.batch_size / config.resources.num_tasks)
    filters = size if whole else 8 + (2 if size == 2 else 0)
    values = maps + FILTER_COPIES * profile.largest_filter
    return PROCESS_BYTES + states * profile.parameters + filters * profile.saved_filters + size * values


def profile_network(model: ModelConfig, image_size: int) -> NetworkProfile:
    """Build a network without memory and count.

    Raises
    ------
    ValueError
    """
    import torch

    from galaxyhpc.models.build_model import build_model, count_parameters, multiply_adds

    with torch.device("meta"):
        network = build_model(model, image_size)
    kept: dict[int, tuple[int, bool]] = {}
    own = {value.untyped_storage()._cdata for value in (*network.parameters(), *network.buffers())}

    def note(value: Any) -> Any:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = (storage.nbytes() // value.element_size(), value.shape[:1] == (META_BATCH_SIZE,))
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        counted = multiply_adds(network, image_size, META_BATCH_SIZE)
    maps = [count // META_BATCH_SIZE for count, of_images in kept.values() if of_images]
    filters = [count for count, of_images in kept.values() if not of_images]
    return NetworkProfile(
        count_parameters(network), counted, sum(maps), max(maps), sum(filters), max(filters, default=0)
    )
