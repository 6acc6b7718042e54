"""Checks of training: the same bits twice, the same bits after a resume, two processes like one."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from campaign import Campaign
from networks import (
    flatten_gradients,
    make_harmonic,
    make_images,
    make_model,
    make_network,
    run_step,
    set_backend_flags,
    use_gpu_kernels_on_cpu,
)
from results import JsonDict
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from training_steps import flatten_state, make_training, prepare_device, take_steps

from galaxyhpc.config.schema import (
    DataConfig,
    DemoConfig,
    EvaluateConfig,
    ModelConfig,
    ResourcesConfig,
    RunConfig,
    TrainConfig,
)
from galaxyhpc.runtime.distributed import join_group
from galaxyhpc.steerable.batch_norm import enable_sync_batchnorm
from galaxyhpc.training.cuda_graph import StepGraph

NUM_STEPS = 2  # whose bits are compared
MEMORY_FACTORS = (1.02, 1.1, 1.25)  # of what steps need with all memory: some workspaces of cuDNN find no room
NETWORKS: dict[str, dict[str, Any]] = {  # `harmonic`: with layers that stay in irreps
    "D8 harmonic": {"group": "D8"},
    "C4 dense": {"group": "C4", "scale": 0.5},
    "cnn": {"architecture": "cnn", "scale": 0.5},
    "e2wrn10-2": {"architecture": "e2wrn", "group": "D4", "depth": 10, "widen": 2, "restriction": ["D4", "D1"]},
    "e2resnet18": {"architecture": "e2resnet", "group": "C4", "depth": 18, "base_width": 8},
    "resnet18": {"architecture": "resnet18"},
    "densenet121": {"architecture": "densenet121"},
}
TINY_NETWORKS = {"C4 harmonic": {"group": "C4", "scale": 0.03}, "cnn": {"architecture": "cnn", "scale": 0.03}}


def compare_bits(campaign: Campaign) -> None:
    """Take the trainer's steps twice: whether the bits are the same, and what torch calls not deterministic."""
    set_backend_flags(campaign.precision)
    prepare_device(campaign)
    for name, settings in (TINY_NETWORKS if campaign.is_tiny else NETWORKS).items():
        for has_little_memory in (False, True)[: 1 + campaign.is_cuda]:
            if campaign.seconds_left < 3:
                return
            try:
                result = _compare_trainings(campaign, name, settings, has_little_memory)
                campaign.record(network=name, has_little_memory=has_little_memory, **result)
            except Exception as error:  # torchvision may be missing
                campaign.record_failure(error, network=name, has_little_memory=has_little_memory)


def _compare_trainings(campaign: Campaign, name: str, settings: dict[str, Any], has_little_memory: bool) -> JsonDict:
    """Take steps twice, the second time perhaps with hardly more memory than the first time needed."""
    campaign.free_memory()
    first = _take_steps(campaign, name, settings)
    if has_little_memory:
        second, result = _take_steps_in_little_memory(campaign, name, settings)
        return {"has_same_bits": torch.equal(first, second), **result}
    second = _take_steps(campaign, name, settings)
    return {"has_same_bits": torch.equal(first, second), "warnings": _list_warnings(campaign, name, settings)}


def _take_steps_in_little_memory(
    campaign: Campaign, name: str, settings: dict[str, Any]
) -> tuple[Tensor, dict[str, float]]:
    """Take steps in the least memory of some in which they can be taken; return the state, and what was too little."""
    needed_bytes = torch.cuda.max_memory_allocated()
    for factor in MEMORY_FACTORS:
        campaign.free_memory()
        torch.cuda.reset_accumulated_memory_stats()
        torch.cuda.set_per_process_memory_fraction(
            factor * needed_bytes / torch.cuda.get_device_properties(0).total_memory
        )
        try:
            state = _take_steps(campaign, name, settings)
            return state, {"memory_factor": factor, "failed_allocations": torch.cuda.memory_stats()["num_ooms"]}
        except torch.cuda.OutOfMemoryError:
            continue
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    raise MemoryError(f"{factor} times the memory of the first steps do not suffice")


def _take_steps(campaign: Campaign, name: str, settings: dict[str, Any]) -> Tensor:
    """Return weights, buffers and the optimizer's state after some steps, on the host."""
    shape = (2, 33) if campaign.is_tiny else (16, 65)
    network = make_model(campaign, settings, shape[1])
    if "harmonic" in name:
        make_harmonic(network)
    training = make_training(campaign, network, settings, shape, StepGraph())
    take_steps(training, NUM_STEPS)
    return flatten_state(training).cpu()


def _list_warnings(campaign: Campaign, name: str, settings: dict[str, Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        _take_steps(campaign, name, settings)
        torch.use_deterministic_algorithms(False)
    return sorted({str(warning.message)[:120] for warning in caught if "determinis" in str(warning.message)})


def kill_and_resume(campaign: Campaign) -> None:
    """Train, kill -9, resume: whether the bits are those of the uninterrupted training."""
    from galaxyhpc import verify_resume  # with its packages, which other steps do without

    for group, convolution in (("D8", "harmonic"), ("C4", "dense"))[campaign.is_tiny :]:
        if campaign.seconds_left < 30:
            return
        with tempfile.TemporaryDirectory() as folder:
            start = time.time()
            config = _make_run_config(campaign, group, convolution, folder)
            for result in verify_resume.run_trials(config, Path(folder) / "runs", faults=("KILL",)):
                campaign.record(
                    group=group,
                    convolution=convolution,
                    fault=result.fault,
                    fault_step=result.fault_step,
                    resumed_step=result.resumed_step,
                    has_same_bits=not result.difference,
                    difference=result.difference,
                    seconds=round(time.time() - start, 1),
                )


def _make_run_config(campaign: Campaign, group: str, convolution: str, folder: str) -> RunConfig:
    """Return the settings of a short run, on real galaxies where there are some."""
    sample = campaign.sample
    source: dict[str, Any] = (
        {"source": str(sample.resolve())} if sample else {"demo": DemoConfig(galaxies=200, size=32)}
    )
    return RunConfig(
        model=ModelConfig(group=group, scale=0.03 if campaign.is_tiny else 1.0),
        data=DataConfig(image_size=33 if campaign.is_tiny else 65, cache=folder, **source),
        train=TrainConfig(epochs=2, batch_size=16, precision=campaign.precision),
        evaluate=EvaluateConfig(conditions=("clean",)),
        resources=ResourcesConfig(cpus_per_task=2, gpus_per_node=int(campaign.is_cuda), convolution=convolution),
    )


def compare_two_processes(campaign: Campaign) -> None:
    """Compute gradients in two processes that share the GPU, over gloo as NCCL refuses to; compare with one process."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_run_rank, (campaign, folder), nprocs=2)


def _run_rank(rank: int, campaign: Campaign, folder: str) -> None:
    """Compare by kernels and precision, in one of the two processes."""
    if campaign.is_tiny:
        use_gpu_kernels_on_cpu()
    cases = [("dense", "float32"), ("harmonic", "float32"), ("dense", "bfloat16"), ("harmonic", "bfloat16")]
    with join_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2):
        for kernels, precision in cases[: 4 if campaign.is_cuda else 2]:
            set_backend_flags(precision)
            error = _compare_gradients(rank, campaign, kernels, precision)
            if rank == 0:
                campaign.record(processes=2, backend="gloo", kernels=kernels, precision=precision, gradient_error=error)
        dist.barrier()


def _compare_gradients(rank: int, campaign: Campaign, kernels: str, precision: str) -> float:
    """Return the relative error of the gradients of two processes, each with half of a batch."""
    image_size, batch_size = (33, 4) if campaign.is_tiny else (65, 16)
    network = make_network(campaign, "C4" if campaign.is_tiny else "D4", image_size=image_size)
    make_harmonic(network, lambda _: kernels == "harmonic")
    single = copy.deepcopy(network)
    torch.manual_seed(7)  # the same images in both
    images, labels = make_images(campaign, batch_size, image_size)
    run_step(single, images, labels, precision)
    enable_sync_batchnorm(network)
    model = DistributedDataParallel(network, [campaign.device] if campaign.is_cuda else None, broadcast_buffers=False)
    run_step(model, images[rank::2].contiguous(memory_format=torch.channels_last), labels[rank::2], precision)
    actual, expected = flatten_gradients(network), flatten_gradients(single)
    return float((actual - expected).norm() / expected.norm())
