"""What a training step asks of a GPU, shown on a CPU: no wait, no operation without a deterministic kernel, a replay.

pytest -n0 tests/training/test_step.py
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.device import capture_on_cpu, forbid_host_reads
from helpers.tiers import slow
from torch import Tensor

from galaxyhpc.config.schema import (
    BASELINES,
    DataConfig,
    DemoConfig,
    ModelConfig,
    ResourcesConfig,
    RunConfig,
    TrainConfig,
)
from galaxyhpc.data import augment
from galaxyhpc.data.loader import epoch_batches
from galaxyhpc.runtime.distributed import Process
from galaxyhpc.runtime.rank import RankInfo
from galaxyhpc.storage.run_dir import RunDir
from galaxyhpc.training.cuda_graph import NUM_EAGER_STEPS, StepGraph
from galaxyhpc.training.determinism import warn_of_failed_allocations
from galaxyhpc.training.optimizer import make_optimizer
from galaxyhpc.training.state import Training
from galaxyhpc.training.step import launch_step
from galaxyhpc.training.trainer import set_up

CNN = {"architecture": "cnn", "scale": 0.1}
ARCHITECTURES = {
    "C4": {"group": "C4", "scale": 0.1},
    "D4": {"group": "D4", "scale": 0.05},
    "cnn": CNN,
    "e2wrn": {"architecture": "e2wrn", "group": "D4", "depth": 10, "widen": 1, "restriction": ["D4", "D1"]},
    "e2resnet": {"architecture": "e2resnet", "group": "C4", "depth": 18, "base_width": 4},
    **{name: {"architecture": name} for name in BASELINES},
}
NUM_STEPS = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_training(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Training]:
    """Return a function that sets a training up with all that a GPU would have on its side."""
    monkeypatch.setattr(augment, "_can_use_cpp", lambda images, maps: False)  # torch's operations, as on a GPU

    def make(model: dict[str, object], on_device: bool = True, **changes: object) -> Training:
        micro_batch = changes.pop("micro_batch", None)
        options = {"batch_size": 8, "ema_decay": 0.9, "clip_norm": 1.0, "warmup": 0.5, "epochs": 2, **changes}
        config = RunConfig(
            data=DataConfig(cache=str(cache), image_size=33, demo=DemoConfig(galaxies=100, size=32)),
            model=ModelConfig.model_validate(model),
            train=TrainConfig.model_validate(options),
            resources=ResourcesConfig(convolution="dense", micro_batch=micro_batch),
        )
        training = set_up(RunDir(tmp_path / config.run_id), config, Process(RankInfo(), torch.device("cpu")))
        training.optimizer = make_optimizer(training.model, config.train, on_device)
        return training

    return make


def take_steps(training: Training, num_steps: int = NUM_EAGER_STEPS + NUM_STEPS) -> list[tuple[float, float]]:
    """Take steps through epochs, as the trainer does; return their sums."""
    sums = []
    progress, size = training.progress, training.batch_size
    while len(sums) < num_steps:
        for batch in epoch_batches(training.indices["train"], training.config.seed, progress.epoch, size):
            sums.append(launch_step(training, batch).read())
            progress.add_step(len(batch), [])
        progress.begin_next_epoch()
    return sums


def copy_state(training: Training) -> list[Tensor]:
    tensors = [*training.network.state_dict().values(), *training.ema.module.state_dict().values()]
    tensors += [value for state in training.optimizer.state.values() for value in state.values()]
    return copy.deepcopy(tensors)


def has_same_bits(values: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(value, other) for value, other in zip(values, others, strict=True))


# From the documentation of torch.use_deterministic_algorithms (torch 2.13): not deterministic on CUDA, or only if asked
# for. max_pool2d_with_indices_backward is not one of them: its kernels add in a fixed order, in both memory formats.
NOT_DETERMINISTIC = {
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward", "fractional_max_pool2d_backward"),
    *("fractional_max_pool3d_backward", "max_unpool2d", "max_unpool3d", "upsample_linear1d_backward"),
    *("upsample_bilinear2d_backward", "upsample_bicubic2d_backward", "upsample_trilinear3d_backward"),
    *("_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward", "reflection_pad1d_backward"),
    *("reflection_pad2d_backward", "reflection_pad3d_backward", "nll_loss2d_forward", "nll_loss2d_backward"),
    *("_ctc_loss_backward", "_embedding_bag_dense_backward", "put", "put_", "histc", "bincount", "median", "kthvalue"),
    *("grid_sampler_2d_backward", "grid_sampler_3d_backward", "cumsum", "cumsum_", "scatter_reduce", "scatter_reduce_"),
    *("index_add", "index_add_", "index_put", "index_put_", "_index_put_impl_", "scatter_add", "scatter_add_"),
    *("index_copy", "index_copy_", "replication_pad1d_backward", "replication_pad2d_backward"),
    *("replication_pad3d_backward", "max_pool3d_with_indices_backward", "embedding_dense_backward"),
    *("scatter", "scatter_"),
}


@pytest.mark.parametrize("name", [slow(name) if name in BASELINES[1:] else name for name in ARCHITECTURES])
def test_a_step_reads_nothing_from_the_device_and_has_only_deterministic_operations(
    name: str, make_training: Callable[..., Training]
) -> None:
    if name in BASELINES:
        pytest.importorskip("torchvision")
    training = make_training(ARCHITECTURES[name], label_smoothing=0.1, class_weights="balanced", micro_batch=4)
    batch = training.indices["train"][:8]
    launch_step(training, batch)  # makes the optimizer's state
    with forbid_host_reads() as operations:
        launch_step(training, batch)
    assert {"convolution_backward", "_fused_adamw_", "grid_sampler_2d", "lerp_"} <= operations.names
    assert not operations.names & NOT_DETERMINISTIC


@pytest.mark.parametrize(
    "read",
    [lambda x: x.sum().item(), lambda x: float(x[0]), lambda x: x[x > 0], lambda x: x.tolist(), lambda x: x.cpu()],
)
def test_a_step_that_reads_from_the_device_would_be_noticed(read: Callable[[Tensor], object]) -> None:
    with forbid_host_reads(), pytest.raises(AssertionError, match="would wait for the device"):
        read(torch.ones(3))


OPTIONS = {
    "adamw": {},
    "sgd": {"optimizer": "sgd", "momentum": 0.9},
    "bfloat16 in micro-batches": {"precision": "bfloat16", "micro_batch": 3, "class_weights": "balanced"},
}


@pytest.mark.parametrize("model", [ARCHITECTURES["C4"], ARCHITECTURES["e2wrn"]], ids=["C4", "with dropout"])
@pytest.mark.parametrize("name", OPTIONS)
def test_replayed_steps_have_the_bits_of_eager_ones(
    name: str, model: dict[str, object], make_training: Callable[..., Training]
) -> None:
    eager, replayed = (make_training(model, **OPTIONS[name]) for _ in range(2))
    replayed.graph = StepGraph(capture_on_cpu)
    assert take_steps(replayed) == take_steps(eager)
    assert replayed.graph.replay is not None and replayed.graph.num_eager_steps == NUM_EAGER_STEPS
    assert has_same_bits(copy_state(replayed), copy_state(eager))


def test_a_value_from_the_host_would_be_noticed_in_replayed_steps(make_training: Callable[..., Training]) -> None:
    """With learning rates on the host, a replay has those of the capture."""
    eager, replayed = (make_training(CNN, on_device=False, optimizer="sgd") for _ in range(2))
    replayed.graph = StepGraph(capture_on_cpu)
    take_steps(replayed), take_steps(eager)
    assert not has_same_bits(copy_state(replayed), copy_state(eager))


def test_a_capture_runs_nothing_and_changes_nothing(make_training: Callable[..., Training]) -> None:
    training = make_training(CNN)
    training.graph = StepGraph(capture_on_cpu)
    take_steps(training, NUM_EAGER_STEPS)
    states = []

    def capture(step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        states.append((copy_state(training), torch.get_rng_state()))
        captured = capture_on_cpu(step)
        states.append((copy_state(training), torch.get_rng_state()))
        return captured

    training.graph = StepGraph(capture, num_eager_steps=NUM_EAGER_STEPS)
    take_steps(training, 1)
    (before, random_before), (after, random_after) = states
    assert has_same_bits(before, after) and torch.equal(random_before, random_after)


def test_a_step_that_cannot_be_captured_runs_eagerly_and_says_so_once(
    make_training: Callable[..., Training], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        try:
            capture_on_cpu(step)
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    eager, failing = (make_training(CNN) for _ in range(2))
    failing.graph = StepGraph(fail)
    with caplog.at_level(logging.WARNING):
        assert take_steps(failing) == take_steps(eager)
    assert has_same_bits(copy_state(failing), copy_state(eager))
    (message,) = [record.getMessage() for record in caplog.records if "CUDA graph" in record.getMessage()]
    cause = "RuntimeError: operation not permitted when stream is capturing"
    assert message == f"training steps run without a CUDA graph, with the same result: {cause}"


def test_an_allocation_of_gpu_memory_that_failed_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counts = {"num_ooms": 2}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: counts)
    monkeypatch.setattr(torch.cuda, "reset_accumulated_memory_stats", lambda device: counts.clear())
    for _ in range(2):
        warn_of_failed_allocations(torch.device("cuda"))
    (message,) = caplog.messages
    assert message.startswith("2 allocations of GPU memory failed") and "resources.micro_batch" in message
