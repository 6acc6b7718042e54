"""A training step of the study's network with dense filters and with the harmonic convolution. About six minutes.

    python tests/benchmarks/harmonic.py tests/benchmarks/harmonic.json [GROUP ...]

Forward and backward at the study's fields, 65 px, float32, all threads of an idle machine. The dense limit is the same
network with ready-made dense filters that receive gradients: nothing is expanded; the faster of contiguous and channels
last counts. The ways take turns; ratios are of the fastest step of each.
"""

from __future__ import annotations

import copy
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from galaxyhpc.config import ModelConfig
from galaxyhpc.models import build_model
from galaxyhpc.models.harmonic_op import harmonic
from galaxyhpc.models.layers import SteerableConv
from galaxyhpc.models.plain import PlainCNN

BATCH = {"D16": 4, "D8": 4, "C16": 4, "D4": 8, "C8": 8}  # 16 images for smaller groups
SIZE, REPEATS = 65, 3
GROUPS = ("C1", "C2", "C4", "C8", "C16", "D1", "D2", "D4", "D8", "D16")


class Ready(nn.Module):
    """A convolution with a filter of its own, as large as the one that a layer would expand."""

    def __init__(self, layer: SteerableConv) -> None:
        super().__init__()
        self.filter = nn.Parameter(layer.dense_filter().detach())
        self.stride, self.padding = layer.stride, layer.padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filter, stride=self.stride, padding=self.padding)


class Harmonic(SteerableConv):
    def forward(self, x: Tensor) -> Tensor:
        return harmonic(x, self.weight, self.recipe, self.stride, self.padding)


def exchanged(network: nn.Module, exchange: Any) -> nn.Module:
    """Return a copy with other convolutions."""
    changed = copy.deepcopy(network)
    for block in changed.blocks:
        block[0] = exchange(block[0])
    return changed


def to_harmonic(layer: SteerableConv) -> SteerableConv:
    layer.__class__ = Harmonic
    return layer


def seconds(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    network.zero_grad()
    begun = time.perf_counter()
    F.cross_entropy(network(images), labels).backward()
    return time.perf_counter() - begun


def measured(group: str) -> dict[str, Any]:
    torch.manual_seed(0)
    network = build_model(ModelConfig(group=group), SIZE).train()
    images, labels = torch.rand(BATCH.get(group, 16), 3, SIZE, SIZE), torch.randint(10, (BATCH.get(group, 16),))
    last = images.contiguous(memory_format=torch.channels_last)
    ready = exchanged(network, Ready)
    ways = {
        "harmonic": (exchanged(network, to_harmonic), last),
        "dense": (ready, images),
        "dense_channels_last": (copy.deepcopy(ready).to(memory_format=torch.channels_last), last),
        "expanded": (network, images),
        "e2cnn": (PlainCNN(network, SIZE), images),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, (model, given) in ways.items():
            times[name].append(seconds(model, given, labels))
    best = {name: min(some) for name, some in times.items()}
    found: dict[str, Any] = {f"{name}_s": round(value, 3) for name, value in best.items()}
    limit = min(best["dense"], best["dense_channels_last"])
    against = {"dense_limit": limit, "expanded": best["expanded"], "e2cnn": best["e2cnn"]}
    return {f"{name}_to_harmonic": round(value / best["harmonic"], 2) for name, value in against.items()} | found


def main() -> None:
    out, *groups = sys.argv[1:]
    machine = f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    found: dict[str, Any] = {"machine": machine, "unit": "seconds of forward and backward; ratios of the fastest"}
    for group in track(groups or GROUPS, "groups"):
        found[group] = measured(group)
        print(group, found[group], flush=True)
        Path(out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
