"""The data pipeline, from bytes to augmented images on the device, compared with torchvision's, one image at a time.

torchvision's is the common one: ToTensor, RandomAffine with bilinear interpolation, two flips. It runs on the CPU with
the same threads for every device; loading its images is not timed.
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
    """Time batches of noise images, stored where the trainer stores images."""
    pixels = torch.randint(256, (NUM_GALAXIES, 3, image_size, image_size), dtype=torch.uint8)
    labels = torch.zeros(NUM_GALAXIES, dtype=torch.int64, device=device)
    dataset = DeviceDataset(pixels.to(device), labels, torch.device(device))
    implementations: dict[str, Callable[[Tensor], object]] = {"ours": lambda indices: _augment_batch(dataset, indices)}
    results: JsonDict = {"size": image_size, "batch": batch_size, "ratios": {}, "ours": {}, "torchvision": {}}
    try:
        transform = _make_torchvision_transform()
    except (ImportError, RuntimeError, OSError) as error:
        message = (str(error).splitlines() or [""])[0]
        results["torchvision"] = {"failed": f"torchvision cannot be imported: {message[:200]}"}
    else:
        implementations["torchvision"] = lambda indices: torch.stack(
            [transform(pixels[index].permute(1, 2, 0).numpy()) for index in indices]
        )
    times: dict[str, list[float]] = {name: [] for name in implementations}
    for round_number in range(budget.num_rounds):
        indices = (torch.arange(batch_size) * 7 + round_number) % NUM_GALAXIES
        for name, implementation in implementations.items():
            times[name].append(_time_batches(implementation, indices, device, budget.round_seconds))
    for name, round_times in times.items():
        results[name] = summarize_times(round_times, batch_size)
    if "torchvision" in times:
        results["ratios"]["torchvision_to_ours"] = results["torchvision"]["seconds"] / results["ours"]["seconds"]
    return results


def compute_step_fractions(data: JsonDict, networks: dict[str, JsonDict]) -> dict[str, float]:
    """Return the ratio of the data's time to that of a training step with the optimizer, for each network's batch."""
    seconds_per_image = data["ours"]["seconds"] / data["batch"]
    fractions = {}
    for name, network in networks.items():
        ours = network["implementations"].get("ours", {})
        if "training" in ours:
            step_seconds = ours["training"]["seconds"] + ours["optimizer_seconds"]
            fractions[name] = seconds_per_image * network["batch"] / step_seconds
    return fractions


def _augment_batch(dataset: DeviceDataset, indices: Tensor) -> Tensor:
    maps = draw_epoch_maps(NUM_GALAXIES, 0, 0, AugmentConfig(), dataset.device)
    images, _ = dataset.get_uint8_batch(indices)
    return resample(images, maps[indices.to(dataset.device)])


def _make_torchvision_transform() -> Callable[[Any], Tensor]:
    """Return torchvision's transforms with the default settings of augmentation."""
    from torchvision import transforms

    config = AugmentConfig()
    bilinear = transforms.InterpolationMode.BILINEAR
    shift = (config.shift, config.shift)
    transform: Callable[[Any], Tensor] = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.RandomAffine(config.rotation, translate=shift, interpolation=bilinear),
            transforms.RandomHorizontalFlip(config.flip),
            transforms.RandomVerticalFlip(config.flip),
        ]
    )
    return transform


def _time_batches(
    implementation: Callable[[Tensor], object], indices: Tensor, device: str, round_seconds: float
) -> float:
    """Return the mean seconds of a batch over a round, after one untimed batch."""
    implementation(indices)
    _synchronize(device)
    start, count = time.perf_counter(), 0
    while count == 0 or (time.perf_counter() - start < round_seconds and count < 100):
        implementation(indices)
        count += 1
    _synchronize(device)
    return (time.perf_counter() - start) / count


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
