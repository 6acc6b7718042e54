"""Checks of the kernels: they compile for all groups, and compute what the layers compute in float64."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise, product
from typing import NamedTuple

import torch
from campaign import Campaign
from networks import (
    autocast,
    make_harmonic,
    make_images,
    make_network,
    run_step,
    set_backend_flags,
    use_gpu_kernels_on_cpu,
)
from results import JsonDict
from schedule import COMPILED_GROUPS
from torch import Tensor, nn

from galaxyhpc.steerable import fused_blocks, groups
from galaxyhpc.steerable.batch_norm import FieldBatchNorm, FusedSequential
from galaxyhpc.steerable.kernels import selection
from galaxyhpc.steerable.layers import AntialiasedPool, SteerableConv

COMPILE_BATCH_SIZE = 16
NUM_SMOKE_IMAGES = 4

Outcome = dict[str, Tensor]  # output, gradients and running statistics by name


def compile_kernels(campaign: Campaign) -> None:
    """Compile the kernels of all groups, a process each; Triton keeps them on the disk for all later steps."""
    names = [group for group in COMPILED_GROUPS if group in campaign.scale.networks]
    campaign.run_side_by_side(compile_network_kernels, names)


def compile_network_kernels(campaign: Campaign, name: str) -> None:
    """Take a step with irreps from block to block, and a dense one, whose norms are fused."""
    if campaign.is_tiny:
        use_gpu_kernels_on_cpu()
    set_backend_flags(campaign.precision)
    network = make_network(campaign, name)
    images, labels = make_images(campaign, COMPILE_BATCH_SIZE if campaign.is_cuda else campaign.scale.micro_batch)
    for kernels, should_be in (("dense", False), ("harmonic", True)):
        start = time.time()
        num_harmonic = make_harmonic(network, lambda _, should_be=should_be: should_be)
        run_step(network, images, labels, campaign.precision)
        campaign.synchronize()
        seconds = round(time.time() - start, 1)
        campaign.record(network=name, kernels=kernels, harmonic_layers=num_harmonic, seconds=seconds)


class SmokeCase(NamedTuple):
    """Two blocks of a group, an input, a gradient of the output, and the outcome in float64."""

    group: str
    blocks: nn.Sequential
    x: Tensor
    upstream: Tensor
    expected: Outcome


def compare_with_float64(campaign: Campaign) -> None:
    """Compare outputs, gradients and statistics of all kernels with those of the layers in float64, on two blocks."""
    cases = [_make_smoke_case(campaign, group) for group in campaign.scale.smoke_groups]
    # float32 last: its kernels take long to compile
    for precision in ("bfloat16", "float32", "tf32") if campaign.is_cuda else ("float32",):
        for case, kernels in product(cases, _list_kernels(campaign, precision)):
            if campaign.seconds_left < 3:
                return
            values = {"group": case.group, "precision": precision, "kernels": kernels}
            try:
                campaign.record(**values, **_compare(case, precision, kernels))
            except Exception as error:  # of a compiler, say: other kernels are compared nevertheless
                campaign.record_failure(error, **values)


def _list_kernels(campaign: Campaign, precision: str) -> list[str]:
    """Return the kernels that a training in this precision may use."""
    # in float32 on a GPU, blocks that stay in irreps would need more registers than there are
    return ["dense", "operator", *(["irreps"] if precision == campaign.precision else [])]


def _make_smoke_case(campaign: Campaign, group: str) -> SmokeCase:
    torch.manual_seed(0)
    scale = campaign.scale
    blocks = _make_blocks(group, scale.smoke_fields).to(campaign.device).train()
    num_channels = scale.smoke_fields[0] * groups.group_order(group)
    x = torch.randn(NUM_SMOKE_IMAGES, num_channels, scale.smoke_side, scale.smoke_side).to(campaign.device)
    reference = copy.deepcopy(blocks).double()
    for layer in selection.get_steerable_layers(reference).values():
        layer.basis = layer.basis.double()
    with torch.no_grad():
        upstream = torch.randn_like(copy.deepcopy(reference)(x.double()))
    return SmokeCase(group, blocks, x, upstream, _run_blocks(reference, reference, x.double(), upstream, "float64"))


def _make_blocks(group: str, fields: Sequence[int]) -> nn.Sequential:
    """Return blocks as in the study's network, a pool after the first."""
    blocks = nn.Sequential()
    for in_fields, out_fields in pairwise(fields):
        norm = FieldBatchNorm(out_fields, groups.group_order(group))
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        pools = [] if len(blocks) else [AntialiasedPool()]
        blocks.append(FusedSequential(SteerableConv(group, in_fields, out_fields, padding=1), norm, nn.ReLU(), *pools))
    return blocks


def _compare(case: SmokeCase, precision: str, kernels: str) -> JsonDict:
    """Return the relative errors of one kernel, and whether it gives the same bits twice."""
    set_backend_flags(precision)
    start = time.time()
    first, second = (_run_kernels(case, precision, kernels) for _ in range(2))
    errors = {name: _compute_error(first[name], value) for name, value in case.expected.items()}
    worst = max(errors, key=lambda name: errors[name])
    result: JsonDict = {"output_error": errors["output"], "input_gradient_error": errors["x"]}
    result |= {"worst_error": errors[worst], "worst": worst}
    result["has_same_bits"] = all(torch.equal(value, second[name]) for name, value in first.items())
    return result | {"seconds": round(time.time() - start, 1)}


def _compute_error(actual: Tensor, expected: Tensor) -> float:
    """Return the relative error, in three digits."""
    return float(f"{float((actual.double() - expected).norm() / expected.norm()):.3g}")


def _run_kernels(case: SmokeCase, precision: str, kernels: str) -> Outcome:
    blocks = copy.deepcopy(case.blocks)
    make_harmonic(blocks, lambda _: kernels != "dense")
    run = partial(fused_blocks.run_blocks, blocks) if kernels == "irreps" else blocks
    return _run_blocks(blocks, run, case.x, case.upstream, precision)


def _run_blocks(
    blocks: nn.Sequential, run: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor, precision: str
) -> Outcome:
    """Return the output, the gradients and the running statistics of a step."""
    x = x.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    with autocast(x.device, precision):
        output = run(x)
    output.backward(upstream.to(output.dtype))
    outcome = {name: value.grad for name, value in blocks.named_parameters() if value.grad is not None}
    outcome |= {name: value for name, value in blocks.named_buffers() if "running" in name}
    assert x.grad is not None
    return outcome | {"output": output.detach(), "x": x.grad}
