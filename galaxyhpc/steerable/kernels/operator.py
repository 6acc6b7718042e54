"""The harmonic convolution as a torch operator, known to autograd and torch.compile, for every device.

A kernel is a module with `is_available()`, `forward` and `backward`, as in `cpu`; `KERNEL_MODULES` is the one place
where a type of device is added.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from galaxyhpc.steerable.kernels.harmonic import BasisSpec, get_harmonic_basis, harmonic_conv_reference

# by type of device; imported on use, because Triton is not everywhere
KERNEL_MODULES = {"cpu": "cpu", "cuda": "gpu"}
SUPPORTED = {
    *(("cpu", dtype) for dtype in (torch.float32, torch.float64)),
    *(("cuda", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)),
}

_SCHEMA_ARGS = "str group, int size, str kind, str out_kind, float? cutoff, int stride, int padding"


def harmonic_conv(x: Tensor, weight: Tensor, basis_spec: BasisSpec, stride: int, padding: int) -> Tensor:
    """(N, fields_in x d_in, H, W), weights of `SteerableConv` -> (N, fields_out x d_out, H', W'), channels last.

    The output has the type of x.
    """
    # the compiler needs the operator; eager, its dispatcher would take a twentieth of a small network's step
    apply: Any = torch.ops.galaxyhpc.harmonic if torch.compiler.is_compiling() else _HarmonicConv.apply
    y: Tensor = apply(x, weight, *basis_spec, stride, padding)
    return y


def is_available(device_type: str, dtype: torch.dtype) -> bool:
    """Whether the operator can be used on this type of device here; the first call may compile a library."""
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
        grad_x, grad_weight = kernel.backward(gradient, x, weight, args[:5], *args[5:])
    return x.new_empty(0) if grad_x is None else grad_x, grad_weight


# Schemas are explicit: torch 2.4 does not read postponed annotations.
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
def _(x: Tensor, weight: Tensor, *args: Any) -> Tensor:
    basis, (size, stride, padding) = get_harmonic_basis(args[:5]), (args[1], *args[5:])
    fields_out = weight.numel() // (x.shape[1] // len(basis.inputs.change_of_basis) * basis.num_weights)
    rows, columns = ((side + 2 * padding - size) // stride + 1 for side in x.shape[2:])
    return x.new_empty(len(x), rows, columns, fields_out * len(basis.outputs.change_of_basis)).permute(0, 3, 1, 2)


@_backward_op.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    grad_weight = torch.empty_like(weight)
    return torch.empty_like(x, memory_format=torch.channels_last) if args[-1] else x.new_empty(0), grad_weight


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.args = inputs[2:]


def _compute_gradients(ctx: Any, gradient: Tensor, backward: Any = torch.ops.galaxyhpc.harmonic_backward) -> Any:
    needs_input_grad = ctx.needs_input_grad[0]
    grad_x, grad_weight = backward(gradient, *ctx.saved_tensors, *ctx.args, needs_input_grad)
    return (grad_x if needs_input_grad else None, grad_weight, *[None] * len(ctx.args))


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
        if torch.is_grad_enabled():  # create_graph: the kernels' own gradient would be treated as a constant
            return _differentiate_reference(ctx, gradient)
        return _compute_gradients(ctx, gradient, _backward)


def _differentiate_reference(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Return gradients that have gradients themselves."""
    x, weight = ctx.saved_tensors
    stride, padding = ctx.args[5:]
    y = harmonic_conv_reference(x.to(weight.dtype), weight, ctx.args[:5], stride, padding)
    needs_grad = ctx.needs_input_grad[:2]
    inputs = [tensor for tensor, is_needed in zip((x, weight), needs_grad, strict=True) if is_needed]
    gradients = iter(torch.autograd.grad(y, inputs, gradient.to(y.dtype), create_graph=True))
    of_inputs = [next(gradients) if is_needed else None for is_needed in needs_grad]
    return (*of_inputs, *[None] * len(ctx.args))
