"""The data: galaxies' bytes to augmented images on the device, beside torchvision's chain of one image at a time.

The chain is what everybody writes: ToTensor, RandomAffine with bilinear interpolation, two flips; it runs on the CPU
with the same threads whatever the device, and its images are given to it free of charge.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from galaxyhpc.benchmark.timing import Effort, summary
from galaxyhpc.config.schema import AugmentConfig
from galaxyhpc.data.augment import maps_of_epoch, resample
from galaxyhpc.data.loader import Pictures

GALAXIES = 256

Found = dict[str, Any]


def measured(size: int, batch: int, device: str, effort: Effort) -> Found:
    """Time batches of pictures of noise, whose bytes lie where the trainer's do."""
    pixels = torch.randint(256, (GALAXIES, 3, size, size), dtype=torch.uint8)
    pictures = Pictures(
        pixels.to(device), torch.zeros(GALAXIES, dtype=torch.int64, device=device), torch.device(device)
    )
    ways: dict[str, Callable[[Tensor], object]] = {"ours": lambda rows: _ours(pictures, rows)}
    found: Found = {"size": size, "batch": batch, "ratios": {}, "ours": {}, "torchvision": {}}
    try:
        chain = _chain()
    except (ImportError, RuntimeError, OSError) as error:
        first = (str(error).splitlines() or [""])[0]
        found["torchvision"] = {"failed": f"torchvision cannot be imported: {first[:200]}"}
    else:
        ways["torchvision"] = lambda rows: torch.stack([chain(pixels[row].permute(1, 2, 0).numpy()) for row in rows])
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(effort.turns):
        rows = (torch.arange(batch) * 7 + turn) % GALAXIES
        for name, way in ways.items():
            times[name].append(_turn(way, rows, device, effort.seconds))
    for name, some in times.items():
        found[name] = summary(some, batch)
    if "torchvision" in times:
        found["ratios"]["torchvision_to_ours"] = found["torchvision"]["seconds"] / found["ours"]["seconds"]
    return found


def shares(data: Found, networks: dict[str, Found]) -> dict[str, float]:
    """Return the data's time by that of a training step of each network and its optimizer, at the network's batch."""
    per_image = data["ours"]["seconds"] / data["batch"]
    ours = {name: found["ways"].get("ours", {}) for name, found in networks.items()}
    steps = {name: of["training"]["seconds"] + of["optimizer_seconds"] for name, of in ours.items() if "training" in of}
    return {name: per_image * networks[name]["batch"] / seconds for name, seconds in steps.items()}


def _ours(pictures: Pictures, rows: Tensor) -> Tensor:
    maps = maps_of_epoch(GALAXIES, 0, 0, AugmentConfig(), pictures.device)
    images, _ = pictures.take_bytes(rows)
    return resample(images, maps[rows.to(pictures.device)])


def _chain() -> Callable[[Any], Tensor]:
    """Return torchvision's transforms with the study's settings, which are ours."""
    from torchvision import transforms

    config = AugmentConfig()
    bilinear = transforms.InterpolationMode.BILINEAR
    shift = (config.shift, config.shift)
    chain: Callable[[Any], Tensor] = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.RandomAffine(config.rotation, translate=shift, interpolation=bilinear),
            transforms.RandomHorizontalFlip(config.flip),
            transforms.RandomVerticalFlip(config.flip),
        ]
    )
    return chain


def _turn(way: Callable[[Tensor], object], rows: Tensor, device: str, seconds: float) -> float:
    """Return the mean s of a batch over a turn, after one batch that is not counted."""
    way(rows)
    _wait(device)
    begun, count = time.perf_counter(), 0
    while count == 0 or (time.perf_counter() - begun < seconds and count < 100):
        way(rows)
        count += 1
    _wait(device)
    return (time.perf_counter() - begun) / count


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
