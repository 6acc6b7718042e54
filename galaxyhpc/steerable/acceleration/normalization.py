"""e2cnn's batch normalisations on tensors, with their parameters and statistics under the same names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from galaxyhpc.steerable.acceleration.fields import split_by_size
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


def is_supported(original: Any) -> bool:
    """Whether an `InnerBatchNorm` has what `FieldBatchNorm` has: scale, shift and a moving average."""
    return original.affine and original.track_running_stats and original.momentum is not None
