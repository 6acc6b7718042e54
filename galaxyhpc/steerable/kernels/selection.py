"""Which layers do without their dense filter: those that are faster so, by `rates` or, on a GPU, `roofline`."""

from __future__ import annotations

import copy
import logging
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from galaxyhpc.steerable.kernels import cpu_timing, gpu_roofline, operator
from galaxyhpc.steerable.layers import SteerableConv

BAR = 0.97  # of the dense time: what is about as fast stays dense
MAX_GPU_TIME_RATIO = 0.9  # roofline is rougher than rates
MIN_GRADIENT_COSINE = 0.9  # cosine of two gradients in bfloat16
NUM_TRIAL_STEPS = 3  # of a trial; the first compiles kernels

log = logging.getLogger(__name__)

KernelChoice = dict[str, bool]  # layer -> whether it is harmonic


class BatchShape(NamedTuple):
    """What a network is given at a time: (number, 3, size, size), in each of some parts of a training step."""

    batch_size: int
    image_size: int  # px
    num_micro_batches: int = 1


def get_steerable_layers(network: nn.Module) -> dict[str, SteerableConv]:
    """Return a network's steerable convolutions by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, SteerableConv)}


def choose_kernels(
    network: nn.Module, batch_shape: BatchShape, device: torch.device, dtype: torch.dtype, is_training: bool
) -> KernelChoice:
    """Choose for images like these, with autocast to `dtype`, in training or without gradients."""
    found = get_steerable_layers(network)
    if not found or not operator.is_available(device.type, dtype):
        return dict.fromkeys(found, False)
    if device.type == "cuda":
        used = trace_layer_inputs(network, batch_shape) if is_training else {}  # evaluation, in float32, is dense
        paths = {name: is_faster_on_gpu(use, device, dtype) for name, use in used.items()}
        return dict.fromkeys(found, False) | validate_on_device(network, paths, batch_shape, device, dtype)
    known = cpu_timing.of_machine(device, dtype, torch.get_num_threads())
    return {name: faster(use, known, is_training) for name, use in trace_layer_inputs(network, batch_shape).items()}


def faster(use: cpu_timing.LayerInput, known: cpu_timing.Rates, training: bool) -> bool:
    """Whether a layer is clearly faster without its dense filter."""
    harmonic, dense = (cpu_timing.seconds(use, known, way, training) for way in ("harmonic", "dense"))
    return harmonic < BAR * dense


def is_faster_on_gpu(layer_input: cpu_timing.LayerInput, device: torch.device, dtype: torch.dtype) -> bool:
    """The same on a GPU, in training."""
    dense, harmonic = gpu_roofline.estimate_seconds(layer_input, device, dtype)
    return harmonic < MAX_GPU_TIME_RATIO * dense


def validate_on_device(
    network: nn.Module, choice: KernelChoice, batch_shape: BatchShape, device: torch.device, dtype: torch.dtype
) -> KernelChoice:
    """Return the paths if a training step on them is faster than a dense one and agrees with it; else all dense.

    Nothing that a GPU, its driver or its compiler of kernels does can be tested elsewhere.
    """
    dense = dict.fromkeys(choice, False)
    if not any(choice.values()):
        return dense
    given = torch.rand(batch_shape.batch_size, 3, batch_shape.image_size, batch_shape.image_size, device=device)
    try:
        expected, slow = _run_trial_step(network, dense, given, dtype)
        found, fast = _run_trial_step(network, choice, given, dtype)
    except Exception as error:  # a compiler's, a driver's, no memory: whatever it is, dense is left
        log.warning("all layers are dense: a step without filters failed: %s", str(error).split("\n")[0])
        return dense
    alike = float(functional.cosine_similarity(expected, found, dim=0))
    if not alike > MIN_GRADIENT_COSINE:
        log.warning("all layers are dense: without filters a step's gradient is another one, cosine %.3f", alike)
    return choice if alike > MIN_GRADIENT_COSINE and fast < slow else dense


def _run_trial_step(
    network: nn.Module, choice: KernelChoice, images: Tensor, dtype: torch.dtype
) -> tuple[Tensor, float]:
    """Return the gradient of all weights, float32, and the s of a step; the network is left as it is."""
    tried = copy.deepcopy(network).train()
    apply_choice(tried, choice, images.device)
    times = []
    for _ in range(NUM_TRIAL_STEPS):
        tried.zero_grad()
        begun = cpu_timing.get_synchronized_time(images.device)
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits = tried(images)
        logits.float().square().mean().backward()
        times.append(cpu_timing.get_synchronized_time(images.device) - begun)
    gradients = [value.grad.flatten().float() for value in tried.parameters() if value.grad is not None]
    return torch.cat(gradients), min(times)


def apply_choice(network: nn.Module, choice: KernelChoice, device: torch.device) -> bool:
    """Let every layer named true be harmonic and all others dense; all are, and False returned, without a kernel."""
    able = not any(choice.values()) or operator.is_available(device.type, torch.float32)
    for name, layer in get_steerable_layers(network).items():
        layer.harmonic = able and choice.get(name, False)
    return able


def trace_layer_inputs(network: nn.Module, batch_shape: BatchShape) -> dict[str, cpu_timing.LayerInput]:
    """Return what comes into each layer when the network is given images, found without computing."""
    found: dict[str, cpu_timing.LayerInput] = {}
    named = get_steerable_layers(network)

    def note(name: str, layer: SteerableConv, x: Tensor) -> None:
        of, fields = layer.basis_spec, (layer.in_fields, layer.out_fields)
        sides = (x.shape[2], x.shape[3])
        found[name] = cpu_timing.LayerInput(
            of, fields, layer.stride, layer.padding, len(x), sides, x.requires_grad, batch_shape.num_micro_batches
        )

    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: note(name, layer, *inputs))
        for name, layer in named.items()
    ]
    tensors = {k: v.detach().to("meta") for k, v in chain(network.named_parameters(), network.named_buffers())}
    for name, _ in network.named_parameters():
        tensors[name].requires_grad_()
    was, shape = network.training, (batch_shape.batch_size, 3, batch_shape.image_size, batch_shape.image_size)
    try:
        with torch.enable_grad():  # synchronised statistics would ask the other processes in training
            functional_call(network.eval(), tensors, (torch.empty(shape, device="meta"),))
    finally:
        network.train(was)
        for hook in hooks:
            hook.remove()
    return found
