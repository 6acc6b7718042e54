"""Blocks that stay in irreps compute what the layers do, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.tiers import slow
from torch import Tensor, nn

from galaxyhpc.steerable import groups
from galaxyhpc.steerable.batch_norm import FieldBatchNorm
from galaxyhpc.steerable.kernels import selection
from galaxyhpc.steerable.layers import AntialiasedPool, SteerableConv

pytest.importorskip("triton")
from galaxyhpc.steerable import fused_blocks, fused_norm
from galaxyhpc.steerable.kernels import gpu


@pytest.fixture(autouse=True)
def few_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs sum over few tiles: most tiles of small maps are empty, and the interpreter takes its time."""
    monkeypatch.setattr(fused_norm, "TILES_PER_PROGRAM", 2)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_blocks(group: str, fields: tuple[int, ...], pooled: int) -> nn.Sequential:
    """Return blocks with these numbers of fields, a pool after one of them."""
    torch.manual_seed(0)
    blocks = nn.Sequential()
    for number, (before, after) in enumerate(pairwise(fields)):
        convolution, norm = (
            SteerableConv(group, before, after, padding=1),
            FieldBatchNorm(after, groups.group_order(group)),
        )
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        convolution.harmonic = True
        blocks.append(nn.Sequential(convolution, norm, nn.ReLU(), *([AntialiasedPool()] if number == pooled else [])))
    return blocks.to(DEVICE).train()


def step(blocks: nn.Sequential, run: Any, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """Return the last map, all gradients, and what the batch norms remember."""
    x = x.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    last = run(x)
    last.backward(upstream.to(last.dtype))
    results = {name: value.grad for name, value in blocks.named_parameters()}
    results |= {name: value for name, value in blocks.named_buffers() if "running" in name}
    return results | {"last": last.detach(), "x": x.grad}


def assert_same(fused: nn.Sequential, x: Tensor) -> None:
    """Compare a step of fused blocks with a dense one."""
    dense = copy.deepcopy(fused)
    for layer in selection.get_steerable_layers(dense).values():
        layer.harmonic = False
    with torch.no_grad():
        upstream = torch.randn_like(copy.deepcopy(dense)(x))
    expected = step(dense, dense, x, upstream)
    actual = step(fused, lambda maps: fused_blocks.run_blocks(fused, maps), x, upstream)
    for name, value in expected.items():
        assert (actual[name] - value).abs().max() < 2e-5 * value.abs().max(), name


@pytest.mark.parametrize(
    ("group", "fields", "pooled", "side", "chunk"),
    [slow("D4", (2, 3, 2), 0, 5, 1 << 30), slow("C4", (3, 4, 3), 1, 5, 10_000), ("C3", (2, 2), 0, 4, 1 << 30)],
)
def test_fused_blocks_give_what_the_layers_give(
    group: str, fields: tuple[int, ...], pooled: int, side: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "CHUNK_BYTES", chunk)
    assert_same(
        make_blocks(group, fields, pooled),
        torch.randn(2, fields[0] * groups.group_order(group), side, side, device=DEVICE),
    )


@pytest.mark.parametrize("pooled", [0, -1], ids=["pooled", "not pooled"])
@pytest.mark.parametrize(
    ("group", "fields", "num_images", "sides"),
    [
        ("C1", 3, 1, (7, 6)),
        slow("C4", 12, 2, (5, 4)),
        slow("D1", 3, 2, (1, 2)),
        slow("D8", 17, 1, (2, 3)),
        slow("D16", 3, 1, (3, 4)),
    ],
)
def test_a_norm_in_irreps_is_the_norm_of_the_field(
    group: str, fields: int, num_images: int, sides: tuple[int, int], pooled: int
) -> None:
    layers = make_blocks(group, (fields, fields), pooled)[0]
    convolution, norm, _, *pools = layers
    reference = copy.deepcopy(layers[1:])
    x = 2 + torch.randn(num_images, fields * groups.group_order(group), *sides, device=DEVICE)
    with torch.no_grad():
        upstream = torch.randn_like(copy.deepcopy(reference)(x))

    def run(x: Tensor) -> Tensor:
        maps = fused_blocks.to_irrep_maps(x, convolution)
        return fused_blocks._to_field_tensor(fused_blocks.normalise(maps, norm, *pools))

    expected = step(reference, reference, x, upstream)
    actual = step(nn.Sequential(norm), run, x, upstream)
    for value, reference_value in zip(actual.values(), expected.values(), strict=True):
        assert (value - reference_value).abs().max() < 1e-5 * reference_value.abs().max().clamp_min(1)


def test_a_process_without_images_has_an_empty_map_in_irreps_and_gradients_of_zero() -> None:
    convolution, norm, _, pool = make_blocks("C4", (2, 2), 0)[0]
    x = torch.zeros(0, 8, 9, 9, device=DEVICE, requires_grad=True)
    y = fused_blocks._to_field_tensor(fused_blocks.normalise(fused_blocks.to_irrep_maps(x, convolution), norm, pool))
    y.sum().backward()
    assert y.shape == (0, 8, 5, 5) and x.grad is not None and x.grad.shape == x.shape
    assert norm.weight.grad is not None and not norm.weight.grad.any()


@pytest.mark.slow
def test_a_dense_block_may_stand_between_fused_ones() -> None:
    layers = make_blocks("C4", (2, 3, 2, 2), 1)
    middle = list(selection.get_steerable_layers(layers).values())[1]
    middle.harmonic = False
    assert_same(layers, torch.randn(2, 8, 5, 5, device=DEVICE))


@pytest.mark.parametrize("group", ["C4", slow("D4")])
def test_evaluation_without_gradients_stays_in_irreps_too(group: str) -> None:
    blocks = make_blocks(group, (2, 3, 2), 0).eval()
    for norm in (module for module in blocks.modules() if isinstance(module, FieldBatchNorm)):
        nn.init.uniform_(norm.running_mean, -1.0, 1.0)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    x = torch.randn(2, 2 * groups.group_order(group), 7, 7, device=DEVICE).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        actual = fused_blocks.run_blocks(blocks, x)
        for layer in selection.get_steerable_layers(blocks).values():
            layer.harmonic = False
        expected = blocks(x)
    assert (actual - expected).abs().max() < 2e-5 * expected.abs().max()
