"""Compatibility of e2cnn 0.2.3 (January 2023) with current numpy and torch; importing this module applies it.

e2cnn's kernels use two features removed from numpy: `np.array(..., copy=False)` as "copy only if needed" (2.0), and
`ndarray.tostring` (2.3, a deprecation warning before). Only dihedral groups need them, so that C_N alone proves
nothing. Torch no longer accepts byte masks, which bases of a single filter need (1x1 kernels). Besides, e2cnn
multiplies three arrays in one `einsum` without an optimised order, which for D32 takes 87 s. numpy and torch themselves
are not changed: e2cnn's modules get stand-ins. A test fails when this module is no longer needed.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import e2cnn.kernels.irreps_basis
import e2cnn.kernels.steerable_basis
import e2cnn.kernels.utils
import e2cnn.nn.modules.r2_conv.basisexpansion_singleblock as singleblock
import numpy as np
import torch


def _array_copy_if_needed(values: Any, copy: bool = True) -> np.ndarray:
    return np.array(values) if copy else np.asarray(values)


def _hash_basis(basis: Any) -> int:
    """Return the hash that e2cnn's `IrrepBasis` classes intend."""
    return hash((basis.in_irrep, basis.out_irrep, basis.mu.tobytes(), np.asarray(basis.gamma).tobytes()))


def _patch_e2cnn() -> None:
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        e2cnn.kernels.utils.np = SimpleNamespace(**{**vars(np), "array": _array_copy_if_needed})
    optimized_einsum = partial(np.einsum, optimize=True)
    e2cnn.kernels.steerable_basis.np = SimpleNamespace(**{**vars(np), "einsum": optimized_einsum})
    singleblock.np = SimpleNamespace(**{**vars(np), "uint8": bool})
    singleblock.torch = SimpleNamespace(**{**vars(torch), "uint8": torch.bool})
    for basis_class in vars(e2cnn.kernels.irreps_basis).values():
        code = getattr(getattr(basis_class, "__hash__", None), "__code__", None)
        if code is not None and "tostring" in code.co_names:
            basis_class.__hash__ = _hash_basis


_patch_e2cnn()
