"""Batches: which galaxies, in which order, for which process, and their pixels on the device.

The order is a function of (seed, epoch) alone and the batch size is the global one, so another number of processes
sees the same sequence of global batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from galaxyhpc.data.dataset import Galaxies
from galaxyhpc.runtime.rng import key, permutation

ROOM = 0.5  # most of a GPU's free memory that the images may take


@dataclass(frozen=True)
class Pictures:
    """All galaxies' pixels as uint8, on the device where they fit there and memory-mapped otherwise."""

    images: Tensor  # (N, 3, S, S) uint8
    labels: Tensor  # (N,) int64, on the device
    device: torch.device

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return (n, 3, S, S) float32 in [0, 1] and (n,) int64 labels of these rows, both on the device."""
        taken, labels = self.take_bytes(rows)
        return taken / 255.0, labels

    def take_bytes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same as (n, 3, S, S) uint8, as `augment.resample` likes it best."""
        taken = self.images.index_select(0, rows.to(self.images.device))  # an index takes ten times as long
        if self.device.type == "cuda" and not taken.is_cuda:
            taken = taken.pin_memory().to(self.device, non_blocking=True)
        return taken, self.labels[rows.to(self.device)]


def load_pictures(galaxies: Galaxies, device: torch.device) -> Pictures:
    """Put the images on the device, or leave them on the disk where they would fill it."""
    # copy-on-write: torch cannot express read-only memory, and nothing here writes
    path = galaxies.images.filename  # type: ignore[attr-defined]  # prepare() gives memory maps
    images = torch.from_numpy(np.load(path, mmap_mode="c"))
    labels = torch.from_numpy(np.array(galaxies.labels, dtype=np.int64)).to(device)
    fits = device.type == "cuda" and images.numel() < ROOM * torch.cuda.mem_get_info(device)[0]
    return Pictures(images.to(device) if fits else images, labels, device)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of global batches in an epoch; a last one that would be short is left out."""
    return count // min(batch_size, count)


def order(rows: Tensor, seed: int, epoch: int, batch_size: int) -> list[Tensor]:
    """Divide an epoch's shuffled rows into global batches."""
    shuffled = rows[permutation(key("order", seed, epoch), len(rows))]
    size = min(batch_size, len(rows))
    return list(shuffled[: steps_per_epoch(len(rows), size) * size].split(size))


def share(batch: Tensor, rank: int, world: int) -> Tensor:
    """Return this process's part of a global batch."""
    return batch[rank::world]


@torch.inference_mode()
def predict(network: nn.Module, pictures: Pictures, rows: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return (n, 10) float32 logits and (n,) int64 labels of these rows, without augmentation."""
    network.eval()
    logits, labels = [torch.empty(0, 10, device=pictures.device)], [pictures.labels[:0]]
    for part in rows.split(batch_size):
        images, truth = pictures.take(part)
        logits.append(network(images).float())
        labels.append(truth)
    return torch.cat(logits), torch.cat(labels)
