"""Batches of indices, their part for each process, and their pixels on the device.

The order is a function of (seed, epoch) alone and the batch size is the global one: the sequence of global batches
does not depend on the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from galaxyhpc.data.galaxies import Galaxies
from galaxyhpc.runtime.rng import make_key, permutation

MAX_GPU_MEMORY_FRACTION = 0.5  # of a GPU's free memory, for the images


@dataclass(frozen=True)
class DeviceDataset:
    """All galaxies' pixels as uint8, on the device if they fit there, memory-mapped otherwise."""

    images: Tensor  # (N, 3, S, S) uint8
    labels: Tensor  # (N,) int64, on the device
    device: torch.device

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return (n, 3, S, S) float32 images in [0, 1] and (n,) int64 labels, both on the device."""
        images, labels = self.get_uint8_batch(indices)
        return images / 255.0, labels

    def get_uint8_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return (n, 3, S, S) uint8 images, for which `augment.resample` is fastest, and (n,) int64 labels."""
        # images[indices] takes ten times as long
        images = self.images.index_select(0, send_to_device(indices, self.images.device))
        return send_to_device(images, self.device), self.labels[send_to_device(indices, self.device)]


def send_to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, unless it is there; the host need not wait for a GPU."""
    if device.type == "cuda" and not values.is_cuda:
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def load_device_dataset(galaxies: Galaxies, device: torch.device) -> DeviceDataset:
    """Copy the images to a GPU if they fit in a part of its free memory; leave them on disk otherwise."""
    # copy-on-write: torch cannot express read-only memory, and nothing here writes
    path = galaxies.images.filename  # type: ignore[attr-defined]  # prepare() gives memory maps
    images = torch.from_numpy(np.load(path, mmap_mode="c"))
    labels = torch.from_numpy(np.array(galaxies.labels, dtype=np.int64)).to(device)
    fits = device.type == "cuda" and images.numel() < MAX_GPU_MEMORY_FRACTION * torch.cuda.mem_get_info(device)[0]
    return DeviceDataset(images.to(device) if fits else images, labels, device)


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Return the number of global batches in an epoch; an incomplete last one is dropped."""
    return num_samples // min(batch_size, num_samples)


def epoch_batches(indices: Tensor, seed: int, epoch: int, batch_size: int) -> list[Tensor]:
    """Divide an epoch's shuffled indices into global batches."""
    shuffled = indices[permutation(make_key("order", seed, epoch), len(indices))]
    size = min(batch_size, len(indices))
    return list(shuffled[: steps_per_epoch(len(indices), size) * size].split(size))


def shard_batch(batch: Tensor, rank: int, world_size: int) -> Tensor:
    """Return this process's part of a global batch."""
    return batch[rank::world_size]


@torch.inference_mode()
def predict(network: nn.Module, dataset: DeviceDataset, indices: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return (n, K) float32 logits and (n,) int64 labels, without augmentation."""
    network.eval()
    logits, labels = [], []
    for batch in indices.split(batch_size):  # of no indices, one empty batch
        images, batch_labels = dataset.get_batch(batch)
        logits.append(network(images).float())
        labels.append(batch_labels)
    return torch.cat(logits), torch.cat(labels)
