"""Groups act on pixels as in e2cnn, and a basis is e2cnn's and read-only."""

from __future__ import annotations

import e2cnn.nn
import numpy as np
import pytest
import torch

from galaxyhpc.steerable import groups

GROUPS = ["C1", "C2", "C3", "C4", "C6", "C8", "C16", "D1", "D2", "D3", "D4", "D6", "D8", "D16"]


@pytest.mark.parametrize(("name", "elements"), [("C1", 1), ("C8", 8), ("C16", 16), ("D1", 2), ("D2", 4), ("D16", 32)])
def test_the_order_counts_rotations_and_reflections(name: str, elements: int) -> None:
    assert groups.group_order(name) == elements == groups.make_gspace(name).fibergroup.order()


@pytest.mark.parametrize(
    ("name", "exact"),
    [("C1", 1), ("C2", 2), ("C3", 1), ("C4", 4), ("C6", 2), ("C16", 4), ("D1", 2), ("D2", 4), ("D3", 2), ("D8", 8)],
)
def test_the_exact_elements_are_those_that_move_pixels_onto_pixels(name: str, exact: int) -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    moved = {tuple(element(image).flatten().tolist()) for element in groups.get_grid_elements(name)}
    assert len(groups.get_grid_elements(name)) == len(moved) == exact


@pytest.mark.parametrize("name", GROUPS)
def test_the_exact_elements_move_an_image_as_e2cnn_moves_it(name: str) -> None:
    space = groups.make_gspace(name)
    kind = e2cnn.nn.FieldType(space, [space.trivial_repr])
    image = torch.rand(1, 1, 7, 7)
    field = e2cnn.nn.GeometricTensor(image, kind)
    by_e2cnn = [field.transform(g).tensor for g in space.testing_elements]
    for element in groups.get_grid_elements(name):
        assert any(torch.allclose(element(image), other, atol=1e-4) for other in by_e2cnn)


def test_an_image_is_turned_counter_clockwise_after_it_is_mirrored() -> None:
    image = torch.tensor([[1, 2], [3, 4]])
    assert groups.GridElement(False, 1)(image).tolist() == [[2, 4], [1, 3]]
    assert groups.GridElement(True, 0)(image).tolist() == [[2, 1], [4, 3]]
    assert groups.GridElement(True, 1)(image).tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(("name", "count"), [("C1", 6), ("C4", 24), ("C8", 48), ("D1", 12), ("D4", 48), ("D16", 192)])
def test_a_field_pair_has_as_many_weights_as_the_group_has_in_e2cnn(name: str, count: int) -> None:
    sampled = groups.get_basis(name, 3)
    size = groups.group_order(name)
    assert sampled.filters.shape == (count, size, size, 3, 3)
    assert groups.get_basis(name, 3, "trivial").filters.shape[1:] == (size, 1, 3, 3)
    assert sampled.filters.dtype == sampled.std.dtype == np.float32


def test_a_basis_is_sampled_once_and_cannot_be_changed() -> None:
    sampled = groups.get_basis("D4", 3)
    assert groups.get_basis("D4", 3) is sampled
    with pytest.raises(ValueError, match="read-only"):
        sampled.filters[0] = 0.0


def test_a_basis_asked_for_while_building_without_memory_is_real() -> None:
    with torch.device("meta"):
        sampled = groups.get_basis("C3", 5, "trivial")
    assert np.isfinite(sampled.filters).all() and np.abs(sampled.filters).max() > 0.1


@pytest.mark.parametrize("name", ["C0", "E4", "c4", "D", "C4 ", ""])
def test_an_unknown_group_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected C1.*D1"):
        groups.group_order(name)
