"""Modules of e2cnn and escnn on the norms of fields, on tensors: non-linearities and pooling."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from galaxyhpc.steerable.acceleration.fields import FieldSplit, split_by_size
from galaxyhpc.steerable.acceleration.typed import TensorModule

GATE = "gate"


class FastNormNonLinearity(TensorModule):
    """`NormNonLinearity`: fields scaled by a function of their norm."""

    def __init__(self, original: Any) -> None:
        super().__init__(original)
        known = (torch.relu, torch.sigmoid, F.softplus)
        self.function = original._function if original._function in known else squash  # the original has a lambda
        self.log_bias, self.eps = original.log_bias, original.eps
        self.by_size = split_by_size(original.in_type)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        parts = dict(zip(self.by_size.sizes, self.by_size.split(x), strict=True))
        begin = 0
        for size in sorted(parts):  # the order of the biases
            part = parts[size]
            norms = part.norm(dim=2, keepdim=True)
            shifted = norms
            if self.log_bias is not None:
                bias = self.log_bias[:, begin : begin + part.shape[1]].exp()
                shifted = norms - bias.view(1, -1, *[1] * (x.dim() - 1))
            factors = self.function(shifted) / torch.max(norms, self.eps)
            parts[size] = part * factors.masked_fill(norms <= self.eps, 0.0)
            begin += part.shape[1]
        return self.by_size.join([parts[size] for size in self.by_size.sizes])


def squash(norms: Tensor) -> Tensor:
    """Return the lengths, below 1, of vectors with these norms."""
    return norms / (1.0 + norms)


class FastGatedNonLinearity(TensorModule):
    """`GatedNonLinearity1`: fields scaled by the sigmoid of other fields, of one channel each."""

    def __init__(self, original: Any) -> None:
        super().__init__(original)
        self.bias, self.drop_gates = original.bias, original.drop_gates
        labels = find_gates(original)
        self.inputs = FieldSplit(original.in_type, labels)
        kept = [label for label in labels if label != GATE or not self.drop_gates]
        self.outputs = FieldSplit(original.out_type, kept)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W)."""
        parts = dict(zip(self.inputs.labels, self.inputs.split(x), strict=True))
        gates = torch.sigmoid(parts.pop(GATE) - self.bias.view(1, -1, *[1] * (x.dim() - 1)))
        begin = 0
        for size in sorted(parts):
            part = parts[size]
            parts[size] = part * gates[:, begin : begin + part.shape[1]]
            begin += part.shape[1]
        parts[GATE] = gates
        return self.outputs.join([parts[label] for label in self.outputs.labels])


def find_gates(original: Any) -> list[Any]:
    """Return for each field of a `GatedNonLinearity1` whether it is a gate, or else its size."""
    is_gate = torch.zeros(original.in_type.size, dtype=torch.bool)
    indices = original.gates_indices
    is_gate[slice(*indices.tolist()) if original._contiguous[GATE] else indices] = True
    labels, begin = [], 0
    for representation in original.in_type.representations:
        labels.append(GATE if is_gate[begin] else representation.size)
        begin += representation.size
    return labels


class FastNormPool(TensorModule):
    """`NormPool`, the norm of each field, and `InducedNormPool`, the largest norm of its parts."""

    def __init__(self, original: Any) -> None:
        super().__init__(original)
        induced = hasattr(original, "_nfields")
        sizes = [(r.size, find_part_size(r) if induced else r.size) for r in original.in_type.representations]
        self.by_size = FieldSplit(original.in_type, sizes)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, fields, H, W)."""
        norms = []
        for (size, part_size), part in zip(self.by_size.labels, self.by_size.split(x), strict=True):
            norm = part.unflatten(2, (size // part_size, part_size)).norm(dim=3)
            norms.append(norm[:, :, 0] if part_size == size else norm.max(2).values)
        return self.by_size.join_fields(norms).contiguous()  # for views of all pixels as one row


def find_part_size(representation: Any) -> int:
    """Return the size of the subspaces that an induced representation permutes."""
    (name,) = [n for n in representation.supported_nonlinearities if n.startswith("induced_norm")]
    return int(name.split("_")[-1])


class FastFieldDropout(TensorModule):
    """`FieldDropout`: each field of a pixel is zero with probability p."""

    def __init__(self, original: Any) -> None:
        super().__init__(original)
        self.p = original.p
        self.by_size = split_by_size(original.in_type)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        if not self.training:
            return x
        parts = self.by_size.split(x)
        return self.by_size.join([part * self._draw_mask(part) / (1.0 - self.p) for part in parts])

    def _draw_mask(self, part: Tensor) -> Tensor:
        batch_size, fields, _, *sides = part.shape
        uniform = torch.empty(batch_size, fields, 1, *sides, device=part.device).uniform_()
        mask: Tensor = uniform > self.p
        return mask.to(part.dtype)
