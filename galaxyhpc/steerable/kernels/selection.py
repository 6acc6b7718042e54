"""Kernel choice: a layer is harmonic where it is faster so, by `cpu_timing` or, on a GPU, `gpu_roofline`.

On a GPU a block is chosen with its batch norm, ReLU and pool, and with the changes of layout that the choice brings;
then the whole network is tried.

On a CPU the rule "a layer that sees the image is dense, every other one harmonic" would need no rates. It is not used:
layers of few fields are often faster dense. Seconds of a network's layers by the rule, relative to the choice here,
lowest and highest of nine groups (C1 to D16) and 33, 65 and 129 px (tests/benchmarks/selection_rule.json; older
than the kernels and rates of today):

                       training                            inference
                       equal fields   equal parameters     equal fields   equal parameters
    steerable_cnn      0.98 to 1.00   0.89 to 1.99         0.98 to 1.08   0.82 to 3.33
    e2wrn10-4          0.93 to 1.54   0.89 to 4.14         0.88 to 1.40   1.03 to 5.20
    e2resnet18         1.00 to 1.10   0.63 to 2.54         0.99 to 1.12   0.87 to 4.67
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from galaxyhpc.runtime.child_python import die_with_parent
from galaxyhpc.steerable.blocks import BlockSequence, can_stay_in_irreps, has_block_kernels
from galaxyhpc.steerable.kernels import cpu_timing, gpu_roofline, operator
from galaxyhpc.steerable.layers import SteerableConv

MAX_CPU_TIME_RATIO = 0.97  # harmonic to dense: a layer that is about as fast stays dense
MAX_ERRORS = {2: 0.45, 4: 0.05}  # bytes of a number -> of gradients or logits, relative to the dense ones
NUM_TRIAL_STEPS = 3  # the first compiles kernels
MAX_TRIAL_IMAGES = 32  # without gradients

log = logging.getLogger(__name__)

LayerKernel = bool | Literal["fused"]  # whether it is harmonic, or that in one kernel where that is possible
KernelChoice = Mapping[str, LayerKernel]  # by layer


class BatchShape(NamedTuple):
    """The batch that a network computes at a time, (batch_size, 3, size, size), and their number in a training step."""

    batch_size: int
    image_size: int  # px
    num_micro_batches: int = 1


class Trial(NamedTuple):
    """A training step, or an evaluation of a batch, by a choice of kernels, beside one that is all dense."""

    error: float  # of the gradients of all weights, or of the logits, relative to the dense ones
    dense_seconds: float
    seconds: float


def get_steerable_layers(network: nn.Module) -> dict[str, SteerableConv]:
    """Return a network's steerable convolutions by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, SteerableConv)}


def choose_kernels(
    network: nn.Module, batch_shape: BatchShape, device: torch.device, dtype: torch.dtype, is_training: bool
) -> KernelChoice:
    """Choose for batches of this shape, with autocast to `dtype`, in training or without gradients."""
    layers = get_steerable_layers(network)
    if not layers or not operator.is_available(device.type, dtype):
        return dict.fromkeys(layers, False)
    if device.type == "cuda":
        choice = choose_by_ceilings(network, batch_shape, device, dtype, is_training)
        return validate_on_device(network, choice, batch_shape, device, dtype, is_training)
    rates = cpu_timing.get_machine_rates(device, dtype, torch.get_num_threads())
    layer_inputs = trace_layer_inputs(network, batch_shape)
    return {name: is_faster_on_cpu(layer, rates, is_training) for name, layer in layer_inputs.items()}


def is_faster_on_cpu(layer_input: cpu_timing.LayerInput, rates: cpu_timing.Rates, is_training: bool) -> bool:
    """Whether a layer is clearly faster without its dense filter."""
    harmonic = cpu_timing.estimate_seconds(layer_input, rates, "harmonic", is_training)
    return harmonic < MAX_CPU_TIME_RATIO * cpu_timing.estimate_seconds(layer_input, rates, "dense", is_training)


def choose_by_ceilings(
    network: nn.Module, batch_shape: BatchShape, device: torch.device, dtype: torch.dtype, is_training: bool
) -> KernelChoice:
    """Choose by the estimates for a GPU alone."""
    model = gpu_roofline.CostModel(gpu_roofline.get_ceilings(device, dtype), dtype, is_training)
    choice = dict.fromkeys(get_steerable_layers(network), False)
    for blocks in trace_block_chains(network, batch_shape, dtype, is_training):
        choice |= zip(blocks, model.choose(list(blocks.values())), strict=True)
    return choice


def estimate_seconds(
    network: nn.Module,
    choice: KernelChoice,
    batch_shape: BatchShape,
    device: torch.device,
    dtype: torch.dtype,
    is_training: bool,
) -> float:
    """Estimate the time that a batch takes in the blocks of a network on a GPU by a choice of kernels, s."""
    model = gpu_roofline.CostModel(gpu_roofline.get_ceilings(device, dtype), dtype, is_training)
    chains = trace_block_chains(network, batch_shape, dtype, is_training)
    return sum(
        model.estimate_chain(list(blocks.values()), [bool(choice[name]) for name in blocks]) for blocks in chains
    )


def trace_block_chains(
    network: nn.Module, batch_shape: BatchShape, dtype: torch.dtype, is_training: bool
) -> list[dict[str, gpu_roofline.Block]]:
    """Return the blocks of a network, by their convolutions, in chains that may stay in irreps; others alone."""
    layer_inputs, layers = trace_layer_inputs(network, batch_shape), get_steerable_layers(network)
    names = {layer: name for name, layer in layers.items()}
    has_kernels, chains = has_block_kernels(dtype, is_training), []
    for sequence in (module for module in network.modules() if isinstance(module, BlockSequence)):
        blocks = {}
        for convolution, _, _, *pools in (list(block.children()) for block in sequence.children()):
            fits = has_kernels and can_stay_in_irreps(convolution)
            if isinstance(convolution, SteerableConv):
                name = names.pop(convolution)
                blocks[name] = gpu_roofline.Block(layer_inputs[name], True, bool(pools), fits)
        chains.append(blocks)
    return chains + [{name: gpu_roofline.Block(layer_inputs[name])} for name in names.values()]


def validate_on_device(
    network: nn.Module,
    choice: KernelChoice,
    batch_shape: BatchShape,
    device: torch.device,
    dtype: torch.dtype,
    is_training: bool = True,
) -> KernelChoice:
    """Return the choice if the network is faster by it than all dense and agrees with that; else all dense.

    The work of a GPU, its driver and its kernel compiler cannot be tested elsewhere. The trial is a process of its own:
    after an illegal access to memory a GPU is lost to the process that made it.
    """
    dense = dict.fromkeys(choice, False)
    if not any(choice.values()):
        return dense
    twin = copy.deepcopy(network).cpu()  # a trial that ends early would take shared memory of the GPU along
    backends = torch.backends
    settings = (os.getpid(), backends.cuda.matmul.allow_tf32, backends.cudnn.deterministic, torch.get_num_threads())
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), _start_trial, settings) as child:
            trial = child.submit(run_trial, twin, choice, batch_shape, device, dtype, is_training).result()
    except Exception as error:  # from a compiler, a driver, lack of memory, or the end of the process: dense remains
        log.warning("all layers are dense: a trial of harmonic ones failed: %s", str(error).split("\n")[0])
        return dense
    return choice if is_better(trial, dtype) else dense


def is_better(trial: Trial, dtype: torch.dtype) -> bool:
    """Whether the choice is faster than all dense, and right."""
    if not trial.error < MAX_ERRORS[dtype.itemsize]:
        log.warning("all layers are dense: harmonic ones differ from them by %.3f, relative", trial.error)
        return False
    return trial.seconds < trial.dense_seconds


def _start_trial(parent_pid: int, allow_tf32: bool, deterministic: bool, num_threads: int) -> None:
    """Give the process of a trial the settings of the one that waits for it, and its end."""
    die_with_parent(parent_pid)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.backends.cudnn.deterministic = deterministic
    torch.set_num_threads(num_threads)


def run_trial(
    network: nn.Module,
    choice: KernelChoice,
    batch_shape: BatchShape,
    device: torch.device,
    dtype: torch.dtype,
    is_training: bool,
) -> Trial:
    """Compute random images by the choice and all dense, with gradients in training, and compare both."""
    network, size = network.to(device), batch_shape.image_size
    batch_size = batch_shape.batch_size if is_training else min(batch_shape.batch_size, MAX_TRIAL_IMAGES)
    images = torch.rand(batch_size, 3, size, size, device=device)
    run = _run_training_trial if is_training else _run_inference_trial
    expected, dense_seconds = run(network, dict.fromkeys(choice, False), images, dtype)
    actual, seconds = run(network, choice, images, dtype)
    return Trial(float((actual - expected).norm() / expected.norm()), dense_seconds, seconds)


def _run_training_trial(
    network: nn.Module, choice: KernelChoice, images: Tensor, dtype: torch.dtype
) -> tuple[Tensor, float]:
    """Return the gradient of all weights, float32, and the seconds of a step; leave the network as it is."""
    twin = copy.deepcopy(network).train()
    apply_choice(twin, choice, images.device)

    def compute_gradient() -> Tensor:
        twin.zero_grad()
        _compute_logits(twin, images, dtype).square().mean().backward()
        return torch.cat([value.grad.flatten().float() for value in twin.parameters() if value.grad is not None])

    return _time_trial(compute_gradient, images.device)


def _run_inference_trial(
    network: nn.Module, choice: KernelChoice, images: Tensor, dtype: torch.dtype
) -> tuple[Tensor, float]:
    """Return the logits, float32, and the seconds of the batch; leave the network as it is."""
    twin = copy.deepcopy(network).eval()
    apply_choice(twin, choice, images.device)
    with torch.inference_mode():
        return _time_trial(lambda: _compute_logits(twin, images, dtype), images.device)


def _compute_logits(network: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        logits: Tensor = network(images)
    return logits.float()


def _time_trial(function: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    """Return the result of the last call, and the seconds of the fastest."""
    seconds = []
    for _ in range(NUM_TRIAL_STEPS):
        start = cpu_timing.get_synchronized_time(device)
        result = function()
        seconds.append(cpu_timing.get_synchronized_time(device) - start)
    return result, min(seconds)


def apply_choice(network: nn.Module, choice: KernelChoice, device: torch.device) -> bool:
    """Make the chosen layers harmonic and all others dense; without a kernel make all dense and return False."""
    is_available = not any(choice.values()) or operator.is_available(device.type, torch.float32)
    for name, layer in get_steerable_layers(network).items():
        kernel = is_available and choice.get(name, False)
        layer.harmonic, layer.is_fused = bool(kernel), kernel == "fused"
    return is_available


def trace_layer_inputs(network: nn.Module, batch_shape: BatchShape) -> dict[str, cpu_timing.LayerInput]:
    """Return the input of each layer for a batch of images, without computing (meta device)."""
    layer_inputs: dict[str, cpu_timing.LayerInput] = {}
    layers = get_steerable_layers(network)

    def record(name: str, layer: SteerableConv, x: Tensor) -> None:
        fields, sides = (layer.in_fields, layer.out_fields), (x.shape[2], x.shape[3])
        shape = (fields, layer.stride, layer.padding, len(x), sides)
        repeats = batch_shape.num_micro_batches
        layer_inputs[name] = cpu_timing.LayerInput(layer.basis_spec, *shape, x.requires_grad, repeats)

    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: record(name, layer, *inputs))
        for name, layer in layers.items()
    ]
    tensors = {k: v.detach().to("meta") for k, v in chain(network.named_parameters(), network.named_buffers())}
    for name, _ in network.named_parameters():
        tensors[name].requires_grad_()
    shape = (batch_shape.batch_size, 3, batch_shape.image_size, batch_shape.image_size)
    was_training = network.training
    try:
        with torch.enable_grad():  # eval: in training, synchronised statistics would wait for the other processes
            functional_call(network.eval(), tensors, (torch.empty(shape, device="meta"),))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return layer_inputs
