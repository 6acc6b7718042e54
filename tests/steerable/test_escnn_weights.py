"""Filters that escnn 1.0.11 made lie in our bases, and weights go there and back.

escnn is no dependency of the tests: it asks for py3nj, which needs a Fortran compiler, and for lie_learn, whose wheels
are for numpy 1. `escnn_filters.npz` holds `R2Conv(in_type, out_type, kernel_size, bias=False).expand_parameters()[0]`
with the weights it draws, a field to a field of `gspaces.rot2dOnR2(N)` or `flipRot2dOnR2(N)`, made with numpy 1.26; for
one case also the weights and the sampled basis.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from galaxyhpc.steerable import escnn_weights
from galaxyhpc.steerable.kernels.harmonic import BasisSpec
from galaxyhpc.steerable.layers import SteerableConv

RECORDED = dict(np.load(Path(__file__).parent / "escnn_filters.npz"))
CASES = [name for name in RECORDED if " " in name]


def make_escnn_conv(case: str, **changes: Any) -> Any:
    """Return what an escnn `R2Conv` tells of itself."""
    group, kind, size = case.split()
    order = int(group[1:])
    regular, trivial = SimpleNamespace(name="regular"), SimpleNamespace(name="irrep_0")
    space = SimpleNamespace(rotations_order=order, flips_order=int(group[0] == "D"), name=group)
    space.regular_repr, space.trivial_repr = regular, trivial
    fields = [SimpleNamespace(gspace=space, representations=[field]) for field in (trivial, regular)]
    block = SimpleNamespace(sampled_basis=torch.tensor(RECORDED["basis"]))
    attributes = {
        "in_type": fields[kind == "regular"],
        "out_type": fields[1],
        "kernel_size": int(size),
        "expand_parameters": lambda: (torch.tensor(RECORDED[case]), None),
        "basisexpansion": SimpleNamespace(children=lambda: iter([block])),
        "weights": torch.zeros(len(RECORDED["weights"])),
    }
    return SimpleNamespace(**{**attributes, **changes})


def make_conv(spec: BasisSpec, in_fields: int = 1, out_fields: int = 1) -> SteerableConv:
    group, kernel_size, kind, out_kind, _ = spec
    return SteerableConv(group, in_fields, out_fields, kernel_size, kind=kind, out_kind=out_kind)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_steerable_convolution_has_the_filter_of_escnn(case: str) -> None:
    theirs = make_escnn_conv(case)
    layer = make_conv(escnn_weights.get_basis_spec(theirs))
    layer.weight.copy_(escnn_weights.convert_weights(theirs))
    expected = torch.tensor(RECORDED[case])
    assert (layer.expand_filter() - expected).abs().max() < 1e-6 * expected.abs().max()


def test_every_pair_of_fields_keeps_its_filter() -> None:
    layer = make_conv(("D4", 3, "regular", "regular", None), in_fields=2, out_fields=3)
    weights = escnn_weights.project_filter(layer.expand_filter().detach(), layer.basis_spec)
    torch.testing.assert_close(weights.float(), layer.weight.detach())


def test_weights_go_back_to_escnn() -> None:
    theirs = make_escnn_conv("D4 trivial 3")
    escnn_weights.restore_weights(escnn_weights.convert_weights(theirs), theirs)
    torch.testing.assert_close(theirs.weights, torch.tensor(RECORDED["weights"]))


def test_a_filter_outside_the_basis_is_refused() -> None:
    other = torch.tensor(RECORDED["D4 regular 3"]).roll(1, -1)
    with pytest.raises(ValueError, match="outside the basis of D4, 3x3; expected the default rings"):
        escnn_weights.convert_weights(make_escnn_conv("D4 regular 3", expand_parameters=lambda: (other, None)))


def test_mixed_fields_and_continuous_groups_are_refused() -> None:
    mixed = make_escnn_conv("C4 regular 3")
    mixed.in_type.representations.append(mixed.in_type.gspace.trivial_repr)
    with pytest.raises(ValueError, match="got irrep_0, regular; expected all regular or all trivial"):
        escnn_weights.get_basis_spec(mixed)
    mixed.in_type.gspace.rotations_order = -1
    with pytest.raises(ValueError, match="continuous group; expected C_N or D_N"):
        escnn_weights.get_basis_spec(mixed)
