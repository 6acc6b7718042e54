"""Loss and accuracies on the validation galaxies during training, the same numbers in every process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from galaxyhpc.data.loader import DeviceDataset, predict, shard_batch
from galaxyhpc.runtime.distributed import Process


def validate(
    network: nn.Module, dataset: DeviceDataset, indices: Tensor, process: Process, batch_size: int
) -> tuple[float, float, float]:
    """Return mean loss, accuracy and balanced accuracy on these galaxies, the same numbers in every process.

    Balanced accuracy is the mean recall of the classes that they have.
    """
    _broadcast_batchnorm_statistics(network, process.world_size)
    local_indices = shard_batch(indices, process.rank, process.world_size)
    logits, labels = predict(network, dataset, local_indices, batch_size)
    network.train()  # frees the filters that evaluation keeps
    loss = cross_entropy(logits.double(), labels, reduction="sum").item()
    correct_labels = labels[logits.argmax(1) == labels]
    counts = [torch.bincount(part.cpu(), minlength=logits.shape[1]).tolist() for part in (labels, correct_labels)]
    loss, *sums = process.all_reduce_sum([loss, *counts[0], *counts[1]])
    galaxies, correct = torch.tensor(sums, dtype=torch.float64).view(2, -1)
    recalls = (correct / galaxies)[galaxies > 0]
    return loss / len(indices), correct.sum().item() / len(indices), recalls.mean().item()


def _broadcast_batchnorm_statistics(network: nn.Module, world_size: int) -> None:
    """Give every process the running statistics of rank 0, which are those in the checkpoints."""
    saved = network.state_dict()
    for name, buffer in network.named_buffers():
        if name in saved and world_size > 1:
            dist.broadcast(buffer, 0)
