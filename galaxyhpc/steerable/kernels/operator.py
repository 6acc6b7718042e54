"""The harmonic convolution as an operator of torch, which autograd and torch.compile know, whatever the device.

A kernel is a module with `available()`, `forward` and `backward`, as `cpu` has them: the one place where a
kind of device is added is `KERNELS`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from galaxyhpc.steerable.kernels.harmonic import BasisSpec, get_harmonic_basis

# by kind of device; imported where asked for, because Triton is not everywhere
KERNEL_MODULES = {"cpu": "cpu", "cuda": "gpu"}
FULL_DTYPES, HALF_DTYPES = (torch.float32, torch.float64), (torch.float16, torch.bfloat16)
SUPPORTED = frozenset(
    [*(("cpu", dtype) for dtype in FULL_DTYPES), *(("cuda", dtype) for dtype in FULL_DTYPES + HALF_DTYPES)]
)

_SCHEMA_ARGS = "str group, int size, str kind, str out_kind, float? cutoff, int stride, int padding"


def harmonic_conv(x: Tensor, weight: Tensor, basis_spec: BasisSpec, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), channels last.

    The output has the type of x.
    """
    asked = (*basis_spec, stride, padding)
    # a compiler knows the operator; eager, its bookkeeping would take a twentieth of a small network's step
    apply: Any = torch.ops.galaxyhpc.harmonic if torch.compiler.is_compiling() else _HarmonicConv.apply
    y: Tensor = apply(x, weight, *asked)
    return y


def is_available(device_type: str, dtype: torch.dtype) -> bool:
    """Whether the operator computes on this kind of device here; the first question may compile a library."""
    if (device_type, dtype) not in SUPPORTED:
        return False
    try:
        return bool(_import_kernel(device_type).is_available())
    except ImportError:
        return False


def _import_kernel(device_type: str) -> Any:
    return import_module(f"galaxyhpc.steerable.kernels.{KERNEL_MODULES[device_type]}")


def _forward(x: Tensor, weight: Tensor, *args: Any) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _import_kernel(x.device.type).forward(x, weight, args[:5], *args[5:])
    return y


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    kernel = _import_kernel(x.device.type)
    with torch.autocast(x.device.type, enabled=False):
        by_x, by_weight = kernel.backward(gradient, x, weight, args[:5], *args[5:])
    return x.new_empty(0) if by_x is None else by_x, by_weight


# Schemas are spelt out: torch 2.4 does not read postponed annotations.
_forward_op = torch.library.custom_op(
    "galaxyhpc::harmonic", _forward, mutates_args=(), schema=f"(Tensor x, Tensor weight, {_SCHEMA_ARGS}) -> Tensor"
)
_backward_op = torch.library.custom_op(
    "galaxyhpc::harmonic_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor x, Tensor weight, {_SCHEMA_ARGS}, bool needs_input_grad) -> (Tensor, Tensor)",
)


@_forward_op.register_fake
def _(x: Tensor, weight: Tensor, *asked: Any) -> Tensor:
    of, (size, stride, padding) = get_harmonic_basis(asked[:5]), (asked[1], *asked[5:])
    fields_out = weight.numel() // (x.shape[1] // len(of.inputs.change_of_basis) * of.num_weights)
    rows, columns = ((side + 2 * padding - size) // stride + 1 for side in x.shape[2:])
    return x.new_empty(len(x), rows, columns, fields_out * len(of.outputs.change_of_basis)).permute(0, 3, 1, 2)


@_backward_op.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, *asked: Any) -> tuple[Tensor, Tensor]:
    by_weight = torch.empty_like(weight)
    return torch.empty_like(x, memory_format=torch.channels_last) if asked[-1] else x.new_empty(0), by_weight


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.asked = inputs[2:]


def _compute_gradients(ctx: Any, gradient: Tensor, backward: Any = torch.ops.galaxyhpc.harmonic_backward) -> Any:
    needs_input_grad = ctx.needs_input_grad[0]
    by_x, by_weight = backward(gradient, *ctx.saved_tensors, *ctx.asked, needs_input_grad)
    return (by_x if needs_input_grad else None, by_weight, *[None] * len(ctx.asked))


_forward_op.register_autograd(_compute_gradients, setup_context=_setup_context)


class _HarmonicConv(torch.autograd.Function):
    """The operator without torch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = _forward(*inputs)
        _setup_context(ctx, inputs, y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if torch.is_grad_enabled():  # create_graph: what is returned would be taken for a constant
            raise RuntimeError("a harmonic layer has no second derivative; a dense one has")
        return _compute_gradients(ctx, gradient, _backward)
