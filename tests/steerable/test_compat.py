"""e2cnn works on this numpy with the compatibility module, and would not without it."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import warnings
from collections.abc import Callable

import e2cnn.nn
import numpy as np
import pytest
import sympy
import torch
from e2cnn import gspaces
from e2cnn.diffops.utils import discretize_homogeneous_polynomial
from e2cnn.group import dihedral_group, o2_group
from e2cnn.group.representation import build_from_discrete_group_representation

from galaxyhpc.steerable import groups

GROUPS = ["C1", "C2", "C4", "C8", "C16", "D1", "D2", "D4", "D8", "D16"]


def build_dihedral_convolution() -> None:
    space = gspaces.FlipRot2dOnR2(4)
    field = e2cnn.nn.FieldType(space, [space.regular_repr])
    assert e2cnn.nn.R2Conv(field, field, 3).weights.numel() == 48


def build_convolution_of_one_weight() -> None:
    space = gspaces.Rot2dOnR2(4)
    field = e2cnn.nn.FieldType(space, [space.trivial_repr])
    assert e2cnn.nn.R2Conv(field, field, 1).weights.numel() == 1


def build_convolution_of_scattered_fields() -> None:
    space = gspaces.Rot2dOnR2(4)
    field = e2cnn.nn.FieldType(space, [space.regular_repr, space.trivial_repr, space.regular_repr])
    assert e2cnn.nn.R2Conv(field, field, 3).weights.numel() == 4 * 24 + 4 * 6 + 2


def induce_representation_of_o2() -> None:
    group = o2_group(3)
    rotations = group.subgroup((None, -1))[0]
    assert group.induced_representation((None, -1), rotations.irrep(2)).size == 4


def decompose_representation_of_a_user() -> None:
    group = dihedral_group(6)
    matrices = {element: group.regular_representation(element) for element in group.elements}
    decomposed = build_from_discrete_group_representation(matrices, "mine", group, ["concatenated"])
    assert sorted(decomposed.irreps) == sorted(group.regular_representation.irreps)
    np.testing.assert_allclose(decomposed.change_of_basis @ decomposed.change_of_basis.T, np.eye(12), atol=1e-12)
    for element, matrix in matrices.items():
        np.testing.assert_allclose(decomposed(element), matrix, atol=1e-12)


# what dies on a current numpy and torch without the compatibility module, and the word at fault
BROKEN = {
    build_dihedral_convolution: "copy|tostring",
    build_convolution_of_one_weight: "uint8|unsigned char",
    build_convolution_of_scattered_fields: "uint8|indexing",
    induce_representation_of_o2: "float",
    decompose_representation_of_a_user: "pymanopt",
}


@pytest.fixture(autouse=True)
def compat() -> None:
    """Apply the module in this process; not when the file is imported, which a process without it does."""
    importlib.import_module("galaxyhpc.steerable.compat")


def list_failures() -> None:
    """Print which of BROKEN fail in this process."""
    warnings.simplefilter("error")  # older releases warn of what the newest refuse
    for function in BROKEN:
        try:
            function()
        except Exception as error:
            print(function.__name__, repr(error).replace("\n", " "))


LIST_FAILURES = f"import runpy; runpy.run_path({__file__!r})['list_failures']()"


def python(*lines: str) -> subprocess.CompletedProcess[str]:
    """Run lines in a fresh interpreter where a deprecation is an error."""
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", GROUPS)
def test_every_group_builds_in_e2cnn_and_its_convolution_is_equivariant(name: str) -> None:
    space = groups.make_gspace(name)
    colours = e2cnn.nn.FieldType(space, [space.trivial_repr] * 3)
    field = e2cnn.nn.FieldType(space, [space.regular_repr] * 2)
    first, second = e2cnn.nn.R2Conv(colours, field, 3, padding=1), e2cnn.nn.R2Conv(field, field, 3, padding=1)
    images = torch.randn(2, 3, 9, 9)
    output = second(first(e2cnn.nn.GeometricTensor(images, colours))).tensor.view(2, 2, -1, 81)
    scale = output.abs().max()
    for element in groups.get_grid_elements(name):
        transformed = second(first(e2cnn.nn.GeometricTensor(element(images), colours))).tensor
        expected = element(output.view(2, -1, 9, 9)).reshape(output.shape)
        distances = (transformed.view(output.shape)[:, :, :, None] - expected[:, :, None]).abs().amax((0, 1, 4))
        # each channel of the turned image's field is one of the field's channels, turned
        assert sorted(distances.argmin(1).tolist()) == list(range(space.regular_repr.size))
        assert distances.amin(1).max() < 1e-5 * scale


def test_e2cnn_still_needs_each_part_of_the_compatibility_module() -> None:
    """Delete the part of galaxyhpc/steerable/compat.py that this no longer names."""
    process = python(LIST_FAILURES)
    assert process.returncode == 0, process.stderr
    failures = dict(line.split(" ", 1) for line in process.stdout.splitlines())
    assert failures.keys() == {function.__name__ for function in BROKEN}
    for function, cause in BROKEN.items():
        assert re.search(cause, failures[function.__name__])


@pytest.mark.parametrize("function", BROKEN, ids=lambda function: function.__name__)
def test_with_the_compatibility_module_it_works(function: Callable[[], None]) -> None:
    function()


@pytest.mark.parametrize("name", ["C8", "D4"])
def test_partial_differential_operators_are_equivariant_under_quarter_turns(name: str) -> None:
    space = groups.make_gspace(name)
    field = e2cnn.nn.FieldType(space, [space.regular_repr])
    layer = e2cnn.nn.R2Diffop(e2cnn.nn.FieldType(space, [space.trivial_repr]), field, 3, padding=1).eval()
    image = torch.randn(1, 1, 9, 9)
    with torch.no_grad():
        output, turned = (layer(e2cnn.nn.GeometricTensor(x, layer.in_type)) for x in (image, image.rot90(1, (2, 3))))
    quarter = (0, int(name[1:]) // 4) if name[0] == "D" else int(name[1:]) // 4
    torch.testing.assert_close(turned.tensor, output.transform(quarter).tensor, atol=1e-5, rtol=1e-5)


def test_the_compatibility_module_can_be_applied_twice_and_leaves_numpy_alone() -> None:
    twice = python(
        "import importlib, numpy",
        "before = dict(vars(numpy))",
        "import galaxyhpc.steerable.compat",
        "importlib.reload(galaxyhpc.steerable.compat)",
        LIST_FAILURES,
        "assert numpy.array is before['array']",
    )
    assert twice.returncode == 0, twice.stderr
    assert twice.stdout == ""


def test_a_representation_of_two_trivial_ones_is_decomposed() -> None:
    """e2cnn's sparse solver refuses it: every matrix is an intertwiner."""
    group = dihedral_group(8)
    matrices = {element: np.eye(2) for element in group.elements}
    decomposed = build_from_discrete_group_representation(matrices, "two", group, ["concatenated"])
    assert decomposed.irreps == ["irrep_0,0"] * 2


def test_matrices_that_are_not_orthogonal_are_refused() -> None:
    group = dihedral_group(2)
    shear = np.array([[1.0, 2.0], [0.0, 1.0]])
    matrices = {e: shear @ np.diag([1.0, group.irrep(1, 0)(e).item()]) @ np.linalg.inv(shear) for e in group.elements}
    with pytest.raises(ValueError, match="got matrices that are not orthogonal"):
        build_from_discrete_group_representation(matrices, "sheared", group, ["concatenated"])


def test_derivatives_of_a_gaussian_need_no_package() -> None:
    """Against sympy, at the centre and off it, for e2cnn's filters of `method="gauss"`."""
    x, y = sympy.symbols("x y")
    points = np.array([[0.0, 1.0, -2.0], [0.0, 0.5, 1.0]])
    gaussian = sympy.exp(-((x**2 + y**2) / 4))  # e2cnn's width: 1 / smoothing^2 of the package RBF, here 1 / 2
    expected = sympy.lambdify((x, y), 3 * gaussian.diff(x, 2) - gaussian.diff(y, 2))(*points)
    coefficients = np.array([3.0, 0.0, -1.0])
    filters = discretize_homogeneous_polynomial(points, coefficients, smoothing=2**0.5, method="gauss")
    np.testing.assert_allclose(filters, expected, atol=1e-14)


def test_rbf_differences_name_the_package_they_need() -> None:
    with pytest.raises(RuntimeError, match=r"got no package rbf; expected .* installed"):
        discretize_homogeneous_polynomial(np.zeros((2, 1)), np.ones(1), method="rbffd")


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="this numpy needs no stand-in")
def test_the_stand_in_copies_when_asked_to_and_only_then() -> None:
    stand_in = sys.modules["e2cnn.kernels.utils"].np
    values = np.arange(3.0)
    assert stand_in.array(values, copy=False) is values
    assert stand_in.array([1.0], copy=False).tolist() == [1.0]
    assert not np.shares_memory(stand_in.array(values), values)
    assert stand_in.cos is np.cos
