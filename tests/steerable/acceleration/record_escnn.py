"""Record networks of escnn, and what they compute, in escnn_networks.npz: see `helpers.escnn_recording`.

    GALAXYHPC_TEST_ESCNN=1 PYTHONPATH=tests python tests/steerable/acceleration/record_escnn.py

Where escnn is installed (`pip install --no-deps escnn lie_learn pymanopt autograd`, numpy 1.26), the same variable
makes the tests of this folder run on escnn's modules instead of e2cnn's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers.e2cnn_networks import compute, copy_network, get_modules, make_network_of_irreps, make_sequence, make_space
from helpers.escnn_recording import save
from torch import Tensor

FILE = Path(__file__).parent / "escnn_networks.npz"


def make_mixed_network() -> Any:
    """Return a network of what only escnn has, and of fields of all kinds."""
    space, modules = make_space("D2"), get_modules()
    colours = modules.FieldType(space, [space.trivial_repr] * 3)
    kinds = [space.irrep(1, 1), space.trivial_repr, space.regular_repr, space.irrep(0, 1), space.trivial_repr]
    quotient = space.quotient_repr((None, 2))
    mixed, pointwise = (modules.FieldType(space, fields) for fields in (kinds, [quotient, space.regular_repr] * 2))
    return modules.SequentialModule(
        modules.R2Conv(colours, mixed, 3, padding=1),
        modules.IIDBatchNorm2d(mixed),
        modules.R2Conv(mixed, pointwise, 5, padding=2, stride=2),
        modules.LeakyReLU(pointwise, 0.2),
        modules.R2Upsampling(pointwise, 2, align_corners=True),
        modules.PointwiseMaxPool(pointwise, 3, 2),
        modules.PointwiseAdaptiveAvgPool(pointwise, 2),
    )


def main() -> None:
    """Write the file."""
    torch.manual_seed(0)
    made: dict[str, tuple[Any, Tensor, dict[str, Tensor]]] = {}
    networks = {"C4": make_sequence("C4"), "irreps": make_network_of_irreps(), "mixed": make_mixed_network()}
    for name, network in networks.items():
        network.train()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.rand_like(parameter) * parameter.requires_grad
        x = torch.randn(2, 3, 13, 13)
        expected = compute(copy_network(network), x, seed=0)
        kept = ("output", "input", "gradient")
        made[name] = (
            network,
            x,
            {key: value for key, value in expected.items() if key.startswith(kept) or "running" in key},
        )
    save(FILE, made)


if __name__ == "__main__":
    main()
