"""Batch normalisation over fields of adjacent channels, in any memory format.

A field's moments are merged from those of its channels, which torch computes and applies without copying the map: a
reshape to (N, fields, -1) would copy every channels-last map. Saved for the gradient are the map and two numbers per
field.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from galaxyhpc.steerable.layers import AntialiasedPool

FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class FieldBatchNorm(nn.Module):
    """Batch normalisation with one mean, variance, scale and shift per field of `size` channels.

    With `size` 1 it is ordinary batch norm, also for (N, fields) features. With `sync` the statistics are those of the
    batch over all processes, whose local batches may differ in size. Statistics are float32 even in half precision.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, fields: int, size: int = 1, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.fields, self.size, self.eps, self.momentum = fields, size, eps, momentum
        self.sync = False
        self.weight = nn.Parameter(torch.ones(fields))
        self.bias = nn.Parameter(torch.zeros(fields))
        self.register_buffer("running_mean", torch.zeros(fields))
        self.register_buffer("running_var", torch.ones(fields))

    @property
    def is_synchronised(self) -> bool:
        """Whether the statistics are those of several processes."""
        return self.sync and get_world_size() > 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, fields x size, ...) -> the same shape, in the same memory format."""
        if self.training and (self.is_synchronised or self.size > 1):
            return self._normalise_fields(x, self.is_synchronised)
        per_field = (self.running_mean, self.running_var, self.weight, self.bias)
        mean, variance, weight, bias = per_field if self.size == 1 else _repeat_per_channel(self.size, *per_field)
        return F.batch_norm(x, mean, variance, weight, bias, self.training, self.momentum, self.eps)

    def _normalise_fields(self, x: Tensor, should_sync: bool) -> Tensor:
        with torch.no_grad():
            mean, variance = _compute_field_moments(x, self.fields)
            count: int | Tensor = x.numel() // self.fields
            total = None
            if should_sync:
                mean, variance, total = _all_reduce_moments(mean, variance, x.numel() // self.fields)
                count = total
        self._update_statistics(mean, variance, count)
        moments = (mean, variance, total, self.eps)
        y: Tensor = _Normalise.apply(x, self.weight, self.bias, *moments)  # type: ignore[no-untyped-call]
        return y

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor, count: float | Tensor) -> None:
        """Move the running statistics towards those of a batch, (fields,) each, of `count` values per field."""
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var), self.momentum)

    def extra_repr(self) -> str:
        return f"{self.fields}, size={self.size}, sync={self.sync}"


class FusedSequential(nn.Sequential):
    """A sequence of layers; in training on a GPU a batch norm takes along the ReLU and the pool that follow it."""

    def forward(self, x: Tensor) -> Tensor:
        should_fuse = self.training and _is_fusable(x)  # otherwise module by module, with their hooks
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if not (should_fuse and isinstance(layer, FieldBatchNorm)):
                x = layer(x)
                continue
            has_relu = bool(layers) and isinstance(layers[0], nn.ReLU)
            pool = layers[1] if has_relu and len(layers) > 1 and isinstance(layers[1], AntialiasedPool) else None
            del layers[: has_relu + (pool is not None)]
            x = normalise(x, layer, has_relu, pool)
        return x


def normalise(x: Tensor, norm: FieldBatchNorm, has_relu: bool = True, pool: AntialiasedPool | None = None) -> Tensor:
    """(N, fields x size, H, W) -> the same shape, or that of the pool; one pass over the map in training on a GPU."""
    if norm.training and _is_fusable(x):
        from galaxyhpc.steerable import fused_norm  # Triton is not everywhere

        return fused_norm.normalise(x, norm, has_relu, pool)
    x = norm(x)
    if has_relu:
        x = F.relu(x, inplace=True)
    return x if pool is None else pool(x)


def _is_fusable(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in FUSED_DTYPES and not torch.compiler.is_compiling()


class _Normalise(torch.autograd.Function):
    """Normalise (N, fields x size, ...) by its moments per field, of `total_count` values over all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        total_count: Tensor | None,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, total_count)
        ctx.eps = eps
        size = x.shape[1] // len(mean)
        mean, variance, weight, bias = _repeat_per_channel(size, mean, variance, weight, bias)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, total = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            return (*_differentiate_reference(gradient, x, weight, total, ctx.eps), None, None, None, None)
        fields, size = len(mean), x.shape[1] // len(mean)
        inverse_std = (variance + ctx.eps).rsqrt()
        sums = _sum_gradients(gradient, x, *_repeat_per_channel(size, mean, inverse_std)).view(2, fields, size).sum(2)
        grad_bias, grad_weight = sums  # of this process: the trainer adds those of all processes
        means = sums / (x.numel() // fields) if total is None else _all_reduce_sums(sums) / total
        scale = weight * inverse_std
        slope, shift = compute_gradient_factors(means, mean, inverse_std, scale)
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale, slope, shift = (values.view(shape) for values in _repeat_per_channel(size, scale, slope, shift))
        grad_x = torch.addcmul(shift, x, slope).addcmul_(gradient, scale).to(x.dtype)
        return grad_x, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None, None, None, None


def _differentiate_reference(
    gradient: Tensor, x: Tensor, weight: Tensor, total_count: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of x, scale and shift that have gradients themselves, by ordinary autograd."""
    if total_count is not None:
        raise RuntimeError("batch norm: second derivatives of statistics over several processes; expected sync=False")
    x = x if x.requires_grad else x.detach().requires_grad_()
    by_field, gradient = (values.unflatten(1, (len(weight), -1)) for values in (x, gradient))
    axes = [axis for axis in range(by_field.dim()) if axis != 1]
    variance, mean = torch.var_mean(by_field, axes, correction=0, keepdim=True)  # (1, fields, 1, ...)
    normalised = (by_field - mean) * (variance + eps).rsqrt()
    (grad_x,) = torch.autograd.grad(normalised, x, gradient * weight.view(mean.shape), create_graph=True)
    return grad_x, (gradient * normalised).sum(axes), gradient.sum(axes)


def compute_gradient_factors(means: Tensor, mean: Tensor, inverse_std: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and offset per field of d/dx = gradient * scale + x * slope + offset.

    That is scale * (gradient - first - (x - mean) * inverse_std * second), where first and second are the means of the
    gradient and of its products with the normalised x.
    """
    first, second = means
    slope = -scale * inverse_std * second
    return slope, -scale * first - mean * slope


def enable_sync_batchnorm(model: nn.Module) -> None:
    """Let every batch normalisation of the model use the statistics of the batch over all processes."""
    for module in model.modules():
        if isinstance(module, FieldBatchNorm):
            module.sync = True


def _compute_field_moments(x: Tensor, fields: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of every field, (fields,), as the parts' mean variance and the variance of their means.

    This avoids differences of nearly equal numbers.
    """
    means, variances = (values.view(-1, fields, x.shape[1] // fields) for values in _compute_channel_moments(x))
    mean = means.mean((0, 2))
    deviations = (means - mean[:, None]).square()
    return mean, (variances + deviations).mean((0, 2))


def _compute_channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of every channel, (C,), in float32 or wider; or of its columns of pixels, (W x C,)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if not x.numel():  # a process without an image in this batch
        return x.new_zeros(x.shape[1], dtype=dtype), x.new_zeros(x.shape[1], dtype=dtype)
    if torch.compiler.is_compiling() or x.device.type not in ("cpu", "cuda"):
        axes = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(x.to(dtype), axes, correction=0)  # 20 times slower if not compiled
        return mean, variance
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        # torch sums float32 sequentially: with columns of pixels summed apart, gradients are 10 to 100 times as exact
        x = x.permute(0, 2, 3, 1).flatten(2).transpose(1, 2)[..., None]
    scratch = x.new_zeros(2, x.shape[1], dtype=dtype)  # sets the type of the result
    mean, variance = torch.batch_norm_update_stats(x, scratch[0], scratch[1], 1.0)
    return mean, variance


def _all_reduce_moments(mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance and number of values over all processes from those of this process.

    In float64, where the difference of two sums loses nothing that float32 held.
    """
    dtype, mean, variance = mean.dtype, mean.double(), variance.double()
    sums = count * torch.stack([torch.ones_like(mean), mean, variance + mean.square()])
    dist.all_reduce(sums)
    total, first, second = sums
    mean = first / total
    return mean.to(dtype), (second / total - mean.square()).clamp_min(0.0).to(dtype), total.to(dtype)


def _all_reduce_sums(sums: Tensor) -> Tensor:
    """Return the sums over all processes."""
    total = sums.clone()
    dist.all_reduce(total)
    return total


def _sum_gradients(gradient: Tensor, x: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
    """Return the sums of the gradient and of its products with the normalised x, per channel, (2, C)."""
    if not x.numel():
        return mean.new_zeros(2, len(mean))
    arguments = (gradient, x, torch.ones_like(mean), None, None, mean, inverse_std, True, 0.0, [False, True, True])
    _, products, gradients = torch.ops.aten.native_batch_norm_backward(*arguments)
    return torch.stack([gradients, products])


def _repeat_per_channel(size: int, *per_field: Tensor) -> tuple[Tensor, ...]:
    """(fields,) each -> (fields x size,) each."""
    return tuple(values.repeat_interleave(size) for values in per_field)


def get_world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
