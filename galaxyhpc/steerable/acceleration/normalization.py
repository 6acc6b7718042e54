"""The batch normalisations of e2cnn and escnn on tensors, with their parameters and statistics under the same names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from galaxyhpc.steerable.acceleration.fields import FieldSplit, escape, split_by_size
from galaxyhpc.steerable.acceleration.norms import find_part_size
from galaxyhpc.steerable.acceleration.typed import TensorModule
from galaxyhpc.steerable.batch_norm import FieldBatchNorm


class CountingBatchNorm(FieldBatchNorm):
    """Batch normalisation of fields with the state of torch's `BatchNorm3d`, whose tensors it shares."""

    num_batches_tracked: Tensor

    def __init__(self, original: Any, size: int) -> None:
        super().__init__(original.num_features, size, eps=original.eps, momentum=original.momentum)
        self.weight, self.bias, self.training = original.weight, original.bias, original.training
        self.running_mean, self.running_var = original.running_mean, original.running_var
        self.register_buffer("num_batches_tracked", original.num_batches_tracked)

    def forward(self, x: Tensor) -> Tensor:
        """(N, fields x size, H, W) -> the same shape."""
        if self.training:
            self.num_batches_tracked.add_(1)
        return super().forward(x)


class FastInnerBatchNorm(TensorModule):
    """`InnerBatchNorm`, whose statistics are those of fields."""

    def __init__(self, original: Any) -> None:
        super().__init__(original)
        self.by_size = split_by_size(original.in_type)
        for size in self.by_size.sizes:
            name = f"batch_norm_[{size}]"
            self.add_module(name, CountingBatchNorm(getattr(original, name), size))

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        norms = [getattr(self, f"batch_norm_[{size}]") for size in self.by_size.sizes]
        if len(norms) == 1:
            y: Tensor = norms[0](x)
            return y
        parts = zip(norms, self.by_size.split(x), self.by_size.sizes, strict=True)
        return self.by_size.join([norm(part.flatten(1, 2)).unflatten(1, (-1, size)) for norm, part, size in parts])


class FastNormBatchNorm(TensorModule):
    """`NormBatchNorm` and `InducedNormBatchNorm`: fields divided by their running deviation, also in training."""

    num_batches_tracked: Tensor

    def __init__(self, original: Any) -> None:
        super().__init__(original)
        self.eps, self.momentum = original.eps, original.momentum
        self.labels, self.part_sizes = list(original._order), []
        for label in self.labels:
            self.register_parameter(f"{label}_weight", getattr(original, f"{label}_weight", None))
            self.register_buffer(f"{label}_running_var", getattr(original, f"{label}_running_var"))
            self.part_sizes.append(label[1] if isinstance(label, tuple) else label)
        self.register_buffer("num_batches_tracked", original.num_batches_tracked)
        is_induced = isinstance(self.labels[0], tuple)
        representations = original.in_type.representations
        self.by_label = FieldSplit(
            original.in_type, [(r.size, find_part_size(r)) if is_induced else r.size for r in representations]
        )

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        parts = dict(zip(self.by_label.labels, self.by_label.split(x), strict=True))
        if self.training:
            self.num_batches_tracked.add_(1)
        for label, part_size in zip(self.labels, self.part_sizes, strict=True):
            part, variance = parts[label], getattr(self, f"{label}_running_var")
            if self.training:
                self._update(variance, part.detach(), part_size)
            weight = getattr(self, f"{label}_weight")
            factors = (1.0 if weight is None else weight) / (variance + self.eps).sqrt()
            parts[label] = part * factors.view(1, -1, 1, 1, 1)
        return self.by_label.join([parts[label] for label in self.by_label.labels])

    @torch.no_grad()
    def _update(self, variance: Tensor, part: Tensor, part_size: int) -> None:
        count = part.numel() // (part.shape[1] * part_size)  # of vectors of a field
        means = part.square().sum((0, 2, 3, 4)) / (count * part_size)
        means *= count / (count - 1) if count > 1 else 1
        variance.mul_(1 - self.momentum).add_(means.view_as(variance), alpha=self.momentum)


class NamedFieldBatchNorm(TensorModule):
    """Batch normalisation that keeps parameters and statistics for each name of a representation.

    The statistics are constants to the gradient, as in the original.
    """

    num_batches_tracked: Tensor

    def __init__(self, original: Any) -> None:
        super().__init__(original)
        self.eps, self.momentum = original.eps, original.momentum
        self.by_name = FieldSplit(original.in_type, [r.name for r in original.in_type.representations])
        self.register_buffer("num_batches_tracked", original.num_batches_tracked)
        for name in map(escape, self.by_name.labels):
            for suffix in ("running_var", "running_mean"):
                self.register_buffer(f"{name}_{suffix}", getattr(original, f"{name}_{suffix}", None))
            for suffix in ("weight", "bias"):
                self.register_parameter(f"{name}_{suffix}", getattr(original, f"{name}_{suffix}", None))

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        if self.training:
            self.num_batches_tracked.add_(1)
        names = map(escape, self.by_name.labels)
        parts = [self._normalise(name, part) for name, part in zip(names, self.by_name.split(x), strict=True)]
        return self.by_name.join(parts)

    def _normalise(self, name: str, part: Tensor) -> Tensor:
        """(N, fields, size, H, W), the fields of an escaped name -> the same shape."""
        raise NotImplementedError


class FastGNormBatchNorm(NamedFieldBatchNorm):
    """`GNormBatchNorm`: every irrep of a field divided by its deviation, trivial ones centred."""

    def __init__(self, original: Any) -> None:
        super().__init__(original)
        for label in self.by_name.labels:
            name = escape(label)
            constants = {"aggregator": getattr(original, f"vars_aggregator_{name}")}
            constants["propagator"] = getattr(original, f"vars_propagator_{name}")
            constants["trivial"] = original._trivial_idxs[label]
            for suffix in ("change_of_basis", "change_of_basis_inv"):
                constants[suffix] = getattr(original, f"{name}_{suffix}", None)
            for suffix, values in constants.items():
                self.register_buffer(f"_{suffix}_{name}", values, persistent=False)

    def _normalise(self, name: str, part: Tensor) -> Tensor:
        inverse, change_of_basis = self._get(f"_change_of_basis_inv_{name}"), self._get(f"_change_of_basis_{name}")
        part = part if inverse is None else torch.einsum("ds,ncshw->ncdhw", inverse, part)
        variance, mean = self._get(f"{name}_running_var"), self._get(f"{name}_running_mean")
        trivial = self._get(f"_trivial_{name}")
        if self.training:
            mean, variance = self._update(name, part.detach())
        weight, bias = self._get(f"{name}_weight"), self._get(f"{name}_bias")
        scale = (variance + self.eps).rsqrt() if weight is None else weight / (variance + self.eps).sqrt()
        scale = torch.einsum("oi,ci->co", self._get(f"_propagator_{name}"), scale)
        shift = torch.zeros_like(scale)
        trivial_shift = -mean * scale[:, trivial]
        shift = shift.index_copy(1, trivial, trivial_shift if bias is None else trivial_shift + bias)
        y = part * scale[:, :, None, None] + shift[:, :, None, None]
        return y if change_of_basis is None else torch.einsum("ds,ncshw->ncdhw", change_of_basis, y)

    @torch.no_grad()
    def _update(self, name: str, part: Tensor) -> tuple[Tensor, Tensor]:
        """Move the running statistics towards those of a batch, and return these."""
        variance, mean = self._get(f"{name}_running_var"), self._get(f"{name}_running_mean")
        trivial = self._get(f"_trivial_{name}")
        count = part.numel() // (part.shape[1] * part.shape[2])
        means = part.mean((0, 3, 4))[:, trivial]
        squares = part.square().mean((0, 3, 4))
        squares[:, trivial] -= means.square()
        variances = torch.einsum("io,ci->co", self._get(f"_aggregator_{name}"), squares)
        variances *= count / (count - 1) if count > 1 else 1.0
        variance.mul_(1 - self.momentum).add_(variances, alpha=self.momentum)
        mean.mul_(1 - self.momentum).add_(means, alpha=self.momentum)
        return means, variances

    def _get(self, name: str) -> Any:
        return getattr(self, name)


class FastIIDBatchNorm(NamedFieldBatchNorm):
    """escnn's `IIDBatchNorm2d`: a mean of the trivial irreps of a field, and one variance for all its channels.

    Fields without a trivial irrep have no mean.
    """

    def __init__(self, original: Any) -> None:
        super().__init__(original)
        for name in map(escape, self.by_name.labels):
            for suffix in ("avg", "change_of_basis"):
                self.register_buffer(f"_{suffix}_{name}", getattr(original, f"{name}_{suffix}", None), persistent=False)

    def _normalise(self, name: str, part: Tensor) -> Tensor:
        if self.training:
            mean, variance = self._update(name, part.detach())
        else:
            mean, variance = getattr(self, f"{name}_running_mean"), getattr(self, f"{name}_running_var")
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        scale = (1.0 if weight is None else weight) / (variance + self.eps).sqrt()  # (fields, 1)
        y: Tensor = part * scale[:, :, None, None]
        if mean is None:
            return y.to(part.dtype)  # of autocast
        shift = -mean * scale  # (fields, size)
        if bias is not None:
            shift = shift + bias @ getattr(self, f"_change_of_basis_{name}").T
        y = y + shift[:, :, None, None]
        return y.to(part.dtype)

    @torch.no_grad()
    def _update(self, name: str, part: Tensor) -> tuple[Tensor | None, Tensor]:
        """Move the running statistics towards those of a batch, and return these."""
        running_mean, running_variance = getattr(self, f"{name}_running_mean"), getattr(self, f"{name}_running_var")
        variance, mean = torch.var_mean(part.to(running_variance.dtype), (0, 3, 4))
        variance = variance.mean(1, keepdim=True)
        running_variance.mul_(1 - self.momentum).add_(variance, alpha=self.momentum)
        if running_mean is None:
            return None, variance
        mean = mean @ getattr(self, f"_avg_{name}").T
        running_mean.mul_(1 - self.momentum).add_(mean, alpha=self.momentum)
        return mean, variance
