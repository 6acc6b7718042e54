"""A sequence of blocks, which on a GPU may stay in irreps from one block to the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from galaxyhpc.steerable.layers import SteerableConv, get_compute_dtype


class BlockSequence(nn.Sequential):
    """Blocks of `SteerableConv` or another convolution, `FieldBatchNorm`, ReLU and, perhaps, `AntialiasedPool`."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        if self._should_fuse(x):
            from galaxyhpc.steerable import fused_blocks  # Triton is not everywhere

            return fused_blocks.run_blocks(self, x)
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return y

    def _should_fuse(self, x: Tensor) -> bool:
        if not any(getattr(next(block.children()), "harmonic", False) for block in self):
            return False
        is_eager = x.is_cuda and not torch.compiler.is_compiling()
        has_gradients = self.training or not torch.is_grad_enabled()  # all that are asked for
        return is_eager and has_gradients and has_block_kernels(get_compute_dtype(x), self.training)


def has_block_kernels(dtype: torch.dtype, is_training: bool) -> bool:
    """Whether a GPU has kernels of whole blocks for maps of a type: those of gradients would spill in float32."""
    return dtype.itemsize <= (2 if is_training else 4)


def can_stay_in_irreps(layer: nn.Module) -> bool:
    """Whether there are kernels that take a convolution from irreps to irreps."""
    if not isinstance(layer, SteerableConv):
        return False
    _, size, kind, out_kind, _ = layer.basis_spec
    return (size, kind, out_kind, layer.stride, layer.padding) == (3, "regular", "regular", 1, 1)
