"""Random numbers that depend on what they are for, not on when they are drawn.

Every draw is a hash (SplitMix64: Steele, Lea and Flood 2014, OOPSLA) of a key, an index and a counter, computed on
the device in integers: the same on every device, for every batch size and number of processes, so that nothing
random has to be saved in a checkpoint.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_GOLDEN_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_MULTIPLIER_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_MULTIPLIER_2 = -7723592293110705685  # 0x94D049BB133111EB


def make_key(*parts: int | float | str) -> int:
    """Return a 62-bit key that names what a draw is for, such as `make_key("order", seed, epoch)`."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def _logical_shift_right(bits: Tensor, shift: int) -> Tensor:
    return (bits >> shift) & ((1 << (64 - shift)) - 1)  # torch's own shift keeps the sign


def _mix_bits(bits: Tensor) -> Tensor:
    bits = (bits ^ _logical_shift_right(bits, 30)) * _MIX_MULTIPLIER_1
    bits = (bits ^ _logical_shift_right(bits, 27)) * _MIX_MULTIPLIER_2
    return bits ^ _logical_shift_right(bits, 31)


def uniform(key: int, indices: Tensor, count: int) -> Tensor:
    """Draw uniform numbers in (0, 1) for each index.

    Parameters
    ----------
    key : of `make_key`
    indices : (N,) int64, what the numbers belong to, such as rows of the data file
    count : numbers per index

    Returns
    -------
    (N, count) float64, on the device of `indices`
    """
    start = _mix_bits(_mix_bits(indices * _GOLDEN_GAMMA + key) + _GOLDEN_GAMMA)
    steps = torch.arange(1, count + 1, device=indices.device) * _GOLDEN_GAMMA
    return (_logical_shift_right(_mix_bits(start[:, None] + steps), 11).double() + 0.5) * 2.0**-53


def permutation(key: int, count: int) -> Tensor:
    """Return a (count,) int64 permutation of 0..count-1, on the CPU."""
    return uniform(key, torch.arange(count), 1)[:, 0].argsort(stable=True)
