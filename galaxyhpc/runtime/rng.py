"""Random numbers that are functions of what they are for, not of when they are drawn.

Every draw is a hash (SplitMix64: Steele, Lea and Flood 2014, OOPSLA) of a key, an index and a counter, computed on
the device in integers: the same on every device, for every batch size and number of processes, so that nothing
random has to be saved in a checkpoint.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def key(*parts: int | float | str) -> int:
    """Return a 62-bit key that names what a draw is for, such as `key("order", seed, epoch)`."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def _shifted(bits: Tensor, places: int) -> Tensor:
    return (bits >> places) & ((1 << (64 - places)) - 1)  # a logical shift: torch's own keeps the sign


def _mixed(bits: Tensor) -> Tensor:
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def uniform(name: int, indices: Tensor, count: int) -> Tensor:
    """Draw uniform numbers in (0, 1) for each index.

    Parameters
    ----------
    name : a key
    indices : (N,) int64, what the numbers belong to, such as rows of the data file
    count : how many for each

    Returns
    -------
    (N, count) float64 on the indices' device
    """
    start = _mixed(_mixed(indices * _GOLDEN + name) + _GOLDEN)
    steps = torch.arange(1, count + 1, device=indices.device) * _GOLDEN
    return (_shifted(_mixed(start[:, None] + steps), 11).double() + 0.5) * 2.0**-53


def permutation(name: int, count: int) -> Tensor:
    """Return a (count,) int64 permutation of 0..count-1, on the CPU."""
    return uniform(name, torch.arange(count), 1)[:, 0].argsort(stable=True)
