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

from galaxyhpc.benchmark.timing import TimingBudget, summarize_times
from galaxyhpc.config.schema import AugmentConfig
from galaxyhpc.data.augment import draw_epoch_maps, resample
from galaxyhpc.data.loader import DeviceDataset

NUM_GALAXIES = 256

JsonDict = dict[str, Any]


def measure_pipeline(image_size: int, batch_size: int, device: str, budget: TimingBudget) -> JsonDict:
    """Time batches of pictures of noise, whose bytes lie where the trainer's do."""
    pixels = torch.randint(256, (NUM_GALAXIES, 3, image_size, image_size), dtype=torch.uint8)
    pictures = DeviceDataset(
        pixels.to(device), torch.zeros(NUM_GALAXIES, dtype=torch.int64, device=device), torch.device(device)
    )
    ways: dict[str, Callable[[Tensor], object]] = {"ours": lambda rows: _augment_batch(pictures, rows)}
    found: JsonDict = {"size": image_size, "batch": batch_size, "ratios": {}, "ours": {}, "torchvision": {}}
    try:
        chain = _make_torchvision_transform()
    except (ImportError, RuntimeError, OSError) as error:
        first = (str(error).splitlines() or [""])[0]
        found["torchvision"] = {"failed": f"torchvision cannot be imported: {first[:200]}"}
    else:
        ways["torchvision"] = lambda rows: torch.stack([chain(pixels[row].permute(1, 2, 0).numpy()) for row in rows])
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(budget.num_rounds):
        rows = (torch.arange(batch_size) * 7 + turn) % NUM_GALAXIES
        for name, way in ways.items():
            times[name].append(_time_batches(way, rows, device, budget.round_seconds))
    for name, some in times.items():
        found[name] = summarize_times(some, batch_size)
    if "torchvision" in times:
        found["ratios"]["torchvision_to_ours"] = found["torchvision"]["seconds"] / found["ours"]["seconds"]
    return found


def compute_step_fractions(data: JsonDict, networks: dict[str, JsonDict]) -> dict[str, float]:
    """Return the data's time by that of a training step of each network and its optimizer, at the network's batch."""
    per_image = data["ours"]["seconds"] / data["batch"]
    ours = {name: found["ways"].get("ours", {}) for name, found in networks.items()}
    steps = {name: of["training"]["seconds"] + of["optimizer_seconds"] for name, of in ours.items() if "training" in of}
    return {name: per_image * networks[name]["batch"] / seconds for name, seconds in steps.items()}


def _augment_batch(dataset: DeviceDataset, indices: Tensor) -> Tensor:
    maps = draw_epoch_maps(NUM_GALAXIES, 0, 0, AugmentConfig(), dataset.device)
    images, _ = dataset.get_uint8_batch(indices)
    return resample(images, maps[indices.to(dataset.device)])


def _make_torchvision_transform() -> Callable[[Any], Tensor]:
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


def _time_batches(
    implementation: Callable[[Tensor], object], indices: Tensor, device: str, round_seconds: float
) -> float:
    """Return the mean s of a batch over a turn, after one batch that is not counted."""
    implementation(indices)
    _synchronize(device)
    begun, count = time.perf_counter(), 0
    while count == 0 or (time.perf_counter() - begun < round_seconds and count < 100):
        implementation(indices)
        count += 1
    _synchronize(device)
    return (time.perf_counter() - begun) / count


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
