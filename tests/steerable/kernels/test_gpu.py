"""The harmonic convolution on a GPU, in Triton's interpreter where there is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.tiers import slow
from torch import Tensor

from galaxyhpc.steerable import groups
from galaxyhpc.steerable.kernels.harmonic import get_harmonic_basis
from galaxyhpc.steerable.layers import SteerableConv

pytest.importorskip("triton")
import triton
import triton.language as tl

from galaxyhpc.steerable import fused_norm
from galaxyhpc.steerable.kernels import gpu, norm_kernels, triton_kernels

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


@triton.jit
def _write_offsets(table, pixel, offsets, pixels, fields: tl.constexpr):  # type: ignore[no-untyped-def]
    index = tl.arange(0, 2)
    values = triton_kernels.compute_offsets(table, index, tl.load(pixel + index), index, pixels, fields)
    tl.store(offsets + 2 * index[:, None] + index[None, :], values)


@pytest.mark.parametrize("num_images", [162, 163], ids=["below 2^31", "above 2^31"])
def test_offsets_in_memory_do_not_wrap_around(num_images: int) -> None:
    """The last component of D16's second block at 255 px, whose maps of 163 images have more than 2^31 values."""
    pixels, fields, copies = num_images * 131**2, 24, 2
    table = torch.tensor([[0, copies, 0], [30, copies, 1]], dtype=torch.int32, device=DEVICE)
    last = torch.tensor([0, pixels - 1], dtype=torch.int32, device=DEVICE)
    offsets = torch.empty(2, 2, dtype=torch.int64, device=DEVICE)
    _write_offsets[(1,)](table, last, offsets, pixels, fields=fields)
    assert offsets.tolist() == [
        [(before * pixels + copy + pixel * copies) * fields + field for field, pixel in enumerate((0, pixels - 1))]
        for before, copies, copy in table.tolist()
    ]
    assert (int(offsets.max()) >= 2**31) == (num_images == 163)


class _RecordedKernel:
    """Stands in for a kernel: remembers how many programs a launch would have had."""

    grid: tuple[int, ...] = ()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        self.grid = grid
        return lambda *arguments, **constants: None


def test_launches_on_maps_that_fill_a_gpu_stay_within_the_limits_of_its_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first axis may have more than 65,535 programs; the maps are of D16 and C1, 400 images of 255 px."""
    recorded = [_RecordedKernel(), _RecordedKernel()]
    monkeypatch.setattr(triton_kernels, "compute_z", recorded[0])
    monkeypatch.setattr(norm_kernels, "normalise", recorded[1])
    for group in ("C1", "D16"):
        plan = gpu.get_plan((group, 3, "regular", "regular", None), False, torch.empty(0, device="meta"), (24, 24))
        pixels, grid = 400 * 131**2, gpu.Grid(131, 131)
        x_hat = torch.empty(plan.inputs.num_planes * pixels * 24, device="meta")
        grid.compute_z(plan, x_hat, pixels)
        layout = fused_norm.MapLayout(400, grid, 24, plan.inputs.channels, plan.inputs)
        fused_norm._Pass(layout, True, None).launch(norm_kernels.normalise, layout, x_hat)
        assert all(max(*kernel.grid[1:], 1, 1) <= 65_535 for kernel in recorded)
        assert max(kernel.grid[0] for kernel in recorded) > 65_535


def test_gradients_of_weights_are_not_rounded_before_they_are_summed_over_chunks() -> None:
    dense, x = make_layer("C4", "regular", 3, 1, 1)
    upstream = torch.randn(3, 16, 6, 7, device=DEVICE).half()
    weight = dense.weight.detach().float()
    _, gradient = gpu.backward(upstream, x.detach().half(), weight, dense.basis_spec, 1, 1, needs_input_grad=False)
    is_rounded = gradient == gradient.half().float()
    assert is_rounded.float().mean() < 0.1
