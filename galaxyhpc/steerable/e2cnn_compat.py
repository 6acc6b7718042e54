"""Makes e2cnn 0.2.3, of January 2023, work on current numpy and torch; importing this module is all it takes.

Two things of numpy that e2cnn's kernels use are gone: `np.array(..., copy=False)` as "copy only if needed"
(2.0), and `ndarray.tostring` (2.3, a deprecation warning before). Only dihedral groups meet them, so C_N
alone proves nothing. And torch no longer takes bytes for a mask, which bases of a single filter meet (1x1 kernels).
Besides, e2cnn multiplies three arrays in one `einsum` without letting numpy find an order, which for D32 takes 87 s.
numpy and torch themselves stay as they are: e2cnn's modules are given stand-ins. A test fails when this can go.
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
    """The hash that e2cnn's `IrrepBasis` classes mean."""
    return hash((basis.in_irrep, basis.out_irrep, basis.mu.tobytes(), np.asarray(basis.gamma).tobytes()))


def _patch_e2cnn() -> None:
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        e2cnn.kernels.utils.np = SimpleNamespace(**{**vars(np), "array": _array_copy_if_needed})
    ordered = partial(np.einsum, optimize=True)
    e2cnn.kernels.steerable_basis.np = SimpleNamespace(**{**vars(np), "einsum": ordered})
    singleblock.np = SimpleNamespace(**{**vars(np), "uint8": bool})
    singleblock.torch = SimpleNamespace(**{**vars(torch), "uint8": torch.bool})
    for kind in vars(e2cnn.kernels.irreps_basis).values():
        code = getattr(getattr(kind, "__hash__", None), "__code__", None)
        if code is not None and "tostring" in code.co_names:
            kind.__hash__ = _hash_basis


_patch_e2cnn()
