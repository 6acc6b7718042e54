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
GPU_BAR = 0.9  # roofline is rougher than rates
ALIKE = 0.9  # cosine of two gradients in bfloat16
STEPS = 3  # of a trial; the first compiles kernels

log = logging.getLogger(__name__)

Paths = dict[str, bool]  # layer -> whether it is harmonic


class Images(NamedTuple):
    """What a network is given at a time: (number, 3, size, size), in each of some parts of a training step."""

    number: int
    size: int  # px
    parts: int = 1


def layers(network: nn.Module) -> dict[str, SteerableConv]:
    """Return a network's steerable convolutions by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, SteerableConv)}


def choose(network: nn.Module, images: Images, device: torch.device, dtype: torch.dtype, training: bool) -> Paths:
    """Choose for images like these, with autocast to `dtype`, in training or without gradients."""
    found = layers(network)
    if not found or not operator.available(device.type, dtype):
        return dict.fromkeys(found, False)
    if device.type == "cuda":
        used = in_use(network, images) if training else {}  # evaluation, in float32, is dense
        paths = {name: faster_on_gpu(use, device, dtype) for name, use in used.items()}
        return dict.fromkeys(found, False) | proven(network, paths, images, device, dtype)
    known = cpu_timing.of_machine(device, dtype, torch.get_num_threads())
    return {name: faster(use, known, training) for name, use in in_use(network, images).items()}


def faster(use: cpu_timing.Use, known: cpu_timing.Rates, training: bool) -> bool:
    """Whether a layer is clearly faster without its dense filter."""
    harmonic, dense = (cpu_timing.seconds(use, known, way, training) for way in ("harmonic", "dense"))
    return harmonic < BAR * dense


def faster_on_gpu(use: cpu_timing.Use, device: torch.device, dtype: torch.dtype) -> bool:
    """The same on a GPU, in training."""
    dense, harmonic = gpu_roofline.seconds(use, device, dtype)
    return harmonic < GPU_BAR * dense


def proven(network: nn.Module, paths: Paths, images: Images, device: torch.device, dtype: torch.dtype) -> Paths:
    """Return the paths if a training step on them is faster than a dense one and agrees with it; else all dense.

    Nothing that a GPU, its driver or its compiler of kernels does can be tested elsewhere.
    """
    dense = dict.fromkeys(paths, False)
    if not any(paths.values()):
        return dense
    given = torch.rand(images.number, 3, images.size, images.size, device=device)
    try:
        expected, slow = _step(network, dense, given, dtype)
        found, fast = _step(network, paths, given, dtype)
    except Exception as error:  # a compiler's, a driver's, no memory: whatever it is, dense is left
        log.warning("all layers are dense: a step without filters failed: %s", str(error).split("\n")[0])
        return dense
    alike = float(functional.cosine_similarity(expected, found, dim=0))
    if not alike > ALIKE:
        log.warning("all layers are dense: without filters a step's gradient is another one, cosine %.3f", alike)
    return paths if alike > ALIKE and fast < slow else dense


def _step(network: nn.Module, paths: Paths, images: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Return the gradient of all weights, float32, and the s of a step; the network is left as it is."""
    tried = copy.deepcopy(network).train()
    apply(tried, paths, images.device)
    times = []
    for _ in range(STEPS):
        tried.zero_grad()
        begun = cpu_timing.now(images.device)
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits = tried(images)
        logits.float().square().mean().backward()
        times.append(cpu_timing.now(images.device) - begun)
    gradients = [value.grad.flatten().float() for value in tried.parameters() if value.grad is not None]
    return torch.cat(gradients), min(times)


def apply(network: nn.Module, paths: Paths, device: torch.device) -> bool:
    """Let every layer named true be harmonic and all others dense; all are, and False returned, without a kernel."""
    able = not any(paths.values()) or operator.available(device.type, torch.float32)
    for name, layer in layers(network).items():
        layer.harmonic = able and paths.get(name, False)
    return able


def in_use(network: nn.Module, images: Images) -> dict[str, cpu_timing.Use]:
    """Return what comes into each layer when the network is given images, found without computing."""
    found: dict[str, cpu_timing.Use] = {}
    named = layers(network)

    def note(name: str, layer: SteerableConv, x: Tensor) -> None:
        of, fields = layer.recipe, (layer.in_fields, layer.out_fields)
        sides = (x.shape[2], x.shape[3])
        found[name] = cpu_timing.Use(
            of, fields, layer.stride, layer.padding, len(x), sides, x.requires_grad, images.parts
        )

    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: note(name, layer, *inputs))
        for name, layer in named.items()
    ]
    tensors = {k: v.detach().to("meta") for k, v in chain(network.named_parameters(), network.named_buffers())}
    for name, _ in network.named_parameters():
        tensors[name].requires_grad_()
    was, shape = network.training, (images.number, 3, images.size, images.size)
    try:
        with torch.enable_grad():  # synchronised statistics would ask the other processes in training
            functional_call(network.eval(), tensors, (torch.empty(shape, device="meta"),))
    finally:
        network.train(was)
        for hook in hooks:
            hook.remove()
    return found
