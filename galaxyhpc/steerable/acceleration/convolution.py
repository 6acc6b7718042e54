"""The `R2Conv` of e2cnn or escnn on tensors: dense, or harmonic where that is faster, with its weights in their order.

The basis is the one that was sampled for this very layer, so that groups, fields, rings and frequency limits of any
kind need no care. A pair of representations of input and output has a block of weights of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galaxyhpc.steerable import groups
from galaxyhpc.steerable.acceleration.fields import escape, list_channels
from galaxyhpc.steerable.acceleration.typed import call_typed, compute_convolved_sides, ignore_derived_state
from galaxyhpc.steerable.kernels import cpu_timing, operator
from galaxyhpc.steerable.kernels.harmonic import BasisSpec, get_harmonic_basis
from galaxyhpc.steerable.layers import ExpandedConv, expand_block, get_compute_dtype

MAX_TIME_RATIO = 0.8  # harmonic to dense: estimates err by a fifth, more for narrow layers of any network
MAX_SHAPES = 64  # of inputs whose choice is remembered


class Block(NamedTuple):
    """The weights from all fields of one representation to all fields of another."""

    in_repr: int  # index in the sorted representations of the input
    out_repr: int
    weights: tuple[int, int]  # begin and end
    inputs: groups.Irreps
    outputs: groups.Irreps


class FieldOrder(NamedTuple):
    """Fields of one representation after another."""

    counts: tuple[int, ...]  # fields of each representation
    sizes: tuple[int, ...]  # channels of a field of each
    is_sorted: bool  # whether the channels lie in this order

    @property
    def widths(self) -> list[int]:
        """Number of channels of all fields of each representation."""
        return [count * size for count, size in zip(self.counts, self.sizes, strict=True)]


class FastConv(ExpandedConv):
    """`R2Conv` on plain tensors, (N, C, H, W) -> (N, C', H', W'), with its parameters `weights` and `bias`."""

    weights: nn.Parameter
    bias: nn.Parameter | None
    bias_expansion: Tensor | None  # (C', number of biases)
    _in_channels: Tensor | None  # in the order of `_in_order`, unless they lie so
    _out_channels: Tensor | None
    original_class = "R2Conv"
    harmonic: bool | None = None  # without a dense filter; None: where that is estimated to be faster

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.training = original.training
        self.in_type, self.out_type = original.in_type, original.out_type
        self.kernel_size, self.groups, self.dilation = original.kernel_size, original.groups, original.dilation
        self.stride, self.padding, self.padding_mode = original.stride, original.padding, original.padding_mode
        self.bias, self.weights = original.bias, original.weights  # in their order, which optimizers keep
        expansion = original.basisexpansion
        fields = [list_representations(expansion, side) for side in ("in", "out")]
        self._in_order, in_channels = sort_fields(fields[0])
        self._out_order, out_channels = sort_fields(fields[1])
        self._add_buffer("_in_channels", None if self._in_order.is_sorted else in_channels)
        self._add_buffer("_out_channels", None if self._out_order.is_sorted else out_channels)
        self._add_buffer("bias_expansion", getattr(original, "bias_expansion", None))
        self._blocks: list[Block] = []
        names = [list(dict.fromkeys(r.name for r in representations)) for representations in fields]
        for pair in expansion._representations_pairs:
            basis = find_basis(expansion, pair)
            in_repr, out_repr = (order.index(name) for order, name in zip(names, pair, strict=True))
            irreps = [find_irreps(representations, name) for representations, name in zip(fields, pair, strict=True)]
            # networks share their bases, so that another one's type may have changed this one's
            basis = basis.to(self.weights).unflatten(-1, (self.kernel_size, self.kernel_size)).contiguous()
            self._add_buffer(f"_basis_{len(self._blocks)}", basis)
            self._blocks.append(Block(in_repr, out_repr, expansion._weights_ranges[pair], *irreps))
        self._register_bases()
        self._choices: dict[Any, bool] = {}  # by the shape of the input
        self._last_choices: dict[bool, bool] = {}  # in training or not: a compiler does not choose

    def _add_buffer(self, name: str, values: Tensor | None) -> None:
        self.register_buffer(name, values, persistent=False)

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]
        """The name of `weights` in `ExpandedConv`."""
        return self.weights

    def expand_filter(self, dtype: torch.dtype | None = None) -> Tensor:
        """Expand the weights to (C_out, C_in / groups, k, k), in autocast's precision or another."""
        dense = self._assemble_filter(dtype)
        # maps of one channel, for which layouts are the same, make the filter's layout that of the output
        return dense if torch.compiler.is_compiling() else dense.contiguous(memory_format=torch.channels_last)

    def _assemble_filter(self, dtype: torch.dtype | None) -> Tensor:
        parts = {(b.out_repr, b.in_repr): self._expand_block(i, dtype) for i, b in enumerate(self._blocks)}
        if len(parts) == 1 and len(self._in_order.counts) == len(self._out_order.counts) == 1:
            return next(iter(parts.values()))
        in_widths, out_widths = self._in_order.widths, self._out_order.widths
        like, rows = next(iter(parts.values())), []
        for out_repr, height in enumerate(out_widths):
            zeros = [like.new_zeros(height, width, *like.shape[2:]) for width in in_widths]
            rows.append(torch.cat([parts.get((out_repr, in_repr), zeros[in_repr]) for in_repr in range(len(zeros))], 1))
        dense = torch.cat(rows)
        if self._out_channels is not None:
            dense = dense.index_select(0, self._out_channels.argsort())
        return dense if self._in_channels is None else dense.index_select(1, self._in_channels.argsort())

    def _expand_block(self, index: int, dtype: torch.dtype | None) -> Tensor:
        block = self._blocks[index]
        basis: Tensor = getattr(self, f"_basis_{index}")
        return expand_block(self.weights[slice(*block.weights)], basis, self._in_order.counts[block.in_repr], dtype)

    def forward(self, x: Any) -> Any:
        """(N, C, H, W) -> (N, C', H', W'); a GeometricTensor gives one."""
        return call_typed(self, x)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'), channels last in memory unless in a graph."""
        if x.dim() != 4 or x.shape[1] != self.in_type.size:
            raise RuntimeError(f"R2Conv: got a shape of {tuple(x.shape)}; expected (N, {self.in_type.size}, H, W)")
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            rows, columns = (padding, padding) if isinstance(padding, int) else padding
            x, padding = F.pad(x, (columns, columns, rows, rows), self.padding_mode), 0
        if self._is_harmonic(x, padding):
            y, bias = self._convolve_blocks(x.to(get_compute_dtype(self.weight)), padding), self._expand_bias()
            return y if bias is None else y + bias[:, None, None]
        if not torch.compiler.is_compiling():  # a compiler chooses layouts itself
            x = x.contiguous(memory_format=torch.channels_last)
        options = (self.stride, padding, self.dilation, self.groups)
        return F.conv2d(x, self._get_filter(), self._expand_bias(), *options)

    def evaluate_output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the output, which modules that hold others ask for."""
        settings = (self.kernel_size, self.stride, self.padding, self.dilation)
        return (input_shape[0], self.out_type.size, *compute_convolved_sides(input_shape[2:], *settings))

    def _expand_bias(self) -> Tensor | None:
        """Return the bias of each channel."""
        if self.bias is None or self.bias_expansion is None:
            return None
        return self.bias_expansion.to(self.bias.dtype).mv(self.bias)

    def _convolve_blocks(self, x: Tensor, padding: int) -> Tensor:
        """Convolve without a dense filter."""
        if self._in_channels is not None:
            x = x.index_select(1, self._in_channels)
        inputs = x.split(self._in_order.widths, 1) if len(self._in_order.counts) > 1 else (x,)
        sums: list[Tensor | None] = [None] * len(self._out_order.counts)
        for block, spec in zip(self._blocks, self._basis_specs, strict=True):
            weight = self.weights if len(self._blocks) == 1 else self.weights[slice(*block.weights)]
            part = operator.harmonic_conv(inputs[block.in_repr], weight, spec, self.stride, padding)
            total = sums[block.out_repr]
            sums[block.out_repr] = part if total is None else total + part
        like = next(total for total in sums if total is not None)
        if len(sums) == 1:
            return like
        widths = zip(self._out_order.widths, sums, strict=True)
        zeros = [
            like.new_zeros(len(like), width, *like.shape[2:]) if total is None else total for width, total in widths
        ]
        y = torch.cat(zeros, 1)
        return y if self._out_channels is None else y.index_select(1, self._out_channels.argsort())

    def _register_bases(self) -> None:
        """Make the bases known to this process."""
        bases = [getattr(self, f"_basis_{index}").detach().float().cpu().numpy() for index in range(len(self._blocks))]
        pairs = zip(bases, self._blocks, strict=True)
        self._basis_specs = tuple(groups.register_basis(basis, b.inputs, b.outputs) for basis, b in pairs)

    def _is_harmonic(self, x: Tensor, padding: Any) -> bool:
        dtype = get_compute_dtype(self.weight)
        if self.harmonic is False or dtype == torch.float64 or (x.device.type, dtype) not in operator.SUPPORTED:
            return False  # the sampled basis has float32 errors, which the harmonic one does not share
        if self.groups != 1 or self.dilation != 1 or not isinstance(self.stride, int) or not isinstance(padding, int):
            return False
        if is_exported():
            return False  # files hold no kernels
        if self.harmonic is not None:
            return self.harmonic and bool(has_harmonic_form(self._basis_specs))
        is_training = torch.is_grad_enabled() and (self.weight.requires_grad or x.requires_grad)
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return self._last_choices.get(is_training, False)
        key = (is_training, x.requires_grad, len(x), *x.shape[2:], torch.get_num_threads())
        if key not in self._choices:
            if len(self._choices) == MAX_SHAPES:
                self._choices.clear()
            self._choices[key] = self._is_estimated_faster(x, padding, is_training)
        self._last_choices[is_training] = self._choices[key]
        return self._choices[key]

    def _is_estimated_faster(self, x: Tensor, padding: int, is_training: bool) -> bool:
        if not operator.is_available("cpu", torch.float32) or not has_harmonic_form(self._basis_specs):
            return False
        rates = cpu_timing.get_machine_rates(torch.device("cpu"), torch.float32, torch.get_num_threads())
        seconds = {"dense": 0.0, "harmonic": 0.0}
        for block, spec in zip(self._blocks, self._basis_specs, strict=True):
            fields = self._in_order.counts[block.in_repr], self._out_order.counts[block.out_repr]
            sides = (x.shape[2], x.shape[3])
            layer_input = cpu_timing.LayerInput(spec, fields, self.stride, padding, len(x), sides, x.requires_grad)
            for kernel in seconds:
                seconds[kernel] += cpu_timing.estimate_seconds(layer_input, rates, kernel, is_training)
        return seconds["harmonic"] < MAX_TIME_RATIO * seconds["dense"]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process."""
        return super().__getstate__() | {"_choices": {}, "_last_choices": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._register_bases()  # the process may be another one

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Load a state of the original module, too."""
        super()._load_from_state_dict(*arguments)
        ignore_derived_state(*arguments)

    def extra_repr(self) -> str:
        return f"{self.in_type} -> {self.out_type}, {self.kernel_size}x{self.kernel_size}, stride={self.stride}"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_harmonic_form(basis_specs: tuple[BasisSpec, ...]) -> bool:
    """Whether all blocks of weights can do without a dense filter."""
    try:
        bases = [get_harmonic_basis(spec) for spec in basis_specs]
    except ValueError:
        return False
    return all(is_orthogonal(irreps) for basis in bases for irreps in (basis.inputs, basis.outputs))


def is_exported() -> bool:
    """Whether a graph is made for a file."""
    is_exporting = getattr(torch.compiler, "is_exporting", torch.jit.is_tracing)  # type: ignore[attr-defined]
    return bool(is_exporting() or torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def list_representations(expansion: Any, side: str) -> Sequence[Any]:
    """Return the representations of the fields on the side "in" or "out" of an expansion of e2cnn or escnn."""
    if hasattr(expansion, f"_{side}_reprs"):
        representations: Sequence[Any] = getattr(expansion, f"_{side}_reprs")  # escnn
    else:
        representations = getattr(expansion, f"_{side}_type").representations
    return representations


def find_basis(expansion: Any, pair: tuple[str, str]) -> Tensor:
    """Return the sampled basis (n_basis, d_out, d_in, k x k) of a pair of representations."""
    key = tuple(map(escape, pair))
    basis: Tensor = getattr(expansion, f"block_expansion_{key}").sampled_basis
    return basis


def sort_fields(representations: Sequence[Any]) -> tuple[FieldOrder, Tensor]:
    """Return the fields in the order of their representations' first appearance, and the channels in that order."""
    by_name = {r.name: r for r in representations}
    channels = list_channels(representations, [r.name for r in representations])
    order = list(chain.from_iterable(channels.values()))
    sizes = tuple(by_name[name].size for name in channels)
    counts = tuple(len(channels[name]) // size for name, size in zip(channels, sizes, strict=True))
    return FieldOrder(counts, sizes, order == sorted(order)), torch.tensor(order)


def find_irreps(representations: Sequence[Any], name: str) -> groups.Irreps:
    """Return the decomposition of the field of a name."""
    representation = next(r for r in representations if r.name == name)
    group = representation.group
    ids = {irrep: index for index, irrep in enumerate(dict.fromkeys(representation.irreps))}
    # by its name in e2cnn, by its numbers in escnn
    irreps = [group.irreps[key] if isinstance(key, str) else group.irrep(*key) for key in representation.irreps]
    change_of_basis = np.array(representation.change_of_basis, dtype=np.float64)
    return groups.Irreps(
        change_of_basis, tuple(irrep.size for irrep in irreps), tuple(ids[key] for key in representation.irreps)
    )


def is_orthogonal(irreps: groups.Irreps) -> bool:
    """Whether a change of basis keeps lengths."""
    q = irreps.change_of_basis
    return bool(np.allclose(q.T @ q, np.eye(len(q)), atol=1e-7))
