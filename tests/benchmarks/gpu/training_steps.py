"""The trainer's own steps on noise images: from their graph and without it, and what they wait for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from campaign import Campaign
from networks import NUM_CLASSES, make_model
from results import JsonDict
from torch import Tensor, nn

from galaxyhpc.benchmark.device_timer import profile_call
from galaxyhpc.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from galaxyhpc.data.loader import DeviceDataset
from galaxyhpc.runtime.distributed import Process
from galaxyhpc.runtime.rank import RankInfo
from galaxyhpc.steerable import batch_norm
from galaxyhpc.training.cuda_graph import NUM_EAGER_STEPS, StepGraph, prepare_capture
from galaxyhpc.training.determinism import make_deterministic
from galaxyhpc.training.ema import make_ema
from galaxyhpc.training.optimizer import make_optimizer
from galaxyhpc.training.state import Training
from galaxyhpc.training.step import launch_step

NUM_STEPS = 2 * NUM_EAGER_STEPS  # whose bits are compared: as many from the graph as without it
NUM_TIMED_STEPS = 10  # launched one after the other
NUM_BATCHES = 2
SMALL_NETWORKS = ("C1", "C4", "D4", "cnn")  # whose kernels may take less time than their launches


def prepare_device(campaign: Campaign) -> Any:
    """Set the device up as a training does; return how a step can be captured, None on a CPU."""
    make_deterministic()
    return prepare_capture(Process(RankInfo(), campaign.device))


def make_training(
    campaign: Campaign,
    network: nn.Module,
    settings: dict[str, Any],
    shape: tuple[int, int],
    graph: StepGraph,
    **train: Any,
) -> Training:
    """Return a training of a network on noise, with the same images each time; `shape` is batch size and px."""
    batch_size, image_size = shape
    count = NUM_BATCHES * batch_size
    train = {"batch_size": batch_size, "precision": campaign.precision, "clip_norm": 1.0, "ema_decay": 0.99} | train
    config = RunConfig(
        model=ModelConfig.model_validate(settings),
        data=DataConfig(image_size=image_size),
        train=TrainConfig.model_validate(train),
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, image_size, image_size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator).to(campaign.device)
    dataset = DeviceDataset(images.to(campaign.device), labels, campaign.device)
    optimizer = make_optimizer(network, config.train, on_device=campaign.is_cuda)
    process, indices = Process(RankInfo(), campaign.device), {"train": torch.arange(count)}
    ema = make_ema(network, config.train.ema_decay)
    return Training(config, process, network, network, optimizer, dataset, indices, None, ema, graph)


def take_steps(training: Training, num_steps: int) -> None:
    """Take steps as the trainer does: the loss of a step is read when the next one is launched."""
    batches = training.indices["train"].split(training.batch_size)
    for _ in range(num_steps):
        previous = training.pending
        training.pending = launch_step(training, batches[training.progress.step % NUM_BATCHES])
        training.progress.add_step(training.batch_size, [])
        if previous is not None:
            previous.read()


def flatten_state(training: Training) -> Tensor:
    """Return weights, statistics, their averages and the optimizer's state."""
    assert training.ema is not None
    tensors = [*training.network.state_dict().values(), *training.ema.module.state_dict().values()]
    tensors += [value for state in training.optimizer.state.values() for value in state.values() if value is not None]
    return torch.cat([value.detach().flatten().double() for value in tensors])


def compare_graphs(campaign: Campaign) -> None:
    """Take the same steps without a graph and with one: whether the bits are the same, what a step waits for, times."""
    capture = prepare_device(campaign)
    norms = patch.object(batch_norm, "_is_fusable", lambda _: False) if campaign.is_tiny else nullcontext()
    try:
        with norms:  # those of a step take Triton's interpreter four seconds
            _compare_networks(campaign, capture)
    finally:
        if campaign.is_cuda:
            torch.cuda.set_stream(torch.cuda.default_stream())  # of later steps in this process


def _compare_networks(campaign: Campaign, capture: Any) -> None:
    for name in ("cnn",) if campaign.is_tiny else SMALL_NETWORKS:
        if campaign.seconds_left < 8:
            return
        settings = ({"architecture": "cnn"} if name == "cnn" else {"group": name}) | {
            "scale": campaign.scale.field_factor
        }
        try:
            shape = (campaign.scale.micro_batch, campaign.scale.image_size)
            _compare_graph(campaign, name, partial(_make, campaign, settings, shape), capture)
        except Exception as error:
            campaign.record_failure(error, network=name)


def _make(campaign: Campaign, settings: dict[str, Any], shape: tuple[int, int], capture: Any) -> Training:
    return make_training(campaign, make_model(campaign, settings, shape[1]), settings, shape, StepGraph(capture))


def _compare_graph(campaign: Campaign, name: str, make: partial[Training], capture: Any) -> None:
    states, results = [], []
    for kernels, how in (("eager", None), ("graph", capture)):
        training = make(how)
        take_steps(training, 1 if campaign.is_tiny else NUM_STEPS)
        states.append(flatten_state(training))
        with forbid_waiting(campaign):
            launch_step(training, training.indices["train"][: training.batch_size])
        results.append({"kernels": kernels, **_measure_steps(campaign, training)})
    for result in results:
        campaign.record(network=name, batch=training.batch_size, **result)
    has_graph = training.graph.replay is not None
    campaign.record(network=name, has_graph=has_graph, has_same_bits=torch.equal(*states))


def _measure_steps(campaign: Campaign, training: Training) -> JsonDict:
    """Return the time of a step among others, ms, and the peak of memory."""
    campaign.free_memory()
    num_steps = 1 if campaign.is_tiny else NUM_TIMED_STEPS
    times = campaign.measure(partial(take_steps, training, num_steps), max_calls=5, num_warmup_calls=1)
    return {key: value / num_steps if key.endswith("ms") else value for key, value in times.items()}


def profile_trainer(campaign: Campaign) -> None:
    """Profile a step of a small network as the trainer takes it, with all that stands beside the network."""
    capture = prepare_device(campaign)
    settings = {"group": "C4" if campaign.is_tiny else "C1", "scale": campaign.scale.field_factor}
    try:
        training = _make(campaign, settings, (campaign.scale.micro_batch, campaign.scale.image_size), capture)
        take_steps(training, 1 if campaign.is_tiny else NUM_STEPS)
        step = partial(take_steps, training, 1)
        campaign.record(trainer=settings["group"], batch=training.batch_size, **profile_call(step, campaign.device))
    finally:
        if campaign.is_cuda:
            torch.cuda.set_stream(torch.cuda.default_stream())


@contextmanager
def forbid_waiting(campaign: Campaign) -> Iterator[None]:
    """Fail where the host would wait for the GPU."""
    if not campaign.is_cuda:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
