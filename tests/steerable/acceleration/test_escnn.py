"""Networks that escnn 1.0.11 made and computed, as recorded by `record_escnn.py`, are accelerated like those of e2cnn.

escnn itself is no dependency of the tests: it asks for py3nj, which needs a Fortran compiler, and for numpy 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.e2cnn_networks import compute, find_differences, set_harmonic
from helpers.escnn_recording import EquivariantModule, load, stand_in_for_escnn

from galaxyhpc.steerable import accelerate, report, restore

FILE = Path(__file__).parent / "escnn_networks.npz"
NETWORKS = ["C4", "irreps", "mixed"]


@pytest.fixture(autouse=True)
def _escnn() -> Iterator[None]:
    with stand_in_for_escnn():
        yield


@pytest.mark.parametrize("harmonic", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_escnn_computes_what_escnn_computed(name: str, harmonic: bool) -> None:
    network, x, expected = load(FILE, name)
    fast = accelerate(network)
    set_harmonic(fast, harmonic)
    assert "kept" not in report(fast)
    actual = compute(fast, x, seed=0)
    assert expected.keys() <= actual.keys()
    assert not find_differences(expected, actual, 1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_escnn_gets_its_state_back(name: str) -> None:
    network, x, _ = load(FILE, name)
    other = load(FILE, name)[0]
    fast = accelerate(network)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter *= 2
    fast(x)
    restore(fast, other)
    state = other.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in fast.state_dict().items())
    accelerate(load(FILE, name)[0]).load_state_dict(state)  # which holds bases and indices, too


def test_a_type_of_escnn_passes_and_another_one_is_refused() -> None:
    network, x, expected = load(FILE, "mixed")
    fast = accelerate(network)

    class GeometricTensor:
        def __init__(self, tensor: torch.Tensor, field_type: object, coords: object = None) -> None:
            self.tensor, self.type, self.coords = tensor, field_type, coords

    y = fast(GeometricTensor(x, fast.in_type))
    assert y.type is fast.out_type
    torch.testing.assert_close(y.tensor, expected["output"])
    with pytest.raises(ValueError, match="got fields of type"):
        fast(GeometricTensor(x, fast.out_type))


def test_a_module_of_escnn_that_nobody_knows_is_kept() -> None:
    network, _, _ = load(FILE, "mixed")
    unknown = type("FourierPointwise", (EquivariantModule,), {"__module__": "escnn.nn.modules"})()
    network.add_module("7", unknown)
    fast = accelerate(network)
    assert fast.get_submodule("7") is not unknown
    assert "FourierPointwise" in report(fast).splitlines()[-1] and "kept" in report(fast).splitlines()[-1]


def test_a_module_on_maps_of_three_dimensions_is_kept() -> None:
    network, _, _ = load(FILE, "C4")
    network.get_submodule("3").in_type.gspace = type("GSpace3D", (), {"dimensionality": 3})()
    kept = [line.split() for line in report(accelerate(network)).splitlines() if line.endswith("kept")]
    assert kept == [["3", "ReLU", "kept"]]
