"""Batch norm, ReLU and pool in one pass compute what the layers do, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from galaxyhpc.steerable.batch_norm import FieldBatchNorm
from galaxyhpc.steerable.layers import AntialiasedPool

pytest.importorskip("triton")
from galaxyhpc.steerable import fused_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_norm(fields: int, size: int) -> FieldBatchNorm:
    torch.manual_seed(0)
    norm = FieldBatchNorm(fields, size)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    return norm.to(DEVICE).train()


def step(run: Callable[[Tensor], Tensor], norm: FieldBatchNorm, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """Return the map, all gradients, and the running statistics after a step."""
    x = x.clone().requires_grad_()
    y = run(x)
    y.backward(upstream[: y.shape[0], :, : y.shape[2], : y.shape[3]].to(y.dtype))
    gradients = {"x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    return gradients | {"y": y.detach(), "mean": norm.running_mean, "variance": norm.running_var}


@pytest.mark.parametrize("has_relu", [True, False], ids=["ReLU", "no ReLU"])
@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "not pooled"])
@pytest.mark.parametrize(
    ("fields", "size", "shape"), [(3, 4, (2, 9, 9)), (5, 8, (3, 6, 7)), (4, 1, (1, 33, 33)), (2, 32, (1, 5, 5))]
)
def test_one_pass_gives_what_the_layers_give(
    fields: int, size: int, shape: tuple[int, int, int], pooled: bool, has_relu: bool
) -> None:
    fused, layers = make_norm(fields, size), make_norm(fields, size)
    pool = AntialiasedPool().to(DEVICE) if pooled else None
    x = 3 + torch.randn(shape[0], fields * size, *shape[1:], device=DEVICE)
    x, upstream = x.contiguous(memory_format=torch.channels_last), torch.randn_like(x)

    def run_layers(maps: Tensor) -> Tensor:
        y = layers(maps)
        y = torch.relu(y) if has_relu else y
        return y if pool is None else pool(y)

    actual = step(lambda maps: fused_norm.normalise_fused(maps, fused, has_relu, pool), fused, x, upstream)
    for name, expected in step(run_layers, layers, x, upstream).items():
        assert (actual[name] - expected).abs().max() < 1e-5 * expected.abs().max().clamp_min(1), name
