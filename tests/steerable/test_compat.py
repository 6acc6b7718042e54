"""e2cnn works on this numpy with the compatibility module, and would not without it."""

from __future__ import annotations

import subprocess
import sys

import e2cnn.nn
import numpy as np
import pytest
import torch

from galaxyhpc.steerable import groups

GROUPS = ["C1", "C2", "C4", "C8", "C16", "D1", "D2", "D4", "D8", "D16"]

BUILD_DIHEDRAL = """
import warnings
warnings.simplefilter("ignore", UserWarning)  # torch on e2cnn's byte masks; what numpy withdraws stays an error
import e2cnn.nn
from e2cnn import gspaces
space = gspaces.FlipRot2dOnR2(4)
field = e2cnn.nn.FieldType(space, [space.regular_repr])
e2cnn.nn.R2Conv(field, field, 3)

"""


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


def test_e2cnn_still_needs_the_compatibility_module() -> None:
    """The day this fails, delete galaxyhpc/steerable/compat.py."""
    process = python(BUILD_DIHEDRAL)
    assert process.returncode != 0
    assert "copy" in process.stderr or "tostring" in process.stderr


def test_the_compatibility_module_can_be_applied_twice_and_leaves_numpy_alone() -> None:
    twice = python(
        "import importlib, numpy",
        "before = dict(vars(numpy))",
        "import galaxyhpc.steerable.compat",
        "importlib.reload(galaxyhpc.steerable.compat)",
        BUILD_DIHEDRAL,
        "assert numpy.array is before['array']",
    )
    assert twice.returncode == 0, twice.stderr


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="this numpy needs no stand-in")
def test_the_stand_in_copies_when_asked_to_and_only_then() -> None:
    stand_in = sys.modules["e2cnn.kernels.utils"].np
    values = np.arange(3.0)
    assert stand_in.array(values, copy=False) is values
    assert not np.shares_memory(stand_in.array(values), values)
    assert stand_in.cos is np.cos
