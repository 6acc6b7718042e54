"""Batch norm over fields: that of torch on maps reshaped to fields, without the reshape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from galaxyhpc.steerable.batch_norm import FieldBatchNorm

FIELDS, SIZE = 3, 8
SHAPE = (4, FIELDS * SIZE, 5, 7)
FORMATS = (torch.contiguous_format, torch.channels_last)


def layer(**settings: Any) -> FieldBatchNorm:
    """A layer in float64 that has no two fields alike."""
    torch.manual_seed(0)
    norm = FieldBatchNorm(FIELDS, SIZE, **settings).double()
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean):
            values.normal_()
    return norm


def maps(memory_format: torch.memory_format = torch.channels_last) -> Tensor:
    """(4, 24, 5, 7) whose channels have means and variances of their own."""
    x = torch.randn(SHAPE, dtype=torch.float64) * torch.rand(SHAPE[1])[:, None, None] + torch.randn(SHAPE[1], 1, 1) * 3
    return x.contiguous(memory_format=memory_format).requires_grad_()


def reference(norm: FieldBatchNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's own, and the running statistics it leaves."""
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    affine = (norm.weight, norm.bias, norm.training, norm.momentum, norm.eps)
    y = F.batch_norm(x.reshape(len(x), FIELDS, -1), mean, variance, *affine).view(x.shape)
    return y, mean, variance


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_it_is_torchs_own_on_maps_reshaped_to_fields(memory_format: torch.memory_format, training: bool) -> None:
    norm = layer(momentum=0.3, eps=1e-3).train(training)
    x = maps(memory_format)
    upstream = torch.randn(SHAPE, dtype=torch.float64)
    expected, mean, variance = reference(norm, x)
    y = norm(x)
    pairs = [(y, expected), (norm.running_mean, mean), (norm.running_var, variance)]
    gradients = [torch.autograd.grad(output, [x, norm.weight, norm.bias], upstream) for output in (y, expected)]
    for ours, theirs in [*pairs, *zip(*gradients, strict=True)]:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_maps_and_gradients_stay_in_their_memory_format(memory_format: torch.memory_format, training: bool) -> None:
    x = maps(memory_format)
    y = layer().train(training)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)  # of a gradient that is one expanded number
    assert y.stride() == x.stride() == gradient.stride()


def test_the_gradient_is_that_of_the_function() -> None:
    norm = layer()
    for values in (norm.running_mean, norm.running_var):
        values.zero_()
    x = torch.randn(2, FIELDS * SIZE, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *affine: norm(x), (x, norm.weight, norm.bias))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_in_half_precision_statistics_and_affine_are_of_float32(kind: torch.dtype) -> None:
    norm = layer(momentum=1.0).float()
    x = (maps().detach().float() + 100).to(kind).requires_grad_()
    upstream = torch.randn(SHAPE)
    y = norm(x)
    (gradient,) = torch.autograd.grad(y, x, upstream.to(kind))
    moments = norm.running_mean.clone(), norm.running_var.clone()
    exact = x.detach().float().requires_grad_()
    expected = norm(exact)
    for ours, theirs in zip(moments, (norm.running_mean, norm.running_var), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (exact_gradient,) = torch.autograd.grad(expected, exact, upstream.to(kind).float())
    rounding = 2 * torch.finfo(kind).eps
    for ours, theirs in ((y, expected), (gradient, exact_gradient)):
        assert ours.dtype == kind
        torch.testing.assert_close(ours.float(), theirs, rtol=rounding, atol=rounding)


def test_values_far_from_zero_lose_nothing_more_than_they_did_as_float32() -> None:
    norm, x = layer(momentum=1.0).float(), (torch.randn(SHAPE) + 1000).to(memory_format=torch.channels_last)
    norm(x)
    by_field = x.double().reshape(len(x), FIELDS, -1)
    torch.testing.assert_close(norm.running_var.double(), by_field.var((0, 2)), rtol=1e-4, atol=0)
    torch.testing.assert_close(norm.running_mean.double(), by_field.mean((0, 2)), rtol=1e-6, atol=0)
