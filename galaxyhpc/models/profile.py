"""Parameters, multiply-adds and memory of a network, counted on torch's meta device, which allocates no memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.config.schema import ModelConfig, RunConfig

META_BATCH_SIZE = 1009  # on the meta device: no layer has as many channels, so tensors of this length are maps
PROCESS_BYTES = 5.5e8  # Python, torch and e2cnn, before any network
FILTER_COPIES = 4  # of the largest filter and its gradient: in the convolution's memory order, and as blocks
TRANSIENT_COPIES = 3  # of the largest map: its gradient, the gradient of its input, a layer's working copy


@dataclass(frozen=True)
class NetworkProfile:
    """Size and cost of a network; the last four are numbers of values."""

    parameters: int
    multiply_adds: int  # per image, in inference
    saved_activations: int = 0  # for the backward pass, per image
    largest_activation: int = 0  # per image
    saved_filters: int = 0  # expanded filters, for the backward pass
    largest_filter: int = 0


def get_micro_batch_size(config: RunConfig) -> int:
    """Return the largest number of images that a process computes in one pass."""
    local_batch = math.ceil(config.train.batch_size / config.resources.num_tasks)
    return min(local_batch, config.resources.micro_batch or local_batch)


def estimate_training_bytes(profile: NetworkProfile, config: RunConfig) -> float:
    """Estimate the peak memory of a training process, without the images of the dataset.

    Bytes
    -----
    550 MB for the process, 16 per parameter (weight, gradient, Adam's two moments; 12 for sgd; 4 more for an average),
    and 4 per value (2 in bfloat16) of: images x (maps saved for the backward pass + 3 x the largest), expanded filters
    + 4 x the largest. With a micro-batch, filters and the sums of their gradients stay in float32: 8 per value, and
    2 more in bfloat16.
    """
    value_bytes = 2 if config.train.precision == "bfloat16" else 4
    maps = get_micro_batch_size(config) * (profile.saved_activations + TRANSIENT_COPIES * profile.largest_activation)
    parameter_bytes = (16 if config.train.optimizer == "adamw" else 12) + (4 if config.train.ema_decay else 0)
    is_one_pass = get_micro_batch_size(config) == math.ceil(config.train.batch_size / config.resources.num_tasks)
    filter_bytes = value_bytes if is_one_pass else 8 + (2 if value_bytes == 2 else 0)
    values = maps + FILTER_COPIES * profile.largest_filter
    filter_values, parameters = filter_bytes * profile.saved_filters, parameter_bytes * profile.parameters
    return PROCESS_BYTES + parameters + filter_values + value_bytes * values


def profile_network(model: ModelConfig, image_size: int, num_classes: int = len(GALAXY10_CLASSES)) -> NetworkProfile:
    """Build a network on the meta device and count.

    Raises
    ------
    ValueError
    """
    import torch

    from galaxyhpc.models.build_model import build_model, count_parameters, multiply_adds

    with torch.device("meta"):
        network = build_model(model, image_size, num_classes)
    saved: dict[int, tuple[int, bool]] = {}  # storage -> (number of values, whether of images)
    own_storages = {value.untyped_storage()._cdata for value in (*network.parameters(), *network.buffers())}

    def record(value: Any) -> Any:
        storage = value.untyped_storage()
        if storage._cdata not in own_storages:
            saved[storage._cdata] = (storage.nbytes() // value.element_size(), value.shape[:1] == (META_BATCH_SIZE,))
        return value

    with torch.autograd.graph.saved_tensors_hooks(record, lambda value: value):
        num_multiply_adds = multiply_adds(network, image_size, META_BATCH_SIZE)
    maps = [count // META_BATCH_SIZE for count, has_images in saved.values() if has_images]
    filters = [count for count, has_images in saved.values() if not has_images]
    return NetworkProfile(
        count_parameters(network), num_multiply_adds, sum(maps), max(maps), sum(filters), max(filters, default=0)
    )
