"""The harmonic convolution computes what the dense one does, its gradients too, from the same weights."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tiers import num_examples, slow_unless
from hypothesis import given, settings, strategies
from torch import Tensor

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models.build_model import build_model
from galaxyhpc.runtime import native
from galaxyhpc.steerable import groups
from galaxyhpc.steerable.kernels import selection
from galaxyhpc.steerable.kernels.harmonic import get_harmonic_basis, harmonic_conv_reference
from galaxyhpc.steerable.kernels.operator import harmonic_conv
from galaxyhpc.steerable.layers import SteerableConv

pytestmark = pytest.mark.compiler

GROUPS = [*(f"C{n}" for n in range(1, 17)), *(f"D{n}" for n in range(1, 17))]


def layer(group: str, fields: tuple[int, int], size: int, kind: groups.FieldKind, stride: int) -> SteerableConv:
    """Return a dense layer in float64."""
    dense = SteerableConv(group, *fields, size, kind=kind, stride=stride, padding=size // 2).double()
    dense.basis = dense.basis.double()
    return dense


def assert_same(dense: SteerableConv, x: Tensor, y: Tensor) -> None:
    """Compare outputs and both gradients."""
    expected = dense(x)
    upstream = torch.randn_like(expected)
    gradients = [torch.autograd.grad((output * upstream).sum(), (x, dense.weight)) for output in (expected, y)]
    for actual, reference in zip((y, *gradients[1]), (expected, *gradients[0]), strict=True):
        assert actual.shape == reference.shape
        assert (actual - reference).abs().max() < 1e-6 * reference.abs().max()


@pytest.mark.parametrize("group", GROUPS)
def test_tiles_and_plain_tensors_give_the_maps_and_gradients_of_the_dense_filter(group: str) -> None:
    for kind, size, stride in (("regular", 3, 1), ("trivial", 3, 2)):
        dense = layer(group, (2, 3), size, kind, stride)
        x = torch.randn(2, dense.in_fields * dense.basis.shape[2], 7, 9, dtype=torch.float64, requires_grad=True)
        for convolve in (harmonic_conv_reference, harmonic_conv):
            assert_same(dense, x, convolve(x, dense.weight, dense.basis_spec, stride, dense.padding))


@settings(max_examples=num_examples(25), deadline=None)
@given(
    group=strategies.sampled_from(["C2", "C3", "C4", "C6", "C8", "D1", "D2", "D3", "D4", "D6"]),
    kind=strategies.sampled_from(["regular", "trivial"]),
    size=strategies.sampled_from([1, 3, 5, 7]),
    stride=strategies.sampled_from([1, 2, 3]),
    fields=strategies.tuples(strategies.integers(1, 37), strategies.integers(1, 9)),
    sides=strategies.tuples(strategies.integers(7, 13), strategies.integers(7, 13)),
    images=strategies.integers(1, 3),
    padding=strategies.integers(0, 3),
)
def test_so_they_do_for_any_shape(
    group: str,
    kind: groups.FieldKind,
    size: int,
    stride: int,
    fields: tuple[int, int],
    sides: tuple[int, int],
    images: int,
    padding: int,
) -> None:
    dense = layer(group, fields, size, kind, stride)
    dense.padding = padding
    shape = (images, dense.in_fields * dense.basis.shape[2], *sides)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert_same(dense, x, harmonic_conv(x, dense.weight, dense.basis_spec, stride, padding))


@pytest.mark.parametrize("stride", [1, 2])
def test_many_tiles_give_what_one_gives(monkeypatch: pytest.MonkeyPatch, stride: int) -> None:
    dense = layer("D4", (5, 3), 3, "regular", stride)
    x = torch.randn(2, 40, 9, 9, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr("galaxyhpc.steerable.kernels.cpu.TILE_BYTES", 7 * 48 * 5 * 8)  # 7 pixels, 162 in all
    assert_same(dense, x, harmonic_conv(x, dense.weight, dense.basis_spec, stride, 1))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_pixels_and_add_up_gradients(threads: int, stride: int) -> None:
    dense, before = layer("C4", (17, 50), 3, "regular", stride), torch.get_num_threads()
    x = torch.randn(1, 68, 8, 8, dtype=torch.float64, requires_grad=True)
    torch.set_num_threads(threads)
    try:
        assert_same(dense, x, harmonic_conv(x, dense.weight, dense.basis_spec, stride, 1))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_batch_without_images_has_no_gradient(stride: int) -> None:
    dense = layer("D2", (2, 3), 3, "regular", stride)
    x = torch.empty(0, 8, 5, 5, dtype=torch.float64, requires_grad=True)
    y = harmonic_conv(x, dense.weight, dense.basis_spec, stride, 1)
    by_x, by_weight = torch.autograd.grad(y.sum(), (x, dense.weight))
    assert y.shape == (0, 12, *[4 // stride + 1] * 2) and by_x.shape == x.shape and not by_weight.any()


def test_in_float32_it_is_as_exact_as_the_dense_convolution() -> None:
    dense = layer("D8", (12, 8), 3, "regular", 1)
    x = torch.randn(2, 192, 9, 9, dtype=torch.float64)
    exact, single = dense(x), dense.float()
    errors = [
        (output - exact).abs().max()
        for output in (single(x.float()), harmonic_conv(x.float(), single.weight, single.basis_spec, 1, 1))
    ]
    assert errors[1] < 2 * errors[0] + 1e-6


@pytest.mark.parametrize("group", slow_unless(["C4"], ["C4", "C3", "D8"]))
@pytest.mark.parametrize("fields", [(8, 8), (7, 8), (6, 5), (2, 9)])
def test_few_fields_share_vectors_of_float32_and_lose_nothing(
    fields: tuple[int, int], group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("galaxyhpc.steerable.kernels.cpu.TILE_BYTES", 200_000)  # several tiles
    for stride in (1, 2):
        dense = layer(group, fields, 3, "regular", stride)
        x = torch.randn(2, dense.in_fields * dense.basis.shape[2], 13, 11, dtype=torch.float64, requires_grad=True)
        expected, weight = dense(x), dense.weight.detach().float().requires_grad_()
        single = x.detach().float().requires_grad_()
        y = harmonic_conv(single, weight, dense.basis_spec, stride, 1)
        upstream = torch.randn_like(expected)
        exact = [expected, *torch.autograd.grad(expected, (x, dense.weight), upstream)]
        for actual, reference in zip(
            [y, *torch.autograd.grad(y, (single, weight), upstream.float())], exact, strict=True
        ):
            assert (actual - reference).abs().max() < 1e-5 * reference.abs().max()


@pytest.mark.parametrize(
    ("group", "products"), [("C4", 36), ("C8", 84), ("C16", 180), ("D4", 72), ("D8", 168), ("D16", 360)]
)
def test_a_pair_of_fields_costs_as_many_products_as_there_are_weights_and_components(group: str, products: int) -> None:
    basis = get_harmonic_basis((group, 3, "regular", "regular", None))
    assert len(basis.spatial_filters) == 6
    assert sum(irrep.size * irrep.weight_indices.size for irrep in basis.irreps) == products


@pytest.mark.filterwarnings("ignore:.*torch.autograd.function.Function.*should not be instantiated")  # torch's own
@pytest.mark.slow
def test_torch_compiles_a_network_of_harmonic_layers_as_one_graph() -> None:
    network = build_model(ModelConfig(group="D4", scale=0.1), 33).double().train()
    assert selection.apply_choice(
        network, dict.fromkeys(selection.get_steerable_layers(network), True), torch.device("cpu")
    )
    compiled_network = torch.compile(copy.deepcopy(network), fullgraph=True, backend="aot_eager")
    images = torch.rand(3, 3, 33, 33, dtype=torch.float64)
    compiled_logits, eager_logits = compiled_network(images), network(images)
    torch.testing.assert_close(compiled_logits, eager_logits)  # a compiler takes its statistics in another order
    for logits in (compiled_logits, eager_logits):
        logits.square().sum().backward()
    for compiled_parameter, parameter in zip(compiled_network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(compiled_parameter.grad, parameter.grad)


def test_the_operators_are_what_torch_expects() -> None:
    dense = layer("D3", (2, 3), 3, "regular", 1)
    for grad, padding in ((True, 1), (False, 2)):
        x = torch.randn(2, 12, 6, 7, dtype=torch.float64, requires_grad=grad)
        torch.library.opcheck(torch.ops.galaxyhpc.harmonic, (x, dense.weight, *dense.basis_spec, 1, padding))


@pytest.mark.parametrize("low", [True, False])
def test_a_layer_told_to_be_harmonic_is_dense_where_there_is_no_kernel(low: bool) -> None:
    harmonic = SteerableConv("D4", 2, 2, padding=1)
    harmonic.harmonic = True
    dense, x = copy.deepcopy(harmonic), torch.randn(2, 16, 5, 5)
    dense.harmonic = False
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        assert torch.equal(harmonic(x), dense(x)) == low
    assert list(harmonic.state_dict()) == list(dense.state_dict())


def test_what_a_harmonic_layer_cannot_do_is_refused() -> None:
    harmonic = SteerableConv("D4", 2, 2, padding=1)
    harmonic.harmonic = True
    with pytest.raises(RuntimeError, match="got 8 channels; expected 16"):
        harmonic(torch.rand(1, 8, 5, 5))


def test_second_derivatives_are_those_of_the_dense_layer() -> None:
    harmonic = SteerableConv("D4", 2, 2, padding=1)
    dense, x, penalties = copy.deepcopy(harmonic), torch.rand(1, 16, 5, 5, requires_grad=True), []
    harmonic.harmonic = True
    for layer in (harmonic, dense):
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        penalties.append((gradient.detach(), layer.weight.grad))
    torch.testing.assert_close(*penalties, rtol=1e-4, atol=1e-4)


def test_a_compiler_may_have_arguments_and_what_it_made_is_made_again_where_it_is_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "env c++")
    command = [
        sys.executable,
        "-c",
        "from galaxyhpc.runtime import native; assert native.load_library('data/augment.cpp')",
    ]
    subprocess.run(command, check=True)
    (library,) = tmp_path.rglob("augment-*.so")
    library.write_bytes(b"")
    subprocess.run(command, check=True)
    assert library.stat().st_size > 0


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for compiler in ("absent", "false"):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(native.NativeError):
            native.build_library("steerable/kernels/harmonic.cpp")
