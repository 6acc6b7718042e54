"""The layers of all networks, on plain tensors (N, fields x |G|, H, W), channels last in memory: the |G| channels of a
field are adjacent.

They compute what e2cnn's modules compute, with the weights in e2cnn's order, but a state dict is the same in training
and in evaluation, building is immediate, and nothing is shared between models. `SteerableConv` expands its few weights
to a dense filter at every training step, and caches the filter in evaluation without gradients until the weights
change; if `harmonic`, it needs no filter (`kernels.operator`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galaxyhpc.steerable import groups
from galaxyhpc.steerable.kernels.operator import SUPPORTED, harmonic_conv


class _SharedFilter(NamedTuple):
    """A filter expanded once for several passes, whose gradients reach the weights in the last of them."""

    key: Any  # of the weights it was expanded from
    filter: Tensor
    detached: Tensor  # the filter without its graph: its `grad` is the sum over all passes but the last

    @torch.no_grad()
    def add_accumulated(self, gradient: Tensor) -> Tensor:
        return gradient if self.detached.grad is None else gradient + self.detached.grad


class ExpandedConv(nn.Module):
    """A convolution whose dense filter is expanded from `weight`: at every training step, once in evaluation.

    In evaluation without gradients the filter is cached until the weights change.
    """

    weight: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self._cached_filter: tuple[Any, Tensor] | None = None
        self.is_accumulating = False
        self._shared_filter: _SharedFilter | None = None

    def expand_filter(self, dtype: torch.dtype | None = None) -> Tensor:
        """Expand the weights to (C_out, C_in, k, k), in autocast's precision or another."""
        raise NotImplementedError

    def _get_filter(self) -> Tensor:
        if torch.compiler.is_compiling():
            return self.expand_filter()  # a graph caches nothing
        if torch.is_grad_enabled() and (self.is_accumulating or self._shared_filter is not None):
            return self._get_shared_filter()
        if self.training or torch.is_grad_enabled():
            return self.expand_filter()
        key = self._make_cache_key(get_compute_dtype(self.weight))
        if self._cached_filter is None or self._cached_filter[0] != key:
            self._cached_filter = (key, self.expand_filter())
        return self._cached_filter[1]

    def _get_shared_filter(self) -> Tensor:
        """Expand only in the first pass; the gradients of all but the last pass are added to those of the last."""
        key = self._make_cache_key(self.weight.dtype)
        if self._shared_filter is None or self._shared_filter.key != key:
            expanded = self.expand_filter(self.weight.dtype)  # bfloat16 would round every sum of gradients
            self._shared_filter = _SharedFilter(key, expanded, expanded.detach().requires_grad_())
        shared = self._shared_filter
        if self.is_accumulating:
            return shared.detached.to(get_compute_dtype(self.weight))
        self._shared_filter = None
        if shared.filter.requires_grad:
            shared.filter.register_hook(shared.add_accumulated)
        return shared.filter.to(get_compute_dtype(self.weight))

    def _make_cache_key(self, dtype: torch.dtype) -> Any:
        """Return a key that changes with the weights: version (steps, loads) and address (moved or replaced)."""
        return self.weight._version, self.weight.data_ptr(), self.weight.device, dtype

    def train(self, mode: bool = True) -> Self:
        self._cached_filter = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cached filters out of copies and pickles: they are large and follow from the weights."""
        return {**self.__dict__, "_cached_filter": None, "_shared_filter": None, "is_accumulating": False}


class SteerableConv(ExpandedConv):
    """Equivariant convolution from fields of one kind to fields of one kind, without a bias: e2cnn's `R2Conv`.

    With `harmonic` it computes the same, to rounding, without a dense filter, where there is a kernel for the device
    and the type. State dicts are the same; see `kernels.selection` for the faster choice.
    """

    harmonic: bool = False
    is_fused: bool = False  # harmonic in one kernel, where that is possible: see `fused_convolution`
    basis: Tensor  # (n_basis, d_out, d_in, k, k)

    def __init__(
        self,
        group: str,
        in_fields: int,
        out_fields: int,
        kernel_size: int = 3,
        *,
        kind: groups.FieldKind = "regular",
        out_kind: groups.FieldKind = "regular",
        cutoff: float | None = None,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.basis_spec = (group, kernel_size, kind, out_kind, cutoff)
        sampled = groups.get_basis(*self.basis_spec)
        self.in_fields, self.out_fields = in_fields, out_fields
        self.stride, self.padding = stride, padding
        self.weight = nn.Parameter(torch.empty(out_fields * in_fields * len(sampled.std)))
        filters = torch.tensor(sampled.filters, device=self.weight.device)
        self.register_buffer("basis", filters, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights by e2cnn's generalised He rule, which keeps the variance from input to output."""
        if self.weight.is_meta:
            return  # nothing to draw, and torch would take long
        std = groups.get_basis(*self.basis_spec).std / math.sqrt(self.in_fields)
        with torch.no_grad():
            weights = self.weight.normal_().view(-1, len(std))
            weights.mul_(torch.tensor(std, device=weights.device))

    def expand_filter(self, dtype: torch.dtype | None = None) -> Tensor:
        """Expand the weights to (out_fields x d_out, in_fields x d_in, k, k), in autocast's precision or another."""
        return expand_block(self.weight, self.basis, self.in_fields, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_fields x d_in, H, W) -> (N, out_fields x d_out, H', W')."""
        dtype = get_compute_dtype(self.weight)
        if self.harmonic and (x.device.type, dtype) in SUPPORTED:
            if x.shape[1] != (channels := self.in_fields * self.basis.shape[2]):
                raise RuntimeError(f"{self}: got {x.shape[1]} channels; expected {channels}")
            return harmonic_conv(x.to(dtype), self.weight, self.basis_spec, self.stride, self.padding)
        return F.conv2d(x, self._get_filter(), stride=self.stride, padding=self.padding)

    def extra_repr(self) -> str:
        group, size, kind, out_kind, _ = self.basis_spec
        fields = f"{self.in_fields} {kind} -> {self.out_fields} {out_kind}"
        return f"{group}, {fields}, {size}x{size}, stride={self.stride}"


def expand_block(weight: Tensor, basis: Tensor, in_fields: int, dtype: torch.dtype | None = None) -> Tensor:
    """Expand (out_fields x in_fields x n_basis,) weights by (n_basis, d_out, d_in, k, k) filters to a dense filter.

    Its shape is (out_fields x d_out, in_fields x d_in, k, k), its type that of autocast or another.
    """
    n_basis, out_size, in_size, k, _ = basis.shape
    blocks = _matmul_full_precision(weight.view(-1, n_basis), basis.view(n_basis, -1))
    blocks = blocks.to(dtype or get_compute_dtype(weight)).view(-1, in_fields, out_size, in_size, k, k).transpose(1, 2)
    return blocks.reshape(-1, in_fields * in_size, k, k)


@contextmanager
def accumulate_filter_gradients(model: nn.Module) -> Iterator[None]:
    """Run passes whose filters' gradients reach the weights in the first pass after the block.

    Every dense filter is expanded once, and its gradient reduced once, for any number of passes.
    """
    layers = [module for module in model.modules() if isinstance(module, ExpandedConv)]
    for layer in layers:
        layer.is_accumulating = True
    try:
        yield
    except BaseException:
        for layer in layers:
            layer._shared_filter = None  # the step is abandoned: no later one may use its gradients
        raise
    finally:
        for layer in layers:
            layer.is_accumulating = False


class AntialiasedPool(nn.Module):
    """Gaussian blur, sigma in px, then every `stride`-th pixel; exact under quarter turns of odd sizes."""

    kernel: Tensor

    def __init__(self, sigma: float = 0.66, stride: int = 2) -> None:
        super().__init__()
        self.sigma, self.stride, self.padding = sigma, stride, round(3 * sigma)
        with torch.device("cpu"):  # arithmetic on the meta device takes long
            offsets = torch.arange(-self.padding, self.padding + 1, dtype=torch.float32)
            line = torch.exp(-offsets.square() / (2 * sigma**2))
            kernel = torch.outer(line, line) / line.sum() ** 2
        self.register_buffer("kernel", kernel.to(torch.get_default_device()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)), zeros outside."""
        return blur(x, self.kernel, (self.stride, self.stride), (self.padding, self.padding))


def blur(x: Tensor, kernel: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Convolve every channel of (N, C, H, W) with a kernel (k, k) that is a product of two equal lines of sum 1."""
    if x.is_cuda and torch.compiler.is_compiling():
        # cuDNN is slow at depthwise convolutions of channels-last maps; sums of slices are fused into one pass
        return blur_separably(x, kernel, stride, padding)
    # on a CPU, and without fusion, slices take 5 to 20 times as long as the convolution
    return F.conv2d(x, kernel.expand(x.shape[1], 1, -1, -1), stride=stride, padding=padding, groups=x.shape[1])


def blur_separably(x: Tensor, kernel: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Blur along columns, then along rows."""
    x, line = F.pad(x, [padding[1], padding[1], padding[0], padding[0]]), kernel.sum(0)
    for axis in (2, 3):
        last = x.shape[axis] - len(line) + 1
        parts = [x.narrow(axis, i, last).unfold(axis, 1, stride[axis - 2])[..., 0] * line[i] for i in range(len(line))]
        x = torch.stack(parts).sum(0)
    return x


class GroupPooling(nn.Module):
    """The maximum over a field's channels, which is invariant for a regular field."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(N, fields x size, H, W) -> (N, fields, H, W)."""
        per_pixel = x.permute(0, 2, 3, 1)  # the memory order of a channels-last map
        largest: Tensor = per_pixel.unflatten(3, (-1, self.size)).amax(4)  # without the batch's size, for exports
        return largest.permute(0, 3, 1, 2)


class Restriction(nn.Module):
    """Restriction of regular fields to |G| / |H| times as many of a subgroup H, by a permutation of channels.

    Equals e2cnn's `RestrictionModule` and `DisentangleModule`.
    """

    permutation: Tensor  # (|G|,) int64
    inverse_permutation: Tensor

    def __init__(self, group: str, subgroup: str) -> None:
        super().__init__()
        self.size = groups.group_order(group)
        with torch.device("cpu"):
            order = torch.tensor(groups.get_restriction_permutation(group, subgroup))
        self.register_buffer("permutation", order.to(torch.get_default_device()), persistent=False)
        self.register_buffer("inverse_permutation", order.argsort().to(torch.get_default_device()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, fields x |G|, H, W) -> the same shape."""
        permuted: Tensor = _PermuteChannels.apply(x, self.permutation, self.inverse_permutation)  # type: ignore[no-untyped-call]
        return permuted


class _PermuteChannels(torch.autograd.Function):
    """A permutation within fields; torch's gradient of indexing would be added one value at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, permutation: Tensor, inverse_permutation: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_permutation)
        return _permute_channels(x, permutation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _permute_channels(gradient, ctx.saved_tensors[0]), None, None


class CircularMask(nn.Module):
    """A mask that fades an image to black outside its circle, so that rotations lose nothing: e2cnn's `MaskModule`."""

    mask: Tensor

    def __init__(self, size: int, margin_percent: float = 1.0) -> None:
        """Take the image's side in px and the margin in per cent of the circle's radius."""
        super().__init__()
        centre = (size - 1) / 2
        with torch.device("cpu"):  # arithmetic on the meta device takes long
            squares = (torch.arange(size) - centre).square()
            beyond = squares[:, None] + squares - (centre * (1 - margin_percent / 100)) ** 2
            mask = torch.exp(-beyond.clamp_min(0.0) / 4.0)
        self.register_buffer("mask", mask.to(torch.get_default_device()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, size, size) -> the same shape, channels last in memory, which all later layers preserve."""
        return (x * self.mask).contiguous(memory_format=torch.channels_last)


def _permute_channels(x: Tensor, permutation: Tensor) -> Tensor:
    """Permute the channels of every field of (N, fields x |G|, H, W); indexing takes 5 times as long."""
    per_pixel = x.permute(0, 2, 3, 1)
    permuted = per_pixel.reshape(-1, len(permutation)).index_select(1, permutation)
    return permuted.view(per_pixel.shape).permute(0, 3, 1, 2)


def get_compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the type in which autocast would run a convolution, or the weight's own."""
    device_type = weight.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return weight.dtype


def _matmul_full_precision(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices without autocast."""
    if not torch.amp.is_autocast_available(a.device.type):  # the meta device, which torch.autocast refuses
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b
