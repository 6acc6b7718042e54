"""Batch norm, ReLU and pool in one pass compute what the layers do, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.device import UNINITIALISED, get_name
from helpers.tiers import slow
from helpers.warm_processes import start_python
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from galaxyhpc.config.schema import ModelConfig
from galaxyhpc.models.build_model import build_model
from galaxyhpc.steerable import batch_norm
from galaxyhpc.steerable.batch_norm import FieldBatchNorm
from galaxyhpc.steerable.layers import AntialiasedPool

pytest.importorskip("triton")
from galaxyhpc.steerable import fused_norm, norm_statistics
from galaxyhpc.steerable.kernels import gpu, norm_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def few_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs sum over few tiles: most tiles of small maps are empty, and the interpreter takes its time."""
    monkeypatch.setattr(fused_norm, "TILES_PER_PROGRAM", 2)


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
    ("fields", "size", "shape"),
    [(3, 4, (2, 9, 9)), slow(5, 8, (3, 6, 7)), slow(4, 1, (1, 17, 17)), slow(2, 32, (1, 5, 5))],
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

    actual = step(lambda maps: fused_norm.normalise(maps, fused, has_relu, pool), fused, x, upstream)
    for name, expected in step(run_layers, layers, x, upstream).items():
        assert (actual[name] - expected).abs().max() < 1e-5 * expected.abs().max().clamp_min(1), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_maps_are_summed_in_float32(dtype: torch.dtype) -> None:
    """Against the layers in float32 on the same rounded maps: what differs is the rounding of the results."""
    fused, layers, pool = make_norm(3, 4), make_norm(3, 4), AntialiasedPool().to(DEVICE)
    x = (3 + torch.randn(2, 12, 17, 17, device=DEVICE)).to(dtype).contiguous(memory_format=torch.channels_last)
    upstream = torch.randn(2, 12, 17, 17, device=DEVICE).to(dtype)
    actual = step(lambda maps: fused_norm.normalise(maps, fused, True, pool), fused, x, upstream)
    expected = step(lambda maps: pool(torch.relu(layers(maps))), layers, x.float(), upstream.float())
    eps = torch.finfo(dtype).eps
    for name, value in expected.items():
        tolerance = eps if name in ("x", "y") else 1e-4
        assert (actual[name].float() - value).abs().max() < tolerance * value.abs().max(), name


def test_a_process_without_images_has_an_empty_map_and_gradients_of_zero() -> None:
    norm = make_norm(2, 4)
    x = torch.zeros(0, 8, 9, 9, device=DEVICE, requires_grad=True)
    y = fused_norm.normalise(x, norm, True, AntialiasedPool().to(DEVICE))
    y.sum().backward()
    assert y.shape == (0, 8, 5, 5) and x.grad is not None and x.grad.shape == x.shape
    assert norm.weight.grad is not None and not norm.weight.grad.any()
    layers = make_norm(2, 4)
    layers(x.detach())
    assert torch.equal(norm.running_mean, layers.running_mean) and torch.equal(norm.running_var, layers.running_var)


def test_statistics_of_a_single_value_are_finite() -> None:
    norm = make_norm(2, 1)
    fused_norm.normalise(torch.full((1, 2, 1, 1), 3.0, device=DEVICE), norm, False, None)
    assert norm.running_mean.allclose(torch.full_like(norm.running_mean, 0.3))
    assert norm.running_var.allclose(torch.full_like(norm.running_var, 0.9))


def make_irreps_layout(dtype: torch.dtype) -> fused_norm.MapLayout:
    """Return the layout of two maps of C3, 7 x 7 px, 3 fields in memory for 4."""
    plan = gpu.get_plan(("C3", 3, "regular", "regular", None), False, torch.empty(0, dtype=dtype, device=DEVICE))
    return fused_norm.MapLayout(2, gpu.Grid(9, 9), 4, 3, plan.inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_variance_in_irreps_is_exact_where_the_mean_is_large(dtype: torch.dtype) -> None:
    """Fields of 1000 plus deviations of variance 1, in a basis as it is rounded."""
    layout, norm = make_irreps_layout(dtype), make_norm(3, 3)
    assert layout.field is not None
    moments = torch.full((3, 3, 4, 5), 64.0, device=DEVICE)  # pixels, means, squares; components, columns, programs
    moments[1] = 1000 * layout.field.constant[:, None, None]
    factors, statistics = fused_norm._make_factors(moments, layout, norm)
    values, mean, inverse_std, _ = statistics
    assert (values == 5 * 64 * 3).all() and not factors[:, 3].any()
    assert mean.allclose(torch.full_like(mean, 1000.0), rtol=1e-4)
    assert inverse_std.allclose(torch.full_like(mean, (1 + norm.eps) ** -0.5), rtol=1e-6)


class LaunchRecorder(TorchDispatchMode):
    """Collects torch's operations on a GPU and, in place of Triton's kernels, their launches."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(value.alias_info for value in function._schema.returns) and not function._schema.is_mutable
        if not is_view and get_name(function) not in UNINITIALISED:
            self.names.append(get_name(function))
        return function(*args, **(kwargs or {}))

    def replace_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module, names in KERNELS.items():
            for name in names:
                monkeypatch.setattr(module, name, _RecordedKernel(name, self.names))


class _RecordedKernel:
    def __init__(self, name: str, names: list[str]) -> None:
        self.name, self.names = name, names

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **constants: self.names.append(self.name)


KERNELS = {
    norm_kernels: ("sum_moments", "normalise", "sum_gradients", "normalise_backward"),
    norm_statistics: ("make_factors", "make_gradient_factors", "make_running_factors"),
}
FORWARD = ["sum_moments", "make_factors", "normalise"]
BACKWARD = ["sum_gradients", "make_gradient_factors", "normalise_backward"]


@pytest.mark.parametrize("is_in_irreps", [False, True], ids=["channels last", "irreps"])
def test_a_norm_has_three_launches_in_each_direction_and_two_in_evaluation(
    is_in_irreps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training step of a small network takes the time of its launches, not of their work."""
    norm, pool, recorder = make_norm(3, 3), AntialiasedPool().to(DEVICE), LaunchRecorder()
    layout = make_irreps_layout(torch.float32) if is_in_irreps else fused_norm.MapLayout(2, gpu.Grid(7, 7), 9, 3)
    x = layout.make_map(torch.empty(0, device=DEVICE)).requires_grad_()
    recorder.replace_kernels(monkeypatch)
    upstream = torch.empty_like(fused_norm.normalise_map(x, layout, norm, True, pool))
    recorder.names.clear()
    with recorder:
        fused_norm.normalise_map(x, layout, norm, True, pool).backward(upstream)
    assert recorder.names == FORWARD + BACKWARD
    recorder.names.clear()
    with recorder, torch.no_grad():
        fused_norm.normalise_map(x, layout, norm.eval(), True, pool)
    assert recorder.names == ["make_running_factors", "normalise"]


def test_two_steps_have_the_same_bits() -> None:
    x = torch.randn(2, 8, 9, 9, device=DEVICE).contiguous(memory_format=torch.channels_last)
    upstream, pool = torch.randn_like(x), AntialiasedPool().to(DEVICE)
    steps = []
    for _ in range(2):
        norm = make_norm(2, 4)
        steps.append(step(lambda maps, norm=norm: fused_norm.normalise(maps, norm, True, pool), norm, x, upstream))
    assert all(torch.equal(value, steps[1][name]) for name, value in steps[0].items())


@pytest.mark.parametrize(
    "model",
    [
        slow({"group": "C2", "scale": 0.1}),
        slow({"architecture": "e2resnet", "group": "C4", "depth": 18, "base_width": 2, "blocks": [1, 1, 1, 1]}),
        slow({"architecture": "e2wrn", "group": "C4", "depth": 10, "widen": 1, "scale": 0.3}),
    ],
    ids=lambda model: model.get("architecture", "steerable_cnn"),
)
def test_a_network_with_fused_norms_has_the_gradients_of_its_layers(
    model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = build_model(ModelConfig.model_validate(model), 17).to(DEVICE).train()
    images = torch.rand(2, 3, 17, 17, device=DEVICE)
    gradients = []
    for is_fusable in (False, True):
        monkeypatch.setattr(batch_norm, "_is_fusable", lambda x, is_fusable=is_fusable: is_fusable and x.dim() == 4)
        torch.manual_seed(1)  # of the dropout
        network.zero_grad()
        network(images).square().sum().backward()
        gradients.append(torch.cat([value.grad.flatten() for value in network.parameters() if value.grad is not None]))
    difference = (gradients[0] - gradients[1]).norm()
    assert 0 < difference < 1e-4 * gradients[0].norm()


RANK_STEP = """
import sys, torch, torch.distributed as dist
from galaxyhpc.steerable import fused_norm
from galaxyhpc.steerable.batch_norm import FieldBatchNorm
folder, rank, shares = sys.argv[1], int(sys.argv[2]), [slice(0, 3), slice(3, 3), slice(3, 4)]
dist.init_process_group("gloo", store=dist.FileStore(folder + "/store", 3), rank=rank, world_size=3)
x, upstream = (tensor[shares[rank]] for tensor in torch.load(folder + "/step.pt"))
norm = FieldBatchNorm(2, 4)
norm.sync = True
x.requires_grad_()
y = fused_norm.normalise(x, norm, True, None)
y.backward(upstream)
torch.save([y.detach(), x.grad, norm.running_var, norm.weight.grad, norm.bias.grad], f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_processes_share_the_statistics_of_all_images_even_where_one_has_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    step_file = [torch.randn(4, 8, 9, 9), torch.randn(4, 8, 9, 9)]
    torch.save(step_file, tmp_path / "step.pt")
    processes = [start_python("-c", RANK_STEP, str(tmp_path), str(rank)) for rank in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    y, grad_x, variance, *gradients = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(3)), strict=True)
    alone = step(lambda maps: torch.relu(norm(maps)), norm := FieldBatchNorm(2, 4), *step_file)
    actual = {"y": torch.cat(y), "x": torch.cat(grad_x), "variance": variance[1]}
    actual |= {name: sum(values) for name, values in zip(("weight", "bias"), gradients, strict=True)}
    for name, value in actual.items():
        assert (value - alone[name]).abs().max() < 1e-5 * alone[name].abs().max(), name
