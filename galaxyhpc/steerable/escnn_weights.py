"""The weights of an `R2Conv` of escnn 1.0.11 as weights of `SteerableConv`, and back.

escnn orders elements, channels and weights as e2cnn does, and its filters span the same space, but the basis is
another one. A filter is thus projected on our basis; what does not lie in it, because of other rings, widths or
frequencies, is refused. escnn is not imported: its modules come from the caller.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from galaxyhpc.steerable import groups
from galaxyhpc.steerable.kernels.harmonic import BasisSpec

TOLERANCE = 1e-5  # of the largest entry: filters and bases are sampled in float32


def get_basis_spec(convolution: Any) -> BasisSpec:
    """Return the basis of an escnn `R2Conv` from fields of one kind to fields of one kind, each trivial or regular."""
    space = convolution.in_type.gspace
    order, is_mirrored = space.rotations_order, bool(space.flips_order)
    if order < 1:
        raise ValueError(f"{space.name}: got a continuous group; expected C_N or D_N")
    kinds = [_get_kind(fields) for fields in (convolution.in_type, convolution.out_type)]
    return f"{'D' if is_mirrored else 'C'}{order}", convolution.kernel_size, kinds[0], kinds[1], None


def convert_weights(convolution: Any) -> Tensor:
    """Return the weights (out_fields x in_fields x n_basis,) of the `SteerableConv` with the filter of an `R2Conv`."""
    filters, _ = convolution.expand_parameters()
    return project_filter(filters.detach(), get_basis_spec(convolution))


@torch.no_grad()
def restore_weights(weight: Tensor, convolution: Any) -> None:
    """Give an escnn `R2Conv` the weights with which it has the filter of a `SteerableConv`."""
    spec = get_basis_spec(convolution)
    (block,) = convolution.basisexpansion.children()
    theirs = block.sampled_basis.unflatten(-1, (spec[1], spec[1]))
    ours_from_theirs = torch.stack([project_filter(filters, spec) for filters in theirs])
    ours = weight.view(-1, ours_from_theirs.shape[1]).to(ours_from_theirs)
    convolution.weights.copy_(torch.linalg.solve(ours_from_theirs, ours, left=False).flatten())


def project_filter(filters: Tensor, spec: BasisSpec) -> Tensor:
    """Project a filter (out_fields x d_out, in_fields x d_in, k, k) on a basis.

    Returns the weights (out_fields x in_fields x n_basis,) in float64; raises ValueError if the basis does not hold
    the filter to `TOLERANCE`.
    """
    basis = torch.tensor(groups.get_basis(*spec).filters, dtype=torch.float64, device=filters.device)
    n_basis, out_size, in_size, _, _ = basis.shape
    blocks = filters.double().unflatten(0, (-1, out_size)).unflatten(2, (-1, in_size)).transpose(1, 2)
    expected = blocks.reshape(-1, basis[0].numel()).T
    weights: Tensor = torch.linalg.lstsq(basis.view(n_basis, -1).T, expected).solution
    error = (basis.view(n_basis, -1).T @ weights - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    if error > TOLERANCE:
        raise ValueError(
            f"filter: got {error:.1e} of it outside the basis of {spec[0]}, {spec[1]}x{spec[1]}; "
            "expected the default rings, sigma, frequencies_cutoff and dilation, and the vertical axis of reflection"
        )
    return weights.T.flatten()


def _get_kind(fields: Any) -> groups.FieldKind:
    names = {representation.name for representation in fields.representations}
    space = fields.gspace
    if names == {space.regular_repr.name}:
        return "regular"
    if names == {space.trivial_repr.name}:
        return "trivial"
    raise ValueError(f"fields: got {', '.join(sorted(names))}; expected all regular or all trivial")
