"""The harmonic convolution on a GPU, in Triton's interpreter where there is none."""

from __future__ import annotations

import pytest
import torch
from helpers.tiers import slow
from torch import Tensor

from galaxyhpc.steerable import groups
from galaxyhpc.steerable.kernels.harmonic import get_harmonic_basis
from galaxyhpc.steerable.layers import SteerableConv

pytest.importorskip("triton")
from galaxyhpc.steerable.kernels import gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_layer(
    group: str, kind: groups.FieldKind, size: int, stride: int, padding: int
) -> tuple[SteerableConv, Tensor]:
    """Return a dense layer in float64 and maps that it takes."""
    dense = SteerableConv(group, 3, 4, size, kind=kind, stride=stride, padding=padding).double().to(DEVICE)
    dense.basis = dense.basis.double()
    shape = (3, 3 * dense.basis.shape[2], 6, 7)
    return dense, torch.randn(shape, dtype=torch.float64, device=DEVICE, requires_grad=True)


def compute_errors(dense: SteerableConv, x: Tensor, dtype: torch.dtype) -> list[float]:
    """Return how far outputs and both gradients are from the dense layer's, relative to their largest."""
    y = dense(x)
    upstream = torch.randn_like(y)
    expected = [y.detach(), *torch.autograd.grad((y * upstream).sum(), (x, dense.weight))]
    weight = dense.weight.detach().to(dtype if dtype == torch.float64 else torch.float32)
    arguments = (x.detach().to(dtype), weight, dense.basis_spec, dense.stride, dense.padding)
    by_x, by_weight = gpu.backward(upstream.to(dtype), *arguments, needs_input_grad=True)
    assert by_x is not None
    actual = [gpu.forward(*arguments), by_x, by_weight]
    return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(actual, expected, strict=True)]


@pytest.mark.parametrize(
    ("group", "kind", "size", "stride", "padding"),
    [
        ("C2", "regular", 3, 1, 1),
        ("C4", "regular", 3, 2, 1),
        slow("C8", "regular", 3, 1, 0),
        ("D1", "regular", 3, 1, 1),
        ("D4", "regular", 3, 1, 1),
        ("D8", "trivial", 3, 2, 2),
        slow("C3", "regular", 5, 2, 2),
        slow("D3", "trivial", 7, 1, 1),
    ],
)
def test_the_kernels_give_the_maps_and_gradients_of_the_dense_filter(
    group: str, kind: groups.FieldKind, size: int, stride: int, padding: int
) -> None:
    dense, x = make_layer(group, kind, size, stride, padding)
    assert max(compute_errors(dense, x, torch.float64)) < 1e-6


def test_a_batch_in_many_chunks_gives_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, x = make_layer("D4", "regular", 3, 1, 1)
    monkeypatch.setattr(gpu, "CHUNK_BYTES", 1)
    assert max(compute_errors(dense, x, torch.float64)) < 1e-6


# Triton's interpreter multiplies bfloat16 as if it were integers; float16 takes the same way through the kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16 if DEVICE == "cpu" else torch.bfloat16])
def test_in_fewer_digits_it_is_as_exact_as_its_maps(dtype: torch.dtype) -> None:
    dense, x = make_layer("D4", "regular", 3, 1, 1)
    assert max(compute_errors(dense, x, dtype)) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("group", ["C4", "C7", "C16", "D1", "D4", "D7"])
def test_the_filters_that_bring_gradients_back_have_blocks_of_the_same_weights(group: str) -> None:
    recipe = (group, 3, "regular", "regular", None)
    assert get_harmonic_basis(recipe, True).num_weights == get_harmonic_basis(recipe).num_weights
