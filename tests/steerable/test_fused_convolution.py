"""The convolution in one kernel computes what the dense filter does, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.tiers import slow
from torch import Tensor, nn

from galaxyhpc.steerable.batch_norm import FieldBatchNorm
from galaxyhpc.steerable.kernels import selection
from galaxyhpc.steerable.kernels.harmonic import BasisSpec, get_harmonic_basis
from galaxyhpc.steerable.layers import SteerableConv

pytest.importorskip("triton")
import triton
import triton.language as tl

from galaxyhpc.steerable import fused_blocks, fused_convolution, fused_norm
from galaxyhpc.steerable.kernels import gpu, triton_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def get_basis_spec(group: str) -> BasisSpec:
    return (group, 3, "regular", "regular", None)


def convolve_fused(x: Tensor, weight: Tensor, basis_spec: BasisSpec, stride: int, padding: int) -> Tensor:
    """Return the maps of `gpu.forward`."""
    x = x.contiguous(memory_format=torch.channels_last)
    plan, grid = gpu.get_plan(basis_spec, False, x), gpu.Grid(x.shape[2] + 2 * padding, x.shape[3] + 2 * padding)
    weight = gpu.reshape_weights(weight, basis_spec, x.shape[1] // plan.inputs.channels)
    y_hat = fused_convolution.convolve(plan, grid.field_to_irreps(x, plan.inputs, padding, 1), weight, grid)
    sides = [(side - 3) // stride + 1 for side in grid]
    y = x.new_empty(len(x), *sides, len(weight) * plan.outputs.channels).permute(0, 3, 1, 2)
    grid.irreps_to_field(y_hat, y, plan.outputs, 1, stride)
    return y


@pytest.mark.parametrize(
    ("group", "fields", "stride", "padding", "shape", "dtype"),
    [
        slow("C1", (48, 5), 1, 1, (2, 5, 6), torch.float16),
        ("C4", (3, 4), 2, 1, (3, 9, 7), torch.float32),
        slow("C16", (12, 24), 1, 1, (1, 5, 4), torch.float16),
        ("D4", (12, 5), 1, 0, (1, 4, 12), torch.float16),
        slow("D8", (24, 12), 1, 1, (1, 5, 4), torch.float32),
        slow("D16", (5, 70), 2, 1, (1, 5, 4), torch.float16),
    ],
)
def test_maps_are_those_of_the_dense_filter(
    group: str, fields: tuple[int, int], stride: int, padding: int, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """Of any number of fields, of images, of odd sides, of more pixels than a tile has."""
    dense = SteerableConv(group, *fields, stride=stride, padding=padding).double().to(DEVICE)
    dense.basis = dense.basis.double()
    x = torch.randn(shape[0], fields[0] * dense.basis.shape[2], *shape[1:], dtype=torch.float64, device=DEVICE)
    expected = dense(x).detach()
    y = convolve_fused(x.to(dtype), dense.weight.detach().float(), dense.basis_spec, stride, padding)
    assert (y - expected).abs().max() < 4 * torch.finfo(dtype).eps * expected.abs().max()


@triton.jit
def _copy_pairs(x, y, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    pairs, index = x.to(tl.pointer_type(tl.int32), bitcast=True), tl.arange(0, COUNT // 2)
    values = triton_kernels.load_tap(pairs, index, index < COUNT, False)
    tl.store(y + tl.arange(0, COUNT), tl.reshape(values, (COUNT,)))


def test_pairs_of_bfloat16_are_split_exactly() -> None:
    x, y = torch.randn(16, device=DEVICE).bfloat16(), torch.empty(16, device=DEVICE)
    _copy_pairs[(1,)](x, y, COUNT=16)
    assert torch.equal(x.float(), y)


@triton.jit
def _add_product_in_float32(sums, z, weights, ROWS: tl.constexpr, K: tl.constexpr):  # type: ignore[no-untyped-def]
    z = tl.reshape(z, (ROWS, K)).to(tl.bfloat16).to(tl.float32)
    return tl.dot(z, weights.to(tl.float32), sums, input_precision="ieee")


def test_pairs_of_bfloat16_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # Triton's interpreter multiplies bfloat16 as if it were integers
        monkeypatch.setattr(triton_kernels, "add_product", _add_product_in_float32)
    plan = gpu.get_plan(get_basis_spec("D4"), False, torch.empty(0, dtype=torch.bfloat16, device=DEVICE))
    grid, fields = gpu.Grid(5, 6), plan.inputs.pad_fields(12)
    x_hat = torch.randn(plan.inputs.num_planes * 2 * grid.size * fields, device=DEVICE).bfloat16()
    weight = torch.randn(8, 12, plan.basis.num_weights, device=DEVICE).bfloat16()
    y_hat = fused_convolution.convolve(plan, x_hat, weight, grid).float()
    plan_of_float32, maps = gpu.get_plan(get_basis_spec("D4"), False, weight.float()), []
    for values in (y_hat, gpu.convolve(plan_of_float32, x_hat.float(), weight.float(), grid)):
        maps.append(x_hat.new_empty(2, 64, 3, 4, dtype=torch.float32).to(memory_format=torch.channels_last))
        grid.irreps_to_field(values, maps[-1], plan_of_float32.outputs, 1, 1)
    y, expected = maps
    assert (y - expected).abs().max() < 4 * torch.finfo(torch.bfloat16).eps * expected.abs().max()


@pytest.mark.parametrize("group", ["C1", "C2", "C3", "C7", "C16", "D1", "D2", "D3", "D4", "D7", "D16"])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_blocks_of_all_groups_have_a_form_that_the_kernel_knows(group: str, is_transposed: bool) -> None:
    basis = get_harmonic_basis(get_basis_spec(group), is_transposed)
    plan = gpu.get_plan(get_basis_spec(group), is_transposed, torch.empty(0))
    tables, _ = fused_convolution.make_step_tables(plan, 16, 16)
    num_blocks = sum(len(irrep.weight_indices) for irrep in basis.irreps)
    assert sum(len(table.steps) for table in tables) == num_blocks


def test_filters_of_other_sizes_are_refused() -> None:
    basis = get_harmonic_basis(("C4", 5, "regular", "regular", None))
    with pytest.raises(ValueError, match="got filters of 5x5 px; expected 3x3"):
        fused_convolution.get_spatial_filters(basis)


@pytest.fixture
def nan_in_new_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills memory, too
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("nan_in_new_memory")
def test_all_pixels_are_written_but_the_border() -> None:
    """Without a border no neighbour of a pixel lies outside of the memory."""
    plan, grid = gpu.get_plan(get_basis_spec("C1"), False, torch.empty(0, device=DEVICE)), gpu.Grid(11, 12)
    x_hat = torch.randn(plan.inputs.num_planes * grid.size * 4, device=DEVICE)
    weight = torch.randn(4, 4, plan.basis.num_weights, device=DEVICE)
    y_hat = fused_convolution.convolve(plan, x_hat, weight, grid, step_values=32).view(*grid, 4)
    assert y_hat.isnan().sum() == y_hat.numel() - y_hat[1:-1, 1:-1].isfinite().sum() == 4 * (11 * 12 - 9 * 10)


@pytest.mark.slow
@pytest.mark.usefixtures("nan_in_new_memory")
def test_blocks_give_the_same_maps_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The border of the maps, which is not written, does not reach them."""
    assert torch.empty(3).isnan().all()
    monkeypatch.setattr(fused_convolution, "DTYPES", (torch.float32,))
    monkeypatch.setattr(fused_norm, "TILES_PER_PROGRAM", 1)
    torch.manual_seed(0)
    layers = [
        nn.Sequential(SteerableConv("C3", 2, 3, padding=1), FieldBatchNorm(3, 3), nn.ReLU()),
        nn.Sequential(SteerableConv("C3", 3, 2, padding=1), FieldBatchNorm(2, 3), nn.ReLU()),
    ]
    two_step = nn.Sequential(*layers).to(DEVICE).train()
    fused = copy.deepcopy(two_step)
    choices: tuple[selection.LayerKernel, ...] = (True, "fused")
    x = torch.randn(2, 6, 5, 4, device=DEVICE).contiguous(memory_format=torch.channels_last)
    outcomes = []
    for blocks, kernel in zip((two_step, fused), choices, strict=True):
        monkeypatch.setattr(selection.operator, "is_available", lambda *arguments: True)
        names = selection.get_steerable_layers(blocks)
        assert selection.apply_choice(blocks, dict.fromkeys(names, kernel), torch.device(DEVICE))
        own_x = x.clone().requires_grad_()
        y = fused_blocks.run_blocks(blocks, own_x)
        (y * torch.linspace(-1, 1, y.shape[-1], device=DEVICE)).sum().backward()
        outcomes.append([y.detach(), own_x.grad, *(value.grad for value in blocks.parameters())])
    for value, expected in zip(*reversed(outcomes), strict=True):
        assert (value - expected).abs().max() < 2e-5 * expected.abs().max()


COMPILE = """
import subprocess, sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from galaxyhpc.steerable.kernels.triton_kernels import convolve

constants = dict(F=48, N=96, SIZE=2, EDGE=1.7, CENTRE=0.1, SLOPE=2.4, MASKED=False)
constants |= dict(TILE_SIDE=8, BK=16, BN=128, N_TILES=1)
pointers = dict(x_hat="*bf16", y_hat="*bf16", weights="*bf16", begins="*i32", steps="*i32", factors="*fp32")
names = convolve.arg_names
signature = {name: pointers.get(name, "constexpr" if name in constants else "i32") for name in names}
attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in pointers}
values = {(names.index(name),): value for name, value in constants.items()}
source = ASTSource(convolve, signature, values, attributes)
kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
Path(sys.argv[1]).write_bytes(kernel.asm["cubin"])
tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
for option in ("-res-usage", "-sass"):
    print(subprocess.run([tool, option, sys.argv[1]], capture_output=True, text=True, check=True).stdout)
"""


@pytest.mark.slow
def test_compiled_for_a_gpu_it_stays_in_registers_and_reads_16_bytes_at_once(tmp_path: Path) -> None:
    """Compute capability 9.0, 48 fields of D16: two programs of four warps fit into the 65,536 registers."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, str(tmp_path / "kernel.cubin")]
    code = subprocess.run(
        command, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=True
    ).stdout
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", code)[0])
    assert registers <= 256 and stack == 0
    assert "HGMMA.64x128x16.F32.BF16" in code
    assert code.count("LDG.E.128") >= 56 and "LDG.E.U16" not in code and "LDG.E.64" not in code
