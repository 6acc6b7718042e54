"""Times of what other people bring: e2cnn networks of their own that are accelerated, and a survey to classify."""

from __future__ import annotations

import copy
import os
import time

import numpy as np
import torch
from campaign import Campaign
from e2cnn_networks import list_example_networks, load_network
from networks import autocast, run_step, set_torch_defaults
from numpy.typing import NDArray
from results import JsonDict
from torch import nn

from galaxyhpc.benchmark.implementations import Case
from galaxyhpc.benchmark.timing import TimingBudget
from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.steerable import accelerate

ACCELERATED_BATCH_SIZE = 64
RESIZED_SIZES = (65, 129, 224, 255)  # px
SURVEY_FORMAT = "parquet of JPEG"
SURVEY_NETWORKS = ({"group": "D4"}, {"group": "D16"}, {"architecture": "cnn"})


def time_accelerated_networks(campaign: Campaign) -> None:
    """Time training steps and inference of networks as in e2cnn's examples, in e2cnn and accelerated."""
    for name in list_example_networks(campaign):
        if campaign.seconds_left < 10:
            return
        network = load_network(campaign, name)
        start = time.time()
        fast = accelerate(copy.deepcopy(network))
        seconds = round(time.time() - start, 1)
        for kernels, model in (("e2cnn", network), ("accelerated", fast)):
            for precision in ("float32", "bfloat16")[: 1 + campaign.is_cuda]:
                values = {"accelerated_network": name, "kernels": kernels, "precision": precision}
                try:
                    result = _time_example(campaign, model, precision)
                    campaign.record(**values, accelerate_seconds=seconds, **result)
                except Exception as error:
                    campaign.record_failure(error, **values)


def _time_example(campaign: Campaign, network: nn.Module, precision: str) -> JsonDict:
    """Return the milliseconds of a training step and of inference, with torch's own flags."""
    set_torch_defaults()
    batch_size = 2 if campaign.is_tiny else ACCELERATED_BATCH_SIZE
    images = torch.rand(batch_size, *network.image_shape, device=campaign.device)
    labels = torch.randint(10, (batch_size,), device=campaign.device)
    network.train()

    def infer() -> None:
        with torch.no_grad(), autocast(campaign.device, precision):
            network(images)

    campaign.free_memory()
    training = campaign.measure(lambda: run_step(network, images, labels, precision), max_calls=5)
    network.eval()
    return {"batch": batch_size, **training, "inference_ms": campaign.measure(infer, max_calls=5)["ms"]}


def compare_resizing(images: NDArray[np.uint8], device: torch.device) -> JsonDict:
    """Return by how many grey levels images (n, S, S, 3) that this device resizes differ from those of a CPU."""
    from galaxyhpc.data.sources.conversion import resample, resize

    pixels, result = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device), {}
    for size in RESIZED_SIZES:
        differences = (resample(pixels.float(), size).cpu() - torch.from_numpy(resize(images, size))).abs()
        result[f"to_{size}"] = {"max": differences.max().item(), "share": (differences > 0).float().mean().item()}
    return {"grey_levels": result}


def time_survey(campaign: Campaign) -> None:
    """Time predictions from parquet files: decoded by all cores, classified, and both."""
    from galaxyhpc.benchmark.pipelines import prediction  # with its packages, which other steps do without

    campaign.record(**compare_resizing(prediction.render_galaxies(prediction.SIDE), campaign.device))
    device = campaign.device.type
    num_threads = 1 if campaign.is_tiny else len(os.sched_getaffinity(0))
    cases = [
        Case(ModelConfig.model_validate(settings), campaign.scale.image_size, 1, device, False, num_threads)
        for settings in ([{"group": "C4", "scale": 0.03}] if campaign.is_tiny else SURVEY_NETWORKS)
    ]
    budget = TimingBudget(1, campaign.scale.round_seconds, time.monotonic() + campaign.seconds_left - 8)
    reported: list[JsonDict] = []

    def report(results: list[JsonDict]) -> None:
        for result in results[len(reported) :]:
            reported.append(result)
            campaign.record(**result)

    prediction.WRITERS = {SURVEY_FORMAT: prediction.WRITERS[SURVEY_FORMAT]}
    prediction.measure_predictions(cases, budget, report)
