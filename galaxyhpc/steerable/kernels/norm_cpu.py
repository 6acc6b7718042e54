"""Batch norm of fields on a CPU, in `batch_norm.cpp`: torch needs more passes, and many calls for numbers of fields."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from galaxyhpc.runtime import native

SOURCE = "steerable/kernels/batch_norm.cpp"


def is_usable(*maps: Tensor) -> bool:
    """Whether maps have the type and the layout of these kernels, and the machine can compile them."""
    if torch.compiler.is_compiling() or any(type(x) is not Tensor or not x.numel() for x in maps):
        return False  # subclasses may hold no values
    fits = (x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 4 for x in maps)
    is_last = (x.is_contiguous(memory_format=torch.channels_last) for x in maps)
    return all(fits) and all(is_last) and native.load_library(SOURCE) is not None


def measure_moments(x: Tensor, fields: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of every field, (fields,)."""
    mean, variance = x.new_empty(fields), x.new_empty(fields)
    _call("measure_float32", x, fields, x, mean, variance)
    return mean, variance


def normalise(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(N, fields x size, H, W) -> the same shape, channels last."""
    y = torch.empty_like(x)
    _call("apply_float32", x, len(mean), x, mean, variance, weight, bias, eps, y)
    return y


def differentiate(
    gradient: Tensor, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, of the scale and of the shift."""
    grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    inputs = (gradient, x, mean, variance, weight, eps)
    _call("differentiate_float32", x, len(mean), *inputs, grad_x, grad_weight, grad_bias)
    return grad_x, grad_weight, grad_bias


def _call(name: str, x: Tensor, fields: int, *arguments: Tensor | float) -> None:
    images, channels, rows, columns = x.shape
    sizes = (ctypes.c_int64 * 4)(images * rows * columns, fields, channels // fields, torch.get_num_threads())
    values: list[Any] = [
        ctypes.c_void_p(argument.data_ptr()) if isinstance(argument, Tensor) else ctypes.c_float(argument)
        for argument in arguments
    ]
    function = getattr(native.load_library(SOURCE), name)
    function.restype = ctypes.c_bool
    if not function(sizes, *values):
        raise MemoryError(f"batch norm: out of memory for {fields} fields")
