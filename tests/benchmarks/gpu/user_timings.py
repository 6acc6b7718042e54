"""Times of what other people bring: e2cnn networks of their own that are accelerated, and a survey to classify."""

from __future__ import annotations

import copy
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from campaign import Campaign
from networks import autocast, set_backend_flags
from results import JsonDict
from torch import nn

from galaxyhpc.benchmark.implementations import Case
from galaxyhpc.benchmark.timing import TimingBudget
from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.steerable import accelerate
from galaxyhpc.steerable.acceleration.convolution import FastConv

ACCELERATION_DIR = Path(__file__).parents[1]
ACCELERATED_NETWORKS = ("Wide-ResNet C8", "tutorial C8", "Wide-ResNet D8", "tutorial D16, half as wide")
TINY_NETWORKS = ("Wide-ResNet D8, narrow",)
ACCELERATED_BATCH_SIZE = 64
SURVEY_FORMAT = "parquet of JPEG"
SURVEY_NETWORKS = ({"group": "D4"}, {"group": "D16"}, {"architecture": "cnn"})


def time_accelerated_networks(campaign: Campaign) -> None:
    """Time training steps and inference of networks as in e2cnn's examples, in e2cnn and accelerated."""
    sys.path.append(str(ACCELERATION_DIR))
    from acceleration import NETWORKS

    for name in TINY_NETWORKS if campaign.is_tiny else ACCELERATED_NETWORKS:
        if campaign.seconds_left < 10:
            return
        start = time.time()
        torch.manual_seed(0)
        network = NETWORKS[name][0]().train()
        fast = accelerate(copy.deepcopy(network))
        build_seconds = round(time.time() - start, 1)
        for kernels, model in (("e2cnn", network), ("accelerated", fast), ("harmonic", fast)):
            for layer in model.modules():
                if isinstance(layer, FastConv):
                    layer.harmonic = kernels == "harmonic"
            for precision in _list_precisions(campaign, kernels):
                values = {"accelerated_network": name, "kernels": kernels, "precision": precision}
                try:
                    result = _time_example(campaign, model, precision)
                    campaign.record(**values, build_seconds=build_seconds, **result)
                except Exception as error:
                    campaign.record_failure(error, **values)


def _list_precisions(campaign: Campaign, kernels: str) -> tuple[str, ...]:
    """Return what is timed: in float32, harmonic kernels take long to compile."""
    if not campaign.is_cuda:
        return ("float32",)
    return ("bfloat16",) if kernels == "harmonic" else ("float32", "bfloat16")


def _time_example(campaign: Campaign, network: nn.Module, precision: str) -> JsonDict:
    """Return the milliseconds of a training step and of inference, with torch's own flags."""
    set_backend_flags(precision, is_deterministic=False)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True
    batch_size = 2 if campaign.is_tiny else ACCELERATED_BATCH_SIZE
    images = torch.rand(batch_size, *network.image_shape, device=campaign.device)
    labels = torch.randint(10, (batch_size,), device=campaign.device)
    network = network.to(campaign.device).train()

    def train() -> None:
        network.zero_grad(set_to_none=True)
        with autocast(campaign.device, precision):
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()

    def infer() -> None:
        with torch.no_grad(), autocast(campaign.device, precision):
            network(images)

    campaign.free_memory()
    training = campaign.measure(train, max_calls=5)
    network.eval()
    return {"batch": batch_size, **training, "inference_ms": campaign.measure(infer, max_calls=5)["ms"]}


def time_survey(campaign: Campaign) -> None:
    """Time predictions from parquet files: decoded by all cores, classified, and both."""
    from galaxyhpc.benchmark.pipelines import prediction  # with its packages, which other steps do without

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
