"""Compatibility of e2cnn 0.2.3 (January 2023) with current numpy and torch; importing this module applies it.

e2cnn uses what numpy and torch withdrew: `np.array(..., copy=False)` as "copy only if needed" (numpy 2.0), `np.float`
(1.24), `ndarray.tostring` (2.3), byte masks, and `torch.meshgrid` without an order. C_N alone proves little: hashing is
used by dihedral groups, byte masks by a basis of a single filter, `np.float` by induction to O(2).

Some of it needs packages that no current numpy runs or no index holds. A change of basis needs pymanopt before 2.0;
here it is an average over the group. Gaussian differential operators need RBF before July 2022; here they are Hermite
polynomials, and RBF-FD takes any release of RBF. Besides, e2cnn multiplies three arrays in one `einsum` without an
optimised order, which for D32 takes 87 s.

numpy and torch themselves are not changed: e2cnn's modules get stand-ins. Any import of e2cnn imports all of it, so
that the modules are changed at once. A test fails when this module is no longer needed.
"""

from __future__ import annotations

import importlib
from functools import partial
from types import ModuleType
from typing import Any

import e2cnn.group.groups.o2group
import e2cnn.group.representation
import e2cnn.kernels.irreps_basis
import e2cnn.kernels.steerable_basis
import e2cnn.kernels.utils
import e2cnn.nn.modules.r2_conv.basisexpansion_blocks as blocks
import e2cnn.nn.modules.r2_conv.basisexpansion_singleblock as singleblock
import numpy as np
import torch
from e2cnn import diffops
from numpy.polynomial.hermite import hermval
from scipy.linalg import block_diag


class StandIn:
    """A module with some names replaced, for the one module of e2cnn that it is given to."""

    def __init__(self, module: ModuleType, **replaced: Any) -> None:
        vars(self).update(replaced, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _array_copy_if_needed(values: Any, copy: bool = True) -> np.ndarray:
    return np.array(values) if copy else np.asarray(values)


def _hash_basis(basis: Any) -> int:
    """Return the hash that e2cnn's `IrrepBasis` classes intend."""
    return hash((basis.in_irrep, basis.out_irrep, basis.mu.tobytes(), np.asarray(basis.gamma).tobytes()))


def _compute_change_of_basis(representation: dict[Any, np.ndarray], irreps: list[tuple[Any, int]]) -> np.ndarray:
    """Return the orthogonal D (d, d) with D @ irreps(g) @ D.T equal to `representation[g]` for every g.

    `irreps` lists the irreducible representations with their multiplicities. The sum of rho(g) X irreps(g).T over the
    group is an intertwiner for any X, and so is its orthogonal polar factor. Almost every X gives a regular one.
    """
    sums = {g: block_diag(*(irrep(g) for irrep, count in irreps for _ in range(count))) for g in representation}
    start = np.random.default_rng(0).normal(size=next(iter(sums.values())).shape)
    left, _, right = np.linalg.svd(sum(np.asarray(rho) @ start @ sums[g].T for g, rho in representation.items()))
    change: np.ndarray = left @ right
    if not all(np.allclose(rho, change @ sums[g] @ change.T) for g, rho in representation.items()):
        raise ValueError("representation: got matrices that are not orthogonal or no group; expected a dict of such")
    return change


def _differentiate_gaussian(points: np.ndarray, centers: np.ndarray, eps: float, orders: np.ndarray) -> np.ndarray:
    """Return the derivative of exp(-(eps r)^2) at (N, 2) points, orders[i] times along axis i: (N, M) for M centers."""
    offsets = eps * (points[:, None] - centers)
    factors = [(-eps) ** order * hermval(offsets[..., axis], [0] * order + [1]) for axis, order in enumerate(orders)]
    return np.asarray(np.prod(factors, axis=0) * np.exp(-np.square(offsets).sum(-1)))


def _compute_rbffd_weights(*args: Any, **options: Any) -> Any:
    try:
        fd = importlib.import_module("rbf.pde.fd")
    except ImportError as error:
        raise RuntimeError("RBF-FD: got no package rbf; expected github.com/treverhines/RBF installed") from error
    return fd.weight_matrix(*args, **options)


def _patch_diffops() -> None:
    diffops.utils._RBF_AVAILABLE = True
    diffops.utils._gaussian = _differentiate_gaussian
    diffops.utils.weight_matrix = _compute_rbffd_weights


def _patch_e2cnn() -> None:
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        e2cnn.kernels.utils.np = StandIn(np, array=_array_copy_if_needed)
    optimized_einsum = partial(np.einsum, optimize=True)
    e2cnn.kernels.steerable_basis.np = StandIn(np, einsum=optimized_einsum)
    diffops.steerable_basis.np = StandIn(np, einsum=optimized_einsum)
    e2cnn.group.groups.o2group.np = StandIn(np, float=float)
    e2cnn.group.representation.compute_change_of_basis = _compute_change_of_basis
    blocks.torch = StandIn(torch, meshgrid=partial(torch.meshgrid, indexing="ij"))
    singleblock.np = StandIn(np, uint8=bool)
    singleblock.torch = StandIn(torch, uint8=torch.bool)
    for basis_class in vars(e2cnn.kernels.irreps_basis).values():
        code = getattr(getattr(basis_class, "__hash__", None), "__code__", None)
        if code is not None and "tostring" in code.co_names:
            basis_class.__hash__ = _hash_basis


_patch_e2cnn()
_patch_diffops()
